//! intN: [−2^(N−1), 2^(N−1) − 1]; uintN: [0, 2^N − 1] (N01). N from 1 to 16; 1 to 7 bits are kept in bytes.
//! One number at a time. Casts from f32 round to nearest, ties to even, saturate, and take NaN to 0.
//! Error: half a step within the bounds. Source: torchao's quant_primitives (N01); `torch.round`.

/// The smallest and the largest code of an integer format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntBounds {
    /// The smallest.
    pub qmin: i32,
    /// The largest.
    pub qmax: i32,
}

impl IntBounds {
    /// Of intN; `bits` from 1 to 16. int1 is {−1, 0}.
    pub fn signed(bits: u32) -> IntBounds {
        assert!((1..=16).contains(&bits), "intN has 1 to 16 bits, not {bits}");
        IntBounds { qmin: -(1 << (bits - 1)), qmax: (1 << (bits - 1)) - 1 }
    }

    /// Of uintN; `bits` from 1 to 16.
    pub fn unsigned(bits: u32) -> IntBounds {
        assert!((1..=16).contains(&bits), "uintN has 1 to 16 bits, not {bits}");
        IntBounds { qmin: 0, qmax: (1 << bits) - 1 }
    }
}

/// The two's complement value of the low `bits` (1 to 8) of `code`; the others do not matter.
pub fn sign_extend(code: u8, bits: u32) -> i8 {
    assert!((1..=8).contains(&bits), "a byte holds 1 to 8 bits, not {bits}");
    let unused = 8 - bits;
    code.cast_signed().wrapping_shl(unused) >> unused
}

/// To the nearest i8, ties to even; beyond the bounds the bound; NaN to 0.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates and takes NaN to 0, as wanted")]
pub fn round_to_i8(x: f32) -> i8 {
    x.round_ties_even() as i8
}

/// To the nearest u8, ties to even; beyond the bounds the bound; NaN to 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates and takes NaN to 0, as wanted"
)]
pub fn round_to_u8(x: f32) -> u8 {
    x.round_ties_even() as u8
}

/// To the nearest i32, ties to even; beyond the bounds the bound; NaN to 0.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates and takes NaN to 0, as wanted")]
pub fn round_to_i32(x: f32) -> i32 {
    x.round_ties_even() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_n01s() {
        for (bits, qmin, qmax, umax) in [
            (1, -1, 0, 1),
            (2, -2, 1, 3),
            (4, -8, 7, 15),
            (7, -64, 63, 127),
            (8, -128, 127, 255),
            (16, -32768, 32767, 65535),
        ] {
            assert_eq!(IntBounds::signed(bits), IntBounds { qmin, qmax });
            assert_eq!(IntBounds::unsigned(bits), IntBounds { qmin: 0, qmax: umax });
        }
    }

    #[test]
    fn every_code_of_every_width_extends() {
        for bits in 1..=8 {
            for code in 0..=255u8 {
                let low = i32::from(code) & ((1 << bits) - 1);
                let want = if low >> (bits - 1) == 1 { low - (1 << bits) } else { low };
                assert_eq!(i32::from(sign_extend(code, bits)), want, "{code} in {bits} bits");
            }
        }
    }

    #[test]
    fn casts_round_to_even_and_decide_nan() {
        for (x, i8s, u8s, i32s) in [
            (0.5, 0, 0, 0),
            (1.5, 2, 2, 2),
            (2.5, 2, 2, 2),
            (-0.5, 0, 0, 0),
            (-1.5, -2, 0, -2),
            (-2.5, -2, 0, -2),
            (127.5, 127, 128, 128),
            (-128.5, -128, 0, -128),
            (254.5, 127, 254, 254),
            (f32::NAN, 0, 0, 0),
            (f32::INFINITY, 127, 255, i32::MAX),
            (f32::NEG_INFINITY, -128, 0, i32::MIN),
        ] {
            assert_eq!((round_to_i8(x), round_to_u8(x), round_to_i32(x)), (i8s, u8s, i32s), "{x}");
        }
    }
}
