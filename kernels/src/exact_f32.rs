//! Linear layers in f32 from weight rows that are dequantized one at a time: the path for short rows, odd
//! groups, and activations that are NaN or infinite.
//!
//! `y[m, n] = factor(n) · Σ_k x[m, k] · w(n)[k]`, where `dequantize(n, w)` writes row n and returns its factor.
//! Error: |y − f64 result| ≤ K · 2⁻²³ · factor · Σ|x·w|.

use crate::{Cpu, Isa, Shape};

/// Rows a part dequantizes: enough that a part's start costs nothing, few enough to share among threads.
const ROWS: usize = 16;

/// See the head of this file. `y` is (M, N).
pub(crate) fn linear(
    cpu: &Cpu,
    x: &[f32],
    y: &mut [f32],
    shape: Shape,
    dequantize: impl Fn(usize, &mut [f32]) -> f32 + Sync,
) {
    let Shape { m, n, k } = shape;
    cpu.threads().tiles_mut(y, n, (m, ROWS), |_, mut tile| {
        let mut row = vec![0.0; k];
        for (i, n) in tile.cols().enumerate() {
            let factor = dequantize(n, &mut row);
            for m in 0..m {
                tile.row(m)[i] = dot(cpu.isa(), &x[m * k..][..k], &row) * factor;
            }
        }
    });
}

fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    match isa {
        // SAFETY: the `Avx2` token is made only after avx2 and fma were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => unsafe { dot_avx2(a, b) },
        // SAFETY: every processor with an AVX-512 token has avx2 and fma.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => unsafe { dot_avx2(a, b) },
        _ => dot_plain(a, b),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    dot_plain(a, b)
}

/// 32 sums side by side: four registers of eight, enough to hide the latency of an addition.
#[inline(always)]
fn dot_plain(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 32];
    let (a, a_tail) = a.as_chunks::<32>();
    let (b, b_tail) = b.as_chunks::<32>();
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum = a.mul_add(*b, *sum);
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}
