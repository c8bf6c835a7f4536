//! One linear layer, format by format, against the ceilings of this machine.
//!
//! Where other programs share the memory, what it gives changes from one second to the next, so that a ceiling
//! measured before is no measure. Cold calls are therefore timed in turn with a plain read of as many bytes, which lie
//! in large pages as weights do and are as cold; both times are medians over the same rounds.

use std::hint::black_box;
use std::time::Instant;

use aolab_kernels::Cpu;
use aolab_kernels::machine::Memory;
use serde::{Deserialize, Serialize};

use super::Times;
use crate::error::{Error, Result};
use crate::model::Weight;
use crate::rng::Rng;

/// The same layer in another library, timed in turn with ours.
pub trait Rival: std::fmt::Debug {
    /// What runs: `_weight_int8pack_mm, bf16`.
    fn name(&self) -> String;

    /// Multiplies once.
    fn run(&self) -> Result<()>;
}

/// One layer's call.
#[derive(Clone, Debug)]
pub struct LinearCase<'a> {
    /// The weight under test.
    pub weight: &'a dyn Weight,
    /// Rows of the activation.
    pub m: usize,
    /// Whether 128 MB are streamed through the caches before each call, as a decoder's other layers do.
    pub cold: bool,
    /// Seconds to spend on it, the reads and what makes the caches cold included.
    pub seconds: f64,
}

/// What [`linear`] found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinearResult {
    /// The weight's workflow.
    pub workflow: String,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Rows of the activation.
    pub m: usize,
    /// Whether the caches were cold.
    pub cold: bool,
    /// The kernel that ran.
    pub kernel: String,
    /// Median time of a call.
    pub us: f64,
    /// Weights, scales, activations and results once, over the median time.
    pub gb_per_s: f64,
    /// What a plain read of as many bytes gave in turn with the cold calls, over its median time.
    pub read_gb_per_s: Option<f64>,
    /// `2·M·N·K` over the median time.
    pub gflop_per_s: f64,
    /// What the other library ran, and its median time of a call in µs.
    pub rival: Option<(String, f64)>,
}

/// Bytes that are streamed between cold calls: four times the largest common L3 cache.
const FLUSH_BYTES: usize = 128 << 20;

/// Rounds at least, so that a median is one.
const LEAST_ROUNDS: usize = 5;

/// Times one call again and again.
pub fn linear(cpu: &Cpu, case: &LinearCase) -> Result<LinearResult> {
    linear_against(cpu, case, None)
}

/// The same with another library's layer, timed in the same rounds.
pub fn linear_against(
    cpu: &Cpu,
    case: &LinearCase,
    rival: Option<&dyn Rival>,
) -> Result<LinearResult> {
    let (n, k) = case.weight.shape();
    let m = case.m;
    let mut rng = Rng::new(2);
    let x: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
    let mut y = vec![0.0; m * n];
    case.weight.linear(cpu, &x, m, &mut y)?;
    let cost = case.weight.cost(m);
    let nbytes = usize::try_from(cost.bytes).unwrap_or(usize::MAX);
    let cold = case.cold.then(|| (vec![1_u8; FLUSH_BYTES], Memory::new(cpu, nbytes)));
    rival.map_or(Ok(()), Rival::run)?;
    let (mut calls, mut reads, mut rivals) = (Vec::new(), Vec::new(), Vec::new());
    let begin = Instant::now();
    while calls.len() < LEAST_ROUNDS || begin.elapsed().as_secs_f64() < case.seconds {
        if cpu.stopped() {
            return Err(Error::Cancelled);
        }
        if let Some((flush, memory)) = &cold {
            stream(cpu, flush);
            reads.push(memory.read(cpu));
            stream(cpu, flush);
        }
        let start = Instant::now();
        case.weight.linear(cpu, &x, m, &mut y)?;
        calls.push(start.elapsed().as_secs_f64());
        if let Some(rival) = rival {
            if let Some((flush, _)) = &cold {
                stream(cpu, flush);
            }
            let start = Instant::now();
            rival.run()?;
            rivals.push(start.elapsed().as_secs_f64());
        }
    }
    let times = Times::from_samples(calls);
    let reads = cold.is_some().then(|| Times::from_samples(reads));
    Ok(LinearResult {
        workflow: case.weight.workflow(),
        n,
        k,
        m,
        cold: case.cold,
        kernel: case.weight.kernel(cpu, m),
        us: 1e6 * times.median(),
        gb_per_s: cost.gb_per_s(times.median()),
        read_gb_per_s: reads.map(|reads| cost.gb_per_s(reads.median())),
        gflop_per_s: cost.gflop_per_s(times.median()),
        rival: rival.map(|rival| (rival.name(), 1e6 * Times::from_samples(rivals).median())),
    })
}

/// Reads `bytes` once with all threads, so that they take the place of what the caches held.
fn stream(cpu: &Cpu, bytes: &[u8]) {
    let share = cpu.threads().share(bytes.len(), 64);
    cpu.threads().run(bytes.len().div_ceil(share), |part| {
        let end = bytes.len().min((part + 1) * share);
        let lines = bytes[part * share..end].iter().step_by(64);
        black_box(lines.map(|byte| u64::from(*byte)).sum::<u64>());
    });
}
