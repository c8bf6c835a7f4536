use super::*;
use crate::sample::Sample;

/// The formula in f64 at one place, and how far f32 results may be from it.
fn reference(w: &Rows<'_>, x: &[f32], n: usize) -> (f64, f64) {
    let (g, k) = (w.w.group_size, x.len());
    let (scale, zero) = w.params(n);
    let codes: Vec<u8> = w.codes(n).iter().flat_map(|b| [b & 0x0f, b >> 4]).collect();
    let scaled = |k: usize| (f64::from(codes[k]) - 8.0) * f64::from(scale[k / g]);
    let sum = (0..k).map(|k| f64::from(x[k]) * (scaled(k) + f64::from(zero[k / g]))).sum();
    let parts = |k: usize| 15.0 * f64::from(scale[k / g].abs()) + f64::from(zero[k / g].abs());
    let magnitude: f64 = (0..k).map(|k| f64::from(x[k].abs()) * parts(k)).sum();
    let rounding = magnitude * k as f64 * 2f64.powi(-22);
    let Some(block) = block(g, k) else { return (sum, rounding) };
    let blocks = (0..k).step_by(block).map(|start| {
        let members = start..k.min(start + block);
        let amax = members.clone().fold(0.0, |a: f64, k| a.max(f64::from(x[k].abs())));
        amax * members.map(|k| scaled(k).abs()).sum::<f64>()
    });
    (sum, rounding + blocks.sum::<f64>() / 64_000.0)
}

fn check(case: &str, w: Weight<'_>, x: &[f32], shape: Shape) {
    let Shape { m, n, k } = shape;
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        let mut y = vec![f32::NAN; m * n];
        weight_only(&cpu, w, x, &mut y, shape);
        for row in 0..m {
            for col in 0..n {
                let (wanted, tolerance) = reference(&Rows { w, k }, &x[row * k..][..k], col);
                let got = f64::from(y[row * n + col]);
                assert!(
                    (got - wanted).abs() <= tolerance,
                    "{case} {shape:?} group {} {}: y[{row}, {col}] = {got}, wanted {wanted} ± {tolerance}",
                    w.group_size,
                    isa.name()
                );
            }
        }
    }
}

fn bytes(sample: &mut Sample, len: usize) -> Vec<u8> {
    (0..len).map(|_| sample.bits().to_le_bytes()[7]).collect()
}

#[test]
fn results_are_the_formula_within_its_bound() {
    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    println!("int4_linear ran on {names:?}");
    let mut sample = Sample(0x1_4001);
    for (shape, group_size) in SHAPES {
        let Shape { m, n, k } = shape;
        let mut x = sample.vec(m * k, 3.0);
        // An outlier, as language models have them: its block alone may lose digits.
        x[k / 2] = 400.0;
        let qdata = bytes(&mut sample, n * k / 2);
        let (scale, zero) =
            (sample.vec(n * k / group_size, 0.1), sample.vec(n * k / group_size, 0.3));
        let to_bf16 = |v: &[f32]| v.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
        let (scale16, zero16) = (to_bf16(&scale), to_bf16(&zero));
        let none = vec![0.0; n * k / group_size];
        let base = Weight {
            qdata: &qdata,
            scale: Floats::F32(&scale),
            zero: Floats::F32(&zero),
            group_size,
        };
        check("f32", base, &x, shape);
        check("no zero", Weight { zero: Floats::F32(&none), ..base }, &x, shape);
        check(
            "bf16",
            Weight { scale: Floats::Bf16(&scale16), zero: Floats::Bf16(&zero16), ..base },
            &x,
            shape,
        );
        check("mixed", Weight { scale: Floats::Bf16(&scale16), ..base }, &x, shape);
        check("zero x", base, &vec![0.0; m * k], shape);
        let signs: Vec<f32> = x.iter().map(|v| v.signum() * 7.0).collect();
        for byte in [0x00, 0xff, 0xf0, 0x0f] {
            let qdata = vec![byte; n * k / 2];
            check("extremes", Weight { qdata: &qdata, ..base }, &signs, shape);
            check("all lowest", Weight { qdata: &qdata, ..base }, &vec![-7.0; m * k], shape);
        }
    }
}

