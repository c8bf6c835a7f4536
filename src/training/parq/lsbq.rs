//! Least-square binary quantization: `w ≈ Σ ± v[i]`. Source: Pouransari, Tu and Tuzel 2020 (arXiv 2001.02786).

use super::quantizer::mean_abs;
use crate::error::{Error, Result};
use crate::quantization::primitives::torch_mean;

type Found = (Vec<f32>, Vec<f32>);

/// +1 for 0.
fn sign(x: f32) -> f32 {
    if x < 0.0 { -1.0 } else { 1.0 }
}

/// Each v is the mean of what the ones before it left over.
pub(super) fn greedy(p: &[f32], bits: u32) -> Found {
    let mut rest = p.to_vec();
    let mut all = Vec::new();
    for _ in 0..bits {
        let v = mean_abs(&rest);
        rest.iter_mut().for_each(|r| *r -= v * sign(*r));
        all.push(v);
    }
    let mut grid: Vec<f32> = (0..1_u32 << bits)
        .map(|code| {
            let term = |(i, v): (usize, &f32)| if code >> i & 1 == 1 { *v } else { -v };
            all.iter().enumerate().map(term).sum()
        })
        .collect();
    grid.sort_by(f32::total_cmp);
    (p.iter().zip(&rest).map(|(p, r)| p - r).collect(), grid)
}

/// −v, 0 and v, with bounds at ± v / 2.
pub(super) fn ternary(p: &[f32], v: f32) -> Found {
    let grid = vec![-v, 0.0 * v, v];
    let (low, high) = (v * -0.5, v * 0.5);
    let nearest = |x: &f32| match *x {
        x if x <= low => grid[0],
        x if x <= high => grid[1],
        _ => grid[2],
    };
    (p.iter().map(nearest).collect(), grid)
}

/// |p| in ascending order, and the sums of its beginnings.
struct Sorted {
    sizes: Vec<f32>,
    sums: Vec<f32>,
}

