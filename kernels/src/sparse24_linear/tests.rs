use super::*;
use crate::sample::Sample;

/// A random 2:4 choice; now and then a four keeps fewer.
fn choice(sample: &mut Sample, (n, k): (usize, usize)) -> Vec<bool> {
    let mut keep = vec![false; n * k];
    for four in keep.as_chunks_mut::<4>().0 {
        let (a, b) = (sample.below(4) as usize, sample.below(4) as usize);
        (four[a], four[b]) = (true, true);
    }
    keep
}

/// Owned parts of a weight and what it stands for, row-major, in f64.
struct Case {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    int8: Vec<i8>,
    int4: Vec<u8>,
    codes: Vec<u8>,
    row_scale: Vec<f32>,
    scale: Vec<f32>,
    zero: Vec<f32>,
    /// Dense codes, 0 to 15, and what is kept.
    nibbles: Vec<u8>,
    kept: Vec<bool>,
    shape: Shape,
}

impl Case {
    fn new(sample: &mut Sample, shape: Shape) -> Case {
        let Shape { n, k, .. } = shape;
        let keep = choice(sample, (n, k));
        let codes = codes_of(|row, column| keep[row * k + column], (n, k)).expect("2:4");
        // What is stored besides, because a four kept fewer than two, is kept as far as a kernel knows.
        let all = vec![true; n * k];
        let mut kept = vec![false; n * k];
        for row in 0..n {
            for at in 0..k / 4 {
                pack::places(&codes[row * code_bytes(k)..], at)
                    .into_iter()
                    .for_each(|place| kept[row * k + 4 * at + place] = all[0]);
            }
        }
        assert!(keep.iter().zip(&kept).all(|(keep, kept)| !keep || *kept));
        let w = sample.vec(n * k, 1.0);
        let small: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
        let int8: Vec<i8> =
            (0..n * k).map(|_| sample.bits().to_le_bytes()[5].cast_signed()).collect();
        let nibbles: Vec<u8> = (0..n * k).map(|_| sample.bits().to_le_bytes()[4] & 15).collect();
        Case {
            f32: kept_of(&w, &codes, k),
            bf16: kept_of(&small, &codes, k),
            int8: kept_of(&int8, &codes, k),
            int4: pack_int4(&kept_of(&nibbles, &codes, k), k),
            row_scale: sample.vec(n, 0.02),
            scale: sample.vec(n * k.div_ceil(32), 0.05),
            zero: sample.vec(n * k.div_ceil(32), 0.05),
            codes,
            nibbles,
            kept,
            shape,
        }
    }

