//! The Llama family from libtorch's own operations: the same parameters, the same names, torch's arithmetic and autograd.

use std::collections::BTreeMap;

use tch::{IndexOp as _, Kind, Tensor};

use super::{to_torch, wrong};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::training::{Batch, Parameters};

/// How a linear layer multiplies: `(x, weight)` to `y`.
pub type TorchRule<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<Tensor>;

/// A model's parameters as torch's leaves, and its architecture.
#[derive(Debug)]
pub struct TorchNetwork {
    config: ModelConfig,
    parameters: BTreeMap<String, Tensor>,
}

impl TorchNetwork {
    /// Copies the parameters; each takes a gradient.
    pub fn new(config: &ModelConfig, parameters: &Parameters) -> Result<TorchNetwork> {
        let leaves = parameters
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), to_torch(tensor)?.set_requires_grad(true))));
        Ok(TorchNetwork { config: config.clone(), parameters: leaves.collect::<Result<_>>()? })
    }

    /// The parameter called `name`.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.parameters.get(name).ok_or_else(|| Error::invalid(format!("there is no {name}")))
    }

    /// All of them, by name.
    pub fn parameters(&self) -> &BTreeMap<String, Tensor> {
        &self.parameters
    }

    /// `x · Wᵀ + b` of the layer `fqn`.
    fn linear(&self, fqn: &str, x: &Tensor, rule: TorchRule<'_>) -> Result<Tensor> {
        let y = rule(x, self.get(&format!("{fqn}.weight"))?)?;
        match self.parameters.get(&format!("{fqn}.bias")) {
            Some(bias) => y.f_add(bias).map_err(wrong),
            None => Ok(y),
        }
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.get(name)?;
        let eps = f64::from(self.config.rms_norm_eps);
        x.f_rms_norm(weight.size(), Some(weight), eps).map_err(wrong)
    }

    /// The logits `(batch · tokens, vocabulary)`.
    pub fn logits(&self, batch: &Batch, rule: TorchRule<'_>) -> Result<Tensor> {
        let config = &self.config;
        let (b, t) = (int(batch.batch), int(batch.tokens()));
        let ids: Vec<i64> = batch.inputs.iter().map(|id| i64::from(*id)).collect();
        let table = self.get("model.embed_tokens.weight")?;
        let ids = Tensor::from_slice(&ids);
        let mut x = Tensor::f_embedding(table, &ids, -1, false, false).map_err(wrong)?;
        let turn = self.rotation(t);
        for i in 0..config.num_hidden_layers {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let normed = self.norm(&x, &at("input_layernorm.weight"))?;
            let attended = self.attention(&normed, i, (b, t), &turn, rule)?;
            x = x.f_add(&attended).map_err(wrong)?;
            let normed = self.norm(&x, &at("post_attention_layernorm.weight"))?;
            let gate = self.linear(&at("mlp.gate_proj"), &normed, rule)?;
            let up = self.linear(&at("mlp.up_proj"), &normed, rule)?;
            let hidden = gate.silu().f_mul(&up).map_err(wrong)?;
            x = x.f_add(&self.linear(&at("mlp.down_proj"), &hidden, rule)?).map_err(wrong)?;
        }
        let x = self.norm(&x, "model.norm.weight")?;
        if self.parameters.contains_key("lm_head.weight") {
            return self.linear("lm_head", &x, rule);
        }
        rule(&x, table)
    }

    /// The mean loss of `batch`.
    pub fn loss(&self, batch: &Batch, rule: TorchRule<'_>) -> Result<Tensor> {
        let logits = self.logits(batch, rule)?;
        let ignored = crate::kernels::cross_entropy::IGNORE;
        let targets = batch
            .targets
            .iter()
            .map(|target| if *target == ignored { -100 } else { i64::from(*target) });
        let targets = Tensor::from_slice(&targets.collect::<Vec<i64>>());
        logits
            .f_cross_entropy_loss::<&Tensor>(&targets, None, tch::Reduction::Mean, -100, 0.0)
            .map_err(wrong)
    }

    /// The gradients of `loss` for every parameter, in the order of [`TorchNetwork::parameters`].
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>> {
        let leaves: Vec<&Tensor> = self.parameters.values().collect();
        Tensor::f_run_backward(&[loss], &leaves, false, false).map_err(wrong)
    }

    /// cos and sin `(tokens, head_dim / 2)`, rounded from f64 as ours are.
    fn rotation(&self, tokens: i64) -> (Tensor, Tensor) {
        let freq = Tensor::from_slice(&self.config.inv_freq());
        let angles = Tensor::arange(tokens, (Kind::Double, tch::Device::Cpu)).outer(&freq);
        (angles.cos().to_kind(Kind::Float), angles.sin().to_kind(Kind::Float))
    }

    fn attention(
        &self,
        x: &Tensor,
        layer: usize,
        (b, t): (i64, i64),
        (cos, sin): &(Tensor, Tensor),
        rule: TorchRule<'_>,
    ) -> Result<Tensor> {
        let config = &self.config;
        let d = int(config.head_dim);
        let at = |name: &str| format!("model.layers.{layer}.self_attn.{name}");
        let heads = |name: &str, norm: &str, count: usize| -> Result<Tensor> {
            let y = self.linear(&at(name), x, rule)?.view([b, t, int(count), d]);
            match self.parameters.contains_key(&at(norm)) {
                true => self.norm(&y, &at(norm)),
                false => Ok(y),
            }
        };
        // The two halves of a head are turned together.
        let turned = |x: Tensor| {
            let (first, second) = (x.i((.., .., .., ..d / 2)), x.i((.., .., .., d / 2..)));
            let (cos, sin) = (cos.view([1, t, 1, d / 2]), sin.view([1, t, 1, d / 2]));
            let low = &first * &cos - &second * &sin;
            let high = &second * &cos + &first * &sin;
            Tensor::cat(&[low, high], -1).transpose(1, 2)
        };
        let q = turned(heads("q_proj", "q_norm.weight", config.num_attention_heads)?);
        let k = turned(heads("k_proj", "k_norm.weight", config.num_key_value_heads)?);
        let v = heads("v_proj", "no norm", config.num_key_value_heads)?.transpose(1, 2);
        let mask = config.sliding_window.map(|window| {
            let all = Tensor::ones([t, t], (Kind::Bool, tch::Device::Cpu));
            all.tril(0).logical_and(&all.triu(1 - int(window)))
        });
        let causal = mask.is_none();
        let scale = 1.0 / f64::from(i32::try_from(d).unwrap_or(i32::MAX)).sqrt();
        let y = Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, scale, true);
        let y = y.map_err(wrong)?.transpose(1, 2).reshape([b * t, -1]);
        self.linear(&at("o_proj"), &y, rule)
    }
}

/// A size as torch counts.
pub(super) fn int(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
