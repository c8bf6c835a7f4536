#![expect(clippy::float_cmp, reason = "small whole numbers and equal bytes are exact")]

use super::*;
use crate::sample::Sample;

/// `a` or its transpose, laid out so that both give the same matrix.
fn views(data: &[f32], rows: usize, cols: usize) -> (Vec<f32>, Vec<f32>) {
    let mut turned = vec![0.0; rows * cols];
    for (i, row) in data.chunks_exact(cols).enumerate() {
        row.iter().enumerate().for_each(|(j, x)| turned[j * rows + i] = *x);
    }
    (data.to_vec(), turned)
}

fn wide(data: &[f32], precision: Precision) -> Vec<f64> {
    let round = |x: &f32| if precision == Precision::Bf16 { nearest_bf16(*x) } else { *x };
    data.iter().map(|x| f64::from(round(x))).collect()
}

#[test]
fn every_isa_precision_and_stride_matches_f64() {
    let mut sample = Sample(11);
    for shape in SHAPES.into_iter().take(6) {
        let (a, b) = (sample.vec(shape.m * shape.k, 1.0), sample.vec(shape.k * shape.n, 1.0));
        for precision in [Precision::F32, Precision::Bf16] {
            every_way(shape, precision, &a, &b);
        }
    }
}

fn every_way(shape: Shape, precision: Precision, a: &[f32], b: &[f32]) {
    let Shape { m, n, k } = shape;
    let exact = |a: &[f64], b: &[f64]| {
        let mut c = vec![0.0; m * n];
        oracle(Matrix::new(a, m, k), Matrix::new(b, k, n), &mut c);
        c
    };
    let (wa, wb) = (wide(a, precision), wide(b, precision));
    let abs = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<f64>>();
    let (exact, amount) = (exact(&wa, &wb), exact(&abs(&wa), &abs(&wb)));
    let ((a, at), (b, bt)) = (views(a, m, k), views(b, k, n));
    let (a, at) = (Matrix::new(&a, m, k), Matrix::new(&at, k, m).transposed());
    let (b, bt) = (Matrix::new(&b, k, n), Matrix::new(&bt, n, k).transposed());
    for isa in Isa::available() {
        let run = |threads, (a, b)| {
            let mut c = vec![f32::NAN; m * n];
            multiply(&Cpu::with_isa(isa, Some(threads)), precision, a, b, &mut c);
            c
        };
        let first = run(1, (a, b));
        check(&first, &exact, &amount, (isa, precision, shape));
        for (threads, sides) in [(2, (a, b)), (3, (at, b)), (2, (a, bt)), (1, (at, bt))] {
            assert!(first == run(threads, sides), "threads and strides change nothing: {shape:?}");
        }
    }
}

fn check(c: &[f32], exact: &[f64], amount: &[f64], case: (Isa, Precision, Shape)) {
    let bound = 2f64.powi(-22) * case.2.k as f64;
    for (i, (&c, (&exact, &amount))) in c.iter().zip(exact.iter().zip(amount)).enumerate() {
        let error = (f64::from(c) - exact).abs();
        assert!(error <= bound * amount + 1e-30, "{case:?} c[{i}] = {c}, not {exact}");
    }
}

#[test]
fn a_product_is_added_to_what_is_there_and_edges_stay_clean() {
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        let (a, b) = ([1.0, 2.0, f32::NAN, 4.0], [1.0, 1.0]);
        let mut c = [10.0, 20.0];
        let (a, b) = (Matrix::new(&a, 2, 2), Matrix::new(&b, 2, 1));
        multiply_add(&cpu, Precision::F32, a, b, &mut c);
        assert_eq!(c[0], 13.0, "{}", isa.name());
        assert!(c[1].is_nan());
        let mut empty: [f32; 0] = [];
        multiply(&cpu, Precision::F32, Matrix::new(&[], 0, 2), b, &mut empty);
        let mut zero = [f32::NAN; 2];
        let nothing = (Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 1));
        multiply(&cpu, Precision::F32, nothing.0, nothing.1, &mut zero);
        assert_eq!(zero, [0.0; 2]);
    }
}

#[test]
fn rows_that_lie_apart_are_read_as_they_lie() {
    let data: Vec<f32> = (0..12_u8).map(f32::from).collect();
    let a = Matrix::strided(&data[1..], 3, 2, 4);
    let eye = [1.0, 0.0, 0.0, 1.0];
    let mut c = [f32::NAN; 6];
    multiply(&Cpu::new(Some(1)), Precision::F32, a, Matrix::new(&eye, 2, 2), &mut c);
    assert_eq!(c, [1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
}
