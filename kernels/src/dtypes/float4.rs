//! `e2m1` (fp4): 1 sign, 2 exponent (bias 1), 1 mantissa bit: ±{0, 0.5, 1, 1.5, 2, 3, 4, 6} in the low nibble.
//! One number at a time; the caller packs.
//! To the nearest, ties to the even code; beyond ±6, and inf, ±6. The format has no NaN: NaN becomes ±6 by its
//! sign, so that whoever must keep NaN looks before (a block scale does: e8m0 has one).
//! Error: half a step. Source: OCP Microscaling Formats 1.0, §5.3.3; torchao N25.

const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The value of the code in the low nibble.
pub fn e2m1_decode(code: u8) -> f32 {
    let size = VALUES[usize::from(code & 7)];
    if code & 8 == 0 { size } else { -size }
}

/// The nearest code.
pub fn e2m1_encode(x: f32) -> u8 {
    let size = x.abs();
    // A tie goes to the even code: each midpoint belongs to the code below it or above in turn.
    let code = match size {
        _ if size <= 0.25 => 0,
        _ if size < 0.75 => 1,
        _ if size <= 1.25 => 2,
        _ if size < 1.75 => 3,
        _ if size <= 2.5 => 4,
        _ if size < 3.5 => 5,
        _ if size <= 5.0 => 6,
        _ => 7,
    };
    code | if x.is_sign_negative() { 8 } else { 0 }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "a tie is a tie only where both are equal")]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_and_every_input_takes_the_nearest() {
        for code in 0..16 {
            assert_eq!(e2m1_encode(e2m1_decode(code)), code);
        }
        let strided = (0..0x7F80_0000).step_by(9973).map(f32::from_bits);
        let quarters = (0..40u8).map(|i| f32::from(i) * 0.25);
        for x in strided.chain(quarters.flat_map(|x| [x, x.next_up(), x.next_down().abs()])) {
            let distance = |code: &u8| (f64::from(e2m1_decode(*code)) - f64::from(x)).abs();
            let best = (0..8).map(|code| distance(&code)).fold(f64::INFINITY, f64::min);
            let nearest: Vec<u8> = (0..8).filter(|code| distance(code) == best).collect();
            let want = nearest.iter().copied().find(|code| nearest.len() == 1 || code % 2 == 0);
            assert_eq!(Some(e2m1_encode(x)), want.filter(|_| x <= 6.0).or(Some(7)), "{x}");
            assert_eq!(e2m1_encode(-x), e2m1_encode(x) | 8);
        }
        assert_eq!([f32::INFINITY, f32::NAN, -f32::NAN, f32::MIN].map(e2m1_encode), [7, 7, 15, 15]);
    }
}
