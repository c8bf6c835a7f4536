use half::{bf16, f16};

use super::{Block, Format, PANEL_K, SHAPES, oracle, panels};
use crate::{Cpu, Isa, Shape};

/// A small generator (xorshift64*), so that tests need no crate and repeat.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Between −1 and 1.
    fn next(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn many(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

fn cpus() -> Vec<Cpu> {
    let cpus: Vec<Cpu> =
        Isa::available().into_iter().map(|isa| Cpu::with_isa(isa, Some(2))).collect();
    let names: Vec<_> = cpus.iter().map(|cpu| cpu.isa().name()).collect();
    println!("instruction sets: {}", names.join(", "));
    cpus
}

/// Odd shapes: every path's edges in M, N and K.
fn shapes() -> Vec<Shape> {
    let mut all = Vec::new();
    for m in 1..=20 {
        for (n, k) in [(1, 1), (7, 31), (31, 7), (33, 33), (97, 64), (5, 577), (23, 256)] {
            all.push(Shape { m, n, k });
        }
    }
    for (m, n, k) in [
        (33, 577, 257),
        (40, 101, 513),
        (513, 13, 31),
        (1030, 3, 40),
        (1, 1000, 1000),
        (3, 50, 0),
        (30, 5, 0),
        (0, 5, 5),
        (9, 0, 5),
        (17, 1, 1),
    ] {
        all.push(Shape { m, n, k });
    }
    all.extend(SHAPES.into_iter().filter(|s| s.m * s.n * s.k < 10_000_000));
    all
}

/// What an error may be: `2⁻²² · K · Σ|x·w|`, of this y.
fn check(name: &str, y: &[f32], w: &[f32], x: &[f32], shape: Shape) {
    let abs: Vec<f32> = x.iter().map(|v| v.abs()).collect();
    let (mut exact, mut size) = (vec![f64::NAN; y.len()], vec![f64::NAN; y.len()]);
    oracle(|n, k| f64::from(w[n * shape.k + k]), x, &mut exact, shape);
    oracle(|n, k| f64::from(w[n * shape.k + k].abs()), &abs, &mut size, shape);
    for (i, y) in y.iter().enumerate() {
        let allowed = 2_f64.powi(-22) * shape.k as f64 * size[i];
        let error = (f64::from(*y) - exact[i]).abs();
        assert!(
            error <= allowed,
            "{name} {shape:?}: y[{i}] = {y}, off by {error}, allowed {allowed}"
        );
    }
}

fn run(cpu: &Cpu, format: Format, w: &[f32], x: &[f32], shape: Shape) -> Vec<f32> {
    let mut y = vec![f32::NAN; shape.m * shape.n];
    let bf16s: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
    let f16s: Vec<f16> = w.iter().map(|&v| f16::from_f32(v)).collect();
    match format {
        Format::F32 => super::f32(cpu, w, x, &mut y, shape),
        Format::Bf16 => super::bf16(cpu, &bf16s, x, &mut y, shape),
        Format::F16 => super::f16(cpu, &f16s, x, &mut y, shape),
        Format::Bf16Bf16 => super::bf16_bf16(cpu, &bf16s, x, &mut y, shape),
    }
    y
}

/// The weight as the format stores it.
fn stored(format: Format, w: &[f32]) -> Vec<f32> {
    let store = |v: f32| match format {
        Format::F32 => v,
        Format::Bf16 | Format::Bf16Bf16 => bf16::from_f32(v).to_f32(),
        Format::F16 => f16::from_f32(v).to_f32(),
    };
    w.iter().map(|&v| store(v)).collect()
}

/// x as the format multiplies it.
fn multiplied(format: Format, x: &[f32]) -> Vec<f32> {
    let bf16s = format == Format::Bf16Bf16;
    x.iter().map(|&v| if bf16s { bf16::from_f32(v).to_f32() } else { v }).collect()
}

const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::F16, Format::Bf16Bf16];

#[test]
fn every_format_and_isa_is_the_formula() {
    let mut random = Random(1);
    let cpus = cpus();
    for shape in shapes() {
        let (w, x) = (random.many(shape.n * shape.k), random.many(shape.m * shape.k));
        for format in FORMATS {
            for cpu in &cpus {
                let y = run(cpu, format, &w, &x, shape);
                let name = super::kernel_name(format, cpu.isa(), shape.m);
                check(&name, &y, &stored(format, &w), &multiplied(format, &x), shape);
            }
        }
    }
}

#[test]
fn infinities_and_nan_stay_in_their_row_and_column() {
    for cpu in cpus() {
        for m in [1, 2, 8, 9, 40] {
            let shape = Shape { m, n: 13, k: 37 };
            let (mut w, mut x) = (vec![1.0; shape.n * shape.k], vec![1.0; shape.m * shape.k]);
            w[3 * shape.k + 36] = f32::INFINITY;
            x[(m - 1) * shape.k + 36] = f32::NAN;
            for format in FORMATS {
                for (i, y) in run(&cpu, format, &w, &x, shape).into_iter().enumerate() {
                    let wanted = match (i / shape.n, i % shape.n) {
                        (row, _) if row == m - 1 => f32::NAN,
                        (_, 3) => f32::INFINITY,
                        _ => 37.0,
                    };
                    let name = super::kernel_name(format, cpu.isa(), m);
                    let same = y.total_cmp(&wanted).is_eq() || y.is_nan() && wanted.is_nan();
                    assert!(same, "{name} m {m}: y[{i}] = {y}, wanted {wanted}");
                }
            }
        }
    }
}

#[test]
fn zeros_and_large_numbers() {
    for cpu in cpus() {
        for m in [1, 5, 16, 33] {
            let shape = Shape { m, n: 7, k: 300 };
            let zeros = vec![0.0; shape.n * shape.k];
            let large = vec![f32::MAX; shape.m * shape.k];
            for format in [Format::F32, Format::Bf16, Format::F16] {
                let y = run(&cpu, format, &zeros, &large, shape);
                assert!(y.iter().all(|y| y.abs() == 0.0), "{format:?}: 0 · max is 0, got {y:?}");
                let y = run(&cpu, format, &vec![1.0; zeros.len()], &large, shape);
                assert!(y.iter().all(|y| *y == f32::INFINITY), "{format:?}: got {y:?}");
            }
        }
    }
}

#[test]
fn panels_are_asked_for_as_promised() {
    for cpu in cpus() {
        for (m, n, k) in [(1, 5, 700), (20, 300, 256), (600, 7, 511), (3, 1000, 1)] {
            let shape = Shape { m, n, k };
            let mut random = Random(7);
            let (w, x) = (random.many(n * k), random.many(m * k));
            let w16: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
            let promise = |block: &Block, rows: usize| {
                assert!(block.n.len() == rows && rows <= panels::PANEL_ROWS, "{block:?}");
                assert!(block.n.start.is_multiple_of(4) && block.k.start.is_multiple_of(PANEL_K));
                assert!(block.k.len() == PANEL_K || block.k.end == k, "{block:?}");
            };
            let mut y = vec![f32::NAN; m * n];
            super::gemm_with_panels(&cpu, shape, &x, &mut y, |block, panel| {
                promise(&block, panel.len());
                for (row, n) in panel.iter_mut().zip(block.n) {
                    row.fill(f32::NAN);
                    row[..block.k.len()].copy_from_slice(&w[n * k..][block.k.clone()]);
                }
            });
            check("gemm_with_panels", &y, &w, &x, shape);
            y.fill(f32::NAN);
            super::gemm_with_bf16_panels(&cpu, shape, &x, &mut y, |block, panel| {
                promise(&block, panel.len());
                panel.as_flattened_mut().fill(bf16::NAN);
                for (row, n) in panel.iter_mut().zip(block.n) {
                    row[..block.k.len()].copy_from_slice(&w16[n * k..][block.k.clone()]);
                }
            });
            let (w, x) = (stored(Format::Bf16, &w), multiplied(Format::Bf16Bf16, &x));
            check("gemm_with_bf16_panels", &y, &w, &x, shape);
        }
    }
}

#[test]
fn rounding_to_bf16_is_to_nearest_even() {
    let mut cases = vec![
        0.0,
        -0.0,
        1.0,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::from_bits(0x7f80_0001),
        f32::from_bits(0x3f80_8000),
        f32::from_bits(0x3f81_8000),
        f32::from_bits(0x3f80_8001),
        f32::from_bits(0x3f80_7fff),
        f32::from_bits(1),
    ];
    let mut random = Random(3);
    cases.extend((0..100_000).map(|_| f32::from_bits((random.bits() >> 32) as u32)));
    let mut rounded = vec![bf16::ONE; cases.len()];
    super::round_to_bf16(&cases, &mut rounded);
    for (from, to) in cases.iter().zip(rounded) {
        let wanted = bf16::from_f32(*from);
        let same = to.to_bits() == wanted.to_bits() || to.is_nan() && wanted.is_nan();
        assert!(same, "{from} ({:#x}) became {to}, wanted {wanted}", from.to_bits());
    }
}
