//! Activations as 16-bit integers with one f32 scale a block, for kernels that multiply them with small integers.
//!
//! `x[m, b·B + j] ≈ q[m, b·B + j] · scale[m, b]`, `scale = amax(block) / 32639`, `q = round_ties_even(x / scale)`.
//! x (M, K) f32 → q (M, K') i16, scale (M, K'/B) f32; K' is K rounded up to whole blocks.
//! Rows are contiguous; what a last block lacks is zero.
//! Error: |x − q·scale| ≤ amax(block) / 64000: half a step, and what f32 adds to it.
//! Source: our own; the split into two int8 planes is that of 16-bit arithmetic on 8-bit multipliers.

use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Avx2;

/// 127 · 257: the largest q whose two bytes, both signed (`q = 256·high + low`), are within ±127.
const QMAX: f32 = 32_639.0;

/// Below this a block's reciprocal scale could be infinite.
const SMALLEST_AMAX: f32 = 1e-30;

/// 1.5 · 2²³: adding it rounds a small number to an integer, ties to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct BlockInt16 {
    pub(crate) q: Vec<i16>,
    pub(crate) scale: Vec<f32>,
    pub(crate) block: usize,
    /// K rounded up to whole blocks.
    pub(crate) padded_k: usize,
}

impl BlockInt16 {
    /// `x` (rows of `k`) in blocks of `block`. `None` when a number is NaN or infinite or a whole block is smaller
    /// than 1e-30, which integers cannot stand for: the caller multiplies in f32 then.
    pub(crate) fn new(isa: Isa, x: &[f32], k: usize, block: usize) -> Option<BlockInt16> {
        BlockInt16::up_to(isa, x, (k, block), QMAX)
    }

    /// The same with integers of at most ±`qmax`, for products with larger integers than bytes are.
    pub(crate) fn up_to(
        isa: Isa,
        x: &[f32],
        (k, block): (usize, usize),
        qmax: f32,
    ) -> Option<BlockInt16> {
        assert!((1.0..=QMAX).contains(&qmax), "16-bit integers up to {qmax}");
        let padded_k = k.next_multiple_of(block);
        let rows = x.len() / k.max(1);
        let mut q = vec![0; rows * padded_k];
        let mut scale = vec![0.0; rows * (padded_k / block)];
        let done = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => rows_x86(avx2, x, (k, block, qmax), &mut q, &mut scale),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => rows_x86(avx512.avx2(), x, (k, block, qmax), &mut q, &mut scale),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(vnni) => {
                rows_x86(vnni.avx512().avx2(), x, (k, block, qmax), &mut q, &mut scale)
            }
            _ => rows_plain(x, (k, block, qmax), &mut q, &mut scale),
        };
        done.then_some(BlockInt16 { q, scale, block, padded_k })
    }

    /// Row `m` of the integers.
    pub(crate) fn row(&self, m: usize) -> &[i16] {
        &self.q[m * self.padded_k..][..self.padded_k]
    }

    /// Row `m` of the scales.
    pub(crate) fn row_scale(&self, m: usize) -> &[f32] {
        let blocks = self.padded_k / self.block;
        &self.scale[m * blocks..][..blocks]
    }
}

#[cfg(target_arch = "x86_64")]
fn rows_x86(
    _: Avx2,
    x: &[f32],
    size: (usize, usize, f32),
    q: &mut [i16],
    scale: &mut [f32],
) -> bool {
    // SAFETY: the `Avx2` token is made only after avx2 was detected.
    unsafe { rows_avx2(x, size, q, scale) }
}

/// The plain loops again, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn rows_avx2(x: &[f32], size: (usize, usize, f32), q: &mut [i16], scale: &mut [f32]) -> bool {
    rows_plain(x, size, q, scale)
}

#[inline(always)]
fn rows_plain(
    x: &[f32],
    (k, block, qmax): (usize, usize, f32),
    q: &mut [i16],
    scale: &mut [f32],
) -> bool {
    let padded_k = k.next_multiple_of(block);
    let rows = x.chunks_exact(k.max(1)).zip(q.chunks_exact_mut(padded_k.max(1)));
    for ((x, q), scale) in rows.zip(scale.chunks_exact_mut((padded_k / block).max(1))) {
        for ((x, q), scale) in x.chunks(block).zip(q.chunks_exact_mut(block)).zip(scale) {
            match quantize_block(x, q, qmax) {
                Some(s) => *scale = s,
                None => return false,
            }
        }
    }
    true
}

#[inline(always)]
fn quantize_block(x: &[f32], q: &mut [i16], qmax: f32) -> Option<f32> {
    // Compared as integers, magnitudes order like numbers, with infinity and NaN on top.
    let amax = x.iter().fold(0, |amax: u32, v| amax.max(v.to_bits() & 0x7fff_ffff));
    let amax = f32::from_bits(amax);
    if amax == 0.0 {
        return Some(0.0);
    }
    if !amax.is_finite() || amax < SMALLEST_AMAX {
        return None;
    }
    let inv_scale = qmax / amax;
    for (q, &x) in q.iter_mut().zip(x) {
        *q = low_half((x * inv_scale + ROUND).to_bits());
    }
    Some(amax / qmax)
}

/// The low 16 bits as a signed integer.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the upper half is the exponent of `ROUND`")]
fn low_half(bits: u32) -> i16 {
    (bits as u16).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    fn check(x: &[f32], k: usize, block: usize) {
        for isa in Isa::available() {
            let case = format!("K {k}, block {block}, {}", isa.name());
            let b = BlockInt16::new(isa, x, k, block).expect("finite numbers have integers");
            assert_eq!(b.padded_k, k.next_multiple_of(block), "{case}");
            for (m, x) in x.chunks_exact(k).enumerate() {
                for (j, &q) in b.row(m).iter().enumerate() {
                    let start = j / block * block;
                    let members = &x[start..k.min(start + block)];
                    let amax = members.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
                    let wanted = f64::from(x.get(j).copied().unwrap_or(0.0));
                    let got = f64::from(q) * f64::from(b.row_scale(m)[j / block]);
                    let bound = f64::from(amax) / 64_000.0;
                    assert!((got - wanted).abs() <= bound, "{case}: x[{m}, {j}] {wanted} {got}");
                    assert!(q.unsigned_abs() <= 32_639, "{case}: {q}");
                }
            }
        }
    }

    #[test]
    fn integers_are_within_their_bound() {
        let mut numbers = Sample(0xb10c);
        for (rows, k, block) in [(1, 1, 64), (3, 64, 64), (2, 200, 128), (1, 31, 32), (5, 96, 32)] {
            let x = numbers.vec(rows * k, 4.0);
            check(&x, k, block);
            check(&x.iter().map(|v| v * 1e36).collect::<Vec<_>>(), k, block);
            check(&vec![0.0; rows * k], k, block);
        }
        check(&[1e30, 1.0, -1e30, 1e-20, 0.0, -0.0], 6, 32);
    }

    #[test]
    fn what_integers_cannot_stand_for_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-38, 1e-42] {
            for isa in Isa::available() {
                let mut x = [0.0; 70];
                x[66] = bad;
                assert!(BlockInt16::new(isa, &x, 70, 64).is_none(), "{bad} on {}", isa.name());
            }
        }
    }
}
