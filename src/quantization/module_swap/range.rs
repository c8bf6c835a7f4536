//! The grid of a weight's groups, and shrinking it row by row.

use crate::kernels::{Cpu, Shape, dense_linear};
use crate::quantization::calibration::Hessian;

/// The least scale.
const EPS: f32 = 1e-9;

/// Scales and offsets of the groups of a weight `(N, K)`.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    scales: Vec<f32>,
    offsets: Vec<f32>,
    k: usize,
    group_size: usize,
    bounds: (f32, f32),
}

impl Grid {
    /// From the extremes of each group.
    pub(super) fn of(
        w: &[f32],
        k: usize,
        group_size: usize,
        (bits, symmetric): (u32, bool),
    ) -> Grid {
        let half = f32::from(1_u16 << (bits - 1));
        let bounds = if symmetric { (-half, half - 1.0) } else { (0.0, 2.0 * half - 1.0) };
        let groups = w.chunks_exact(group_size.max(1));
        let (mut scales, mut offsets) = (Vec::new(), Vec::new());
        for group in groups {
            let (min, max) = extremes(group);
            if symmetric {
                let (low, high) = (min / bounds.0, max / bounds.1);
                scales.push(at_least(if low > high { low } else { high }));
                offsets.push(0.0);
                continue;
            }
            let scale = (max - min) / bounds.1;
            // A group of one number, which has no range, divides by zero in torchao; its offset is then a bound, too.
            let offset = clamp((-min / at_least(scale)).round_ties_even(), bounds);
            scales.push(at_least(scale));
            offsets.push(offset);
        }
        Grid { scales, offsets, k, group_size, bounds }
    }

    pub(super) fn scales(&self) -> &[f32] {
        &self.scales
    }

    #[expect(clippy::cast_possible_truncation, reason = "codes of 8 bits less half their range")]
    pub(super) fn offsets_from_the_middle(&self) -> Vec<i8> {
        let middle = f32::midpoint(self.bounds.1, 1.0);
        self.offsets.iter().map(|offset| (offset - middle) as i8).collect()
    }

    /// Codes as they are stored, from 0 on.
    #[expect(clippy::cast_possible_truncation, reason = "codes of 8 bits")]
    #[expect(clippy::cast_sign_loss, reason = "counted from the least one; NaN becomes 0")]
    pub(super) fn codes(&self, w: &[f32]) -> Vec<u8> {
        let code = |(at, w): (usize, &f32)| {
            let group = at / self.group_size;
            (self.code(*w, self.scales[group], self.offsets[group]) - self.bounds.0) as u8
        };
        w.iter().enumerate().map(code).collect()
    }

    fn code(&self, w: f32, scale: f32, offset: f32) -> f32 {
        clamp((w / scale).round_ties_even() + offset, self.bounds)
    }

    /// `ŵ − w` of a row whose scales are multiplied with `factor`.
    fn errors(&self, row: usize, w: &[f32], factor: f32, out: &mut [f32]) {
        let groups = self.k / self.group_size;
        for (at, (out, w)) in out.iter_mut().zip(w).enumerate() {
            let group = row * groups + at / self.group_size;
            let (scale, offset) = (self.scales[group] * factor, self.offsets[group]);
            *out = (self.code(*w, scale, offset) - offset) * scale - w;
        }
    }

    /// Multiplies the scales of each row with the factor whose loss is least; 1 where none is better.
    fn shrink(&mut self, factors: &[f32]) {
        let groups = self.k / self.group_size;
        for (scales, factor) in self.scales.chunks_exact_mut(groups.max(1)).zip(factors) {
            scales.iter_mut().for_each(|scale| *scale *= factor);
        }
    }

    /// By `Σ |ŵ − w|^norm` of each row.
    pub(super) fn shrink_by_weights(&mut self, cpu: &Cpu, w: &[f32], norm: f32, points: u32) {
        let factors = factors(points);
        let mut best = vec![1.0_f32; w.len().checked_div(self.k).unwrap_or(0)];
        let share = cpu.threads().share(best.len(), 1).max(1);
        cpu.threads().chunks_mut(&mut best, share, |part, best| {
            let mut errors = vec![0.0; self.k];
            for (i, best) in best.iter_mut().enumerate() {
                let row = part * share + i;
                let w = &w[row * self.k..][..self.k];
                let mut loss = |factor: f32| {
                    self.errors(row, w, factor, &mut errors);
                    let power = |e: &f32| match norm {
                        2.0 => f64::from(*e) * f64::from(*e),
                        norm => f64::from(e.abs()).powf(f64::from(norm)),
                    };
                    errors.iter().map(power).sum::<f64>()
                };
                *best = least(&factors, &mut loss);
            }
        });
        self.shrink(&best);
    }

    /// By `dᵀ · H · d` of each row's error d.
    pub(super) fn shrink_by_outputs(
        &mut self,
        cpu: &Cpu,
        w: &[f32],
        hessian: &Hessian,
        points: u32,
    ) {
        let (factors, k) = (factors(points), self.k);
        let shape = Shape { m: factors.len() + 1, n: k, k };
        let mut errors = vec![0.0; shape.m * k];
        let mut moved = vec![0.0; shape.m * k];
        let mut best = Vec::new();
        for (row, w) in w.chunks_exact(k.max(1)).enumerate() {
            let all = std::iter::once(&1.0).chain(&factors);
            for (errors, factor) in errors.chunks_exact_mut(k).zip(all) {
                self.errors(row, w, *factor, errors);
            }
            // (factors, k) · (k, k), H being symmetric
            dense_linear::f32(cpu, hessian.values(), &errors, &mut moved, shape);
            let dot = |i: usize| -> f64 {
                let pairs = errors[i * k..][..k].iter().zip(&moved[i * k..][..k]);
                pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let mut at = 0;
            best.push(least(&factors, &mut |_| {
                at += 1;
                dot(at - 1)
            }));
        }
        self.shrink(&best);
    }
}

/// `i / points` for i = 1 … points − 2, as torch's linspace has them: from either end, the upper half in one rounding.
fn factors(points: u32) -> Vec<f32> {
    #[expect(clippy::cast_precision_loss, reason = "at most ten thousand points")]
    let float = |i: u32| i as f32;
    let step = 1.0 / float(points);
    (1..points.saturating_sub(1))
        .map(|i| match i < points.div_ceil(2) {
            true => float(i) * step,
            false => (-float(points - i)).mul_add(step, 1.0),
        })
        .collect()
}

/// The factor whose loss is below that of 1 and of all factors before it. `loss` is asked for 1 first, then in order.
fn least(factors: &[f32], loss: &mut dyn FnMut(f32) -> f64) -> f32 {
    let (mut best, mut least) = (1.0, loss(1.0));
    for factor in factors {
        let loss = loss(*factor);
        if loss < least {
            (best, least) = (*factor, loss);
        }
    }
    best
}

pub(super) fn at_least(scale: f32) -> f32 {
    if scale < EPS { EPS } else { scale }
}

pub(super) fn clamp(x: f32, (low, high): (f32, f32)) -> f32 {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

/// NaN where a number is one.
pub(super) fn extremes(group: &[f32]) -> (f32, f32) {
    group.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| {
        let min = if *x < min || x.is_nan() { *x } else { min };
        let max = if *x > max || x.is_nan() { *x } else { max };
        (min, max)
    })
}
