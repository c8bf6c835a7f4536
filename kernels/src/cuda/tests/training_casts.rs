//! Factors in 8 bits, and their products.

use super::{assert_close, device, from_bf16, poisoned_bf16, poisoned_f32, to_bf16};
use crate::Shape;
use crate::cuda::linear::Output;
use crate::cuda::training::{
    Amax, Cast, Coded, Codes, Float8, Into, Products, cast, largest, repeat, rows_product,
};
use crate::cuda::{Buffer, Device};
use crate::dtypes::{e4m3fn_decode, e4m3fn_encode_saturating};
use crate::sample::Sample;

/// Codes of x (m, k) along rows and turned, by the largest of all or of each.
fn both(
    device: &Device,
    x: &Buffer<u16>,
    (m, k): (usize, usize),
    codes: Codes,
    each: bool,
) -> [Coded; 2] {
    let room = |len: usize| device.zeros::<u32>(if each { len } else { 1 }).expect("memory");
    let (rows, columns) = (room(m), room(k));
    let to = match each {
        true => Amax { all: None, rows: Some(&rows), columns: Some(&columns) },
        false => Amax { all: Some(&rows), rows: None, columns: None },
    };
    largest(device, x, (m, k), &to).expect("a run");
    if !each {
        columns.copy_from(&rows).expect("a copy");
    }
    let how = Cast { codes, power_of_two: each, rows: Some(&rows), turned: Some(&columns) };
    let [rows, turned] = cast(device, x, (m, k), &how).expect("a run");
    [rows.expect("asked for"), turned.expect("asked for")]
}

/// What e4m3 or int8 codes stand for, row after row.
fn decoded(of: &Coded, columns: usize, codes: Codes) -> Vec<f64> {
    let (q, scale) = (of.codes.read().expect("codes"), of.scale.read().expect("scales"));
    let value = |q: u8| match codes {
        Codes::Int8 => f64::from(q.cast_signed()),
        _ => f64::from(e4m3fn_decode(q)),
    };
    let by = |i: usize| f64::from(scale[if scale.len() > 1 { i / columns } else { 0 }]);
    q.iter().enumerate().map(|(i, q)| value(*q) * by(i)).collect()
}

#[test]
fn codes_are_torchaos_along_rows_and_turned() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0x7B1);
    for (m, k) in [(16, 16), (144, 272), (128, 64), (400, 528)] {
        let bits = to_bf16(&sample.vec(m * k, 3.0));
        let x: Vec<f32> = from_bf16(&bits).into_iter().map(|v| v as f32).collect();
        let dx = device.upload(&bits).expect("x");
        for (codes, each) in [(Codes::E4m3, true), (Codes::E4m3, false), (Codes::Int8, true)] {
            if codes == Codes::E4m3 && device.capability() < (8, 9) {
                continue;
            }
            let [rows, turned] = both(&device, &dx, (m, k), codes, each);
            let amax =
                |of: &mut dyn Iterator<Item = usize>| of.fold(0.0_f32, |a, i| a.max(x[i].abs()));
            let all = amax(&mut (0..m * k));
            let code = |value: f32, amax: f32| match codes {
                Codes::Int8 => {
                    let q = (value * (1.0 / (amax / 127.0))).round_ties_even();
                    (q as i8).cast_unsigned()
                }
                _ => {
                    let by = (448.0 / f64::from(amax)) as f32;
                    let by = if each { f32::from_bits(by.to_bits() & 0xff80_0000) } else { by };
                    e4m3fn_encode_saturating(value * by)
                }
            };
            let (got, got_turned) =
                (rows.codes.read().expect("codes"), turned.codes.read().expect("codes"));
            for r in 0..m {
                let of_row = if each { amax(&mut (r * k..(r + 1) * k)) } else { all };
                for c in 0..k {
                    let wanted = code(x[r * k + c], of_row);
                    assert_eq!(got[r * k + c], wanted, "{codes:?} {m} × {k}: [{r}, {c}]");
                }
            }
            for c in 0..k {
                let of = if each { amax(&mut (0..m).map(|r| r * k + c)) } else { all };
                for r in 0..m {
                    let wanted = code(x[r * k + c], of);
                    assert_eq!(got_turned[c * m + r], wanted, "{codes:?} {m} × {k}: [{r}, {c}]ᵀ");
                }
            }
        }
    }
    let x = poisoned_bf16(&device, 15 * 16);
    assert!(
        cast(
            &device,
            &x,
            (15, 16),
            &Cast { codes: Codes::Int8, power_of_two: false, rows: None, turned: None }
        )
        .is_err()
    );
}

