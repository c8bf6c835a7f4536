//! A model on a GPU: its weights there, prompts in one pass, single tokens as one captured graph.
//!
//! The residual stream is f32, activations are bf16 and so is the cache. A block of a single token runs in five kernels where W is packed
//! or bf16: q·k·v as one layer that norms its input, attention with rotation and cache, output added to the stream, gate and up as
//! one layer that norms its input and gives `silu(gate) · up`, and down added to the stream. Elsewhere norms are kernels of their own.

mod decode;
mod place;
mod prefill;

use std::sync::Arc;

use aolab_kernels::cuda::linear::Linear;
use aolab_kernels::cuda::ops::{Cache, Heads, Rotary};
use aolab_kernels::cuda::{Buffer, CudaError, Device};
use aolab_kernels::kv_cache::CacheFormat;
use aolab_kernels::rope;

use super::Model;
use crate::error::{Error, Result};
pub use decode::PartTime;
use decode::Step;
pub use place::to_device;

/// A model's weights in device memory.
#[derive(Debug)]
pub(super) struct Placed {
    device: Device,
    layers: Vec<PlacedLayer>,
    /// `(vocabulary, hidden)` bf16.
    embed: Buffer<u16>,
    norm: Buffer<f32>,
    head: Linear,
    shape: PlacedShape,
    /// One a layer: its name, its workflow, the kernel for one token, and why it fell back, if it did.
    report: Vec<PlacedReport>,
}

/// How a linear layer runs on the GPU.
#[derive(Clone, Debug)]
pub struct PlacedReport {
    /// `model.layers.0.self_attn.q_proj`.
    pub fqn: String,
    /// Its weight's workflow.
    pub workflow: String,
    /// The kernel for one token.
    pub kernel: String,
    /// What was done because the format has no kernel.
    pub fallback: Option<String>,
}

#[derive(Debug)]
struct PlacedLayer {
    input_norm: Buffer<f32>,
    qkv: Linear,
    q_norm: Option<Buffer<f32>>,
    k_norm: Option<Buffer<f32>>,
    o: Linear,
    post_norm: Buffer<f32>,
    gate_up: Linear,
    down: Linear,
}

/// The numbers of a model's configuration that its kernels need.
#[derive(Clone, Copy, Debug)]
struct PlacedShape {
    hidden: usize,
    ffn: usize,
    vocab: usize,
    eps: f32,
}

impl Model {
    /// Bytes of all layers and the head in device memory; `None` where the model runs on the CPU.
    pub fn device_bytes_per_token(&self) -> Result<Option<usize>> {
        Ok(self.placed()?.map(|placed| placed.bytes_per_token()))
    }
}

/// A sequence's cache in device memory, and the graph that writes its next token.
#[derive(Debug)]
pub(super) struct GpuContext {
    placed: Arc<Placed>,
    heads: Heads,
    caches: Vec<Cache>,
    rotary: Rotary,
    step: Option<Step>,
}

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Error {
        Error::invalid(error.to_string())
    }
}

impl Model {
    /// The model on `device`: every forward pass runs there from now on. Weights are copied when they are first needed.
    #[must_use]
    pub fn on(mut self, device: Option<&Device>) -> Model {
        let same = match (&self.device, device) {
            (Some(old), Some(new)) => old.is(new),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.placed = Arc::default();
            self.device = device.cloned();
        }
        self
    }

    /// The GPU that the model runs on, if it does.
    pub fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// How each linear layer runs on the GPU; empty where the model runs on the CPU.
    pub fn placement(&self) -> Result<Vec<PlacedReport>> {
        Ok(self.placed()?.map_or_else(Vec::new, |placed| placed.report.clone()))
    }

    /// The weights on the GPU, copied there by the first caller.
    pub(super) fn placed(&self) -> Result<Option<Arc<Placed>>> {
        let Some(device) = &self.device else { return Ok(None) };
        if let Some(placed) = self.placed.get() {
            return Ok(Some(Arc::clone(placed)));
        }
        let placed = Arc::new(Placed::new(self, device)?);
        Ok(Some(Arc::clone(self.placed.get_or_init(|| placed))))
    }
}

impl GpuContext {
    pub(super) fn new(model: &Model, placed: Arc<Placed>, capacity: usize) -> Result<GpuContext> {
        if !matches!(model.kv_cache, CacheFormat::F32 | CacheFormat::Bf16) {
            return Err(Error::invalid(format!(
                "a cache in {} has no CUDA kernel: on a GPU keys and values are bf16; leave --kv-cache out",
                model.kv_cache.name()
            )));
        }
        let (config, device) = (&model.config, placed.device.clone());
        let heads = Heads {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            capacity,
            window: config.sliding_window.unwrap_or(0),
            eps: config.rms_norm_eps,
        };
        let numel = heads.kv_heads * capacity * heads.head_dim;
        let cache = |_| -> Result<Cache> {
            Ok(Cache { keys: device.zeros(numel)?, values: device.zeros(numel)? })
        };
        let (cos, sin) = rope::tables(&config.inv_freq(), 0..capacity, 1.0);
        let rotary = Rotary { cos: device.upload(&cos)?, sin: device.upload(&sin)? };
        let caches = model.layers.iter().map(cache).collect::<Result<_>>()?;
        Ok(GpuContext { placed, heads, caches, rotary, step: None })
    }
}
