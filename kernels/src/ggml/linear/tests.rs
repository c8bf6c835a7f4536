use super::*;
use crate::ggml::tests::{Random, quantized};
use crate::ggml::{BlockType, dequantize};

struct Case {
    ty: BlockType,
    shape: Shape,
    blocks: Vec<u8>,
    x: Vec<f32>,
}

fn case(ty: BlockType, shape: Shape, seed: u64) -> Case {
    let mut random = Random(seed);
    let blocks = random.blocks(ty, shape.n * shape.k / ty.block_len());
    let x = (0..shape.m * shape.k).map(|_| random.f32() * 4.0).collect();
    Case { ty, shape, blocks, x }
}

/// Every type with every shape that its blocks divide.
fn cases() -> impl Iterator<Item = Case> {
    let odd = (1..=20).map(|m| Shape { m, n: 2 * m + 1, k: 256 });
    let shapes: Vec<Shape> = SHAPES.into_iter().chain(odd).collect();
    quantized().flat_map(move |ty| {
        let fits = shapes.clone().into_iter().filter(move |s| s.k.is_multiple_of(ty.block_len()));
        fits.map(move |shape| case(ty, shape, u64::from(ty.ggml_id()) + 17))
    })
}

impl Case {
    fn run(&self, cpu: &Cpu) -> Vec<f32> {
        let Shape { m, n, k } = self.shape;
        let panels = Panels::pack(cpu, self.ty, &self.blocks, n, k);
        let mut y = vec![f32::NAN; m * n];
        linear(cpu, &panels, &self.x, &mut y, self.shape);
        y
    }

    fn name(&self) -> String {
        format!("{} {:?}", self.ty.name(), self.shape)
    }

    fn weights(&self) -> Vec<f32> {
        let mut w = vec![f32::NAN; self.shape.n * self.shape.k];
        dequantize(self.ty, &self.blocks, &mut w);
        w
    }

    /// Compares with the sum in f64 over dequantized weights.
    fn check(&self, y: &[f32]) {
        let Shape { m, n, k } = self.shape;
        let w = self.weights();
        for row in 0..m {
            let x = &self.x[row * k..][..k];
            for col in 0..n {
                let (wanted, bound) = self.sum_and_bound(&w[col * k..][..k], x);
                let got = f64::from(y[row * n + col]);
                let error = (got - wanted).abs();
                assert!(
                    error <= bound,
                    "{} y[{row}, {col}] = {got}, wanted {wanted} ± {bound}",
                    self.name()
                );
            }
        }
    }

    /// The exact product and the error bound of the module's five facts.
    fn sum_and_bound(&self, w: &[f32], x: &[f32]) -> (f64, f64) {
        let (mut sum, mut quantization, mut terms) = (0.0, 0.0, 0.0);
        for (w, x) in w.chunks(32).zip(x.chunks(32)) {
            let amax = x.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
            for (w, x) in w.iter().zip(x) {
                let (w, x) = (f64::from(*w), f64::from(*x));
                sum += w * x;
                quantization += w.abs() * f64::from(amax) / 65_536.0;
                terms += self.largest_terms() * x.abs();
            }
        }
        let roundings = w.len() as f64 / 16.0 + 4.0;
        (sum, quantization * 1.001 + roundings * terms / 8_388_608.0)
    }

    /// At most this is |scale·(q − bias)| + |min| for blocks of `Random`: the f16 fields are under 2⁻².
    fn largest_terms(&self) -> f64 {
        0.25 * match self.ty {
            BlockType::Q4_0 => 8.0,
            BlockType::Q5_0 => 16.0,
            BlockType::Q4_1 => 15.0 + 1.0,
            BlockType::Q5_1 => 31.0 + 1.0,
            BlockType::Q2K => 15.0 * 3.0 + 15.0,
            BlockType::Q3K => 32.0 * 4.0,
            BlockType::Q4K => 63.0 * 15.0 + 63.0,
            BlockType::Q5K => 63.0 * 31.0 + 63.0,
            BlockType::Q6K => 128.0 * 32.0,
            _ => 128.0,
        }
    }
}

