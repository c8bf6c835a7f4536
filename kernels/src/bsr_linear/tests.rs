use super::*;
use crate::sample::Sample;

struct Case {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    int8: Vec<i8>,
    scale: Vec<f32>,
    crow: Vec<i32>,
    col: Vec<i32>,
    block: usize,
}

impl Case {
    fn new(sample: &mut Sample, shape: Shape, block: usize) -> Case {
        let Shape { n, k, .. } = shape;
        let (mut crow, mut col) = (vec![0], Vec::new());
        for row in 0..n / block {
            // The second row of blocks is empty.
            let some = (0..k / block).filter(|_| row != 1 && sample.unit() > 0.0);
            col.extend(some.map(|c| i32::try_from(c).expect("small")));
            crow.push(i32::try_from(col.len()).expect("small"));
        }
        let numbers = col.len() * block * block;
        let f32 = sample.vec(numbers, 1.0);
        Case {
            bf16: f32.iter().map(|v| bf16::from_f32(*v)).collect(),
            int8: (0..numbers).map(|_| sample.bits().to_le_bytes()[2].cast_signed()).collect(),
            scale: sample.vec(n, 0.05),
            f32,
            crow,
            col,
            block,
        }
    }

    fn each(&self, mut f: impl FnMut(&str, Weight<'_>)) {
        let of = |values| Weight { values, crow: &self.crow, col: &self.col, block: self.block };
        f("f32", of(Values::F32(&self.f32)));
        f("bf16", of(Values::Bf16(&self.bf16)));
        f("int8", of(Values::Int8 { q: &self.int8, scale: &self.scale }));
    }
}

/// The formula in f64, and the sum of magnitudes.
fn reference(w: Weight<'_>, x: &[f32], n: usize) -> (f64, f64) {
    let b = w.block;
    let (mut sum, mut magnitude) = (0.0, 0.0);
    let row = n / b;
    for at in w.crow[row]..w.crow[row + 1] {
        let at = usize::try_from(at).expect("not negative");
        let column = usize::try_from(w.col[at]).expect("not negative") * b;
        for j in 0..b {
            let place = at * b * b + j * b + n % b;
            let value = match w.values {
                Values::F32(v) => f64::from(v[place]),
                Values::Bf16(v) => v[place].to_f64(),
                Values::Int8 { q, scale } => f64::from(q[place]) * f64::from(scale[n]),
            };
            let product = f64::from(x[column + j]) * value;
            (sum, magnitude) = (sum + product, magnitude + product.abs());
        }
    }
    (sum, magnitude)
}

#[test]
fn linear_is_the_formula_within_its_bound() {
    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    println!("bsr_linear ran on {names:?}");
    let mut sample = Sample(0xb5_0001);
    let more = (1..=14).map(|m| (Shape { m, n: 128, k: 128 }, 64));
    for (shape, block) in SHAPES.into_iter().chain(more) {
        let Shape { m, n, k } = shape;
        let case = Case::new(&mut sample, shape, block);
        let x = sample.vec(m * k, 3.0);
        let rounded: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        case.each(|name, w| {
            for isa in Isa::available() {
                for compute in [Compute::F32, Compute::Bf16] {
                    let cpu = Cpu::with_isa(isa, Some(2)).with_compute(compute);
                    let mut y = vec![f32::NAN; m * n];
                    linear(&cpu, w, &x, &mut y, shape);
                    let in_bf16 = kernel_name(&cpu, w, m).contains("bf16xbf16");
                    let x = [&x, &rounded][usize::from(in_bf16)];
                    let off = miss(w, x, k, &y);
                    let isa = isa.name();
                    assert!(
                        off.is_none(),
                        "{name} {shape:?} block {block} {isa} {compute:?}: {off:?}"
                    );
                }
            }
        });
    }
}

/// What is wrong with the first number of `y` that is further from the reference than rounding explains.
fn miss(w: Weight<'_>, x: &[f32], k: usize, y: &[f32]) -> Option<String> {
    let n = y.len() * k / x.len();
    y.iter().enumerate().find_map(|(at, got)| {
        let (wanted, magnitude) = reference(w, &x[at / n * k..][..k], at % n);
        let tolerance = magnitude * k as f64 * 2f64.powi(-22);
        let holds = (f64::from(*got) - wanted).abs() <= tolerance;
        (!holds).then(|| format!("y[{at}] = {got}, wanted {wanted} ± {tolerance}"))
    })
}

#[test]
fn nan_spoils_its_own_row_only_and_absent_blocks_not_at_all() {
    let mut sample = Sample(0xb5_0002);
    let shape = Shape { m: 3, n: 64, k: 64 };
    let case = Case::new(&mut sample, shape, 32);
    let mut x = sample.vec(3 * 64, 1.0);
    x[64] = f32::NAN;
    case.each(|name, w| {
        for isa in Isa::available() {
            let mut y = vec![7.0; 192];
            linear(&Cpu::with_isa(isa, Some(2)), w, &x, &mut y, shape);
            for (at, y) in y.iter().enumerate() {
                let reads = w.blocks(at % 64 / 32).any(|(_, column)| column == 0);
                assert_eq!(y.is_nan(), at / 64 == 1 && reads, "{name} {} {at}", isa.name());
            }
        }
    });
}

#[test]
#[should_panic(expected = "outside of")]
fn a_block_outside_is_refused() {
    let values = [0.0; 256];
    let w = Weight { values: Values::F32(&values), crow: &[0, 1], col: &[1], block: 16 };
    let shape = Shape { m: 1, n: 16, k: 16 };
    linear(&Cpu::with_isa(Isa::Scalar, Some(1)), w, &[0.0; 16], &mut [0.0; 16], shape);
}
