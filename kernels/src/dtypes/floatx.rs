//! Floats of 3 to 8 bits without inf or NaN: 1 sign, `ebits` exponent (bias 2^(ebits−1) − 1), `mbits` mantissa bits, in
//! the low bits of a byte: fp6 e3m2 (±28 the largest) and e2m3 (±7.5), fp5 e2m2 (±7) and e3m1 (±24), fp4 e2m1 (±6).
//! One number at a time; the caller packs.
//! To the nearest, ties to the even code; beyond the largest, and inf, the largest. A NaN becomes whatever torchao's
//! integer arithmetic makes of it, bit for bit: whoever must keep NaN keeps it in a scale.
//! Error: half a step. Source: torchao's custom_fp_utils (N25); OCP Microscaling Formats 1.0, §5.3.

/// `n` one bits.
const fn ones(n: u32) -> u32 {
    (1 << n) - 1
}

fn check(ebits: u32, mbits: u32) {
    assert!(
        ebits > 0 && mbits > 0 && ebits + mbits < 8,
        "e{ebits}m{mbits} is no float of 3 to 8 bits"
    );
}

/// The largest value: all exponent and mantissa bits are ones.
pub fn floatx_max(ebits: u32, mbits: u32) -> f32 {
    check(ebits, mbits);
    power_of_two(ones(ebits) - ones(ebits - 1)) * (ones(mbits + 1) as f32) / (1 << mbits) as f32
}

fn power_of_two(exponent: u32) -> f32 {
    f32::from_bits((127 + exponent) << 23)
}

/// The code of `x` as torchao computes it, NaN included.
pub fn floatx_encode(x: f32, ebits: u32, mbits: u32) -> u8 {
    check(ebits, mbits);
    let bias = ones(ebits - 1);
    let size = x.abs();
    let dropped = 23 - mbits;
    let smallest_normal = f32::from_bits((128 - bias) << 23);
    let code = if size >= floatx_max(ebits, mbits) {
        ones(ebits + mbits)
    } else if size < smallest_normal {
        // One step of the subnormals is the last bit of this number: adding it rounds to whole steps.
        let magic = (127 - bias + dropped + 1) << 23;
        (size + f32::from_bits(magic)).to_bits() - magic
    } else {
        // Half a unit, less one if the kept part is even, carries into it exactly when it rounds up.
        let bits = size.to_bits();
        let half = ones(dropped - 1) + (bits >> dropped & 1);
        bits.wrapping_add(half).wrapping_sub((127 - bias) << 23) >> dropped
    };
    let sign = if x.is_sign_negative() { 1 << (ebits + mbits) } else { 0 };
    code.to_le_bytes()[0] | sign
}

/// The value of a code; bits above the sign do not matter.
pub fn floatx_decode(code: u8, ebits: u32, mbits: u32) -> f32 {
    check(ebits, mbits);
    let size = u32::from(code) & ones(ebits + mbits);
    // In f32 the same bits mean 2^(bias − 127) as much; subnormals become normal by the multiplication.
    let scale = f32::from_bits((254 - ones(ebits - 1)) << 23);
    let value = f32::from_bits(size << (23 - mbits)) * scale;
    if code >> (ebits + mbits) & 1 == 0 { value } else { -value }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "a tie is a tie only where both are equal")]
mod tests {
    use super::*;
    use crate::dtypes::{e2m1_decode, e2m1_encode};

    const FORMATS: [(u32, u32, f32); 6] =
        [(3, 2, 28.0), (2, 3, 7.5), (2, 2, 7.0), (3, 1, 24.0), (2, 1, 6.0), (1, 2, 3.5)];

    #[test]
    fn every_code_comes_back_and_every_input_takes_the_nearest() {
        for (ebits, mbits, max) in FORMATS {
            let codes = 1u8 << (ebits + mbits);
            assert_eq!(floatx_max(ebits, mbits), max);
            for code in 0..2 * codes {
                let value = floatx_decode(code, ebits, mbits);
                assert_eq!(floatx_encode(value, ebits, mbits), code, "e{ebits}m{mbits}");
            }
            let values: Vec<f32> =
                (0..codes).map(|code| floatx_decode(code, ebits, mbits)).collect();
            let midpoints = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
            let around = |x: f32| [x, x.next_up(), x.next_down().abs()];
            let strided = (0..0x7F80_0000).step_by(99_730).map(f32::from_bits);
            for x in midpoints.flat_map(around).chain(strided) {
                let distance = |code: &u8| f64::from(values[usize::from(*code)] - x.min(max)).abs();
                let best = (0..codes).map(|code| distance(&code)).fold(f64::INFINITY, f64::min);
                let nearest: Vec<u8> = (0..codes).filter(|code| distance(code) == best).collect();
                let want = nearest.iter().copied().find(|code| nearest.len() == 1 || code % 2 == 0);
                assert_eq!(Some(floatx_encode(x, ebits, mbits)), want, "e{ebits}m{mbits} of {x:e}");
                assert_eq!(floatx_encode(-x, ebits, mbits), floatx_encode(x, ebits, mbits) | codes);
            }
            assert_eq!(floatx_encode(f32::INFINITY, ebits, mbits), codes - 1);
        }
    }

    #[test]
    fn fp4_is_e2m1_but_for_nan() {
        for bits in (0..0x7F80_0000).step_by(99_730) {
            let x = f32::from_bits(bits);
            assert_eq!(floatx_encode(x, 2, 1), e2m1_encode(x));
        }
        (0..16).for_each(|code| assert_eq!(floatx_decode(code, 2, 1), e2m1_decode(code)));
        // Printed by torchao 0.18 for float("nan").
        assert_eq!(floatx_encode(f32::NAN, 2, 1), 3);
    }
}
