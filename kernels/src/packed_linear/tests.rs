use super::*;
use crate::sample::Sample;
use half::bf16;

/// What a case is made of, besides its shape.
#[derive(Clone, Copy, Debug)]
struct Kind {
    bits: u32,
    table: bool,
    offset: u8,
    bf16: bool,
}

fn weight(cpu: &Cpu, sample: &mut Sample, (n, k, g): (usize, usize, usize), kind: Kind) -> Weight {
    let codes: Vec<u8> =
        (0..n * k).map(|_| u8::try_from(sample.below(1 << kind.bits)).expect("8 bits")).collect();
    let packed =
        Codes::pack(cpu, (n, k), kind.bits, |n, row| row.copy_from_slice(&codes[n * k..][..k]));
    let mut row = vec![77; k];
    for n in 0..n {
        packed.row(n, &mut row);
        assert_eq!(row, &codes[n * k..][..k], "{kind:?} row {n}");
    }
    let count = n * k.checked_div(g).unwrap_or(0);
    let floats = |values: Vec<f32>| match kind.bf16 {
        true => Floats::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        false => Floats::F32(values),
    };
    let scale = floats(sample.vec(count, 0.1));
    let offset = match kind.offset {
        0 => Offset::None,
        1 => Offset::Zeros(
            (0..count).map(|_| sample.bits().to_le_bytes()[3].cast_signed()).collect(),
        ),
        _ => Offset::Values(floats(sample.vec(count, 0.3))),
    };
    let values = match kind.table {
        true => Values::Table(Table::new(&sample.vec(1 << kind.bits, 2.0))),
        false => Values::Integers { bias: if kind.offset == 2 { 0 } else { 1 << (kind.bits - 1) } },
    };
    Weight::new(packed, values, g, &scale, &offset)
}

/// Row `n` of a weight in f64: its values, and at each column the magnitudes that a kernel adds apart.
struct Row {
    values: Vec<f32>,
    parts: Vec<f64>,
    /// What rounding a table adds, for each |x|.
    table: Vec<f64>,
}

fn rows(w: &Weight) -> Vec<Row> {
    let wide = |floats: Floats| match floats {
        Floats::F32(v) => v,
        Floats::Bf16(v) => v.iter().map(|v| v.to_f32()).collect(),
        Floats::F16(v) => v.iter().map(|v| v.to_f32()).collect(),
    };
    let scales = wide(w.scale());
    let offsets: Vec<f32> = match w.offset() {
        Offset::Values(values) => wide(values),
        Offset::Zeros(zeros) => zeros.iter().zip(&scales).map(|(z, s)| f32::from(*z) * s).collect(),
        Offset::None => vec![0.0; scales.len()],
    };
    let largest = match &w.values {
        Values::Table(table) => table.values().iter().fold(0.0_f32, |a, v| a.max(v.abs())),
        Values::Integers { .. } => 0.0,
    };
    let (k, g) = (w.k(), w.group_size());
    let row = |n: usize| {
        let mut values = vec![f32::NAN; k];
        w.dequantize_row(n, &mut values);
        let group = |j: usize| n * (k / g) + j / g;
        let offset = |j: usize| f64::from(offsets[group(j)].abs());
        let parts = (0..k).map(|j| f64::from(values[j].abs()) + 2.0 * offset(j)).collect();
        let table =
            (0..k).map(|j| f64::from(largest / 20_000.0 * scales[group(j)].abs())).collect();
        Row { values, parts, table }
    };
    (0..w.n()).map(row).collect()
}

/// The formula in f64 at one place, and how far results may be from it.
fn reference(w: &Weight, row: &Row, x: &[f32]) -> (f64, f64) {
    let products = |parts: &[f64]| -> f64 {
        x.iter().zip(parts).map(|(x, part)| f64::from(x.abs()) * part).sum()
    };
    let sum = x.iter().zip(&row.values).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    let rounding = products(&row.parts) * x.len() as f64 * 2f64.powi(-22);
    if !w.has_panels() {
        return (sum, rounding);
    }
    let r = match (w.is_table(), w.bits()) {
        (true, _) => 13_400.0,
        (false, 1) => 21_800.0,
        (false, _) => 65_000.0,
    };
    let blocks = x.chunks(32).zip(row.parts.chunks(32)).map(|(x, parts)| {
        let amax = x.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        f64::from(amax) / r * parts.iter().sum::<f64>()
    });
    (sum, rounding + products(&row.table) + blocks.sum::<f64>())
}

fn check(w: &Weight, x: &[f32], shape: Shape, case: &str) {
    let Shape { m, n, k } = shape;
    let rows = rows(w);
    for isa in Isa::available() {
        let mut y = vec![f32::NAN; m * n];
        linear(&Cpu::with_isa(isa, Some(2)), w, x, &mut y, shape);
        for (at, &got) in y.iter().enumerate() {
            let (row, col) = (at / n, at % n);
            let (wanted, tolerance) = reference(w, &rows[col], &x[row * k..][..k]);
            assert!(
                (f64::from(got) - wanted).abs() <= tolerance,
                "{case} {shape:?} {}: y[{row}, {col}] = {got}, wanted {wanted} ± {tolerance}",
                isa.name()
            );
        }
    }
}

