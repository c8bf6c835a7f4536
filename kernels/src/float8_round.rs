//! f32 rounded to the numbers of float8, still as f32, saturating: what a cast to float8 and back does.
//!
//! Bit for bit `dtypes`' saturating encoders and decoders, in a form that becomes vector instructions. NaN stays NaN.
//! Source: OCP OFP8 1.0; the addition that rounds is Knuth's, TAOCP 2, §4.2.2.

/// To e4m3: 3 mantissa bits, down to 2⁻⁹, up to 448.
#[inline(always)]
pub fn e4m3(x: f32) -> f32 {
    // 1.5 · 2¹⁴: its last place is 2⁻⁹, e4m3's subnormal step.
    round(x, 20, 448.0, 0.015_625, 24_576.0)
}

/// To e5m2: 2 mantissa bits, down to 2⁻¹⁶, up to 57344.
#[inline(always)]
pub fn e5m2(x: f32) -> f32 {
    // 1.5 · 2⁷: its last place is 2⁻¹⁶.
    round(x, 21, 57344.0, 6.103_515_6e-5, 192.0)
}

/// Keeps the mantissa but its last `cut` bits, ties to even; below `normal` to the last place of `shift`.
#[inline(always)]
fn round(x: f32, cut: u32, max: f32, normal: f32, shift: f32) -> f32 {
    let x = if x > max { max } else { x };
    let x = if x < -max { -max } else { x };
    let bits = x.to_bits();
    let half = (1 << (cut - 1)) - 1 + (bits >> cut & 1);
    let large = f32::from_bits(bits.wrapping_add(half) & !((1 << cut) - 1));
    let small = (x.abs() + shift) - shift;
    let small = f32::from_bits(small.to_bits() | bits & 0x8000_0000);
    let rounded = if x.abs() < normal { small } else { large };
    if x.is_nan() { x } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtypes::{
        e4m3fn_decode, e4m3fn_encode_saturating, e5m2_decode, e5m2_encode_saturating,
    };

    #[test]
    fn every_number_rounds_as_the_encoders_do() {
        let edges = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 464.0, 464.1, 448.0, 1e-45];
        let ties = (0..=u8::MAX).flat_map(|code| {
            let near = |x: f32| [x, x * 1.0625, x * 1.125, x.next_up(), x.next_down()];
            [near(e4m3fn_decode(code)), near(e5m2_decode(code))].into_iter().flatten()
        });
        let all = (0..u32::MAX - 4099).step_by(4099).map(f32::from_bits);
        for x in edges.into_iter().chain(ties).chain(all) {
            for (got, wanted) in [
                (e4m3(x), e4m3fn_decode(e4m3fn_encode_saturating(x))),
                (e5m2(x), e5m2_decode(e5m2_encode_saturating(x))),
            ] {
                let same = got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan());
                assert!(same, "{x:e}: {got:e}, not {wanted:e}");
            }
        }
    }
}