#[test]
fn products_of_codes_are_the_formulas() {
    let Some(device) = device() else { return };
    let mut sample = Sample(0x7B2);
    let mut products = Products::new(&device).expect("cuBLASLt");
    for (m, n, k) in [(256, 128, 128), (272, 144, 400), (1040, 272, 144)] {
        let shape = Shape { m, n, k };
        let hx = to_bf16(&sample.vec(m * k, 2.0));
        let hw = to_bf16(&sample.vec(n * k, 2.0));
        let (x, w) = (device.upload(&hx).expect("x"), device.upload(&hw).expect("w"));
        let check = |name: &str, got: &[f64], left: &[f64], right: &[f64], part: f64| {
            let (mut wanted, mut size) = (vec![0.0; m * n], vec![0.0; m * n]);
            for i in 0..m * n {
                for l in 0..k {
                    let term = left[i / n * k + l] * right[i % n * k + l];
                    wanted[i] += term;
                    size[i] += term.abs();
                }
            }
            assert_close(&format!("{name} {shape:?}"), got, &wanted, |i| {
                2f64.powi(-8) * wanted[i].abs() + part * size[i]
            });
        };
        if device.capability() >= (8, 9) {
            let [rows, _] = both(&device, &x, (m, k), Codes::E4m3, false);
            let [weights, _] = both(&device, &w, (n, k), Codes::E4m3, false);
            let factor = |of: &Coded| (of.codes.clone(), of.scale.clone());
            let ((xq, xs), (wq, ws)) = (factor(&rows), factor(&weights));
            let left = Float8 { codes: &xq, scale: &xs, e5m2: false };
            let right = Float8 { codes: &wq, scale: &ws, e5m2: false };
            let (dx, dw) = (decoded(&rows, k, Codes::E4m3), decoded(&weights, k, Codes::E4m3));
            let y = poisoned_bf16(&device, m * n);
            products.float8(shape, &left, &right, &Into::Bf16(&y)).expect("a run");
            // Hopper adds products of float8 with 14 bits.
            let part = 2f64.powi(-10);
            check("float8", &from_bf16(&y.read().expect("y")), &dx, &dw, part);
            let y = poisoned_f32(&device, m * n);
            products.float8(shape, &left, &right, &Into::F32(&y)).expect("a run");
            let onto = Into::Sum { to: &y, onto: &y };
            products.float8(shape, &left, &right, &onto).expect("a run");
            let got: Vec<f64> = y.read().expect("y").iter().map(|v| f64::from(*v) / 2.0).collect();
            check("float8 twice", &got, &dx, &dw, part);
        }
        if !device.has_wgmma() {
            println!("skipped: products of rows want wgmma");
            continue;
        }
        for (codes, part) in [(Codes::E4m3, 2f64.powi(-10)), (Codes::Int8, 1e-6)] {
            let [rows, _] = both(&device, &x, (m, k), codes, true);
            let [weights, _] = both(&device, &w, (n, k), codes, true);
            let (dx, dw) = (decoded(&rows, k, codes), decoded(&weights, k, codes));
            let y = poisoned_bf16(&device, m * n);
            rows_product(&device, codes, shape, [&rows, &weights], &Output::Bf16(&y))
                .expect("a run");
            check("rows", &from_bf16(&y.read().expect("y")), &dx, &dw, part);
            let y = poisoned_f32(&device, m * n);
            rows_product(&device, codes, shape, [&rows, &weights], &Output::F32(&y))
                .expect("a run");
            rows_product(&device, codes, shape, [&rows, &weights], &Output::AddF32(&y))
                .expect("a run");
            let got: Vec<f64> = y.read().expect("y").iter().map(|v| f64::from(*v) / 2.0).collect();
            check("rows twice", &got, &dx, &dw, part);
            let one = device.upload(&[2.5_f32]).expect("one");
            let many = poisoned_f32(&device, 300);
            repeat(&device, &one, &many).expect("a run");
            assert!(many.read().expect("many").iter().all(|v| v.to_bits() == 2.5_f32.to_bits()));
        }
    }
}
