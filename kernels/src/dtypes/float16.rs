//! `y[i] = f32(x[i])` exactly, and `y[i] = bf16(x[i])` or `f16(x[i])`, to nearest, ties to even.
//! x, y: slices of one length, any layout.
//! Too large becomes inf; NaN stays NaN (quiet, its sign and leading payload bits kept).
//! Error: none widening; half a unit of the last place narrowing. Source: IEEE 754-2019; Google's bfloat16.

use crate::rows::over_rows;
use crate::{Cost, Cpu, Isa};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

macro_rules! conversion {
    ($(#[$doc:meta])* $name:ident, $x:ty => $y:ty, $scalar:expr) => {
        $(#[$doc])*
        pub fn $name(cpu: &Cpu, x: &[$x], y: &mut [$y]) {
            assert_eq!(x.len(), y.len(), concat!(stringify!($name), ": y must be as long as x"));
            over_rows(cpu, y, 1, |first, y| {
                let x = &x[first..][..y.len()];
                match cpu.isa() {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(avx2) => x86::$name(avx2, x, y),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(avx512) => x86::$name(avx512.avx2(), x, y),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512Vnni(vnni) => x86::$name(vnni.avx512().avx2(), x, y),
                    _ => $scalar(x, y),
                }
            });
        }
    };
}

conversion! {
    /// Widens, exactly.
    bf16_to_f32, bf16 => f32, |x: &[bf16], y: &mut [f32]| x.convert_to_f32_slice(y)
}
conversion! {
    /// Narrows to the nearest, ties to even.
    bf16_from_f32, f32 => bf16, |x: &[f32], y: &mut [bf16]| y.convert_from_f32_slice(x)
}
conversion! {
    /// Widens, exactly.
    f16_to_f32, f16 => f32, |x: &[f16], y: &mut [f32]| x.convert_to_f32_slice(y)
}
conversion! {
    /// Narrows to the nearest, ties to even.
    f16_from_f32, f32 => f16, |x: &[f32], y: &mut [f16]| y.convert_from_f32_slice(x)
}

/// What converting `len` numbers moves: two bytes on one side, four on the other.
pub fn cost(len: usize) -> Cost {
    Cost { bytes: 6 * len as u64, flops: 0 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Scalar | Isa::Neon(_) => "scalar-convert-f32x16",
        Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-convert-f32x16-avx2",
    }
}

/// Lengths of tests and benches.
pub const SHAPES: &[usize] = &[0, 1, 7, 8, 31, 576, 65_536, 70_001];

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    //! AVX2: eight numbers at a time, the tail through an array of eight.

    use crate::isa::Avx2;
    use crate::lanes::{load8, store8};
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    macro_rules! loops {
        ($($name:ident, $vector:ident, $x:ty, $y:ty, $zero_x:expr, $zero_y:expr;)+) => {$(
            pub(crate) fn $name(_proof: Avx2, x: &[$x], y: &mut [$y]) {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn all(x: &[$x], y: &mut [$y]) {
                    let (x, x_rest) = x.as_chunks::<8>();
                    let (y, y_rest) = y.as_chunks_mut::<8>();
                    for (x, y) in x.iter().zip(y) {
                        $vector(x, y);
                    }
                    let (mut tail_x, mut tail_y) = ([$zero_x; 8], [$zero_y; 8]);
                    tail_x[..x_rest.len()].copy_from_slice(x_rest);
                    $vector(&tail_x, &mut tail_y);
                    y_rest.copy_from_slice(&tail_y[..y_rest.len()]);
                }
                // SAFETY: the token is made only after AVX2 and F16C were detected.
                unsafe { all(x, y) };
            }
        )+};
    }

    loops! {
        bf16_to_f32, widen_bf16, bf16, f32, bf16::ZERO, 0.0;
        f16_to_f32, widen_f16, f16, f32, f16::ZERO, 0.0;
        bf16_from_f32, narrow_bf16, f32, bf16, 0.0, bf16::ZERO;
        f16_from_f32, narrow_f16, f32, f16, 0.0, f16::ZERO;
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen_bf16(x: &[bf16; 8], y: &mut [f32; 8]) {
        // SAFETY: `x` is 16 readable bytes; loadu has no alignment need.
        let x = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
        store8(y, _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))));
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen_f16(x: &[f16; 8], y: &mut [f32; 8]) {
        // SAFETY: `x` is 16 readable bytes; loadu has no alignment need.
        let x = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
        store8(y, _mm256_cvtph_ps(x));
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn narrow_f16(x: &[f32; 8], y: &mut [f16; 8]) {
        let codes = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(load8(x));
        // SAFETY: `y` is 16 writable bytes; storeu has no alignment need.
        unsafe { _mm_storeu_si128(y.as_mut_ptr().cast(), codes) };
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn narrow_bf16(x: &[f32; 8], y: &mut [bf16; 8]) {
        let x = load8(x);
        let bits = _mm256_castps_si256(x);
        // Half a unit, less one if the kept part is even, carries into it exactly when it rounds up.
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
        // The carry could turn NaN into inf or −0: NaN keeps its upper half, made quiet.
        let nan = _mm256_or_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(0x40));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let codes = _mm256_blendv_epi8(rounded, nan, is_nan);
        let packed = _mm256_packus_epi32(codes, codes);
        let packed = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
        let packed = _mm256_castsi256_si128(packed);
        // SAFETY: `y` is 16 writable bytes; storeu has no alignment need.
        unsafe { _mm_storeu_si128(y.as_mut_ptr().cast(), packed) };
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "a tie is a tie only where both are equal")]
mod tests {
    use super::*;

    fn decode(code: u16, mantissa_bits: i32, bias: i32) -> f64 {
        let exponent = i32::from(code >> mantissa_bits);
        let mantissa = f64::from(code & ((1 << mantissa_bits) - 1));
        let one = f64::from(i32::from(exponent > 0));
        let fraction = one + mantissa * f64::from(-mantissa_bits).exp2();
        fraction * f64::from(exponent.max(1) - bias).exp2()
    }

    fn inputs() -> Vec<f32> {
        // A stride of all f32, every value and every midpoint of bf16 and f16, and their neighbours.
        let mut bits: Vec<u32> = (0..0x7F80_0000).step_by(65_537).collect();
        for code in 0..0x7F80u32 {
            bits.extend([
                code << 16,
                (code << 16) + 0x7FFF,
                (code << 16) + 0x8000,
                (code << 16) + 0x8001,
            ]);
        }
        for code in 0..0x7C00u16 {
            let next = f16::from_bits(code + 1).to_f32();
            let middle = f32::midpoint(f16::from_bits(code).to_f32(), next).to_bits();
            bits.extend([middle, middle + 1, middle.saturating_sub(1)]);
        }
        bits.into_iter().map(f32::from_bits).filter(|x| x.is_finite()).collect()
    }

    #[test]
    fn narrowing_takes_the_nearest_on_every_isa() {
        let x = inputs();
        let minus: Vec<f32> = x.iter().map(|x| -x).collect();
        let want: Vec<(u16, u16)> =
            x.iter().map(|&x| (nearest(x, 7, 127), nearest(x, 10, 15))).collect();
        for isa in Isa::available() {
            println!("conversions on {}: {}", isa.name(), kernel_name(isa));
            let cpu = Cpu::with_isa(isa, Some(2));
            for (x, sign) in [(&x, 0u16), (&minus, 0x8000)] {
                let mut bf = vec![bf16::NAN; x.len()];
                let mut fp = vec![f16::NAN; x.len()];
                bf16_from_f32(&cpu, x, &mut bf);
                f16_from_f32(&cpu, x, &mut fp);
                for i in 0..x.len() {
                    assert_eq!(bf[i].to_bits(), want[i].0 | sign, "bf16 of {:e}", x[i]);
                    assert_eq!(fp[i].to_bits(), want[i].1 | sign, "f16 of {:e}", x[i]);
                }
            }
        }
    }

    /// Slow, plain search by bisection over codes; the code after the largest finite one is inf.
    fn nearest(x: f32, mantissa_bits: i32, bias: i32) -> u16 {
        let x = f64::from(x);
        let infinity = u16::try_from((2 * bias + 1) << mantissa_bits).expect("16 bits");
        let (mut low, mut high) = (0, infinity);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if decode(middle, mantissa_bits, bias) <= x { low = middle } else { high = middle }
        }
        let below = x - decode(low, mantissa_bits, bias);
        let above = decode(high, mantissa_bits, bias) - x;
        if below < above || (below == above && low % 2 == 0) { low } else { high }
    }

    #[test]
    fn every_code_widens_exactly_and_comes_back() {
        let bf: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let fp: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            let (mut wide_bf, mut wide_fp) = (vec![f32::NAN; 1 << 16], vec![f32::NAN; 1 << 16]);
            bf16_to_f32(&cpu, &bf, &mut wide_bf);
            f16_to_f32(&cpu, &fp, &mut wide_fp);
            let (mut back_bf, mut back_fp) = (vec![bf16::ZERO; 1 << 16], vec![f16::ZERO; 1 << 16]);
            bf16_from_f32(&cpu, &wide_bf, &mut back_bf);
            f16_from_f32(&cpu, &wide_fp, &mut back_fp);
            for i in 0..1 << 16 {
                check_code(bf[i].to_bits(), wide_bf[i], back_bf[i].to_bits(), 7, 127);
                check_code(fp[i].to_bits(), wide_fp[i], back_fp[i].to_bits(), 10, 15);
            }
        }
    }

    fn check_code(code: u16, wide: f32, back: u16, mantissa_bits: i32, bias: i32) {
        let (sign, size) = (code & 0x8000, code & 0x7FFF);
        let infinity = u16::try_from((2 * bias + 1) << mantissa_bits).expect("16 bits");
        if size > infinity {
            assert!(wide.is_nan(), "{code:#x}");
            assert_eq!(back, code | 1 << (mantissa_bits - 1), "a NaN comes back quiet");
            return;
        }
        let value =
            if size == infinity { f64::INFINITY } else { decode(size, mantissa_bits, bias) };
        let value = if sign == 0 { value } else { -value };
        assert_eq!(f64::from(wide).to_bits(), value.to_bits(), "{code:#x}");
        assert_eq!(back, code);
    }

    #[test]
    fn tails_are_converted() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            for &len in SHAPES {
                let x: Vec<f32> = (0..len).map(|i| (i % 251) as f32 - 100.0).collect();
                let mut narrow = vec![bf16::NAN; len];
                let mut wide = vec![f32::NAN; len];
                bf16_from_f32(&cpu, &x, &mut narrow);
                bf16_to_f32(&cpu, &narrow, &mut wide);
                assert_eq!(x, wide, "{len} through bf16 on {}", isa.name());
                let mut narrow = vec![f16::NAN; len];
                wide.fill(f32::NAN);
                f16_from_f32(&cpu, &x, &mut narrow);
                f16_to_f32(&cpu, &narrow, &mut wide);
                assert_eq!(x, wide, "{len} through f16 on {}", isa.name());
            }
        }
    }
}
