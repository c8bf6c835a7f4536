//! Every kernel on its own shapes, with the bytes and operations that `cost` counts.
//!
//! `cargo bench --bench kernels -- --quick`; a word after `--` chooses groups by name. The best
//! instruction set and one thread per core run. To add a kernel: a function that calls `case` for each
//! of its SHAPES, and its name in `criterion_group!`.

#![expect(missing_docs, reason = "criterion's macros make public functions")]

use std::time::Duration;

use aolab_kernels::dense_linear::{self, Format};
use aolab_kernels::{
    Cost, Cpu, Shape, activation, attention, embedding, ggml, int4_linear, int8_activation,
    int8_linear, logits, norm, rope, softmax,
};
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
        let kernel = int8_linear::kernel_name(cpu.isa(), m);
        let cost = int8_linear::weight_only_cost(shape, n);
        case(c, kernel, &name(shape), cost, || {
            int8_linear::weight_only(&cpu, &q, int8_linear::Scale::Row(&scale), &x, &mut y, shape);
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
        let kernel = int4_linear::kernel_name(cpu.isa(), m);
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

fn norms(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for &(m, k) in norm::SHAPES {
        let (x, weight, mut y) = (numbers(m * k), numbers(k), vec![0.0; m * k]);
        case(c, norm::kernel_name(cpu.isa()), &format!("m{m}_k{k}"), norm::cost(m, k), || {
            norm::rms_norm(&cpu, &x, &weight, 1e-5, &mut y);
        });
    }
}

fn ropes(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for &(shape, rotary) in rope::SHAPES {
        let mut x = numbers(shape.m * shape.heads * shape.head_dim);
        let (cos, sin) = rope::tables(&vec![0.1; rotary / 2], 0..shape.m, 1.0);
        let shape_name = format!("m{}_h{}_d{}_r{rotary}", shape.m, shape.heads, shape.head_dim);
        case(c, rope::kernel_name(cpu.isa()), &shape_name, rope::cost(shape, rotary), || {
            rope::apply(&cpu, &mut x, shape, &cos, &sin, rope::Order::Half);
        });
    }
}

fn softmaxes(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for &(m, n) in softmax::SHAPES {
        let mut x = numbers(m * n);
        case(
            c,
            softmax::kernel_name(cpu.isa()),
            &format!("m{m}_n{n}"),
            softmax::cost(m, n),
            || {
                softmax::softmax(&cpu, &mut x, n);
            },
        );
    }
}

fn activations(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for &len in activation::SHAPES {
        let (gate, up, mut y) = (numbers(len), numbers(len), vec![0.0; len]);
        let kernel = activation::kernel_name(cpu.isa());
        case(c, kernel, &format!("len{len}"), activation::cost(len), || {
            activation::silu_mul(&cpu, &gate, &up, &mut y);
        });
    }
}

fn attentions(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for shape in attention::SHAPES {
        let q = numbers(shape.m * shape.heads * shape.head_dim);
        let cache = numbers(shape.kv_heads * shape.capacity * shape.head_dim);
        let mut out = vec![0.0; q.len()];
        let (heads, kv) = (shape.heads, shape.kv_heads);
        let shape_name =
            format!("m{}_h{heads}_kv{kv}_d{}_past{}", shape.m, shape.head_dim, shape.past);
        let window = shape.window.map_or(String::new(), |window| format!("_window{window}"));
        let kernel = attention::kernel_name(cpu.isa(), shape);
        case(c, kernel, &(shape_name + &window), attention::cost(shape, 4), || {
            attention::attention(&cpu, &q, &cache, &cache, shape, &mut out);
        });
    }
}

fn embeddings(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for &(v, m, k) in embedding::SHAPES {
        let (table, mut y) = (numbers(v * k), vec![0.0; m * k]);
        let ids: Vec<u32> = (0..u32::MAX).take(v).cycle().take(m).collect();
        let shape_name = format!("v{v}_m{m}_k{k}");
        case(c, embedding::kernel_name(cpu.isa()), &shape_name, embedding::cost(m, k, 4), || {
            embedding::gather(&cpu, embedding::Table::F32(&table), &ids, &mut y);
        });
    }
}

fn likelihoods(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for &(m, n) in logits::SHAPES {
        let (x, targets, mut nll) = (numbers(m * n), vec![0; m], vec![0.0; m]);
        case(c, logits::kernel_name(cpu.isa()), &format!("m{m}_n{n}"), logits::cost(m, n), || {
            logits::nll(&cpu, &x, &targets, &mut nll);
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
    norms,
    ropes,
    softmaxes,
    activations,
    attentions,
    embeddings,
    likelihoods,
);
criterion_main!(kernels);
