//! Quantization-aware training on libtorch's autograd, to be held against ours: straight-through estimators from torch's
//! own operations, AdamW as torch computes it.

use tch::{Kind, Tensor};

use super::network::int;
use super::{TorchNetwork, prepare, wrong};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::Model;
use crate::training::optim::AdamConfig;
use crate::training::{Corpus, Parameters, TrainConfig, Windows};

/// What is fake-quantized: weights to symmetric integers of `bits` in groups, and activations to int8 a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorchQat {
    /// Bits of a weight's codes, 2 to 8.
    pub bits: u32,
    /// Numbers that share a scale.
    pub group_size: usize,
    /// Whether activations are rounded, too (asymmetric int8, a scale and a zero point each token).
    pub activations: bool,
}

/// The losses of `config.steps` steps that start from `model`, on libtorch. AdamW with decay on matrices only, the gradient
/// shortened to `config.clip`, the batches and learning rates of `config`: what `aolab train` does.
pub fn qat_curve(
    cpu: &Cpu,
    model: &Model,
    corpus: Corpus,
    config: &TrainConfig,
    (adam, qat): (&AdamConfig, Option<TorchQat>),
) -> Result<Vec<f64>> {
    prepare(cpu)?;
    let network = TorchNetwork::new(&model.config, &Parameters::of(model, config.parameters)?)?;
    let mut windows = Windows::new(corpus, config.sequence, config.seed)?;
    let mut moments: Vec<(Tensor, Tensor)> = network
        .parameters()
        .values()
        .map(|p| (p.detach().zeros_like(), p.detach().zeros_like()))
        .collect();
    let rule = |x: &Tensor, w: &Tensor| -> Result<Tensor> {
        let Some(qat) = qat else { return x.f_linear::<&Tensor>(w, None).map_err(wrong) };
        let x = if qat.activations { straight_through(x, fake_int8(x)) } else { x.shallow_clone() };
        x.f_linear::<&Tensor>(&straight_through(w, fake_weight(w, qat)), None).map_err(wrong)
    };
    let mut losses = Vec::with_capacity(config.steps);
    for step in 0..config.steps {
        let batch = windows.batch((step * config.batch) as u64, config.batch);
        let loss = network.loss(&batch, &rule)?;
        losses.push(loss.double_value(&[]));
        let gradients = network.gradients(&loss)?;
        let square: f64 = gradients
            .iter()
            .map(|g| g.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]))
            .sum();
        let norm = square.sqrt();
        let clip = if config.clip > 0.0 && norm > config.clip { config.clip / norm } else { 1.0 };
        let lr = config.lr_at(step);
        let time = i32::try_from(step + 1).unwrap_or(i32::MAX);
        tch::no_grad(|| {
            for ((p, g), moments) in network.parameters().values().zip(&gradients).zip(&mut moments)
            {
                adamw(p, &(g * clip), moments, (adam, lr, time));
            }
        });
    }
    Ok(losses)
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
fn fake_weight(w: &Tensor, qat: TorchQat) -> (Tensor, Tensor) {
    let w = w.detach();
    let half = f64::from(1_u32 << (qat.bits - 1));
    let groups = w.reshape([-1, int(qat.group_size)]);
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
