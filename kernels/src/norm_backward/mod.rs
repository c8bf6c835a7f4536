//! The gradients of `y = x̂ · weight (+ bias)`, x̂ = (x − μ) · s, s = 1 / √(Σ (x − μ)² / K + eps), μ the row's mean
//! or, for the RMS norm, 0: `dx = s · (g − mean g − x̂ · mean (g · x̂))` with g = dy · weight (RMS: without mean g),
//! `dweight = Σ_m dy · x̂`, `dbias = Σ_m dy`.
//! x, dy (M, K) · weight (K) → dx (M, K), dweight (K), dbias (K); f32 or f64, row-major.
//! Error: |dx − f64 result| ≤ (K / 16 + 32) · 2⁻²⁴ · s · (|g| + mean |g| + |x̂| · mean |g · x̂|), and |dweight − f64 result|
//! ≤ (M + K / 16 + 32) · 2⁻²⁴ · Σ |dy| · (|x̂| + s · mean |x|).
//! Sums over rows run in blocks of [`ROWS`] that are added in order: threads do not change them. The f64
//! instance is the scalar oracle. Source: Zhang and Sennrich 2019 (arXiv 1910.07467), §3; Ba et al. 2016 (arXiv 1607.06450).

use crate::real::{Real, sum_of, wide};
use crate::rows::{over_parts, over_rows};
use crate::{Cost, Cpu, Isa};

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Divides by the root of the mean square.
    Rms,
    /// Subtracts the mean first.
    Layer,
}

/// What the norm was called with.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a, T> {
    /// Which norm.
    pub norm: Norm,
    /// `(M, K)`.
    pub x: &'a [T],
    /// `(K)`.
    pub weight: &'a [T],
    /// Keeps the root from zero.
    pub eps: T,
}

/// Where the gradients go.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// `(M, K)`.
    pub dx: &'a mut [T],
    /// `(K)`.
    pub dweight: &'a mut [T],
    /// `(K)`; `None` where there is no bias.
    pub dbias: Option<&'a mut [T]>,
}

/// Rows whose share of dweight is summed before it is added to the others'.
pub const ROWS: usize = 64;

/// (M, K) of tests and benches.
pub const SHAPES: &[(usize, usize)] = &[(1, 1), (3, 7), (2, 16), (65, 31), (130, 64), (300, 256)];

/// The norm itself, in one thread: its f64 instance is the oracle of `norm`.
pub fn forward<T: Real>(call: &Call<'_, T>, bias: Option<&[T]>, y: &mut [T]) {
    let k = call.weight.len();
    for (x, y) in call.x.chunks_exact(k).zip(y.chunks_exact_mut(k)) {
        let (mean, scale) = statistics(call, x);
        for (i, y) in y.iter_mut().enumerate() {
            let bias = bias.map_or(T::default(), |bias| bias[i]);
            *y = (x[i] - mean) * scale * call.weight[i] + bias;
        }
    }
}

/// The gradients for the upstream gradient `dy`.
pub fn backward<T: Real>(cpu: &Cpu, call: &Call<'_, T>, dy: &[T], to: Gradients<'_, T>) {
    let k = call.weight.len();
    let x = call.x;
    assert!(k > 0 && x.len().is_multiple_of(k), "norm_backward: x must hold whole rows of K = {k}");
    assert!(
        dy.len() == x.len() && to.dx.len() == x.len() && to.dweight.len() == k,
        "norm_backward: dy and dx must be as long as x, dweight as weight"
    );
    let isa = cpu.isa();
    over_rows(cpu, to.dx, k, |first, dx| {
        let (x, dy) = (&x[first * k..][..dx.len()], &dy[first * k..][..dx.len()]);
        wide(isa, || {
            for ((x, dy), dx) in
                x.chunks_exact(k).zip(dy.chunks_exact(k)).zip(dx.chunks_exact_mut(k))
            {
                input_row(call, x, dy, dx);
            }
        });
    });
    let mut partial = vec![T::default(); x.len().div_ceil(ROWS * k).max(1) * 2 * k];
    let blocks: Vec<&mut [T]> = partial.chunks_exact_mut(2 * k).collect();
    over_parts(cpu, blocks, |i, sums| {
        let range = i * ROWS * k..x.len().min((i + 1) * ROWS * k);
        wide(isa, || weight_block(call, &x[range.clone()], &dy[range], sums));
    });
    to.dweight.fill(T::default());
    partial.chunks_exact(2 * k).for_each(|sums| add(to.dweight, &sums[..k]));
    if let Some(dbias) = to.dbias {
        dbias.fill(T::default());
        partial.chunks_exact(2 * k).for_each(|sums| add(dbias, &sums[k..]));
    }
}

