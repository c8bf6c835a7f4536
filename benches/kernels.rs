//! Every linear kernel on its own shapes, with the bytes and operations that `cost` counts.
//!
//! `cargo bench --bench kernels -- --quick`; a word after `--` chooses groups by name. The best
//! instruction set and one thread per core run. To add a kernel: a function that calls `case` for each
//! of its SHAPES, and its name in `criterion_group!`. What runs between the linear layers is in
//! `kernels/benches/small_ops.rs`.

use std::time::Duration;

use aolab_kernels::dense_linear::{self, Format};
use aolab_kernels::{Cost, Cpu, Shape, int4_linear, int8_activation, int8_linear};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};

/// One kernel on one shape.
fn case(c: &mut Criterion, kernel: &str, shape: &str, cost: Cost, call: impl FnMut()) {
    let mut group = c.benchmark_group(kernel);
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(200));
    group.throughput(Throughput::ElementsAndBytes { elements: cost.flops, bytes: cost.bytes });
    let mut call = call;
    group.bench_function(BenchmarkId::from_parameter(shape), |bencher| bencher.iter(&mut call));
    group.finish();
}

/// Numbers between −1 and 1 that repeat from run to run.
fn numbers(len: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Codes of all values.
fn codes(len: usize) -> Vec<i8> {
    (0..=u8::MAX).map(u8::cast_signed).cycle().take(len).collect()
}

fn name(Shape { m, n, k }: Shape) -> String {
    format!("m{m}_n{n}_k{k}")
}

fn dense(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for shape in dense_linear::SHAPES {
        let (w, x) = (numbers(shape.n * shape.k), numbers(shape.m * shape.k));
        let bf16s: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let f16s: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
        let mut y = vec![0.0; shape.m * shape.n];
        for format in [Format::F32, Format::Bf16, Format::F16, Format::Bf16Bf16] {
            let kernel = dense_linear::kernel_name(format, cpu.isa(), shape.m);
            let cost = dense_linear::cost(format, shape);
            case(c, &kernel, &name(shape), cost, || match format {
                Format::F32 => dense_linear::f32(&cpu, &w, &x, &mut y, shape),
                Format::Bf16 => dense_linear::bf16(&cpu, &bf16s, &x, &mut y, shape),
                Format::F16 => dense_linear::f16(&cpu, &f16s, &x, &mut y, shape),
                Format::Bf16Bf16 => dense_linear::bf16_bf16(&cpu, &bf16s, &x, &mut y, shape),
            });
        }
    }
}

fn int8_weight_only(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for shape in int8_linear::SHAPES {
        let Shape { m, n, k } = shape;
        let (q, scale, x) = (codes(n * k), numbers(n), numbers(m * k));
        let mut y = vec![0.0; m * n];
        let scale = int8_linear::Scale::Row(&scale);
        let kernel = int8_linear::kernel_name(cpu.isa(), scale, shape);
        let cost = int8_linear::weight_only_cost(shape, n);
        case(c, kernel, &name(shape), cost, || {
            int8_linear::weight_only(&cpu, &q, scale, &x, &mut y, shape);
        });
    }
}

fn int8_dynamic(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for shape in int8_linear::SHAPES {
        let Shape { m, n, k } = shape;
        let (q, scale, a, a_scale) = (codes(n * k), numbers(n), codes(m * k), numbers(m));
        let w = int8_linear::Weight { qdata: &q, scale: &scale, row_sums: None };
        let act = int8_linear::Activation { q: &a, scale: &a_scale, zero_point: None };
        let mut y = vec![0.0; m * n];
        let kernel = int8_linear::dynamic_kernel_name(cpu.isa(), m);
        case(c, kernel, &name(shape), int8_linear::dynamic_cost(shape), || {
            int8_linear::dynamic(&cpu, w, act, &mut y, shape);
        });
    }
}

fn int4_weight_only(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for (shape, group_size) in int4_linear::SHAPES {
        let Shape { m, n, k } = shape;
        let q: Vec<u8> = codes(n * k / 2).into_iter().map(i8::cast_unsigned).collect();
        let (scale, zero) = (numbers(n * k / group_size), numbers(n * k / group_size));
        let w = int4_linear::Weight {
            qdata: &q,
            scale: int4_linear::Floats::F32(&scale),
            zero: int4_linear::Floats::F32(&zero),
            group_size,
        };
        let x = numbers(m * k);
        let mut y = vec![0.0; m * n];
        let kernel = int4_linear::kernel_name(cpu.isa(), shape, group_size);
        let shape_name = format!("{}_g{group_size}", name(shape));
        case(c, kernel, &shape_name, int4_linear::cost(shape, group_size, 4), || {
            int4_linear::weight_only(&cpu, w, &x, &mut y, shape);
        });
    }
}

fn int8_activations(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for (m, k) in int8_activation::SHAPES {
        let x = numbers(m * k);
        let (mut q, mut scale) = (codes(m * k), vec![0.0; m]);
        let range = int8_activation::Range::FULL;
        let kernel = int8_activation::kernel_name(cpu.isa());
        case(c, kernel, &format!("m{m}_k{k}"), int8_activation::cost(m, k), || {
            int8_activation::symmetric(&cpu, &x, &mut q, &mut scale, range);
        });
    }
}

criterion_group!(
    kernels,
    dense,
    int8_weight_only,
    int8_dynamic,
    int4_weight_only,
    int8_activations,
);
criterion_main!(kernels);
