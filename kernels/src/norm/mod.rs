//! RMS: `y[m, k] = x[m, k] · weight[k] / √(Σ_k x[m, k]² / K + eps)`.
//! Layer: `y[m, k] = (x[m, k] − μ) · weight[k] / √(Σ_k (x[m, k] − μ)² / K + eps) + bias[k]`, μ the row's mean.
//! x (M, K) f32 · weight (K) f32 · bias (K) f32 → y (M, K) f32. A head's norm is the same with M · heads rows.
//! All row-major. Error: the sums run in 32 f32 lanes (scalar: in f64), so that
//! |y − f64 result| ≤ (K / 32 + 16) · 2⁻²⁴ · |y|, for the layer norm with
//! (|x| + mean |x|) · scale · |weight| + |bias| in place of |y|.
//! Source: Zhang and Sennrich 2019 (arXiv 1910.07467); Ba, Kiros and Hinton 2016 (arXiv 1607.06450).

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::rows::over_rows;
use crate::{Cost, Cpu, Isa};

/// `y = rms_norm(x) · weight`, row by row; K is the length of `weight`.
pub fn rms_norm(cpu: &Cpu, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let k = weight.len();
    assert!(k > 0 && x.len().is_multiple_of(k), "rms_norm: x must hold whole rows of K = {k}");
    assert_eq!(x.len(), y.len(), "rms_norm: y must be as long as x");
    over_rows(cpu, y, k, |first, y| {
        let x = &x[first * k..][..y.len()];
        match cpu.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => x86::rms_norm(avx2, x, weight, eps, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => x86::rms_norm(avx512.avx2(), x, weight, eps, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(vnni) => x86::rms_norm(vnni.avx512().avx2(), x, weight, eps, y),
            _ => rms_norm_scalar(x, weight, eps, y),
        }
    });
}

/// `y = layer_norm(x) · weight + bias`, row by row; K is the length of `weight`.
pub fn layer_norm(
    cpu: &Cpu,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
) {
    let k = weight.len();
    assert!(k > 0 && x.len().is_multiple_of(k), "layer_norm: x must hold whole rows of K = {k}");
    assert_eq!(x.len(), y.len(), "layer_norm: y must be as long as x");
    assert!(bias.is_none_or(|bias| bias.len() == k), "layer_norm: bias must hold K = {k} numbers");
    over_rows(cpu, y, k, |first, y| {
        let x = &x[first * k..][..y.len()];
        match cpu.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => x86::layer_norm(avx2, x, weight, bias, eps, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => x86::layer_norm(avx512.avx2(), x, weight, bias, eps, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(vnni) => {
                x86::layer_norm(vnni.avx512().avx2(), x, weight, bias, eps, y);
            }
            _ => layer_norm_scalar(x, weight, bias, eps, y),
        }
    });
}

/// What one call over `m` rows of `k` moves and computes: x and the weight read, y written.
pub fn cost(m: usize, k: usize) -> Cost {
    Cost { bytes: 4 * (2 * m * k + k) as u64, flops: 4 * (m * k) as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Scalar | Isa::Neon(_) => "scalar-norm-f32",
        Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-norm-f32-avx2",
    }
}

/// (M, K) of tests and benches.
pub const SHAPES: &[(usize, usize)] =
    &[(1, 1), (3, 7), (2, 8), (5, 31), (9, 64), (1, 576), (77, 576), (2, 1537), (64, 4096)];

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn rms_norm_scalar(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let k = weight.len();
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(k)) {
        let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = (1.0 / (squares / k as f64 + f64::from(eps)).sqrt()) as f32;
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn layer_norm_scalar(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &mut [f32]) {
    let k = weight.len();
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(k)) {
        let mean = x.iter().copied().map(f64::from).sum::<f64>() / k as f64;
        let squares: f64 = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
        let scale = 1.0 / (squares / k as f64 + f64::from(eps)).sqrt();
        for (i, y) in y.iter_mut().enumerate() {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[i]));
            *y = ((f64::from(x[i]) - mean) * scale * f64::from(weight[i]) + bias) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    const EPS: f32 = 1e-5;

    /// The layer norm in f64 and, per element, what its error is relative to; the RMS norm has no mean.
    fn exact(x: &[f32], weight: &[f32], bias: Option<&[f32]>, layer: bool) -> Vec<(f64, f64)> {
        let k = weight.len();
        let mut all = Vec::new();
        for x in x.chunks_exact(k) {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / k as f64;
            let mean = if layer { mean } else { 0.0 };
            let size = x.iter().map(|&x| f64::from(x.abs())).sum::<f64>() / k as f64;
            let size = if layer { size } else { 0.0 };
            let squares: f64 = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
            let scale = 1.0 / (squares / k as f64 + f64::from(EPS)).sqrt();
            for i in 0..k {
                let (w, x) = (f64::from(weight[i]), f64::from(x[i]));
                let bias = bias.map_or(0.0, |bias| f64::from(bias[i]));
                let size = (x.abs() + size) * scale * w.abs() + bias.abs();
                all.push(((x - mean) * scale * w + bias, size));
            }
        }
        all
    }

    fn check(name: &str, y: &[f32], exact: &[(f64, f64)], k: usize) {
        let bound = (k as f64 / 32.0 + 16.0) * 2f64.powi(-24);
        for (i, (&y, &(exact, size))) in y.iter().zip(exact).enumerate() {
            let error = (f64::from(y) - exact).abs();
            assert!(error <= bound * size + 1e-40, "{name}, K = {k}, y[{i}] = {y}, not {exact}");
        }
    }

    #[test]
    fn both_norms_match_f64_on_every_isa() {
        let mut sample = Sample(1);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            println!("norm on {}: {}", isa.name(), kernel_name(isa));
            for &(m, k) in SHAPES {
                for scale in [1.0, 1e-4, 1e4, 0.0] {
                    let (x, weight) = (sample.vec(m * k, scale), sample.vec(k, 2.0));
                    let bias = sample.vec(k, 1.0);
                    let mut y = vec![f32::NAN; m * k];
                    rms_norm(&cpu, &x, &weight, EPS, &mut y);
                    check("rms_norm", &y, &exact(&x, &weight, None, false), k);
                    y.fill(f32::NAN);
                    layer_norm(&cpu, &x, &weight, None, EPS, &mut y);
                    check("layer_norm", &y, &exact(&x, &weight, None, true), k);
                    y.fill(f32::NAN);
                    layer_norm(&cpu, &x, &weight, Some(&bias), EPS, &mut y);
                    check("layer_norm", &y, &exact(&x, &weight, Some(&bias), true), k);
                }
            }
        }
    }

    #[test]
    fn a_nan_stays_in_its_row() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(1));
            let mut x = vec![1.0; 3 * 19];
            x[19 + 18] = f32::NAN;
            let mut y = vec![f32::NAN; x.len()];
            rms_norm(&cpu, &x, &[1.0; 19], EPS, &mut y);
            assert!(y[..19].iter().chain(&y[38..]).all(|y| y.is_finite()));
            assert!(y[19..38].iter().all(|y| y.is_nan()));
        }
    }
}
