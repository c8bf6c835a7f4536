//! `x[m, n] ← exp(x[m, n] − max_n x[m, n]) / Σ_n exp(x[m, n] − max_n x[m, n])`, in place.
//! x (M, N) f32, row-major; −inf is a masked entry and gives 0.
//! A row of nothing but −inf, with NaN or with +inf becomes NaN, as in PyTorch.
//! Error: |y − f64 result| ≤ (N / 8 + 8) · 2⁻²⁴ · y + 2⁻²² · |x − max| · y: the sum runs in eight f32 lanes.
//! Source: Milakov and Gimelshein 2018 (arXiv 1805.02867), the safe softmax.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::rows::over_rows;
use crate::{Cost, Cpu, Isa};

/// The softmax of every row of length `n`, in place.
pub fn softmax(cpu: &Cpu, x: &mut [f32], n: usize) {
    assert!(n > 0 && x.len().is_multiple_of(n), "softmax: x must hold whole rows of N = {n}");
    over_rows(cpu, x, n, |_, x| match cpu.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => x86::softmax(avx2, x, n),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => x86::softmax(avx512.avx2(), x, n),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => x86::softmax(vnni.avx512().avx2(), x, n),
        _ => softmax_scalar(x, n),
    });
}

/// What one call over `m` rows of `n` moves and computes; an exp counts as one operation.
pub fn cost(m: usize, n: usize) -> Cost {
    Cost { bytes: 8 * (m * n) as u64, flops: 4 * (m * n) as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Scalar | Isa::Neon(_) => "scalar-softmax-f32",
        Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-softmax-f32-avx2",
    }
}

/// (M, N) of tests and benches.
pub const SHAPES: &[(usize, usize)] =
    &[(1, 1), (3, 7), (2, 8), (5, 31), (9, 512), (1, 4099), (3, 49152)];

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn softmax_scalar(x: &mut [f32], n: usize) {
    for row in x.chunks_exact_mut(n) {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        for x in row {
            *x = ((f64::from(*x) - max).exp() / sum) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn matches_f64_on_every_isa() {
        let mut sample = Sample(3);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            println!("softmax on {}: {}", isa.name(), kernel_name(isa));
            for &(m, n) in SHAPES {
                // Masked, but for rows of which nothing would be left.
                let masked = if n > 2 { f32::INFINITY } else { 0.0 };
                for scale in [0.0, 1.0, 30.0, 1e30] {
                    let mut x = sample.vec(m * n, scale);
                    x[n / 2] -= masked;
                    let mut y = x.clone();
                    softmax(&cpu, &mut y, n);
                    x.chunks(n).zip(y.chunks(n)).for_each(|(x, y)| check(x, y));
                }
            }
        }
    }

    fn check(x: &[f32], y: &[f32]) {
        let n = x.len();
        let max = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = x.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        for (&x, &y) in x.iter().zip(y) {
            let below = (f64::from(x) - max).max(-200.0);
            let exact = (f64::from(x) - max).exp() / sum;
            let steps = n as f64 / 8.0 + 8.0 + 4.0 * below.abs();
            let bound = steps * 2f64.powi(-24) * exact;
            let error = (f64::from(y) - exact).abs();
            assert!(error <= bound.max(2f64.powi(-148)), "softmax({x}): {y}, not {exact}");
        }
    }

    #[test]
    fn rows_without_a_softmax_become_nan() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(1));
            for bad in [f32::NAN, f32::INFINITY] {
                for at in [0, 5, 9, 18] {
                    let mut x = [0.5; 3 * 19];
                    x[19 + at] = bad;
                    softmax(&cpu, &mut x, 19);
                    assert!(x[..19].iter().chain(&x[38..]).all(|&y| (y - 1.0 / 19.0).abs() < 1e-8));
                    assert!(x[19 + at].is_nan(), "{} {bad} at {at}", isa.name());
                }
            }
            let mut masked = [f32::NEG_INFINITY; 19];
            softmax(&cpu, &mut masked, 19);
            assert!(masked.iter().all(|y| y.is_nan()));
        }
    }
}
