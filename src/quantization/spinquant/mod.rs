//! SpinQuant: torchao's `apply_spinquant` (X22), a model turned so that outliers spread before it is quantized.
//!
//! Rotations by Hadamard matrices leave what the model computes as it is and make its weights and activations more even
//! (Liu et al. 2024, arXiv 2405.16406). Nothing is quantized here: quantize the rotated model next, with anything.
//!
//! - R1 turns the residual stream. Each RMSNorm's weight goes into the layers behind it; then the embedding and the inputs of
//!   q, k, v, gate, up and the output layer become `W · R`, and the outputs of o and down `Rᵀ · W`, with `R = D · H`, D random signs.
//! - R2 turns the values of each head: `v_proj`'s outputs, and `o_proj`'s inputs back.
//! - R4 turns the input of `down_proj` at every call, by the fast transform, and its weight beforehand.
//!
//! R3 and learned rotations are not in torchao either. Weights are turned in f64 and rounded once to their dtype. torchao
//! also subtracts each embedding row's mean under R1, which an RMSNorm model does not allow for: its outputs change. Here they do not.
//! A tied output layer is untied by R1, because only it takes the last norm's weight.

mod weight;

use std::sync::Arc;

use serde_json::Value as Json;

pub use self::weight::HadamardWeight;
use super::Recipe;
use super::calibration::check_original;
use super::config::Typed;
use super::primitives::map_parts;
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::kernels::hadamard::{Plan, oracle};
use crate::model::{DenseWeight, Layer, Linear, Model, Weight};
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Which rotations, and where the random signs start.
#[derive(clap::Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpinQuantOptions {
    /// Turn the residual stream; costs nothing at run time
    #[arg(long)]
    pub use_r1: bool,
    /// Turn the values of each head; costs nothing at run time
    #[arg(long)]
    pub use_r2: bool,
    /// Do not turn down_proj's input, which costs a fast transform at every call
    #[arg(long = "no-r4", action = clap::ArgAction::SetFalse)]
    pub use_r4: bool,
    /// Where the random signs of R1 and R2 start
    #[arg(long = "rotation-seed", default_value_t = 0, value_name = "SEED")]
    pub seed: u64,
}

impl Default for SpinQuantOptions {
    /// R4 alone, as in torchao, where it does best in many cases.
    fn default() -> SpinQuantOptions {
        SpinQuantOptions { use_r1: false, use_r2: false, use_r4: true, seed: 0 }
    }
}

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "spinquant",
    ids: &["X22"],
    config_type: "apply_spinquant",
    weight_type: weight::TYPE,
    granularity: "the model's",
    kernel: "hadamard, then the base's",
    config_from_dict,
    read_weight,
};

fn config_from_dict(_: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    Err(Error::invalid(
        "spinquant turns whole models and has no configuration; use apply_spinquant",
    ))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    weight::read(typed, stored)
}

/// Turns `model`, which must not be quantized yet. What it computes stays, but for rounding.
pub fn apply_spinquant(cpu: &Cpu, model: &mut Model, options: &SpinQuantOptions) -> Result<()> {
    for (fqn, linear) in model.linears() {
        check_original(WORKFLOW.name, linear.weight.as_ref()).within(&fqn)?;
    }
    check_original(WORKFLOW.name, model.embed_tokens.as_ref()).within("model.embed_tokens")?;
    let mut turned = model.clone();
    let mut rng = Rng::new(options.seed);
    if options.use_r1 {
        turn_residual_stream(cpu, &mut turned, &mut rng)?;
    }
    if options.use_r2 {
        turn_values(cpu, &mut turned, &mut rng)?;
    }
    if options.use_r4 {
        let plan = plan_for(turned.config.intermediate_size, "intermediate size")?;
        for layer in &mut turned.layers {
            let feed_forward = &mut Arc::make_mut(layer).feed_forward;
            let down = &mut feed_forward.dense_mut(WORKFLOW.name)?.down_proj;
            let rotation = Rotation::new(plan.clone(), None);
            let inner = rotation.of_inputs(cpu, down.weight.as_ref(), None)?;
            down.weight = Arc::new(HadamardWeight::new(inner)?);
        }
    }
    *model = turned;
    Ok(())
}

fn plan_for(n: usize, what: &str) -> Result<Plan> {
    Plan::new(n).ok_or_else(|| {
        Error::invalid(format!(
            "there is no Hadamard matrix for a {what} of {n}; wanted a power of two, or one times 12, 20, 28, 36, 40, 44, \
             52, 60, 108, 140, 156 or 172"
        ))
    })
}

/// `R = D · H` over runs of a dimension.
struct Rotation {
    plan: Plan,
    signs: Option<Vec<f64>>,
}

impl Rotation {
    fn new(plan: Plan, rng: Option<&mut Rng>) -> Rotation {
        let n = plan.len();
        let sign = |rng: &mut Rng| if rng.uniform() < 0.5 { -1.0 } else { 1.0 };
        Rotation { plan, signs: rng.map(|rng| (0..n).map(|_| sign(rng)).collect()) }
    }

    /// Turns each run of a row.
    fn turn(&self, row: &mut [f64]) {
        for run in row.chunks_exact_mut(self.plan.len()) {
            if let Some(signs) = &self.signs {
                run.iter_mut().zip(signs).for_each(|(value, sign)| *value *= sign);
            }
            oracle(&self.plan, run);
        }
    }