#[test]
fn the_oracle_keeps_its_error_bound() {
    let cpu = Cpu::with_isa(Isa::Scalar, Some(2));
    for case in cases().filter(|case| case.shape.m * case.shape.n * case.shape.k < 400_000) {
        case.check(&case.run(&cpu));
    }
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_oracle() {
    let isas = Isa::available();
    println!("instruction sets: {:?}", isas.iter().map(|isa| isa.name()).collect::<Vec<_>>());
    for case in cases() {
        let wanted = case.run(&Cpu::with_isa(Isa::Scalar, Some(2)));
        for &isa in &isas {
            for threads in [1, 2, 3] {
                let got = case.run(&Cpu::with_isa(isa, Some(threads)));
                let name = format!("{} {} {threads} threads", case.name(), isa.name());
                assert!(same_bits(&got, &wanted), "{name}: {got:?}, wanted {wanted:?}");
            }
        }
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let cpu = Cpu::new(Some(2));
    for ty in [BlockType::Q4_1, BlockType::Q8_0, BlockType::Q6K] {
        let all = case(ty, Shape { m: 19, n: 37, k: 512 }, 5);
        let y = all.run(&cpu);
        for row in 0..19 {
            let x = all.x[row * 512..][..512].to_vec();
            let one =
                Case { x, shape: Shape { m: 1, ..all.shape }, blocks: all.blocks.clone(), ty };
            assert!(same_bits(&one.run(&cpu), &y[row * 37..][..37]), "{} row {row}", ty.name());
        }
    }
}

#[test]
fn long_rows_are_decoded_in_parts() {
    // 2304 columns are 72 steps, and 64 are decoded at a time.
    for ty in quantized() {
        let case = case(ty, Shape { m: 4, n: 5, k: 2304 }, 23);
        for isa in Isa::available() {
            case.check(&case.run(&Cpu::with_isa(isa, Some(1))));
        }
    }
}

#[test]
fn packing_loses_nothing() {
    let cpu = Cpu::new(Some(2));
    for ty in quantized() {
        for n in [0, 1, 15, 16, 33] {
            let case = case(ty, Shape { m: 1, n, k: 512 }, 99);
            let panels = Panels::pack(&cpu, ty, &case.blocks, n, 512);
            assert_eq!(panels.unpack(), case.blocks, "{} n = {n}", ty.name());
            for (row, w) in case.weights().chunks(512).enumerate() {
                let mut out = vec![f32::NAN; 512];
                panels.dequantize_row(row, &mut out);
                assert!(same_bits(&out, w), "{} row {row}", ty.name());
            }
        }
    }
}

#[test]
fn many_layers_at_once_are_the_layers_one_by_one() {
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        for m in [1, 2, 5] {
            let sizes = [(BlockType::Q4_1, 576), (BlockType::Q8_0, 193), (BlockType::Q6K, 1)];
            let cases = sizes.map(|(ty, n)| case(ty, Shape { m, n, k: 768 }, 31));
            let panels =
                cases.each_ref().map(|c| Panels::pack(&cpu, c.ty, &c.blocks, c.shape.n, 768));
            let x = Activation::quantize(&cpu, &cases[0].x, m, 768);
            let mut ys = cases.each_ref().map(|c| vec![f32::NAN; m * c.shape.n]);
            let mut layers: Vec<_> =
                panels.iter().zip(&mut ys).map(|(w, y)| (w, y.as_mut_slice())).collect();
            linear_many(&cpu, &mut layers, &x);
            for (w, y) in panels.iter().zip(&ys) {
                let mut wanted = vec![f32::NAN; y.len()];
                linear_prepared(&cpu, w, &x, &mut wanted);
                assert!(same_bits(y, &wanted), "{} {} m = {m}", isa.name(), w.ty().name());
            }
        }
    }
}

/// Activations at the edges, in rows of their own between ordinary ones.
#[test]
fn edges_of_the_activations() {
    for ty in quantized() {
        for isa in Isa::available() {
            let mut case = case(ty, Shape { m: 7, n: 18, k: 512 }, 41);
            let (rows, _) = case.x.as_chunks_mut::<512>();
            rows[1] = [0.0; 512];
            rows[2][300] = f32::NAN;
            rows[3][0] = f32::NEG_INFINITY;
            rows[4] = [-3.0e38; 512];
            rows[4][1..].fill(0.0);
            rows[5] = [1.0e-31; 512];
            let y = case.run(&Cpu::with_isa(isa, Some(2)));
            let (y, _) = y.as_chunks::<18>();
            let name = format!("{} {}", ty.name(), isa.name());
            assert!(y[1].iter().chain(&y[5]).all(|y| *y == 0.0), "{name}: zeros gave {:?}", y[1]);
            assert!(y[2].iter().chain(&y[3]).all(|y| y.is_nan()), "{name}: NaN was lost");
            assert!(y[0].iter().chain(&y[6]).all(|y| y.is_finite()), "{name}: NaN spread");
            let w = case.weights();
            for (col, got) in y[4].iter().enumerate() {
                let wanted = f64::from(w[col * 512]) * -3.0e38;
                let (got, bound) = (f64::from(*got), wanted.abs() * 1e-4 + 3.0e38 * 1e-4);
                let overflows = wanted.abs() > f64::from(f32::MAX) * 0.5;
                assert!(overflows || (got - wanted).abs() <= bound, "{name}: {got}, not {wanted}");
            }
        }
    }
}

#[test]
fn largest_codes_meet_largest_activations() {
    for ty in quantized() {
        let shape = Shape { m: 3, n: 16, k: 256 };
        let mut case = case(ty, shape, 43);
        let halves = crate::ggml::tests::halves(ty);
        for block in case.blocks.chunks_mut(ty.block_bytes()) {
            block.fill(0xff);
            for &at in halves {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.125).to_le_bytes());
            }
        }
        for (i, x) in case.x.iter_mut().enumerate() {
            *x = if i < 256 || i % 2 == 0 { 7.0 } else { -7.0 };
        }
        for isa in Isa::available() {
            case.check(&case.run(&Cpu::with_isa(isa, Some(1))));
        }
    }
}

