//! Linear layers on GGUF blocks: `cargo bench -p aolab-kernels --bench ggml_linear -- q4_1`.
//!
//! Every type runs the shapes that its blocks divide, then a prefill of 512 tokens and a decode step
//! whose weight no cache holds; the throughput is bytes for few rows of activations and operations for many.

use aolab_kernels::ggml::BlockType;
use aolab_kernels::ggml::linear::{self, Activation, Panels, SHAPES};
use aolab_kernels::{Cpu, Shape};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// Beside `SHAPES`: a layer of SmolLM2 while it reads a prompt, and 90 million weights for one token.
const LARGE: [Shape; 2] = [Shape { m: 512, n: 1536, k: 1536 }, Shape { m: 1, n: 22016, k: 4096 }];

/// Blocks of every byte value in turn; their f16 fields are made ordinary numbers.
fn blocks(ty: BlockType, count: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=250).cycle().take(count * ty.block_bytes()).collect();
    let last = ty.block_bytes() - 2;
    for block in bytes.chunks_mut(ty.block_bytes()) {
        for at in [0, 2, last - 2, last] {
            block[at + 1] = 0x20;
        }
    }
    bytes
}

fn layers(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for ty in BlockType::ALL.into_iter().filter(|ty| ty.is_quantized()) {
        let shapes = SHAPES.into_iter().chain(LARGE);
        for shape in shapes.filter(|s| s.n > 0 && s.k.is_multiple_of(ty.block_len())) {
            layer(c, &cpu, ty, shape);
        }
    }
}

fn layer(c: &mut Criterion, cpu: &Cpu, ty: BlockType, shape: Shape) {
    let Shape { m, n, k } = shape;
    let w = Panels::pack(cpu, ty, &blocks(ty, n * k / ty.block_len()), n, k);
    let x = vec![0.5; m * k];
    let mut y = vec![0.0; m * n];
    let cost = linear::cost(&w, m);
    let mut group = c.benchmark_group(linear::kernel_name(cpu.isa(), ty, m));
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(200));
    group.throughput(match m {
        0..=2 => Throughput::Bytes(cost.bytes),
        _ => Throughput::Elements(cost.flops),
    });
    let id = BenchmarkId::from_parameter(format!("m{m}_n{n}_k{k}"));
    group.bench_function(id, |b| {
        b.iter(|| linear::linear_prepared(cpu, &w, &Activation::quantize(cpu, &x, m, k), &mut y));
    });
    group.finish();
}

criterion_group!(benches, layers);
criterion_main!(benches);
