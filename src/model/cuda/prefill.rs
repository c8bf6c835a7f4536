//! Several tokens in one pass.

use aolab_kernels::cuda::linear::Output;
use aolab_kernels::cuda::ops::{self, HeadNorms};
use aolab_kernels::cuda::{Buffer, CudaResult};
use half::bf16;

use super::{GpuContext, Placed, PlacedLayer};
use crate::error::{Error, Result};
use crate::model::Observer;

impl Placed {
    /// The residual stream of `tokens`: their rows of the embedding.
    fn embedded(&self, tokens: &[u32]) -> Result<Buffer<f32>> {
        let (vocab, hidden) = (self.shape.vocab, self.shape.hidden);
        let ids = tokens.iter().map(|token| {
            i32::try_from(*token).ok().filter(|_| (*token as usize) < vocab).ok_or_else(|| {
                Error::invalid(format!(
                    "token id {token} is outside the vocabulary of {vocab} entries"
                ))
            })
        });
        let ids = self.device.upload(&ids.collect::<Result<Vec<i32>>>()?)?;
        let x = self.device.uninit(tokens.len() * hidden)?;
        ops::embedding(&self.device, &ids, &self.embed, (vocab, hidden), &x)?;
        Ok(x)
    }

    /// Logits of normed hidden states on the host.
    pub(in crate::model) fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let m = hidden.len() / self.shape.hidden;
        let bits: Vec<u16> = hidden.iter().map(|v| bf16::from_f32(*v).to_bits()).collect();
        let x = self.device.upload(&bits)?;
        let y = self.device.uninit(m * self.shape.vocab)?;
        self.head.run(&x, m, &Output::F32(&y))?;
        Ok(y.read()?)
    }
}

impl GpuContext {
    /// Reads `tokens` behind `past` positions and gives their normed hidden states.
    pub(in crate::model) fn prefill(
        &mut self,
        tokens: &[u32],
        past: usize,
        observer: &mut dyn Observer,
        out: &mut [f32],
    ) -> Result<()> {
        let placed = self.placed.clone();
        let x = placed.embedded(tokens)?;
        observe_hidden(observer, 0, &x)?;
        for (i, layer) in placed.layers.iter().enumerate() {
            self.block(i, layer, &x, (tokens.len(), past), observer)?;
            observe_hidden(observer, i + 1, &x)?;
        }
        let normed = placed.device.uninit::<u16>(x.len())?;
        ops::rms_norm(&placed.device, &x, &placed.norm, placed.shape.eps, &normed)?;
        let bits = normed.read()?;
        out.iter_mut().zip(bits).for_each(|(to, bits)| *to = bf16::from_bits(bits).to_f32());
        Ok(())
    }

    fn block(
        &self,
        index: usize,
        layer: &PlacedLayer,
        x: &Buffer<f32>,
        (m, past): (usize, usize),
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let (device, shape) = (&self.placed.device, self.placed.shape);
        let room = |columns: usize| -> CudaResult<Buffer<u16>> { device.uninit(m * columns) };
        let attended = self.heads.heads * self.heads.head_dim;
        let normed = room(shape.hidden)?;
        ops::rms_norm(device, x, &layer.input_norm, shape.eps, &normed)?;
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] {
            observe_input(observer, index, name, &normed)?;
        }
        let qkv = room(self.heads.qkv())?;
        layer.qkv.run(&normed, m, &Output::Bf16(&qkv))?;
        let (q, mixed) = (room(attended)?, room(attended)?);
        let norms = HeadNorms { q: layer.q_norm.as_ref(), k: layer.k_norm.as_ref() };
        let around = (&self.caches[index], &self.rotary, norms);
        ops::attention_prefill(device, &self.heads, (&qkv, &q), around, (m, past), &mixed)?;
        observe_input(observer, index, "self_attn.o_proj", &mixed)?;
        layer.o.run(&mixed, m, &Output::AddF32(x))?;
        ops::rms_norm(device, x, &layer.post_norm, shape.eps, &normed)?;
        for name in ["mlp.gate_proj", "mlp.up_proj"] {
            observe_input(observer, index, name, &normed)?;
        }
        let activated = room(shape.ffn)?;
        layer.gate_up.run(&normed, m, &Output::Bf16(&activated))?;
        observe_input(observer, index, "mlp.down_proj", &activated)?;
        Ok(layer.down.run(&activated, m, &Output::AddF32(x))?)
    }
}

fn observe_hidden(observer: &mut dyn Observer, layer: usize, x: &Buffer<f32>) -> Result<()> {
    if observer.looks() {
        observer.hidden(layer, &x.read()?);
    }
    Ok(())
}

fn observe_input(
    observer: &mut dyn Observer,
    layer: usize,
    name: &'static str,
    x: &Buffer<u16>,
) -> Result<()> {
    if observer.looks() {
        let x: Vec<f32> = x.read()?.into_iter().map(|v| bf16::from_bits(v).to_f32()).collect();
        observer.linear_input(layer, name, &x);
    }
    Ok(())
}