#[test]
fn names_and_costs() {
    assert_eq!(kernel_name(Isa::Scalar, BlockType::Q4K, 1), "any-q4_kxi16-scalar");
    for isa in Isa::available() {
        assert!(kernel_name(isa, BlockType::Q8_0, 9).contains("q8_0xi16"), "{}", isa.name());
    }
    let cpu = Cpu::new(Some(1));
    let case = case(BlockType::Q8_0, Shape { m: 2, n: 32, k: 64 }, 1);
    let panels = Panels::pack(&cpu, case.ty, &case.blocks, 32, 64);
    // 34 bytes a block, and panels that happen to fill their cache lines.
    assert_eq!(panels.nbytes(), case.blocks.len());
    let wanted = Cost { bytes: (32 * 2 * 34 + 2 * 4 * (32 + 64)) as u64, flops: 2 * 2 * 32 * 64 };
    assert_eq!(cost(&panels, 2), wanted);
}

#[test]
#[should_panic(expected = "y must be M rows of N numbers")]
fn a_result_of_the_wrong_size() {
    let cpu = Cpu::new(Some(1));
    let panels = Panels::pack(&cpu, BlockType::Q8_0, &[0; 34], 1, 32);
    linear(&cpu, &panels, &[0.0; 64], &mut [0.0], Shape { m: 2, n: 1, k: 32 });
}
