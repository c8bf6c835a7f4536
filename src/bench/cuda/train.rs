//! Training steps of a Llama-shaped network with random weights and tokens on the GPU.

use std::time::Instant;

use aolab_kernels::adam::Hyper;
use aolab_kernels::cuda::Device;

use super::{Ceilings, repeated};
use crate::bench::Times;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::table::{Cell, Table};
use crate::training::Batch;
use crate::training::gpu::{Engine, MatmulKind, NetworkShape};

/// Dense bf16 of an H100 SXM and an H200 SXM, as their data sheets have it: what MFU is a share of.
const HOPPER_BF16_TFLOP_PER_S: f64 = 989.4;

/// What is timed.
#[derive(Clone, Debug)]
pub struct TrainBench {
    /// Blocks; everything else is Llama-3.2-1B's.
    pub layers: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Timed steps.
    pub steps: usize,
}

impl TrainBench {
    /// Hidden 2048, feed-forward 8192, 32 heads over 8 of 64 numbers; the output layer is the embedding.
    fn shape(&self) -> NetworkShape {
        let pairs = 32;
        NetworkShape {
            layers: self.layers,
            hidden: 2048,
            ffn: 8192,
            heads: 32,
            kv_heads: 8,
            head_dim: 2 * pairs,
            vocab: self.vocab,
            eps: 1e-5,
            tied: true,
            inv_freq: (0..pairs)
                .map(|i| 5e5_f64.powf(-(f64::from(u8::try_from(i).unwrap_or(0)) / 32.0)))
                .collect(),
        }
    }

    fn batch(&self, rng: &mut Rng) -> Batch {
        let len = self.batch * self.sequence;
        let mut draw = || {
            let token = rng.next_u64() % self.vocab as u64;
            u32::try_from(token).unwrap_or(0)
        };
        let inputs = (0..len).map(|_| draw()).collect();
        Batch { batch: self.batch, inputs, targets: (0..len).map(|_| draw()).collect() }
    }
}

/// Times whole steps, forward, backward, clipping and AdamW, in each kind of matmul.
pub fn train(
    device: &Device,
    ceilings: &Ceilings,
    bench: &TrainBench,
    progress: crate::eval::Progress<'_>,
) -> Result<Table> {
    if bench.batch * bench.sequence * bench.steps * bench.layers == 0 || bench.vocab < 2 {
        return Err(Error::usage("a bench of nothing: give sizes of 1 or more"));
    }
    let shape = bench.shape();
    let flops = shape.flops_per_token(bench.sequence);
    let mut rng = Rng::new(0x7EA1);
    let draws: Vec<f32> = (0..65_521).map(|_| 0.02 * rng.normal()).collect();
    let find = |name: &str, len: usize| -> Result<Vec<f32>> {
        Ok(if name.contains("norm") { vec![1.0; len] } else { repeated(&draws, len) })
    };
    let mut engine = Engine::new(device, shape, MatmulKind::Bf16, &find)?;
    let mut table = empty(bench);
    let mut bf16_s = None;
    for (done, kind) in MatmulKind::ALL.into_iter().enumerate() {
        if !progress(done, MatmulKind::ALL.len()) {
            return Err(Error::Cancelled);
        }
        if kind != MatmulKind::Bf16 && !device.has_wgmma() {
            continue;
        }
        engine.set_kind(kind);
        let (times, loss) = time(&mut engine, bench, &mut rng)?;
        let seconds = times.median();
        let baseline = *bf16_s.get_or_insert(seconds);
        let tokens = bench.batch * bench.sequence;
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
        let (tokens_per_s, tflop) =
            (tokens as f64 / seconds, (tokens * flops) as f64 / seconds * 1e-12);
        table.push([
            kind.name().into(),
            Cell::Float(1e3 * seconds),
            Cell::Float(1e3 * times.quantile(0, 1)),
            Cell::Float(tokens_per_s),
            Cell::Float(tflop),
            Cell::Float(100.0 * tflop / HOPPER_BF16_TFLOP_PER_S),
            Cell::Float(100.0 * tflop / ceilings.bf16_tflop_per_s),
            Cell::Float(baseline / seconds),
            Cell::Float(loss),
        ])?;
    }
    let peak = device.pool_use().peak;
    table.note(format!("{:.1} GB of device memory at most", peak as f64 * 1e-9));
    Ok(table)
}

fn empty(bench: &TrainBench) -> Table {
    let TrainBench { layers, vocab, batch, sequence, steps } = *bench;
    Table::new("training steps on the GPU")
        .column("linear layers")
        .column_unit("median", "ms")
        .column_unit("least", "ms")
        .column_unit("speed", "tokens/s")
        .column_unit("model", "TFLOP/s")
        .column_unit("MFU", "%")
        .column_unit("of cuBLASLt's bf16", "%")
        .column_unit("against bf16", "×")
        .column_unit("loss", "nats")
        .with_note(format!(
            "{layers} blocks of Llama-3.2-1B's shape, vocabulary {vocab}, output layer tied and in bf16; {batch} sequences of {sequence} random \
             tokens; medians of {steps} steps after 2; FLOPs: 6 for each weight and token, and causal attention's half; \
             MFU: of 989.4 TFLOP/s, an H100's data sheet; cuBLASLt: 8192 cubed, this run"
        ))
}

/// Steps behind two that are not timed, and the last loss.
fn time(engine: &mut Engine, bench: &TrainBench, rng: &mut Rng) -> Result<(Times, f64)> {
    let mut seconds = Vec::new();
    let mut loss = f64::NAN;
    for step in 0..bench.steps + 2 {
        let batch = bench.batch(rng);
        let hyper = Hyper {
            lr: 1e-5,
            betas: (0.9, 0.95),
            eps: 1e-8,
            weight_decay: 0.1,
            decoupled: true,
            step: 1 + u32::try_from(step).unwrap_or(0),
        };
        let start = Instant::now();
        loss = engine.step(&[batch], 1.0, &hyper)?.loss;
        if step >= 2 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok((Times::from_samples(seconds), loss))
}
