use super::*;
use crate::sample::Sample;

/// The formula, written again and separately, one row.
#[expect(clippy::cast_possible_truncation, reason = "whole numbers within int8, or NaN")]
fn formula(x: &[f32], range: Range, symmetric: bool) -> (Vec<i8>, f32, i32) {
    let low = x.iter().copied().fold(0.0, |a: f32, b| if b.is_nan() || b < a { b } else { a });
    let high = x.iter().copied().fold(0.0, |a: f32, b| if b.is_nan() || b > a { b } else { a });
    let nan = x.iter().any(|v| v.is_nan());
    let (qmin, qmax) = (f32::from(range.qmin), f32::from(range.qmax));
    let scale = match (nan, symmetric) {
        (true, _) => f32::NAN,
        (false, true) => ((-low).max(high) / ((qmax - qmin) / 2.0)).max(EPS),
        (false, false) => ((high - low) / (qmax - qmin)).max(EPS),
    };
    let zero =
        if symmetric { 0.0 } else { (qmin - (low / scale).round_ties_even()).clamp(qmin, qmax) };
    let zero = if zero.is_nan() { 0.0 } else { zero };
    let code = |v: &f32| ((v * (1.0 / scale)).round_ties_even() + zero).clamp(qmin, qmax) as i8;
    (x.iter().map(code).collect(), scale, zero as i32)
}

fn check(name: &str, x: &[f32], rows: usize) {
    let k = x.len() / rows;
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        for range in [Range::FULL, Range::REDUCED] {
            for sym in [true, false] {
                let (mut q, mut scale) = (vec![99_i8; x.len()], vec![f32::NAN; rows]);
                let mut zero = vec![77; rows];
                if sym {
                    symmetric(&cpu, x, &mut q, &mut scale, range);
                    zero.fill(0);
                } else {
                    asymmetric(&cpu, x, &mut q, &mut scale, &mut zero, range);
                }
                for row in 0..rows {
                    let span = row * k..(row + 1) * k;
                    let (codes, s, z) = formula(&x[span.clone()], range, sym);
                    let case = format!("{name}, row {row}, {}, {range:?}, sym {sym}", isa.name());
                    assert_eq!(scale[row].to_bits(), s.to_bits(), "scale: {case}");
                    assert_eq!(zero[row], z, "zero point: {case}");
                    assert_eq!(q[span], codes, "codes: {case}");
                }
            }
        }
    }
}

#[test]
fn codes_scales_and_zero_points_are_the_formula_bit_for_bit() {
    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    println!("int8_activation ran on {names:?}");
    let mut numbers = Sample(0x5eed_0001);
    for (rows, k) in SHAPES {
        let x = numbers.vec(rows * k, 9.0);
        check("normal", &x, rows);
        let positive: Vec<f32> = x.iter().map(|v| v.abs() + 0.25).collect();
        check("positive", &positive, rows);
        // Halves: products that are ties, once the scale is a power of two.
        let mut ties: Vec<f32> = x.iter().map(|v| (v * 2.0).round_ties_even() / 2.0).collect();
        ties[0] = 127.5;
        check("ties", &ties, rows);
    }
    check("zero", &[0.0; 40], 2);
    check("negative zero", &[-0.0; 9], 1);
    check("tiny", &[1e-40, -3e-41, 1e-45, 0.0, -0.0, 2e-40, 1e-38, 0.0, 1e-39], 1);
    check("large", &[1e38, -1e38, 3e37, -2.0, 0.0, 1.0, 1e38, 1.0, 5e37, 1e30], 1);
}

#[test]
fn nan_and_infinity_spoil_their_own_row_only() {
    let mut numbers = Sample(0x5eed_0002);
    for (bad, place) in
        [(f32::NAN, 0), (f32::NAN, 12), (f32::NAN, 18), (f32::INFINITY, 3), (f32::NEG_INFINITY, 17)]
    {
        let mut x = numbers.vec(3 * 19, 4.0);
        x[19 + place] = bad;
        check("NaN or infinity", &x, 3);
    }
}
