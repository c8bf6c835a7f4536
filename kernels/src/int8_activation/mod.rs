//! `q = clamp(round_ties_even(x · (1 / scale)) + zero_point, qmin, qmax)`, one scale (and zero point) a row.
//! x (M, K) f32 → q (M, K) i8, scale (M) f32, zero_point (M) i32.
//! Rows are contiguous; a row is one token. Ranges: [-128, 127], or [-64, 63] with a bit less.
//! Error: none; codes, scales and zero points are those of the formula bit for bit, on every instruction set.
//! Source: torchao `choose_qparams_affine` (per token; symmetric and asymmetric), `quantize_affine`.
//!
//! A NaN makes its row's scale NaN, as in torch, and so every product with that row; the row's codes are
//! then 0, and its zero point too (torch leaves the cast of NaN to an integer open). An infinity makes the scale
//! infinite, and products with the row NaN.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use crate::rows::over_parts;
use crate::{Cost, Cpu, Isa};

/// The smallest scale: torchao's `eps` for activations, so that an all-zero row does not divide by zero.
pub const EPS: f32 = f32::EPSILON;

/// The integers that codes may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The smallest code.
    pub qmin: i8,
    /// The largest code.
    pub qmax: i8,
}

impl Range {
    /// All of int8.
    pub const FULL: Range = Range { qmin: -128, qmax: 127 };
    /// One bit less (torchao's `reduce_range`), so that sums of two products fit 16 bits.
    pub const REDUCED: Range = Range { qmin: -64, qmax: 63 };

    fn steps(self) -> f32 {
        f32::from(self.qmax) - f32::from(self.qmin)
    }
}

/// Scale and zero point of one row.
#[derive(Clone, Copy, Debug)]
struct Params {
    scale: f32,
    zero_point: f32,
}

/// The shapes (rows, K) that tests and benches run.
pub const SHAPES: [(usize, usize); 8] =
    [(1, 1), (3, 7), (2, 8), (5, 31), (1, 33), (4, 64), (2, 257), (16, 4096)];

/// Quantizes every row of `x` about zero; `q` and `scale` receive the result.
pub fn symmetric(cpu: &Cpu, x: &[f32], q: &mut [i8], scale: &mut [f32], range: Range) {
    let k = row_length(x, q, scale.len());
    let rows = rows_of_a_part(cpu, scale.len(), k);
    let parts = x.chunks(rows * k).zip(q.chunks_mut(rows * k)).zip(scale.chunks_mut(rows));
    over_parts(cpu, parts.collect(), |_, ((x, q), scale)| {
        let rows = x.chunks_exact(k).zip(q.chunks_exact_mut(k)).zip(scale);
        for ((x, q), scale) in rows {
            let (min, max) = min_max(cpu.isa(), x);
            let params = Params { scale: symmetric_scale(min, max, range), zero_point: 0.0 };
            quantize(cpu.isa(), x, params, range, q);
            *scale = params.scale;
        }
    });
}

/// Quantizes every row of `x` between its minimum and maximum; `q`, `scale` and `zero_point` receive the result.
pub fn asymmetric(
    cpu: &Cpu,
    x: &[f32],
    q: &mut [i8],
    scale: &mut [f32],
    zero_point: &mut [i32],
    range: Range,
) {
    let k = row_length(x, q, scale.len());
    assert!(zero_point.len() == scale.len(), "zero points must be one a row");
    let rows = rows_of_a_part(cpu, scale.len(), k);
    let parts = x.chunks(rows * k).zip(q.chunks_mut(rows * k)).zip(scale.chunks_mut(rows));
    let parts = parts.zip(zero_point.chunks_mut(rows)).collect();
    over_parts(cpu, parts, |_, (((x, q), scale), zero_point)| {
        let rows = x.chunks_exact(k).zip(q.chunks_exact_mut(k)).zip(scale).zip(zero_point);
        for (((x, q), scale), zero_point) in rows {
            let (min, max) = min_max(cpu.isa(), x);
            let params = asymmetric_params(min, max, range);
            quantize(cpu.isa(), x, params, range, q);
            *scale = params.scale;
            *zero_point = to_code(params.zero_point).into();
        }
    });
}

