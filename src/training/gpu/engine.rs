//! A network on the GPU and its steps.

use aolab_kernels::adam::Hyper;
use aolab_kernels::cuda::training::{
    AdamStep, AttentionShape, Norm, Places, Products, adam_step, gradient_norm, round_to_bf16,
};
use aolab_kernels::cuda::{Buffer, Device};
use aolab_kernels::rope;

use super::layout::{Layout, NetworkShape};
use super::linear::{CodedWeight, MatmulKind};
use super::pass::{Pass, Tokens};
use crate::error::{Error, Result};
use crate::kernels::cross_entropy::IGNORE;
use crate::training::Batch;

/// What a step tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// The mean loss of its passes.
    pub loss: f64,
    /// The norm of their mean gradient, before it was shortened.
    pub norm: f64,
}

/// Parameters, gradients and moments in device memory.
#[derive(Debug)]
pub struct Engine {
    device: Device,
    shape: NetworkShape,
    layout: Layout,
    kind: MatmulKind,
    products: Products,
    parameters: Buffer<f32>,
    copy: Buffer<u16>,
    gradient: Buffer<f32>,
    moments: [Buffer<f32>; 2],
    norm: Norm,
    loss: Buffer<f32>,
    /// cos and sin for sequences of so many tokens.
    tables: Option<(usize, [Buffer<f32>; 2])>,
    coded: Vec<[Option<CodedWeight>; 4]>,
}

impl Engine {
    /// A network whose parameter `name` has the values of `find`; what multiplies in 8 bits wants sizes that are multiples of 16.
    pub fn new(
        device: &Device,
        shape: NetworkShape,
        kind: MatmulKind,
        find: &dyn Fn(&str, usize) -> Result<Vec<f32>>,
    ) -> Result<Engine> {
        let layout = shape.layout();
        let sizes = [shape.hidden, shape.ffn, shape.qkv(), shape.attended()];
        if let Some(size) = sizes.iter().find(|size| !size.is_multiple_of(16))
            && kind != MatmulKind::Bf16
        {
            return Err(Error::invalid(format!(
                "{}: sizes must be multiples of 16 on a GPU, got {size}; use --linear plain",
                kind.name()
            )));
        }
        let parameters = device.zeros::<f32>(layout.len)?;
        for (name, range) in &layout.named {
            parameters.part(range.clone()).write(&find(name, range.len())?)?;
        }
        let copy = device.uninit::<u16>(layout.len)?;
        round_to_bf16(device, &parameters, &copy)?;
        Ok(Engine {
            gradient: device.zeros(layout.len)?,
            moments: [device.zeros(layout.len)?, device.zeros(layout.len)?],
            norm: Norm::new(device)?,
            loss: device.zeros(1)?,
            products: Products::new(device)?,
            device: device.clone(),
            tables: None,
            coded: Vec::new(),
            parameters,
            copy,
            layout,
            shape,
            kind,
        })
    }

    /// Multiplies as `kind` says from now on.
    pub fn set_kind(&mut self, kind: MatmulKind) {
        self.kind = kind;
    }

    /// What it trains.
    pub fn shape(&self) -> &NetworkShape {
        &self.shape
    }

    /// Bytes of the moments.
    pub fn moments_nbytes(&self) -> usize {
        self.moments.iter().map(Buffer::nbytes).sum()
    }

    /// The parameters by name, and beside each its moments.
    pub fn download(&self) -> Result<Vec<(String, [Vec<f32>; 3])>> {
        let read = |name: &String, range: &std::ops::Range<usize>| -> Result<_> {
            let part = |of: &Buffer<f32>| of.part(range.clone()).read();
            let [mean, square] = &self.moments;
            Ok((name.clone(), [part(&self.parameters)?, part(mean)?, part(square)?]))
        };
        self.layout.named.iter().map(|(name, range)| read(name, range)).collect()
    }

    /// Puts moments in, by name.
    pub fn set_moments(&mut self, find: &dyn Fn(&str) -> Option<[Vec<f32>; 2]>) -> Result<()> {
        for (name, range) in &self.layout.named {
            let Some(values) = find(name) else { continue };
            for (moment, values) in self.moments.iter().zip(values) {
                if values.len() != range.len() {
                    return Err(Error::invalid(format!("{name}: moments of another length")));
                }
                moment.part(range.clone()).write(&values)?;
            }
        }
        Ok(())
    }

