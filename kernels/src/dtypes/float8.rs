//! `e4m3fn`: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no inf; ±448 the largest; 0x7F and 0xFF are NaN.
//! `e5m2`: 1, 5 (bias 15), 2; like a short f16: inf 0x7C, NaN above; ±57344 the largest.
//! `e8m0`: 2^(code − 127), no sign, no zero; 0xFF is NaN.
//! One number at a time. The plain encoders give NaN beyond the largest in e4m3fn and inf in e5m2; the saturating ones give
//! the largest, for inf too. NaN stays NaN, with its sign. PyTorch's `.to(float8_e5m2)` is the plain one;
//! its `.to(float8_e4m3fn)` was plain up to 2.11 and saturates in 2.13.
//! Error: half a unit of the last place. Source: OCP OFP8 1.0 and MX 1.0; PyTorch's c10/util/Float8_*.h.

/// The value of an e4m3fn code.
pub fn e4m3fn_decode(code: u8) -> f32 {
    if code & 0x7F == 0x7F { f32::NAN.copysign(sign(code)) } else { decode(code, 3, 7) }
}

/// The nearest e4m3fn code; NaN for what rounds beyond 448.
pub fn e4m3fn_encode(x: f32) -> u8 {
    // In the grid continued upwards the step after 448 is 480, whose code is the NaN.
    encode(x, 3, 7).min(0x7F) | sign_bit(x)
}

/// The nearest e4m3fn code; ±448 for everything beyond, inf too.
pub fn e4m3fn_encode_saturating(x: f32) -> u8 {
    if x.is_nan() { e4m3fn_encode(x) } else { e4m3fn_encode(x.clamp(-448.0, 448.0)) }
}

/// The value of an e5m2 code.
pub fn e5m2_decode(code: u8) -> f32 {
    match code & 0x7F {
        0x7C => f32::INFINITY.copysign(sign(code)),
        0x7D.. => f32::NAN.copysign(sign(code)),
        _ => decode(code, 2, 15),
    }
}

/// The nearest e5m2 code; inf for what rounds beyond 57344.
pub fn e5m2_encode(x: f32) -> u8 {
    let size = if x.is_nan() { 0x7F } else { encode(x, 2, 15).min(0x7C) };
    size | sign_bit(x)
}

/// The nearest e5m2 code; ±57344 for everything beyond, inf too.
pub fn e5m2_encode_saturating(x: f32) -> u8 {
    if x.is_nan() { e5m2_encode(x) } else { e5m2_encode(x.clamp(-57344.0, 57344.0)) }
}

/// The value of a code of AMD's e4m3fnuz (`mantissa_bits` 3, bias 8) or e5m2fnuz (2, bias 16): no inf, no −0, whose
/// code 0x80 is the NaN.
pub fn fnuz_decode(code: u8, mantissa_bits: u32) -> f32 {
    assert!(matches!(mantissa_bits, 2 | 3), "fnuz formats have 2 or 3 mantissa bits");
    if code == 0x80 { f32::NAN } else { decode(code, mantissa_bits, 1 << (6 - mantissa_bits)) }
}

/// 2^(code − 127); code 0 is the subnormal 2⁻¹²⁷, 255 is NaN.
pub fn e8m0_decode(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The code of the largest power of two that is at most |x|; 0 for what lies below 2⁻¹²⁷, zero too,
/// and 255 for NaN and inf. (Choosing a scale, M04 to M07, is the workflow's.)
pub fn e8m0_encode_floor(x: f32) -> u8 {
    // The biased exponent is the code: e8m0 has f32's bias, and inf and NaN have exponent 255.
    (x.abs().to_bits() >> 23).to_le_bytes()[0]
}

fn sign(code: u8) -> f32 {
    if code & 0x80 == 0 { 1.0 } else { -1.0 }
}

fn sign_bit(x: f32) -> u8 {
    if x.is_sign_negative() { 0x80 } else { 0 }
}

/// The value of `code`, sign included, as if it had neither inf nor NaN.
fn decode(code: u8, mantissa_bits: u32, bias: u32) -> f32 {
    let size = u32::from(code & 0x7F);
    // In f32 the same bits mean 2^(bias − 127) as much; subnormals become normal by the multiplication.
    let scale = f32::from_bits((127 + 127 - bias) << 23);
    (f32::from_bits(size << (23 - mantissa_bits)) * scale).copysign(sign(code))
}

/// The code of |x| rounded to the nearest, ties to even, in the grid continued upwards to 0xFF.
fn encode(x: f32, mantissa_bits: u32, bias: u32) -> u8 {
    let size = x.abs();
    let smallest_normal = f32::from_bits((127 + 1 - bias) << 23);
    let code = if size < smallest_normal {
        // The subnormal grid is even: adding 1.5 · 2²³ of its steps rounds to a whole number of them.
        let steps = f32::from_bits((127 + bias - 1 + mantissa_bits) << 23);
        let magic = 12_582_912.0;
        (size * steps + magic).to_bits() - f32::to_bits(magic)
    } else {
        // Half a unit, less one if the kept part is even, carries into it exactly when it rounds up.
        let dropped = 23 - mantissa_bits;
        let bits = size.to_bits();
        let half = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1);
        ((bits + half) >> dropped) - ((127 - bias) << mantissa_bits)
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "a tie is a tie only where both are equal")]
mod tests {
    use super::*;