    fn each(&self, mut f: impl FnMut(&str, Weight<'_>, usize)) {
        let Shape { n, k, .. } = self.shape;
        let codes = &self.codes;
        f("f32", Weight { values: Values::F32(&self.f32), codes }, 0);
        f("bf16", Weight { values: Values::Bf16(&self.bf16), codes }, 0);
        let int8 = Values::Int8 { q: &self.int8, scale: &self.row_scale };
        f("int8", Weight { values: int8, codes }, 512);
        for group_size in [32, 64, 128, 256] {
            if !k.is_multiple_of(group_size) {
                continue;
            }
            let count = n * k / group_size;
            for zero in [None, Some(&self.zero[..count])] {
                let scale = &self.scale[..count];
                let values = Values::Int4 { q: &self.int4, scale, zero, group_size };
                let name = format!("int4 g{group_size} zero {}", zero.is_some());
                f(&name, Weight { values, codes }, 512);
            }
        }
    }
}

fn check(name: &str, w: Weight<'_>, x: &[f32], shape: Shape, block: usize) {
    let Shape { m, n, k } = shape;
    let rows = Rows::new(w, shape);
    let mut dense = vec![0.0; n * k];
    for (row, dense) in dense.chunks_exact_mut(k).enumerate() {
        rows.decode_plain(row, 0..k, dense);
    }
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        let mut y = vec![f32::NAN; m * n];
        linear(&cpu, w, x, &mut y, shape);
        for row in 0..m {
            for col in 0..n {
                let x = &x[row * k..][..k];
                let w = &dense[col * k..][..k];
                let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let wanted: f64 = products.clone().sum();
                let magnitude: f64 = products.map(f64::abs).sum();
                let mut tolerance = magnitude * k as f64 * 2f64.powi(-22) + 1e-30;
                for start in (0..k).step_by(block.max(1)).take(if block > 0 { k } else { 0 }) {
                    let members = start..k.min(start + block);
                    let amax = members.clone().fold(0.0, |a: f32, k| a.max(x[k].abs()));
                    let sum: f64 = members.map(|k| f64::from(w[k].abs())).sum();
                    tolerance += f64::from(amax) * sum / 64_000.0;
                }
                // A zero point is added to what is small: the sums that cancel are those of scale and zero alone.
                if let Values::Int4 { zero: Some(_), .. } = rows.w.values {
                    let sum: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
                    tolerance += sum * 0.5 * (k as f64 * 2f64.powi(-22) + 1.0 / 64_000.0);
                }
                let got = f64::from(y[row * n + col]);
                assert!(
                    (got - wanted).abs() <= tolerance,
                    "{name} {shape:?} {}: y[{row}, {col}] = {got}, wanted {wanted} ± {tolerance}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn linear_is_the_formula_within_its_bound() {
    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    println!("sparse24_linear ran on {names:?}");
    let mut sample = Sample(0x2_4001);
    let more = (1..=9).map(|m| Shape { m, n: 11, k: 448 });
    for shape in SHAPES.into_iter().chain(more) {
        let case = Case::new(&mut sample, shape);
        let mut x = sample.vec(shape.m * shape.k, 3.0);
        x[shape.k / 2] = 300.0;
        case.each(|name, w, block| {
            check(name, w, &x, shape, block);
            check(name, w, &vec![0.0; x.len()], shape, block);
        });
    }
}

#[test]
fn what_is_decoded_is_what_was_stored() {
    let mut sample = Sample(0x2_4002);
    for shape in SHAPES {
        let Shape { n, k, .. } = shape;
        let case = Case::new(&mut sample, shape);
        assert_eq!(unpack_int4(&case.int4, k), kept_of(&case.nibbles, &case.codes, k));
        case.each(|name, w, _| {
            let rows = Rows::new(w, shape);
            for row in 0..n {
                let mut plain = vec![f32::NAN; k];
                rows.decode_plain(row, 0..k, &mut plain);
                let kept = &case.kept[row * k..][..k];
                assert!(plain.iter().zip(kept).all(|(w, kept)| *kept || *w == 0.0), "{name}");
                for isa in Isa::available() {
                    let mut out = vec![f32::NAN; k];
                    rows.decode(isa, row, 0..k, &mut out);
                    let close = |(got, w): (&f32, &f32)| (got - w).abs() <= 1e-6 * w.abs().max(0.1);
                    let at = out.iter().zip(&plain).position(|pair| !close(pair));
                    assert!(at.is_none(), "{name} {shape:?} {}: {at:?}", isa.name());
                }
            }
        });
    }
}

#[test]
fn dynamic_is_the_formula_bit_for_bit() {
    let mut sample = Sample(0x2_4003);
    for shape in SHAPES {
        let Shape { m, n, k } = shape;
        let case = Case::new(&mut sample, shape);
        let q: Vec<i8> = (0..m * k).map(|_| sample.bits().to_le_bytes()[3].cast_signed()).collect();
        let scale = sample.vec(m, 0.1);
        let values = Values::Int8 { q: &case.int8, scale: &case.row_scale };
        let rows = Rows::new(Weight { values, codes: &case.codes }, shape);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            let mut y = vec![f32::NAN; m * n];
            let act = Activation { q: &q, scale: &scale };
            dynamic(&cpu, (&case.int8, &case.row_scale, &case.codes), act, &mut y, shape);
            for col in 0..n {
                let mut w = vec![0; k];
                rows.decode_int8(col, &mut w);
                for row in 0..m {
                    let products = q[row * k..][..k].iter().zip(&w);
                    let sum: i32 = products.map(|(a, w)| i32::from(*a) * i32::from(*w)).sum();
                    let wanted = sum as f32 * scale[row] * case.row_scale[col];
                    let got = y[row * n + col];
                    assert_eq!(got.to_bits(), wanted.to_bits(), "{shape:?} {}", isa.name());
                }
            }
        }
    }
}

#[test]
fn nan_and_infinity_spoil_their_own_row_only() {
    let mut sample = Sample(0x2_4004);
    let shape = Shape { m: 3, n: 5, k: 384 };
    let case = Case::new(&mut sample, shape);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = sample.vec(3 * 384, 1.0);
        for column in 0..4 {
            x[384 + column] = bad;
        }
        case.each(|name, w, _| {
            for isa in Isa::available() {
                let mut y = vec![7.0; 15];
                linear(&Cpu::with_isa(isa, Some(2)), w, &x, &mut y, shape);
                let finite = |row: usize| y[row * 5..][..5].iter().all(|y| y.is_finite());
                assert!(finite(0) && finite(2), "{name} {}: {y:?}", isa.name());
                let spoilt = y[5..10].iter().filter(|y| !y.is_finite()).count();
                assert!(spoilt >= 4, "{name} {}: {y:?}", isa.name());
            }
        });
    }
}

#[test]
fn more_than_two_of_four_have_no_code() {
    assert!(codes_of(|_, column| column != 1, (1, 4)).is_none());
    assert_eq!(codes_of(|_, column| column > 1, (1, 4)), Some(vec![4, 0, 0, 0, 0, 0, 0, 0]));
}

#[test]
fn empty_shapes_do_nothing() {
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        for (m, n, k) in [(0, 3, 64), (2, 0, 64), (2, 3, 0)] {
            let shape = Shape { m, n, k };
            let codes = vec![0; n * code_bytes(k) + 2];
            let values = vec![1.0; n * k / 2];
            let mut y = vec![f32::NAN; m * n];
            let w = Weight { values: Values::F32(&values), codes: &codes };
            linear(&cpu, w, &vec![1.0; m * k], &mut y, shape);
            assert!(y.iter().all(|y| *y == 0.0), "{shape:?} {}: {y:?}", isa.name());
        }
    }
}
