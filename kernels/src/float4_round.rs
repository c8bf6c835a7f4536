//! f32 rounded to the numbers of fp4 (e2m1), still as f32, saturating: to the nearest, ties to even, or at random.
//!
//! ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}: bit for bit what encoding and decoding gives, in a form that becomes vector
//! instructions. NaN stays NaN, which fp4 itself lacks.
//! Source: OCP Microscaling Formats 1.0, §5.3.3; at random as in Croci et al. 2022 (doi 10.1098/rsos.211631).

/// To the nearest.
#[inline(always)]
pub fn e2m1(x: f32) -> f32 {
    // A tie between codes is one between whole numbers of steps, and even codes are even numbers of steps.
    let steps = step(x);
    let size = (x.abs() / steps).round_ties_even() * steps;
    saturated(size).copysign(x)
}

/// Up with the probability of the distance from below, so that the mean is exact up to 6; `draw` is uniform in [0, 1).
#[inline(always)]
pub fn e2m1_at_random(x: f32, draw: f32) -> f32 {
    let steps = step(x);
    let size = (x.abs() / steps + draw).floor() * steps;
    saturated(size).copysign(x)
}

/// How far apart the numbers are where x lies.
#[inline(always)]
fn step(x: f32) -> f32 {
    let size = x.abs();
    if size < 2.0 {
        0.5
    } else if size < 4.0 {
        1.0
    } else {
        2.0
    }
}

#[inline(always)]
fn saturated(size: f32) -> f32 {
    if size > 6.0 { 6.0 } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtypes::{e2m1_decode, e2m1_encode};

    #[test]
    fn every_number_rounds_as_the_encoder_does() {
        let eighths = (0..80u8).map(|i| f32::from(i) * 0.125);
        let near = eighths.flat_map(|x| [x, x.next_up(), x.next_down()]);
        let all = (0..0x7F80_0000).step_by(9973).map(f32::from_bits);
        for x in near.chain(all).chain([f32::INFINITY]).flat_map(|x| [x, -x]) {
            let (got, wanted) = (e2m1(x), e2m1_decode(e2m1_encode(x)));
            assert_eq!(got.to_bits(), wanted.to_bits(), "{x:e}: {got}, not {wanted}");
        }
        assert!(e2m1(f32::NAN).is_nan() && e2m1_at_random(f32::NAN, 0.5).is_nan());
    }

    #[test]
    fn at_random_the_mean_is_the_number_and_codes_stay() {
        for x in [0.1_f32, -0.4, 1.3, 2.7, -3.2, 4.9, 6.0, 5.999, 1e-3] {
            let draws = (0..4096_u16).map(|i| f32::from(i) / 4096.0);
            let seen: Vec<f32> = draws.map(|draw| e2m1_at_random(x, draw)).collect();
            let low = f64::from(step(x)) * (f64::from(x.abs()) / f64::from(step(x))).floor();
            let inside = |y: &f32| {
                let size = f64::from(y.abs());
                size >= low && size <= low + f64::from(step(x))
            };
            assert!(seen.iter().all(inside), "{x}: neighbours only");
            let mean = seen.iter().map(|y| f64::from(*y)).sum::<f64>() / 4096.0;
            assert!((mean - f64::from(x)).abs() < 2.0 / 4096.0, "{x}: mean {mean}");
        }
        for code in 0..16 {
            let value = e2m1_decode(code);
            assert_eq!(e2m1_at_random(value, 0.999).to_bits(), value.to_bits(), "{value}");
        }
    }
}