    /// `W · R`, its columns multiplied with a norm's weight before.
    fn of_inputs(
        &self,
        cpu: &Cpu,
        weight: &dyn Weight,
        norm: Option<&[f32]>,
    ) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        let rows = cpu.threads().share(n, 1).min(64);
        let parts = map_parts(cpu, n.div_ceil(rows), |part| {
            let rows = part * rows..n.min((part + 1) * rows);
            let mut values = vec![0.0; rows.len() * k];
            weight.dequantize_rows(rows, &mut values)?;
            for row in values.chunks_exact_mut(k) {
                let mut exact: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
                if let Some(norm) = norm {
                    exact.iter_mut().zip(norm).for_each(|(w, norm)| *w *= f64::from(*norm));
                }
                self.turn(&mut exact);
                store(row, &exact);
            }
            Ok(values)
        });
        let values: Vec<Vec<f32>> = parts.into_iter().collect::<Result<_>>()?;
        let turned = Tensor::new(values.concat(), &[n, k])?.to_dtype(weight.dtype())?;
        DenseWeight::shared(turned)
    }

    /// `Rᵀ · W`: each column turned.
    fn of_outputs(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        let w = weight.dequantize()?.to_f32_vec();
        let columns = map_parts(cpu, k, |j| {
            let mut column: Vec<f64> = (0..n).map(|i| f64::from(w[i * k + j])).collect();
            self.turn(&mut column);
            column
        });
        let mut values = vec![0.0; n * k];
        for (i, row) in values.chunks_exact_mut(k.max(1)).enumerate() {
            let turned: Vec<f64> = columns.iter().map(|column| column[i]).collect();
            store(row, &turned);
        }
        DenseWeight::shared(Tensor::new(values, &[n, k])?.to_dtype(weight.dtype())?)
    }

    fn of_bias(&self, bias: &mut Option<Tensor>) -> Result<()> {
        if let Some(old) = bias {
            let mut exact: Vec<f64> = old.to_f32_vec().into_iter().map(f64::from).collect();
            self.turn(&mut exact);
            let mut values = vec![0.0; exact.len()];
            store(&mut values, &exact);
            *bias = Some(Tensor::new(values, old.shape())?);
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the one rounding to f32")]
fn store(to: &mut [f32], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from as f32);
}

/// R1.
fn turn_residual_stream(cpu: &Cpu, model: &mut Model, rng: &mut Rng) -> Result<()> {
    let hidden = model.config.hidden_size;
    let rotation = Rotation::new(plan_for(hidden, "hidden size")?, Some(rng));
    let ones = Tensor::new(vec![1.0_f32; hidden], &[hidden])?;
    for layer in &mut model.layers {
        let layer: &mut Layer = Arc::make_mut(layer);
        let norm = layer.input_layernorm.to_f32_vec();
        for linear in [&mut layer.q_proj, &mut layer.k_proj, &mut layer.v_proj] {
            linear.weight = rotation.of_inputs(cpu, linear.weight.as_ref(), Some(&norm))?;
        }
        let norm = layer.post_attention_layernorm.to_f32_vec();
        let dense = layer.feed_forward.dense_mut(WORKFLOW.name)?;
        for linear in [&mut dense.gate_proj, &mut dense.up_proj] {
            linear.weight = rotation.of_inputs(cpu, linear.weight.as_ref(), Some(&norm))?;
        }
        for linear in [&mut layer.o_proj, &mut dense.down_proj] {
            linear.weight = rotation.of_outputs(cpu, linear.weight.as_ref())?;
            rotation.of_bias(&mut linear.bias)?;
        }
        layer.input_layernorm = ones.clone();
        layer.post_attention_layernorm = ones.clone();
    }
    let norm = model.norm.to_f32_vec();
    let head = rotation.of_inputs(cpu, model.head().as_ref(), Some(&norm))?;
    let bias = model.lm_head.as_ref().and_then(|head| head.bias.clone());
    model.lm_head = Some(Linear { weight: head, bias });
    model.embed_tokens = rotation.of_inputs(cpu, model.embed_tokens.as_ref(), None)?;
    model.norm = ones;
    if model.config.tie_word_embeddings {
        Arc::make_mut(&mut model.config).tie_word_embeddings = false;
    }
    Ok(())
}

/// R2, one for each block.
fn turn_values(cpu: &Cpu, model: &mut Model, rng: &mut Rng) -> Result<()> {
    let plan = plan_for(model.config.head_dim, "head dimension")?;
    for layer in &mut model.layers {
        let layer: &mut Layer = Arc::make_mut(layer);
        let rotation = Rotation::new(plan.clone(), Some(rng));
        layer.v_proj.weight = rotation.of_outputs(cpu, layer.v_proj.weight.as_ref())?;
        rotation.of_bias(&mut layer.v_proj.bias)?;
        layer.o_proj.weight = rotation.of_inputs(cpu, layer.o_proj.weight.as_ref(), None)?;
    }
    Ok(())
}

/// What the file says of a rotated weight's inside; kept here beside its reader.
fn inner_meta(data: &serde_json::Map<String, Json>) -> Json {
    data.get("inner").cloned().unwrap_or(Json::Null)
}
