use super::*;
use crate::sample::Sample;

fn weight(sample: &mut Sample, shape: Shape, bits: u32, block: (usize, usize)) -> Weight {
    let Shape { n, k, .. } = shape;
    let block = (if block.0 == 0 { n } else { block.0 }, if block.1 == 0 { k } else { block.1 });
    let codes: Vec<u8> =
        (0..n * k).map(|_| u8::try_from(sample.below(1 << bits)).expect("8 bits")).collect();
    let tables = sample.vec((n / block.0 * (k / block.1)) << bits, 0.5);
    let row = |n: usize, row: &mut [u8]| row.copy_from_slice(&codes[n * k..][..k]);
    let w = Weight::new(&Cpu::new(Some(2)), (n, k), bits, row, tables, block);
    let mut back = vec![99; k];
    for n in 0..n {
        w.codes(n, &mut back);
        assert_eq!(back, &codes[n * k..][..k]);
    }
    w
}

fn check(w: &Weight, x: &[f32], shape: Shape, case: &str) {
    let Shape { m, n, k } = shape;
    let amax_table = w.tables().iter().fold(0.0_f32, |amax, v| amax.max(v.abs()));
    let columns = 512 / width(w.bits());
    for isa in Isa::available() {
        let mut y = vec![f32::NAN; m * n];
        linear(&Cpu::with_isa(isa, Some(2)), w, x, &mut y, shape);
        let mut row = vec![0.0; k];
        for col in 0..n {
            w.dequantize(col, 0..k, &mut row);
            for m in 0..m {
                let x = &x[m * k..][..k];
                let products = || x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let wanted: f64 = products().sum();
                let blocks = x.chunks(columns).zip(row.chunks(columns)).map(|(x, w)| {
                    let amax = x.iter().fold(0.0_f32, |amax, v| amax.max(v.abs()));
                    let rows = w.iter().map(|w| f64::from(w.abs())).sum::<f64>();
                    let columns = x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
                    (f64::from(amax) * rows + f64::from(amax_table) * columns) / 16_000.0
                });
                let rounding = products().map(f64::abs).sum::<f64>() * k as f64 * 2f64.powi(-22);
                let tolerance = rounding + blocks.sum::<f64>();
                let got = f64::from(y[m * n + col]);
                assert!(
                    (got - wanted).abs() <= tolerance,
                    "{case} {shape:?} {}: y[{m}, {col}] = {got}, wanted {wanted} ± {tolerance}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn results_are_the_formula_within_its_bound() {
    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    println!("lut_linear ran on {names:?}");
    let mut sample = Sample(0x1007);
    for (shape, bits, block) in SHAPES {
        let w = weight(&mut sample, shape, bits, block);
        let mut x = sample.vec(shape.m * shape.k, 3.0);
        check(&w, &x, shape, &format!("{bits} bits, tables of {block:?}"));
        x[shape.k / 2] = 400.0;
        check(&w, &x, shape, "an outlier");
        check(&w, &vec![0.0; x.len()], shape, "zeros");
        check(&w, &vec![-1e30; x.len()], shape, "large");
    }
}

#[test]
fn a_number_that_is_none_spoils_its_own_row_only() {
    let mut sample = Sample(0x1008);
    let shape = Shape { m: 2, n: 5, k: 256 };
    let w = weight(&mut sample, shape, 4, (1, 0));
    let mut x = sample.vec(512, 1.0);
    x[300] = f32::NAN;
    for isa in Isa::available() {
        let mut y = vec![7.0; 10];
        linear(&Cpu::with_isa(isa, Some(2)), &w, &x, &mut y, shape);
        for (at, y) in y.iter().enumerate() {
            assert_eq!(y.is_nan(), at >= 5, "{}: y[{at}] = {y}", isa.name());
        }
    }
}

#[test]
fn empty_shapes_do_nothing() {
    for (m, n, k) in [(0, 3, 64), (2, 0, 64), (2, 3, 0)] {
        let tables = vec![1.0; if n * k == 0 { 0 } else { 16 }];
        let w = Weight::new(&Cpu::new(Some(1)), (n, k), 4, |_, row| row.fill(1), tables, (n, k));
        let mut y = vec![f32::NAN; m * n];
        linear(&Cpu::new(Some(2)), &w, &vec![1.0; m * k], &mut y, Shape { m, n, k });
        assert!(y.iter().all(|y| *y == 0.0));
    }
}
