//! What a model does between its linear layers: `cargo bench -p aolab-kernels --bench small_ops`.
//!
//! Every group runs the best instruction set on one thread and on all; the throughput is
//! bytes moved, or multiply-adds counted as two for attention, from the kernel's own `cost`.

use aolab_kernels::attention::{self, AttentionShape, Keys};
use aolab_kernels::kv_cache::{self, CacheFormat, KvCache};
use aolab_kernels::{
    Cost, Cpu, Threads, activation, dtypes, embedding, logits, norm, rope, softmax,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use std::hint::black_box;

/// The machine's teams: one thread, and all of them.
fn cpus() -> Vec<Cpu> {
    let mut counts = vec![1, Threads::available()];
    counts.dedup();
    counts.into_iter().map(|count| Cpu::new(Some(count))).collect()
}

/// Runs `f` under the kernel's name, the shape and the number of threads.
fn bench(
    c: &mut Criterion,
    cpu: &Cpu,
    [kernel, shape]: [&str; 2],
    throughput: Throughput,
    mut f: impl FnMut(),
) {
    let mut group = c.benchmark_group(kernel);
    group.throughput(throughput);
    let id = BenchmarkId::new(shape, format!("{} threads", cpu.threads().count()));
    group.bench_function(id, |b| b.iter(&mut f));
    group.finish();
}

fn bytes(cost: Cost) -> Throughput {
    Throughput::Bytes(cost.bytes)
}

/// Numbers that are neither equal nor far apart.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect()
}

fn norms(c: &mut Criterion) {
    for (cpu, &(m, k)) in cpus().iter().flat_map(|cpu| norm::SHAPES.iter().map(move |s| (cpu, s))) {
        let (x, weight, mut y) = (numbers(m * k), numbers(k), numbers(m * k));
        let name = norm::kernel_name(cpu.isa());
        let shape = [format!("rms ({m}, {k})"), format!("layer ({m}, {k})")];
        bench(c, cpu, [name, &shape[0]], bytes(norm::cost(m, k)), || {
            norm::rms_norm(cpu, black_box(&x), &weight, 1e-5, &mut y);
        });
        bench(c, cpu, [name, &shape[1]], bytes(norm::cost(m, k)), || {
            norm::layer_norm(cpu, black_box(&x), &weight, None, 1e-5, &mut y);
        });
    }
}

fn ropes(c: &mut Criterion) {
    for (cpu, &(shape, rotary)) in
        cpus().iter().flat_map(|cpu| rope::SHAPES.iter().map(move |s| (cpu, s)))
    {
        let inv_freq: Vec<f64> =
            (0..rotary / 2).map(|i| 10000f64.powf(-2.0 * i as f64 / rotary as f64)).collect();
        let (cos, sin) = rope::tables(&inv_freq, 0..shape.m, 1.0);
        let mut x = numbers(shape.m * shape.heads * shape.head_dim);
        for order in [rope::Order::Half, rope::Order::Interleaved] {
            let id = format!("{order:?} {} × {} × {rotary}", shape.m, shape.heads);
            let cost = bytes(rope::cost(shape, rotary));
            bench(c, cpu, [rope::kernel_name(cpu.isa()), &id], cost, || {
                rope::apply(cpu, black_box(&mut x), shape, &cos, &sin, order);
            });
        }
    }
}

fn rows(c: &mut Criterion) {
    for cpu in &cpus() {
        for &(m, n) in softmax::SHAPES {
            let mut x = numbers(m * n);
            let (name, id) = (softmax::kernel_name(cpu.isa()), format!("({m}, {n})"));
            bench(c, cpu, [name, &id], bytes(softmax::cost(m, n)), || {
                softmax::softmax(cpu, black_box(&mut x), n);
            });
        }
        for &(m, n) in logits::SHAPES {
            let (x, targets, mut y) = (numbers(m * n), vec![0; m], vec![0.0; m]);
            let (name, id) = (logits::kernel_name(cpu.isa()), format!("({m}, {n})"));
            bench(c, cpu, [name, &id], bytes(logits::cost(m, n)), || {
                logits::nll(cpu, black_box(&x), &targets, &mut y);
            });
        }
        for &(v, m, k) in embedding::SHAPES {
            let table: Vec<bf16> = numbers(v * k).into_iter().map(bf16::from_f32).collect();
            let (ids, mut y) = (vec![0; m], numbers(m * k));
            let (name, id) = (embedding::kernel_name(cpu.isa()), format!("bf16 ({m}, {k})"));
            bench(c, cpu, [name, &id], bytes(embedding::cost(m, k, 2)), || {
                embedding::gather(cpu, embedding::Table::Bf16(&table), black_box(&ids), &mut y);
            });
        }
    }
}