    /// Every finite value of a format, by code, from its definition in f64.
    fn grid(mantissa_bits: i32, bias: i32, largest: u8) -> Vec<f64> {
        let value = |code: u8| {
            let exponent = i32::from(code >> mantissa_bits);
            let mantissa = f64::from(code & ((1 << mantissa_bits) - 1));
            let one = f64::from(i32::from(exponent > 0));
            let step = f64::from(exponent.max(1) - bias - mantissa_bits).exp2();
            (one * f64::from(mantissa_bits).exp2() + mantissa) * step
        };
        // One step past the largest is where rounding goes over to inf or NaN.
        (0..=largest + 1).map(value).collect()
    }

    fn nearest(x: f32, grid: &[f64]) -> u8 {
        let size = f64::from(x).abs();
        let high = grid.partition_point(|&value| value <= size).clamp(1, grid.len() - 1);
        let (below, above) = (size - grid[high - 1], grid[high] - size);
        let low_wins = below < above || (below == above && high % 2 == 1);
        u8::try_from(if low_wins { high - 1 } else { high }).expect("codes have 8 bits")
    }

    fn check(
        name: &str,
        grid: &[f64],
        beyond: u8,
        decode: fn(u8) -> f32,
        [plain, saturating]: [fn(f32) -> u8; 2],
    ) {
        let largest = u8::try_from(grid.len() - 2).expect("codes have 8 bits");
        for code in 0..=largest {
            for (code, value) in
                [(code, grid[usize::from(code)]), (code | 0x80, -grid[usize::from(code)])]
            {
                assert_eq!(f64::from(decode(code)).to_bits(), value.to_bits(), "{name} {code:#x}");
                assert_eq!([plain(decode(code)), saturating(decode(code))], [code; 2], "{name}");
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "midpoints of short mantissas fit")]
        let midpoints = grid.windows(2).map(|pair| ((pair[0] + pair[1]) / 2.0) as f32);
        let around = |x: f32| [x, x.next_up(), x.next_down().abs()];
        let bf16s = (0..0x7F80u32).map(|code| f32::from_bits(code << 16));
        let strided = (0..0x7F80_0000).step_by(9973).map(f32::from_bits);
        for x in midpoints.flat_map(around).chain(bf16s).chain(strided) {
            let code = nearest(x, grid);
            let want = if code > largest { beyond } else { code };
            assert_eq!([plain(x), plain(-x)], [want, want | 0x80], "{name} of {x:e}");
            let want = code.min(largest);
            assert_eq!([saturating(x), saturating(-x)], [want, want | 0x80], "{name} of {x:e}");
        }
        assert_eq!([plain(f32::INFINITY), plain(f32::NEG_INFINITY)], [beyond, beyond | 0x80]);
        assert_eq!([saturating(f32::INFINITY), saturating(f32::MIN)], [largest, largest | 0x80]);
        for nan in [f32::NAN, f32::from_bits(0x7F80_0001), f32::from_bits(0x7FFF_FFFF)] {
            assert_eq!([plain(nan), saturating(nan)], [0x7F; 2], "{name}");
            assert_eq!([plain(-nan), saturating(-nan)], [0xFF; 2], "{name}");
        }
    }

    #[test]
    fn e4m3fn() {
        let grid = grid(3, 7, 0x7E);
        assert_eq!(grid[0x7E], 448.0);
        check("e4m3fn", &grid, 0x7F, e4m3fn_decode, [e4m3fn_encode, e4m3fn_encode_saturating]);
        assert!(e4m3fn_decode(0x7F).is_nan() && e4m3fn_decode(0xFF).is_nan());
    }

    #[test]
    fn e5m2() {
        let grid = grid(2, 15, 0x7B);
        assert_eq!(grid[0x7B], 57344.0);
        check("e5m2", &grid, 0x7C, e5m2_decode, [e5m2_encode, e5m2_encode_saturating]);
        assert_eq!([e5m2_decode(0x7C), e5m2_decode(0xFC)], [f32::INFINITY, f32::NEG_INFINITY]);
        assert!(
            (0x7D..=0x7F)
                .all(|code| e5m2_decode(code).is_nan() && e5m2_decode(code | 0x80).is_nan())
        );
    }

    #[test]
    fn e8m0() {
        for code in 0..255 {
            let value = e8m0_decode(code);
            assert_eq!(f64::from(value), f64::from(i32::from(code) - 127).exp2());
            assert_eq!(e8m0_encode_floor(value), code);
            assert_eq!(e8m0_encode_floor(-value * 1.75), code);
        }
        assert!(e8m0_decode(255).is_nan());
        assert_eq!([f32::NAN, f32::INFINITY, 0.0, 1e-45].map(e8m0_encode_floor), [255, 255, 0, 0]);
    }
}