/// What one call over `m` rows of `k` moves and computes.
pub fn cost(m: usize, k: usize) -> Cost {
    Cost { bytes: 4 * (5 * m * k + 2 * k) as u64, flops: 14 * (m * k) as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> String {
    format!("any-norm-backward-f32-{}", isa.name())
}

/// The mean that is subtracted and the scale of a row.
#[inline(always)]
fn statistics<T: Real>(call: &Call<'_, T>, x: &[T]) -> (T, T) {
    let count = T::of(x.len() as f64);
    let mean = match call.norm {
        Norm::Rms => T::default(),
        Norm::Layer => sum_of(x.len(), |i| x[i]) / count,
    };
    let square = sum_of(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / count;
    (mean, T::of(1.0) / (square + call.eps).sqrt())
}

#[inline(always)]
fn input_row<T: Real>(call: &Call<'_, T>, x: &[T], dy: &[T], dx: &mut [T]) {
    let weight = call.weight;
    let (x, dy) = (&x[..weight.len()], &dy[..weight.len()]);
    let (mean, scale) = statistics(call, x);
    let count = T::of(x.len() as f64);
    let along = sum_of(x.len(), |i| dy[i] * weight[i] * ((x[i] - mean) * scale)) / count;
    let shift = match call.norm {
        Norm::Rms => T::default(),
        Norm::Layer => sum_of(x.len(), |i| dy[i] * weight[i]) / count,
    };
    for (i, dx) in dx.iter_mut().enumerate() {
        *dx = scale * ((dy[i] * weight[i] - shift) - (x[i] - mean) * scale * along);
    }
}

/// dweight, then dbias, of some rows.
#[inline(always)]
fn weight_block<T: Real>(call: &Call<'_, T>, x: &[T], dy: &[T], sums: &mut [T]) {
    let k = call.weight.len();
    let (dweight, dbias) = sums.split_at_mut(k);
    for (x, dy) in x.chunks_exact(k).zip(dy.chunks_exact(k)) {
        let (mean, scale) = statistics(call, x);
        for (i, sum) in dweight.iter_mut().enumerate() {
            *sum += dy[i] * ((x[i] - mean) * scale);
        }
        add(dbias, dy);
    }
}

#[inline(always)]
fn add<T: Real>(to: &mut [T], from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    struct Case {
        norm: Norm,
        x: Vec<f64>,
        weight: Vec<f64>,
        dy: Vec<f64>,
    }

    fn gradients<T: Real>(cpu: &Cpu, call: &Call<'_, T>, dy: &[T]) -> [Vec<T>; 3] {
        let nan = T::of(f64::NAN);
        let mut dx = vec![nan; call.x.len()];
        let (mut dweight, mut dbias) = (vec![nan; call.weight.len()], vec![nan; call.weight.len()]);
        let to = Gradients { dx: &mut dx, dweight: &mut dweight, dbias: Some(&mut dbias) };
        backward(cpu, call, dy, to);
        [dx, dweight, dbias]
    }

    /// The scalar `Σ y · dy`, whose gradients the backward pass computes.
    fn objective(case: &Case, bias: &[f64]) -> f64 {
        let mut y = vec![f64::NAN; case.x.len()];
        let call = Call { norm: case.norm, x: &case.x, weight: &case.weight, eps: 1e-5 };
        forward(&call, Some(bias), &mut y);
        y.iter().zip(&case.dy).map(|(y, dy)| y * dy).sum()
    }

    #[test]
    fn the_f64_gradients_are_the_central_differences() {
        let mut sample = Sample(21);
        for norm in [Norm::Rms, Norm::Layer] {
            let mut vec = |len| sample.vec(len, 1.0).into_iter().map(f64::from).collect();
            let mut case = Case { norm, x: vec(5 * 7), weight: vec(7), dy: vec(5 * 7) };
            let mut bias = vec![0.25; 7];
            let call = Call { norm, x: &case.x, weight: &case.weight, eps: 1e-5 };
            let got = gradients(&Cpu::new(Some(1)), &call, &case.dy);
            for (which, i) in
                got.iter().enumerate().flat_map(|(w, g)| (0..g.len()).map(move |i| (w, i)))
            {
                let mut at = |h: f64| {
                    let place =
                        [&mut case.x[..], &mut case.weight, &mut bias].into_iter().nth(which);
                    place.expect("three of them")[i] += h;
                    objective(&case, &bias)
                };
                let slope = (at(1e-5) - at(-2e-5)) / 2e-5;
                at(1e-5);
                let got = got[which][i];
                assert!((got - slope).abs() < 1e-7, "{norm:?} {which} [{i}] {got} {slope}");
            }
        }
    }

    #[test]
    fn f32_matches_f64_and_threads_and_isas_give_the_same_bits() {
        let mut sample = Sample(22);
        for &(m, k) in SHAPES {
            for norm in [Norm::Rms, Norm::Layer] {
                let (x, weight, dy) =
                    (sample.vec(m * k, 1.0), sample.vec(k, 2.0), sample.vec(m * k, 1.0));
                let widen = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
                let (wx, ww, wdy) = (widen(&x), widen(&weight), widen(&dy));
                let eps = 1e-5;
                let wide = Call { norm, x: &wx, weight: &ww, eps: f64::from(eps) };
                let exact = gradients(&Cpu::new(Some(1)), &wide, &wdy);
                let call = Call { norm, x: &x, weight: &weight, eps };
                let mut first = None;
                let ways = Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]);
                for (isa, threads) in ways {
                    let got = gradients(&Cpu::with_isa(isa, Some(threads)), &call, &dy);
                    let first = first.get_or_insert_with(|| got.clone());
                    assert_eq!(*first, got, "{} with {threads} threads", isa.name());
                }
                let first = first.expect("a scalar run");
                check(&first, &exact, &wide, &wdy);
            }
        }
    }

    fn check(got: &[Vec<f32>; 3], exact: &[Vec<f64>; 3], call: &Call<'_, f64>, dy: &[f64]) {
        let k = call.weight.len();
        let m = dy.len() / k;
        let mut columns = vec![0.0; k];
        for (row, x) in call.x.chunks_exact(k).enumerate() {
            let (mean, scale) = statistics(call, x);
            let hat = |i: usize| ((x[i] - mean) * scale).abs();
            let g = |i: usize| (dy[row * k + i] * call.weight[i]).abs();
            let size = x.iter().map(|x| x.abs()).sum::<f64>() / k as f64 * scale;
            let mean_g = (0..k).map(g).sum::<f64>() / k as f64;
            let along = (0..k).map(|i| g(i) * (hat(i) + size)).sum::<f64>() / k as f64;
            for i in 0..k {
                let amount = scale * (g(i) + mean_g + (hat(i) + size) * along);
                let bound = (k as f64 / 16.0 + 32.0) * 2f64.powi(-24) * amount;
                let error = (f64::from(got[0][row * k + i]) - exact[0][row * k + i]).abs();
                assert!(error <= bound, "dx[{row}, {i}] of {m} × {k}: {error} > {bound}");
                columns[i] += dy[row * k + i].abs() * (hat(i) + size);
            }
        }
        let steps = (m as f64 + k as f64 / 16.0 + 32.0) * 2f64.powi(-24);
        for i in 0..k {
            let error = (f64::from(got[1][i]) - exact[1][i]).abs();
            assert!(error <= steps * columns[i], "dweight[{i}] of {m} × {k}: {error}");
            let all: f64 = dy.iter().skip(i).step_by(k).map(|dy| dy.abs()).sum();
            assert!((f64::from(got[2][i]) - exact[2][i]).abs() <= steps * all, "dbias[{i}]");
        }
    }
}