/// Rows that a thread takes: below some thousands of numbers (a microsecond or two) another thread costs more.
fn rows_of_a_part(cpu: &Cpu, rows: usize, k: usize) -> usize {
    cpu.threads().share(rows, 8192_usize.div_ceil(k))
}

/// What quantizing (rows, k) moves and computes: a minimum, a maximum, a product, a sum for each number.
pub fn cost(rows: usize, k: usize) -> Cost {
    let (rows, k) = (rows as u64, k as u64);
    Cost { bytes: rows * (k * 5 + 8), flops: rows * k * 4 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-f32toint8-avx2",
        Isa::Scalar | Isa::Neon(_) => "scalar-f32toint8",
    }
}

fn row_length(x: &[f32], q: &[i8], rows: usize) -> usize {
    assert!(x.len() == q.len(), "codes must be as many as numbers");
    assert!(rows > 0 || x.is_empty(), "a scale a row is needed");
    assert!(x.len().is_multiple_of(rows.max(1)), "{} numbers are not {rows} rows", x.len());
    (x.len() / rows.max(1)).max(1)
}

fn min_max(isa: Isa, x: &[f32]) -> (f32, f32) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => x86::min_max(avx2, x),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => x86::min_max(avx512.avx2(), x),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => x86::min_max(vnni.avx512().avx2(), x),
        _ => scalar_min_max(x),
    }
}

fn quantize(isa: Isa, x: &[f32], params: Params, range: Range, q: &mut [i8]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => x86::quantize(avx2, x, params, range, q),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => x86::quantize(avx512.avx2(), x, params, range, q),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => x86::quantize(vnni.avx512().avx2(), x, params, range, q),
        _ => scalar_quantize(x, params, range, q),
    }
}

/// torch's `clamp(min = EPS)`, which keeps NaN where `f32::max` would drop it.
fn at_least_eps(scale: f32) -> f32 {
    if scale < EPS { EPS } else { scale }
}

fn symmetric_scale(min: f32, max: f32, range: Range) -> f32 {
    let largest = if -min > max { -min } else { max };
    at_least_eps(largest / (range.steps() / 2.0))
}

fn asymmetric_params(min: f32, max: f32, range: Range) -> Params {
    let scale = at_least_eps((max - min) / range.steps());
    let (qmin, qmax) = (f32::from(range.qmin), f32::from(range.qmax));
    let zero_point = (qmin - (min / scale).round_ties_even()).clamp(qmin, qmax);
    Params { scale, zero_point: if zero_point.is_nan() { 0.0 } else { zero_point } }
}

/// A number that is already a whole number within int8, or NaN, which becomes 0.
#[expect(clippy::cast_possible_truncation, reason = "the callers clamp to int8; NaN becomes 0")]
fn to_code(v: f32) -> i8 {
    v as i8
}

/// Scalar oracle: the smallest and largest of the numbers and 0; both NaN where one number is NaN.
fn scalar_min_max(x: &[f32]) -> (f32, f32) {
    let mut range = (0.0_f32, 0.0_f32);
    for &v in x {
        if v.is_nan() {
            return (f32::NAN, f32::NAN);
        }
        range = (range.0.min(v), range.1.max(v));
    }
    range
}

/// Scalar oracle of the codes.
fn scalar_quantize(x: &[f32], params: Params, range: Range, q: &mut [i8]) {
    let inv_scale = 1.0 / params.scale;
    let (qmin, qmax) = (f32::from(range.qmin), f32::from(range.qmax));
    for (q, &x) in q.iter_mut().zip(x) {
        let code = (x * inv_scale).round_ties_even() + params.zero_point;
        *q = to_code(code.clamp(qmin, qmax));
    }
}
