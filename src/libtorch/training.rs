//! Quantization-aware training on libtorch's autograd, to be held against ours: straight-through estimators from torch's
//! own operations, AdamW as torch computes it.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::network::int;
use super::{TorchNetwork, from_torch, prepare, wrong};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::Model;
use crate::tensor::Tensor as Ours;
use crate::training::optim::AdamConfig;
use crate::training::{Batch, Corpus, Parameters, TrainConfig, Windows};

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorchWeights {
    /// Symmetric integers of 2 to 8 bits with a scale a group, which takes no gradient: `train --qat int3`.
    Symmetric(u32),
    /// From a group's least to its largest number in 16 steps, with gradients through both: `train --qat int4-weight-only`.
    Ranged,
}

/// What is fake-quantized: weights in groups, and activations to int8 a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorchQat {
    /// The rounding of weights.
    pub weights: TorchWeights,
    /// Numbers that share a scale.
    pub group_size: usize,
    /// Whether activations are rounded, too (asymmetric int8, a scale and a zero point each token).
    pub activations: bool,
}

/// A training run on libtorch. AdamW with decay on matrices only, the gradient shortened to `config.clip`, the batches and
/// learning rates of `config`: what `aolab train` does.
#[derive(Debug)]
pub struct TorchTrainer {
    network: TorchNetwork,
    windows: Windows,
    moments: Vec<(Tensor, Tensor)>,
    config: TrainConfig,
    adam: AdamConfig,
    qat: Option<TorchQat>,
    step: usize,
}

impl TorchTrainer {
    /// A run that starts from `model`.
    pub fn new(
        cpu: &Cpu,
        model: &Model,
        corpus: Corpus,
        config: &TrainConfig,
        (adam, qat): (&AdamConfig, Option<TorchQat>),
    ) -> Result<TorchTrainer> {
        prepare(cpu)?;
        let network = TorchNetwork::new(&model.config, &Parameters::of(model, config.parameters)?)?;
        let zeros = |p: &Tensor| (p.detach().zeros_like(), p.detach().zeros_like());
        Ok(TorchTrainer {
            moments: network.parameters().values().map(zeros).collect(),
            windows: Windows::new(corpus, config.sequence, config.seed)?,
            network,
            config: config.clone(),
            adam: adam.clone(),
            qat,
            step: 0,
        })
    }

    fn next_batch(&mut self) -> Batch {
        self.windows.batch((self.step * self.config.batch) as u64, self.config.batch)
    }

    /// One step; its loss.
    pub fn step(&mut self) -> Result<f64> {
        let batch = self.next_batch();
        let (loss, gradients) = passes(&self.network, &batch, self.qat)?;
        let norm = norm(&gradients);
        let clip = self.config.clip;
        let clip = if clip > 0.0 && norm > clip { clip / norm } else { 1.0 };
        let lr = self.config.lr_at(self.step);
        let time = i32::try_from(self.step + 1).unwrap_or(i32::MAX);
        tch::no_grad(|| {
            let parameters = self.network.parameters().values().zip(&gradients);
            for ((p, g), moments) in parameters.zip(&mut self.moments) {
                adamw(p, &(g * clip), moments, (&self.adam, lr, time));
            }
        });
        self.step += 1;
        Ok(loss)
    }

    /// The loss and the gradients of the next step's batch at other parameters: those of our run before the same step. The step
    /// counts as done.
    pub fn at(&mut self, model: &Model, parameters: &Parameters) -> Result<TorchStep> {
        let batch = self.next_batch();
        self.step += 1;
        let network = TorchNetwork::new(&model.config, parameters)?;
        let (loss, gradients) = passes(&network, &batch, self.qat)?;
        let norm = norm(&gradients);
        let named = network.parameters().keys().zip(gradients);
        let gradients = named.map(|(name, g)| Ok((name.clone(), from_torch(g)?)));
        Ok(TorchStep { batch, loss, norm, gradients: gradients.collect::<Result<_>>()? })
    }
}

/// What torch makes of one batch.
#[derive(Debug)]
pub struct TorchStep {
    /// What was read.
    pub batch: Batch,
    /// The mean loss.
    pub loss: f64,
    /// The norm of all gradients together.
    pub norm: f64,
    /// The gradient of every parameter.
    pub gradients: BTreeMap<String, Ours>,
}