    /// Makes what a pass over sequences of `tokens` needs.
    fn prepare(&mut self, tokens: usize) -> Result<()> {
        if self.tables.as_ref().is_none_or(|(len, _)| *len != tokens) {
            let (cos, sin) = rope::tables(&self.shape.inv_freq, 0..tokens, 1.0);
            self.tables = Some((tokens, [self.device.upload(&cos)?, self.device.upload(&sin)?]));
        }
        self.coded.clear();
        if self.kind != MatmulKind::Bf16 {
            for block in &self.layout.blocks {
                let code = |place: &super::layout::Place| {
                    let weight = self.copy.part(place.range.clone());
                    CodedWeight::of(&self.device, self.kind, &weight, place)
                };
                let all = [&block.qkv, &block.o, &block.gate_up, &block.down].map(code);
                let [qkv, o, gate_up, down] = all;
                self.coded.push([qkv?, o?, gate_up?, down?]);
            }
        }
        Ok(())
    }

    /// Runs `work` with the pass over one batch.
    fn pass(&mut self, batch: &Batch, first: bool, train: bool) -> Result<()> {
        let Self { shape, layout, kind, parameters, copy, gradient, loss, coded, .. } = self;
        let Some((_, [cos, sin])) = &self.tables else {
            return Err(Error::invalid("a pass wants its tables"));
        };
        let attention = AttentionShape {
            batch: batch.batch,
            tokens: batch.tokens(),
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
        };
        let pass = Pass {
            device: &self.device,
            shape,
            layout,
            kind: *kind,
            attention,
            parameters,
            copy,
            gradient,
            tables: [cos, sin],
            coded,
            first,
            loss,
        };
        let tokens = upload(&self.device, shape.vocab, batch)?;
        match train {
            true => pass.train(&mut self.products, &tokens)?,
            false => pass.evaluate(&mut self.products, &tokens)?,
        }
        Ok(())
    }

    /// One step over `batches`, whose gradients are averaged: clipped to the norm `clip`, where that is not 0. A loss or a norm that is not finite
    /// is told and moves nothing.
    pub fn step(&mut self, batches: &[Batch], clip: f64, hyper: &Hyper) -> Result<StepResult> {
        let tokens = batches.first().map_or(0, Batch::tokens);
        self.prepare(tokens)?;
        self.loss.fill_bytes(0)?;
        // Matrices are written by the first pass, vectors and the embedding are added to.
        self.gradient.part(self.layout.decayed..self.layout.len).fill_bytes(0)?;
        if !self.shape.tied {
            self.gradient.part(self.layout.embed.range.clone()).fill_bytes(0)?;
        }
        for (i, batch) in batches.iter().enumerate() {
            self.pass(batch, i == 0, true)?;
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of passes")]
        let share = 1.0 / batches.len() as f64;
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as it is used")]
        gradient_norm(&self.device, &self.gradient, (share as f32, clip as f32), &self.norm)?;
        let of = AdamStep {
            p: &self.parameters,
            gradient: &self.gradient,
            moments: [&self.moments[0], &self.moments[1]],
            copy: &self.copy,
            decayed: self.layout.decayed,
        };
        adam_step(&self.device, &of, &self.norm, hyper)?;
        let (loss, norm) = (self.loss.read()?, self.norm.values.read()?);
        Ok(StepResult { loss: f64::from(loss[0]) * share, norm: f64::from(norm[0]) })
    }

    /// The mean loss of a batch.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<f64> {
        self.prepare(batch.tokens())?;
        self.loss.fill_bytes(0)?;
        self.pass(batch, false, false)?;
        Ok(f64::from(self.loss.read()?[0]))
    }
}

/// A batch's tokens, which must be in the vocabulary.
fn upload(device: &Device, vocab: usize, batch: &Batch) -> Result<Tokens> {
    let number = |token: u32| i32::try_from(token).ok().filter(|_| (token as usize) < vocab);
    let outside = |token: u32| {
        Error::invalid(format!("token {token} is outside the vocabulary of {vocab} entries"))
    };
    let input = |token: &u32| number(*token).ok_or_else(|| outside(*token));
    let target = |token: &u32| if *token == IGNORE { Ok(-1) } else { input(token) };
    let inputs = batch.inputs.iter().map(input).collect::<Result<Vec<_>>>()?;
    let targets = batch.targets.iter().map(target).collect::<Result<Vec<_>>>()?;
    let counted = targets.iter().filter(|target| **target >= 0).count();
    if counted == 0 || targets.len() != inputs.len() {
        return Err(Error::invalid("no target is counted"));
    }
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2²⁴")]
    let scale = 1.0 / counted as f32;
    let places = Places::of(device, &inputs)?;
    let (inputs, targets) = (device.upload(&inputs)?, device.upload(&targets)?);
    Ok(Tokens { inputs, targets, places, scale })
}