fn kinds() -> Vec<Kind> {
    let mut all = Vec::new();
    for bits in 1..=8 {
        for (table, offset, bf16) in [(false, 0, true), (false, 1, false), (false, 2, true)] {
            all.push(Kind { bits, table, offset, bf16 });
        }
        if bits <= 5 {
            all.push(Kind { bits, table: true, offset: 0, bf16: bits % 2 == 0 });
        }
    }
    all
}

#[test]
fn results_are_the_formula_within_its_bound() {
    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    println!("packed_linear ran on {names:?}");
    let mut sample = Sample(0x9ac_4ed);
    for (shape, g) in SHAPES {
        let Shape { m, n, k } = shape;
        for kind in kinds() {
            let w = weight(&Cpu::new(Some(2)), &mut sample, (n, k, g), kind);
            let mut x = sample.vec(m * k, 3.0);
            // An outlier, as language models have them: its block alone may lose digits.
            x[k / 2] = 400.0;
            check(&w, &x, shape, &format!("{kind:?} group {g}"));
            check(&w, &vec![0.0; m * k], shape, "zeros");
        }
    }
}

#[test]
fn the_largest_products_do_not_overflow() {
    for (bits, table) in
        [(8, false), (7, false), (4, false), (2, false), (1, false), (4, true), (5, true)]
    {
        for byte in [0, (1_u32 << bits) - 1] {
            let (n, k) = (17, 128);
            let byte = u8::try_from(byte).expect("8 bits");
            let codes = Codes::pack(&Cpu::new(Some(1)), (n, k), bits, |_, row| row.fill(byte));
            let values = match table {
                true => Values::Table(Table::new(&vec![-1.0; 1 << bits])),
                false => Values::Integers { bias: 0 },
            };
            let scale = Floats::F32(vec![1.0; n * 4]);
            let w = Weight::new(codes, values, 32, &scale, &Offset::None);
            for m in [1, 2, 3, 12] {
                check(&w, &vec![-7.0; m * k], Shape { m, n, k }, "lowest");
                check(&w, &vec![1e30; m * k], Shape { m, n, k }, "highest");
            }
        }
    }
}

#[test]
fn prepared_integers_are_exact() {
    let mut sample = Sample(0x8da4);
    let (m, n, k) = (4, 19, 96);
    for kind in [Kind { bits: 4, table: false, offset: 0, bf16: false }] {
        let w = weight(&Cpu::new(Some(1)), &mut sample, (n, k, 32), kind);
        let q: Vec<i8> = (0..m * k).map(|_| sample.bits().to_le_bytes()[2].cast_signed()).collect();
        let zero: Vec<i32> =
            (0..m).map(|_| i32::try_from(sample.below(256)).expect("small") - 128).collect();
        let scale = sample.vec(m, 0.1);
        let x = Activation::from_codes(&q, &scale, &zero, k);
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; m * n];
            linear_prepared(&Cpu::with_isa(isa, Some(2)), &w, &x, &mut y);
            for (at, &got) in y.iter().enumerate() {
                let (row, col) = (at / n, at % n);
                let mut values = vec![0.0; k];
                w.dequantize_row(col, &mut values);
                let x = |j: usize| {
                    f64::from(i32::from(q[row * k + j]) - zero[row]) * f64::from(scale[row])
                };
                let wanted: f64 = (0..k).map(|j| x(j) * f64::from(values[j])).sum();
                let magnitude: f64 = (0..k).map(|j| (x(j) * f64::from(values[j])).abs()).sum();
                let tolerance = magnitude * k as f64 * 2f64.powi(-22);
                assert!(
                    (f64::from(got) - wanted).abs() <= tolerance,
                    "{} {at}: {got} {wanted}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn a_number_that_is_none_spoils_its_own_row_only() {
    let mut sample = Sample(0x4a4);
    let (n, k) = (5, 96);
    for m in [2, 3] {
        let kind = Kind { bits: 3, table: false, offset: 0, bf16: false };
        let w = weight(&Cpu::new(Some(1)), &mut sample, (n, k, 32), kind);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = sample.vec(m * k, 1.0);
            x[k + 5] = bad;
            for isa in Isa::available() {
                let mut y = vec![7.0; m * n];
                linear(&Cpu::with_isa(isa, Some(2)), &w, &x, &mut y, Shape { m, n, k });
                for (at, y) in y.iter().enumerate() {
                    assert_eq!(y.is_nan(), at / n == 1, "{} {bad}: y[{at}] = {y}", isa.name());
                }
            }
        }
    }
}

#[test]
fn empty_shapes_do_nothing() {
    for shape in
        [Shape { m: 0, n: 3, k: 64 }, Shape { m: 2, n: 0, k: 64 }, Shape { m: 2, n: 3, k: 0 }]
    {
        let Shape { m, n, k } = shape;
        let codes = Codes::pack(&Cpu::new(Some(1)), (n, k), 4, |_, row| row.fill(3));
        let scale = Floats::F32(vec![1.0; n * k / 32]);
        let w = Weight::new(codes, Values::Integers { bias: 8 }, 32, &scale, &Offset::None);
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; m * n];
            linear(&Cpu::with_isa(isa, Some(2)), &w, &vec![1.0; m * k], &mut y, shape);
            assert!(y.iter().all(|y| *y == 0.0), "{shape:?} {}", isa.name());
        }
    }
}
