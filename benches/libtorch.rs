//! Linear layers, ours and libtorch's in the same process and run, on as many threads, with the ratio of their best times.
//!
//! `cargo bench --features torch --bench libtorch -- --quick`; a word after `--` chooses groups by name. See
//! `tests/libtorch.sh` for libtorch itself. Caches are warm: `aolab bench linear --vs torch` times them cold.
#![allow(clippy::print_stdout, reason = "the ratio is what this is for")]

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aolab::Tensor;
use aolab::bench::Rival as _;
use aolab::kernels::Cpu;
use aolab::libtorch::TorchLinear;
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::{Int4WeightOnlyConfig, Int8WeightOnlyConfig, Recipe};
use aolab::rng::Rng;
use aolab::tensor::DType;
use criterion::{Bencher, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const GROUP_SIZE: usize = 128;
/// (M, N, K): one token and a prompt, of a small and a large layer.
const SHAPES: [(usize, usize, usize); 4] =
    [(1, 1024, 1024), (1, 4096, 4096), (64, 1024, 1024), (64, 4096, 4096)];

/// Times `call`, and remembers the best time of a call.
fn timed(bencher: &mut Bencher<'_>, best: &Cell<f64>, call: &mut dyn FnMut()) {
    bencher.iter_custom(|calls| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        let time = start.elapsed();
        best.set(best.get().min(time.as_secs_f64() / calls as f64));
        time
    });
}

/// A random weight in the formats that libtorch has on a CPU.
fn weights(cpu: &Cpu, n: usize, k: usize) -> Vec<Arc<dyn Weight>> {
    let mut rng = Rng::new(1);
    let values = (0..n * k).map(|_| 0.02 * rng.normal()).collect();
    let dense = Tensor::new::<f32>(values, &[n, k]).expect("as many numbers as the shape says");
    let bf16 = dense.to_dtype(DType::BF16).expect("a float cast");
    let source = DenseWeight::new(dense.clone()).expect("a matrix");
    let int4 = Int4WeightOnlyConfig { group_size: GROUP_SIZE, ..Default::default() };
    vec![
        DenseWeight::shared(dense).expect("a matrix"),
        DenseWeight::shared(bf16).expect("a matrix"),
        Int8WeightOnlyConfig::default().quantize(cpu, &source).expect("rows of any length"),
        int4.quantize(cpu, &source).expect("a multiple of the group"),
    ]
}

fn linear(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    for (m, n, k) in SHAPES {
        for weight in weights(&cpu, n, k) {
            let rival = TorchLinear::new(&cpu, &*weight, m, GROUP_SIZE).expect("libtorch's layer");
            let (ours, theirs) = (Cell::new(f64::INFINITY), Cell::new(f64::INFINITY));
            let (x, mut y) = (vec![0.5; m * k], vec![0.0; m * n]);
            let cost = weight.cost(m);
            let mut group = c.benchmark_group(weight.workflow());
            group.sample_size(10);
            group
                .warm_up_time(Duration::from_millis(50))
                .measurement_time(Duration::from_millis(200));
            group.throughput(Throughput::ElementsAndBytes {
                elements: cost.flops,
                bytes: cost.bytes,
            });
            let shape = format!("m{m}_n{n}_k{k}");
            group.bench_function(BenchmarkId::new(weight.kernel(&cpu, m), &shape), |bencher| {
                timed(bencher, &ours, &mut || {
                    weight.linear(&cpu, &x, m, &mut y).expect("the shapes fit");
                });
            });
            group.bench_function(BenchmarkId::new(rival.name(), &shape), |bencher| {
                timed(bencher, &theirs, &mut || rival.run().expect("the shapes fit"));
            });
            group.finish();
            let ratio = theirs.get() / ours.get();
            if ratio.is_finite() {
                println!("{} {shape}: libtorch takes {ratio:.2} × our time", weight.workflow());
            }
        }
    }
}

criterion_group!(benches, linear);
criterion_main!(benches);