#[test]
fn every_count_of_tokens_is_the_formula() {
    let mut sample = Sample(0x1_4003);
    for m in (1..=20).chain([33, 64, 130]) {
        for (n, k, group_size) in [(29, 480, 32), (26, 576, 192), (53, 768, 128)] {
            let shape = Shape { m, n, k };
            let (qdata, x) = (bytes(&mut sample, n * k / 2), sample.vec(m * k, 3.0));
            let groups = n * (k / group_size);
            let (scale, zero) = (sample.vec(groups, 0.1), sample.vec(groups, 0.3));
            let (scale, zero) = (Floats::F32(&scale), Floats::F32(&zero));
            check("counts", Weight { qdata: &qdata, scale, zero, group_size }, &x, shape);
        }
    }
}

#[test]
fn the_name_says_what_runs() {
    for isa in Isa::available() {
        let name = |m, k, group_size| kernel_name(isa, Shape { m, n: 0, k }, group_size);
        let (rows, gemm) = match isa {
            Isa::Scalar | Isa::Neon(_) => ("scalar-int4xf32", "scalar-int4xf32"),
            Isa::Avx2(_) => ("x86-int4xf32-avx2-rows", "x86-int4xf32-avx2-gemm"),
            _ => ("x86-int4xf32-avx2-rows", "x86-int4xf32-avx512-gemm"),
        };
        let (few, many) = match isa {
            Isa::Avx512Vnni(_) => {
                ("x86-int4xint16-avx512vnni-gemv", "x86-int4xint16-avx512vnni-gemm")
            }
            Isa::Scalar | Isa::Neon(_) => (rows, gemm),
            _ => ("x86-int4xint16-avx2-gemv", gemm),
        };
        let got = [name(8, 256, 32), name(16, 256, 128), name(1, 224, 32), name(16, 480, 96)];
        assert_eq!(got, [few, many, rows, gemm], "{}", isa.name());
    }
}

#[test]
fn nan_and_infinity_spoil_their_own_row_only() {
    let mut sample = Sample(0x1_4002);
    for (k, group_size) in [(64, 32), (512, 128), (480, 32)] {
        let shape = Shape { m: 3, n: 5, k };
        let qdata: Vec<u8> = bytes(&mut sample, 5 * k / 2).iter().map(|b| b | 0x99).collect();
        let scale = vec![0.25; 5 * k / group_size];
        let w = Weight {
            qdata: &qdata,
            scale: Floats::F32(&scale),
            zero: Floats::F32(&scale),
            group_size,
        };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = sample.vec(3 * k, 1.0);
            let good = x.clone();
            x[k + k / 3] = bad;
            for isa in Isa::available() {
                let mut y = vec![77.0; 15];
                weight_only(&Cpu::with_isa(isa, Some(2)), w, &x, &mut y, shape);
                for (i, &y) in y.iter().enumerate() {
                    let (row, col) = (i / 5, i % 5);
                    let case = format!("{} K {k}, {bad}: y[{row}, {col}] = {y}", isa.name());
                    let (wanted, tolerance) = reference(&Rows { w, k }, &good[row * k..][..k], col);
                    match row {
                        1 if bad.is_nan() => assert!(y.is_nan(), "{case}"),
                        1 => assert_eq!(y.to_bits(), bad.to_bits(), "{case}"),
                        _ => assert!((f64::from(y) - wanted).abs() <= tolerance, "{case}"),
                    }
                }
            }
        }
    }
}

#[test]
fn empty_shapes_do_nothing() {
    let ones = [1.0; 64];
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        for shape in
            [Shape { m: 0, n: 3, k: 512 }, Shape { m: 2, n: 0, k: 512 }, Shape { m: 2, n: 3, k: 0 }]
        {
            let Shape { m, n, k } = shape;
            let qdata = vec![0x99; n * k / 2];
            let scale = Floats::F32(&ones[..n * k / 32]);
            let w = Weight { qdata: &qdata, scale, zero: scale, group_size: 32 };
            let mut y = vec![f32::NAN; m * n];
            weight_only(&cpu, w, &vec![1.0; m * k], &mut y, shape);
            assert!(y.iter().all(|&y| y == 0.0), "{shape:?} {}: {y:?}", isa.name());
        }
    }
}