/// Forward and backward.
fn passes(
    network: &TorchNetwork,
    batch: &Batch,
    qat: Option<TorchQat>,
) -> Result<(f64, Vec<Tensor>)> {
    let rule = |x: &Tensor, w: &Tensor| -> Result<Tensor> {
        let Some(qat) = qat else { return x.f_linear::<&Tensor>(w, None).map_err(wrong) };
        let x = if qat.activations { straight_through(x, fake_int8(x)) } else { x.shallow_clone() };
        let w = match qat.weights {
            TorchWeights::Symmetric(bits) => {
                straight_through(w, fake_weight(w, bits, qat.group_size))
            }
            TorchWeights::Ranged => ranged(w, qat.group_size),
        };
        x.f_linear::<&Tensor>(&w, None).map_err(wrong)
    };
    let loss = network.loss(batch, &rule)?;
    let gradients = network.gradients(&loss)?;
    Ok((loss.double_value(&[]), gradients))
}

fn norm(gradients: &[Tensor]) -> f64 {
    let squares = gradients
        .iter()
        .map(|g| g.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]));
    squares.sum::<f64>().sqrt()
}

/// One step of torch's AdamW, in place.
fn adamw(
    p: &Tensor,
    g: &Tensor,
    (m, v): &mut (Tensor, Tensor),
    (adam, lr, time): (&AdamConfig, f64, i32),
) {
    let mut p = p.shallow_clone();
    if p.dim() > 1 {
        let _ = p.g_mul_scalar_(1.0 - lr * f64::from(adam.weight_decay));
    }
    let (b1, b2) = adam.betas;
    let _ = m.lerp_(g, 1.0 - b1);
    let _ = v.g_mul_scalar_(b2).addcmul_(g, &(g * (1.0 - b2)));
    let denominator = v.sqrt() / (1.0 - b2.powi(time)).sqrt() + f64::from(adam.eps);
    let _ = p.addcdiv_(&(&*m * (-lr / (1.0 - b1.powi(time)))), &denominator);
}

/// The value of the quantized numbers, the gradient of `x` where its code was not clamped.
fn straight_through(x: &Tensor, (quantized, holds): (Tensor, Tensor)) -> Tensor {
    let through = x * holds.to_kind(Kind::Float);
    &through + (quantized - &through).detach()
}

/// Where a code lies within its range.
fn within(codes: &Tensor, low: f64, high: f64) -> Tensor {
    codes.ge(low).logical_and(&codes.le(high))
}

/// Symmetric groups: `scale = 2 · amax / (2ᵇ − 1)`, codes −2ᵇ⁻¹ ..= 2ᵇ⁻¹ − 1.
fn fake_weight(w: &Tensor, bits: u32, group_size: usize) -> (Tensor, Tensor) {
    let w = w.detach();
    let half = f64::from(1_u32 << (bits - 1));
    let groups = w.reshape([-1, int(group_size)]);
    let amax = groups.abs().amax([1_i64].as_slice(), true);
    let scale = (amax / ((2.0 * half - 1.0) / 2.0)).clamp_min(f64::from(f32::MIN_POSITIVE));
    let codes = (&groups * scale.reciprocal()).round();
    let holds = within(&codes, -half, half - 1.0).reshape(w.size());
    ((codes.clamp(-half, half - 1.0) * scale).reshape(w.size()), holds)
}

/// Asymmetric int8 a row, the range widened to hold zero.
fn fake_int8(x: &Tensor) -> (Tensor, Tensor) {
    let x = x.detach();
    let low = x.amin([-1_i64].as_slice(), true).clamp_max(0.0);
    let high = x.amax([-1_i64].as_slice(), true).clamp_min(0.0);
    let scale = ((high - &low) / 255.0).clamp_min(f64::from(f32::MIN_POSITIVE));
    let zero = ((low / &scale).round() * -1.0 - 128.0).clamp(-128.0, 127.0);
    let codes = (&x * scale.reciprocal()).round() + &zero;
    let holds = within(&codes, -128.0, 127.0);
    ((codes.clamp(-128.0, 127.0) - zero) * scale, holds)
}

/// The value of `quantized`, the gradient of `x`.
fn rounded(x: &Tensor) -> Tensor {
    x + (x.round() - x).detach()
}

/// `dq = (code − 8) · scale + (min + 8 · scale)` with `scale = (max − min) / 15`; min and max are torch's functions.
fn ranged(w: &Tensor, group_size: usize) -> Tensor {
    let groups = w.reshape([-1, int(group_size)]);
    let min = groups.amin([1_i64].as_slice(), true);
    let scale = (groups.amax([1_i64].as_slice(), true) - &min).clamp_min(1e-6) / 15.0;
    let zero = &min + &scale * 8.0;
    let codes = rounded(&((&groups - &min) / &scale)).clamp(0.0, 15.0) - 8.0;
    (codes * &scale + zero).reshape(w.size())
}