impl Sorted {
    #[expect(clippy::cast_possible_truncation, reason = "torch sums in f64 and keeps f32")]
    fn of(p: &[f32]) -> Sorted {
        let mut sizes: Vec<f32> = p.iter().map(|x| x.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        let mut sum = 0.0_f64;
        let sums = sizes.iter().map(|x| {
            sum += f64::from(*x);
            sum as f32
        });
        Sorted { sums: sums.collect(), sizes }
    }

    /// The means of the sizes up to the i-th, and of those above.
    #[expect(clippy::cast_precision_loss, reason = "as torch divides by it")]
    fn means(&self, i: usize) -> (f32, f32) {
        let n = self.sizes.len();
        let total = self.sums[n - 1];
        (self.sums[i] / (i + 1) as f32, (total - self.sums[i]) / (n - i - 1) as f32)
    }

    #[expect(clippy::cast_precision_loss, reason = "as torch divides by it")]
    fn half_mean(&self) -> f32 {
        let n = self.sizes.len();
        self.sums[n - 1] / n as f32 / 2.0
    }

    /// Whether v lies between the i-th size and the next.
    fn holds(&self, i: usize, v: f32) -> bool {
        v >= self.sizes[i] && v < self.sizes[i + 1]
    }
}

fn norm(x: impl Iterator<Item = f32>) -> f64 {
    x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// ±v₁ ± v₂ with the least error of all solutions of the condition on v₁.
pub(super) fn optimal_two_bits(p: &[f32]) -> Result<Found> {
    let sorted = Sorted::of(p);
    let mut candidates = Vec::new();
    let v = sorted.half_mean();
    if v < sorted.sizes[0] {
        candidates.push((v, v));
    }
    for i in 0..p.len() - 1 {
        let (below, above) = sorted.means(i);
        let v1 = f32::midpoint(above, below);
        if above >= below && sorted.holds(i, v1) {
            candidates.push((v1, (above - below) / 2.0));
        }
    }
    let rest = |p: f32, (v1, v2): (f32, f32)| {
        let r = p - v1 * sign(p);
        r - v2 * sign(r)
    };
    let best = least(p, candidates, rest)?;
    let (v1, v2) = best;
    let values = p.iter().map(|p| p - rest(*p, best)).collect();
    Ok((values, vec![-v1 - v2, -v1 + v2, v1 - v2, v1 + v2]))
}

/// −v, 0 and v with the least error of all solutions of the condition on v.
pub(super) fn optimal_ternary(p: &[f32]) -> Result<Found> {
    let sorted = Sorted::of(p);
    let mut candidates = Vec::new();
    let v = sorted.half_mean();
    if v < sorted.sizes[0] {
        candidates.push(v);
    }
    for i in 0..p.len() - 1 {
        let v = sorted.means(i).1 / 2.0;
        if sorted.holds(i, v) {
            candidates.push(v);
        }
    }
    let best = least(p, candidates, |x, v| {
        let nearest = if x.abs() > v * 0.5 { v.copysign(x) } else { 0.0 };
        x - nearest
    })?;
    Ok(ternary(p, best))
}

/// ±v₁ ± v₂ for each row of `k`, v₁ as torchao's `compute_v_per_channel` finds it: one of the row's own sizes.
pub(super) fn two_bits_per_row(p: &[f32], k: usize) -> Result<Found> {
    let (mut values, mut grid) = (Vec::with_capacity(p.len()), Vec::new());
    for (row, v1) in p.chunks_exact(k).zip(per_row(p, k, false)?) {
        let rest: Vec<f32> = row.iter().map(|p| p - v1 * sign(*p)).collect();
        let v2 = mean_abs(&rest);
        values.extend(row.iter().zip(&rest).map(|(p, r)| v1 * sign(*p) + v2 * sign(*r)));
        grid.extend([-v1 - v2, -v1 + v2, v1 - v2, v1 + v2]);
    }
    Ok((values, grid))
}

/// −2v, 0 and 2v for each row of `k`.
pub(super) fn ternary_per_row(p: &[f32], k: usize) -> Result<Found> {
    let (mut values, mut grid) = (Vec::with_capacity(p.len()), Vec::new());
    for (row, v) in p.chunks_exact(k).zip(per_row(p, k, true)?) {
        values.extend(row.iter().map(|p| (sign(*p) + sign(p - sign(*p) * v)) * v));
        grid.extend([-(2.0 * v), 0.0, 2.0 * v]);
    }
    Ok((values, grid))
}

/// The v of each row: among its sizes, those that lie just below half the mean of the sizes above them (or, of two bits, below
/// half of both means); of these the one that leaves the least over when it is taken away twice. torchao takes v
/// away twice where two bits would take v₂ the second time, and so does this.
fn per_row(p: &[f32], k: usize, ternary: bool) -> Result<Vec<f32>> {
    if k < 3 {
        return Err(Error::invalid(format!(
            "rows of {k} numbers are too short for optimal least-square values; wanted 3 or more"
        )));
    }
    let rows = p.chunks_exact(k).map(|row| candidates(row, ternary));
    let mut rows: Vec<Vec<f32>> = rows.collect();
    // torch pads the candidates of all rows to the most there are, with 0.
    let most = rows.iter().map(Vec::len).max().unwrap_or(0);
    rows.iter_mut().filter(|row| row.len() < most).for_each(|row| row.push(0.0));
    let twice = |p: f32, v: f32| {
        let r = p - v * sign(p);
        r - v * sign(r)
    };
    let best = |(row, found): (&[f32], Vec<f32>)| {
        let errors = found.iter().map(|v| norm(row.iter().map(|p| twice(*p, *v))));
        let least = errors.zip(&found).reduce(|a, b| if b.0 < a.0 { b } else { a });
        least.map(|(_, v)| *v)
    };
    let found: Option<Vec<f32>> = p.chunks_exact(k).zip(rows).map(best).collect();
    found.ok_or_else(|| Error::invalid("least-square binary quantization found no solution"))
}

#[expect(clippy::cast_precision_loss, reason = "as torch divides by it")]
fn candidates(row: &[f32], ternary: bool) -> Vec<f32> {
    let Sorted { sizes, sums } = Sorted::of(row);
    let (k, total) = (row.len(), sums[row.len() - 1]);
    let within = |i: usize, v: f32| sizes[i] <= v && sizes[i + 1] >= v;
    let mut found = Vec::new();
    for i in 1..k - 1 {
        let above = (total - sums[i]) / (2 * (k - 1 - i)) as f32;
        let both = sums[i] / (2 * (i + 1)) as f32 + above;
        if within(i, above) || (!ternary && within(i, both)) {
            found.push(sizes[i]);
        }
    }
    let half_mean = torch_mean(row) / 2.0;
    if ternary && row.iter().all(|p| half_mean < *p) {
        found.push(half_mean);
    }
    found
}

/// The candidate that leaves the least over.
fn least<V: Copy>(p: &[f32], candidates: Vec<V>, rest: impl Fn(f32, V) -> f32) -> Result<V> {
    let mut best = None;
    let mut least = norm(p.iter().copied());
    for v in candidates {
        let error = norm(p.iter().map(|p| rest(*p, v)));
        if error < least || best.is_none() {
            (best, least) = (Some(v), error);
        }
    }
    best.ok_or_else(|| Error::invalid("least-square binary quantization found no solution"))
}