fn elements(c: &mut Criterion) {
    for (cpu, &len) in
        cpus().iter().flat_map(|cpu| activation::SHAPES.iter().map(move |s| (cpu, s)))
    {
        let (gate, up, mut y) = (numbers(len), numbers(len), numbers(len));
        for function in activation::Activation::ALL {
            let (name, id) = (activation::kernel_name(cpu.isa()), format!("{function:?} {len}"));
            bench(c, cpu, [name, &id], bytes(activation::cost(len)), || {
                activation::activate_mul(cpu, function, black_box(&gate), &up, &mut y);
            });
        }
        let mut narrow = vec![bf16::ZERO; len];
        let (name, id) = (dtypes::kernel_name(cpu.isa()), format!("f32 to bf16 {len}"));
        bench(c, cpu, [name, &id], bytes(dtypes::cost(len)), || {
            dtypes::bf16_from_f32(cpu, black_box(&gate), &mut narrow);
        });
        let id = format!("bf16 to f32 {len}");
        bench(c, cpu, [name, &id], bytes(dtypes::cost(len)), || {
            dtypes::bf16_to_f32(cpu, black_box(&narrow), &mut y);
        });
    }
}

/// SmolLM2-135M, the built-in model and Llama-3-8B: prefill of 512 and decode behind 512 and 4096.
fn attentions(c: &mut Criterion) {
    for (cpu, [heads, kv_heads, head_dim]) in cpus()
        .iter()
        .flat_map(|cpu| [[9, 3, 64], [8, 4, 32], [32, 8, 128]].map(|heads| (cpu, heads)))
    {
        for (m, past) in [(512, 0), (1, 512), (1, 4096)] {
            let capacity = past + m;
            let scale = 0.125;
            let window = None;
            let shape =
                AttentionShape { m, heads, kv_heads, head_dim, past, capacity, window, scale };
            let q = numbers(m * heads * head_dim);
            let rows = numbers(kv_heads * capacity * head_dim);
            let mut out = q.clone();
            for format in CacheFormat::ALL {
                let mut cache = KvCache::new(format, 1, [kv_heads, capacity, head_dim]);
                cache.store(0, 0, [&rows, &rows]);
                let name = attention::kernel_name(cpu.isa(), &shape, format);
                let cost = attention::cost(&shape, format);
                let throughput = if m > 1 { Throughput::Elements(cost.flops) } else { bytes(cost) };
                let id = format!("{m} behind {past}, {heads}/{kv_heads} × {head_dim}");
                bench(c, cpu, [&name, &id], throughput, || {
                    let keys = Keys { cache: &cache, layer: 0, new: None };
                    attention::attention(cpu, black_box(&q), keys, &shape, &mut out);
                });
            }
        }
    }
}

fn caches(c: &mut Criterion) {
    let cpu = &Cpu::new(None);
    for (format, &(m, kv_heads, d)) in
        CacheFormat::ALL.iter().flat_map(|f| kv_cache::SHAPES.iter().map(move |s| (*f, s)))
    {
        let new = numbers(m * kv_heads * d);
        let mut cache = KvCache::new(format, 1, [kv_heads, m, d]);
        let id = format!("({m}, {kv_heads}, {d})");
        let throughput = bytes(kv_cache::cost(format, (m, kv_heads, d)));
        bench(c, cpu, [&kv_cache::kernel_name(format), &id], throughput, || {
            cache.store(0, 0, [black_box(&new), &new]);
        });
    }
}

criterion_group!(small_ops, norms, ropes, rows, elements, attentions, caches);
criterion_main!(small_ops);
