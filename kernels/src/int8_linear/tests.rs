use super::*;
use crate::sample::Sample;

fn code(sample: &mut Sample) -> i8 {
    sample.bits().to_le_bytes()[7].cast_signed()
}

fn codes(sample: &mut Sample, len: usize) -> Vec<i8> {
    (0..len).map(|_| code(sample)).collect()
}

/// The formula in f64 at one place, and how far f32 results may be from it.
fn reference(w: &Rows<'_>, x: &[f32], n: usize) -> (f64, f64) {
    let (scales, group_size) = w.scales(n);
    let scale = |k: usize| f64::from(scales[k / group_size]);
    let q = w.codes(n);
    let product = |k: usize| f64::from(x[k]) * f64::from(q[k]) * scale(k);
    let k = x.len();
    let sum: f64 = (0..k).map(product).sum();
    let magnitude: f64 = (0..k).map(|k| product(k).abs()).sum();
    let rounding = magnitude * k as f64 * 2f64.powi(-23);
    let Some(block) = w.scale.block(k) else { return (sum, rounding) };
    let blocks = (0..k).step_by(block).map(|start| {
        let members = start..k.min(start + block);
        let amax = members.clone().fold(0.0, |a: f64, k| a.max(f64::from(x[k].abs())));
        let weights: f64 = members.map(|k| (f64::from(q[k]) * scale(k)).abs()).sum();
        amax * weights
    });
    (sum, rounding + blocks.sum::<f64>() / 64_000.0)
}

fn check(case: &str, w: Rows<'_>, x: &[f32], shape: Shape) {
    let Shape { m, n, k } = shape;
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        let mut y = vec![f32::NAN; m * n];
        weight_only(&cpu, w.qdata, w.scale, x, &mut y, shape);
        for row in 0..m {
            for col in 0..n {
                let (wanted, tolerance) = reference(&w, &x[row * k..][..k], col);
                let got = f64::from(y[row * n + col]);
                assert!(
                    (got - wanted).abs() <= tolerance,
                    "{case} {shape:?} {}: y[{row}, {col}] = {got}, wanted {wanted} ± {tolerance}",
                    isa.name()
                );
            }
        }
    }
}

