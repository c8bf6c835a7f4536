//! The arithmetic of kernels that are written once for f32 and f64.
//!
//! Such a kernel's f64 instance is its oracle. The f32 instance becomes vector instructions because
//! its loops run over arrays of `LANES` numbers, and because `wide` lets the compiler use what
//! the processor has. Nothing is contracted or reordered, so every instruction set gives the same bits.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use crate::Isa;

/// How many sums run side by side, so that they wait for no addition before them.
pub(crate) const LANES: usize = 16;

/// f32 or f64.
pub trait Real:
    Copy
    + Default
    + Debug
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    /// The nearest number, ties to even.
    fn of(x: f64) -> Self;
    /// Exact.
    fn wide(self) -> f64;
    /// √x, rounded to nearest.
    fn sqrt(self) -> Self;
    /// eˣ; in f32 with a relative error of 2⁻²².
    fn exp(self) -> Self;
    /// The logarithm.
    fn ln(self) -> Self;
    /// The larger of two; NaN where `self` is NaN.
    fn larger(self, other: Self) -> Self {
        if self < other { other } else { self }
    }
}

impl Real for f64 {
    fn of(x: f64) -> f64 {
        x
    }

    fn wide(self) -> f64 {
        self
    }

    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    fn exp(self) -> f64 {
        f64::exp(self)
    }

    fn ln(self) -> f64 {
        f64::ln(self)
    }
}

impl Real for f32 {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
    fn of(x: f64) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn exp(self) -> f32 {
        exp(self)
    }

    fn ln(self) -> f32 {
        f32::ln(self)
    }
}

/// 1.5 · 2²³: adding it rounds to a whole number, ties to even, and leaves that number in the low bits.
const ROUND: f32 = 12_582_912.0;

/// eˣ in a form that becomes vector instructions: the range reduction and polynomial of Cephes' `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Beyond these bounds the result is 0 or inf anyway; comparisons let NaN pass.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts keeps the rest exact to the last bit.
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = (r * r * p + r) + 1.0;
    // 2ⁿ in two factors, since n reaches from −150 to 128 and one exponent field does not.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned())
}

/// Σ f(x[i]) over the items, in [`LANES`] sums.
#[inline(always)]
pub(crate) fn sum_of<T: Real>(len: usize, f: impl Fn(usize) -> T) -> T {
    let mut sums = [T::default(); LANES];
    let whole = len - len % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    for at in whole..len {
        sums[at - whole] += f(at);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = sums[lane + width];
            sums[lane] += other;
        }
        width /= 2;
    }
    sums[0]
}

/// The largest f(i) of `len` items (at least one); a NaN is the largest in its lane.
#[inline(always)]
pub(crate) fn largest_of<T: Real>(len: usize, f: impl Fn(usize) -> T) -> T {
    let mut largest = [f(0); LANES];
    let whole = len - len % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, most) in largest.iter_mut().enumerate() {
            *most = most.larger(f(start + lane));
        }
    }
    let rest = (whole..len).fold(largest[0], |most, at| most.larger(f(at)));
    largest.into_iter().fold(rest, Real::larger)
}

/// Runs `f`, compiled for the instruction set: what is inlined into it may use all of it.
#[inline]
pub(crate) fn wide<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token is made only after AVX2, FMA and F16C were detected.
        Isa::Avx2(_) => unsafe { x86::avx2(f) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token is made only after AVX-512 was detected.
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => unsafe { x86::avx512(f) },
        _ => f(),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn avx2<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn avx512<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_and_the_same_on_every_isa() {
        let x: Vec<f32> = (0..u32::MAX - 9973).step_by(9973).map(f32::from_bits).collect();
        let all = |isa| wide(isa, || x.iter().map(|x| Real::exp(*x)).collect::<Vec<f32>>());
        let scalar = all(Isa::Scalar);
        for (&x, &y) in x.iter().zip(&scalar) {
            let exact = f64::from(x).exp();
            if x.is_nan() {
                assert!(y.is_nan());
            } else if exact > f64::from(f32::MAX) {
                assert!(y.is_infinite(), "exp({x}) = {y}");
            } else {
                let ulp = (exact * 2f64.powi(-23)).max(2f64.powi(-149));
                assert!((f64::from(y) - exact).abs() <= 2.0 * ulp, "exp({x}) = {y}, not {exact}");
            }
        }
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<u32>>();
        for isa in Isa::available() {
            let same = bits(&all(isa)).iter().zip(bits(&scalar)).all(|(a, b)| {
                *a == b || (f32::from_bits(*a).is_nan() && f32::from_bits(b).is_nan())
            });
            assert!(same, "{}", isa.name());
        }
    }

    #[test]
    fn sums_are_exact_for_whole_numbers_of_every_length() {
        for len in 0..70 {
            let sum = sum_of(len, |i| i as f32);
            let wanted = (len * len.saturating_sub(1) / 2) as f32;
            assert_eq!(sum.to_bits(), wanted.to_bits());
        }
    }
}