/// Every scale form that `shape` allows.
fn each_scale(sample: &mut Sample, shape: Shape, mut f: impl FnMut(&str, Scale<'_>)) {
    let Shape { n, k, .. } = shape;
    f("tensor", Scale::Tensor(0.02));
    let rows: Vec<f32> = sample.vec(n, 0.01).iter().map(|s| s + 0.02).collect();
    f("row", Scale::Row(&rows));
    for group_size in [1, 3, 16, 32, 64, 96, 128, 256, k] {
        if k.is_multiple_of(group_size) {
            let scale = sample.vec(n * (k / group_size), 0.05);
            f(&format!("groups of {group_size}"), Scale::Group { scale: &scale, group_size });
        }
    }
}

#[test]
fn weight_only_is_the_formula_within_its_bound() {
    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    println!("int8_linear ran on {names:?}");
    let mut sample = Sample(0x1_8001);
    for shape in SHAPES {
        let Shape { m, n, k } = shape;
        let mut x = sample.vec(m * k, 3.0);
        // An outlier, as language models have them: its block alone may lose digits.
        x[k / 2] = 400.0;
        let qdata = codes(&mut sample, n * k);
        let extremes: Vec<i8> =
            (0..n * k).map(|_| if code(&mut sample) < 0 { -128 } else { 127 }).collect();
        let mut inputs = sample.clone();
        each_scale(&mut sample, shape, |name, scale| {
            check(name, Rows { qdata: &qdata, scale, k }, &x, shape);
            check("zero x", Rows { qdata: &qdata, scale, k }, &vec![0.0; m * k], shape);
            check("extreme codes", Rows { qdata: &extremes, scale, k }, &x, shape);
            let ones: Vec<f32> = inputs.vec(m * k, 1.0).iter().map(|v| v.signum() * 5.0).collect();
            check("extreme x", Rows { qdata: &extremes, scale, k }, &ones, shape);
        });
    }
}

/// Counts of tokens that meet every tile and every remainder.
fn token_counts() -> impl Iterator<Item = usize> {
    (1..=20).chain([33, 64, 130])
}

#[test]
fn every_count_of_tokens_is_the_formula() {
    let mut sample = Sample(0x1_8004);
    for m in token_counts() {
        for (n, k) in [(29, 387), (53, 512)] {
            let shape = Shape { m, n, k };
            let (qdata, x) = (codes(&mut sample, n * k), sample.vec(m * k, 3.0));
            let (rows, scale) = (sample.vec(n, 0.05), sample.vec(n * k.div_ceil(64), 0.05));
            check("row", Rows { qdata: &qdata, scale: Scale::Row(&rows), k }, &x, shape);
            if k.is_multiple_of(64) {
                let scale = Scale::Group { scale: &scale, group_size: 64 };
                check("groups of 64", Rows { qdata: &qdata, scale, k }, &x, shape);
            }
            let (q, x_scale) = (codes(&mut sample, m * k), sample.vec(m, 0.1));
            let zero_point: Vec<i32> = (0..m).map(|_| code(&mut sample).into()).collect();
            let sums = row_sums(&qdata, k);
            let w = Weight { qdata: &qdata, scale: &rows, row_sums: Some(&sums) };
            for zero_point in [None, Some(&zero_point[..])] {
                check_dynamic(w, Activation { q: &q, scale: &x_scale, zero_point }, shape);
            }
        }
    }
}

#[test]
fn the_name_says_what_runs() {
    let row = Scale::Row(&[]);
    let group = |group_size| Scale::Group { scale: &[], group_size };
    for isa in Isa::available() {
        let name = |scale, m, k| kernel_name(isa, scale, Shape { m, n: 0, k });
        let wanted = match isa {
            Isa::Scalar | Isa::Neon(_) => ["scalar-int8xf32"; 4],
            Isa::Avx512Vnni(_) => [
                "x86-int8xint16-avx512vnni-gemv",
                "x86-int8xint16-avx512vnni-gemm",
                "x86-int8xf32-avx2-rows",
                "x86-int8xf32-avx2-rows",
            ],
            Isa::Avx2(_) | Isa::Avx512(_) => [
                "x86-int8xint16-avx2-gemv",
                "x86-int8xint16-avx2-gemm",
                "x86-int8xf32-avx2-rows",
                "x86-int8xf32-avx2-rows",
            ],
        };
        let got = [
            name(row, GEMV_MAX_M, 256),
            name(group(32), GEMV_MAX_M + 1, 256),
            name(row, 1, 255),
            name(group(48), 20, 480),
        ];
        assert_eq!(got, wanted, "{}", isa.name());
    }
}

#[test]
fn nan_and_infinity_spoil_their_own_row_only() {
    let mut sample = Sample(0x1_8002);
    for k in [96, 384] {
        let shape = Shape { m: 3, n: 5, k };
        let mut qdata = codes(&mut sample, 5 * k);
        qdata.iter_mut().for_each(|q| *q = q.saturating_abs().max(1));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = sample.vec(3 * k, 1.0);
            let good = x.clone();
            x[k + k / 3] = bad;
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, Some(2));
                let mut y = vec![77.0; 15];
                weight_only(&cpu, &qdata, Scale::Tensor(0.5), &x, &mut y, shape);
                for (i, &y) in y.iter().enumerate() {
                    let (row, col) = (i / 5, i % 5);
                    let case = format!("{} K {k}, {bad}: y[{row}, {col}] = {y}", isa.name());
                    let w = Rows { qdata: &qdata, scale: Scale::Tensor(0.5), k };
                    let (wanted, tolerance) = reference(&w, &good[row * k..][..k], col);
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
fn dynamic_is_the_formula_bit_for_bit() {
    let mut sample = Sample(0x1_8003);
    let long = Shape { m: 9, n: 6, k: ROW_SUM_MAX_K };
    for shape in SHAPES.into_iter().chain([long]) {
        let Shape { m, n, k } = shape;
        let (random, a) = (codes(&mut sample, n * k), codes(&mut sample, m * k));
        let (lowest, lowest_a) = (vec![-128; n * k], vec![-128; m * k]);
        let (scale, one) = (sample.vec(m, 0.1), [0.37]);
        let row_scale = sample.vec(n, 0.1);
        let zero_point: Vec<i32> = (0..m).map(|_| code(&mut sample).into()).collect();
        for (qdata, q) in [(&random, &a), (&lowest, &lowest_a), (&lowest, &a)] {
            let sums = row_sums(qdata, k);
            for (w_scale, zero_point) in [
                (&row_scale[..], None),
                (&row_scale[..], Some(&zero_point[..])),
                (&one[..], Some(&zero_point[..])),
            ] {
                let w = Weight { qdata, scale: w_scale, row_sums: Some(&sums) };
                let act = Activation { q, scale: &scale, zero_point };
                check_dynamic(w, act, shape);
            }
        }
    }
}

fn check_dynamic(w: Weight<'_>, act: Activation<'_>, shape: Shape) {
    let Shape { m, n, k } = shape;
    let cpus: Vec<Cpu> =
        Isa::available().into_iter().map(|isa| Cpu::with_isa(isa, Some(2))).collect();
    let mut results = vec![vec![f32::NAN; m * n]; cpus.len()];
    for (cpu, y) in cpus.iter().zip(&mut results) {
        dynamic(cpu, w, act, y, shape);
    }
    for row in 0..m {
        for col in 0..n {
            let products = act.q[row * k..][..k].iter().zip(&w.qdata[col * k..][..k]);
            let acc: i64 = products.map(|(&a, &q)| i64::from(a) * i64::from(q)).sum();
            let mut wanted = acc as f32 * act.scale[row];
            if let Some(zero_point) = act.zero_point {
                let row_sum: i64 = w.qdata[col * k..][..k].iter().map(|&q| i64::from(q)).sum();
                wanted -= (zero_point[row] as f32 * act.scale[row]) * row_sum as f32;
            }
            wanted *= w.scale[if w.scale.len() == 1 { 0 } else { col }];
            for (cpu, y) in cpus.iter().zip(&results) {
                let got = y[row * n + col];
                let case = format!("{shape:?} {}: y[{row}, {col}]", cpu.isa().name());
                assert_eq!(got.to_bits(), wanted.to_bits(), "{case} = {got}, wanted {wanted}");
            }
        }
    }
}

#[test]
fn a_nan_scale_spoils_its_row_of_a_dynamic_product() {
    let shape = Shape { m: 2, n: 3, k: 40 };
    let (qdata, q) = ([1; 120], [0; 80]);
    for isa in Isa::available() {
        let mut y = [77.0; 6];
        let w = Weight { qdata: &qdata, scale: &[1.0], row_sums: None };
        let act = Activation { q: &q, scale: &[f32::NAN, 1.0], zero_point: None };
        dynamic(&Cpu::with_isa(isa, Some(1)), w, act, &mut y, shape);
        assert!(y[..3].iter().all(|y| y.is_nan()), "{}: {y:?}", isa.name());
        assert_eq!(y[3..], [0.0; 3], "{}", isa.name());
    }
}

#[test]
#[should_panic(expected = "may not fit 32 bits")]
fn a_row_too_long_for_exact_sums_is_refused() {
    let w = Weight { qdata: &[], scale: &[], row_sums: None };
    let act = Activation { q: &[], scale: &[], zero_point: None };
    let shape = Shape { m: 0, n: 0, k: ROW_SUM_MAX_K + 1 };
    dynamic(&Cpu::with_isa(Isa::Scalar, Some(1)), w, act, &mut [], shape);
}

#[test]
fn empty_shapes_do_nothing() {
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        for shape in
            [Shape { m: 0, n: 3, k: 512 }, Shape { m: 2, n: 0, k: 512 }, Shape { m: 2, n: 3, k: 0 }]
        {
            let Shape { m, n, k } = shape;
            let (qdata, q) = (vec![1; n * k], vec![1; m * k]);
            let mut y = vec![f32::NAN; m * n];
            weight_only(&cpu, &qdata, Scale::Tensor(1.0), &vec![1.0; m * k], &mut y, shape);
            assert!(y.iter().all(|&y| y == 0.0), "{shape:?} {}: {y:?}", isa.name());
            y.fill(f32::NAN);
            let w = Weight { qdata: &qdata, scale: &[1.0], row_sums: None };
            let act = Activation { q: &q, scale: &vec![1.0; m], zero_point: None };
            dynamic(&cpu, w, act, &mut y, shape);
            assert!(y.iter().all(|&y| y == 0.0), "{shape:?} {}: {y:?}", isa.name());
        }
    }
}
