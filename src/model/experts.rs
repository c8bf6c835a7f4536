//! Feed-forward layers: one for all tokens, or experts among which a router chooses for each token (Mixtral, Qwen2-MoE, Qwen3-MoE).
//!
//! `y = Σ w[e] · down_e(silu(gate_e(x)) · up_e(x))` over the `per_token` experts whose router probabilities are largest; w are these
//! probabilities, divided by their sum where the model says so. Qwen2-MoE adds a shared expert behind a sigmoid.
//! Source: Shazeer et al. 2017 (arXiv 1701.06538); Jiang et al. 2024 (arXiv 2401.04088).

use aolab_kernels::{Cpu, activation};
use serde_json::{Map, Value as Json};

use super::Linear;
use super::config::{dim, flag, list_of_dims, optional_dim};
use crate::error::{Context as _, Error, Result};

/// Experts of a model, as its `config.json` describes them.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// How many a layer has.
    pub count: usize,
    /// How many a token goes through.
    pub per_token: usize,
    /// Whether the probabilities of the chosen ones are divided by their sum.
    pub norm_topk_prob: bool,
    /// Rows of an expert's gate.
    pub intermediate_size: usize,
    /// Rows of the shared expert's gate, where there is one.
    pub shared_intermediate_size: Option<usize>,
    /// Every so many layers have experts.
    pub sparse_step: usize,
    /// These have none.
    pub dense_layers: Vec<usize>,
    /// Whether tensors are called as Mixtral's.
    pub mixtral: bool,
}

impl ExpertsConfig {
    /// The experts of `model_type`; `None` where it has none.
    pub(super) fn of_json(
        map: &Map<String, Json>,
        model_type: &str,
    ) -> Result<Option<ExpertsConfig>> {
        let config = match model_type {
            "mixtral" => ExpertsConfig {
                count: dim(map, "num_local_experts")?,
                per_token: dim(map, "num_experts_per_tok")?,
                norm_topk_prob: true,
                intermediate_size: dim(map, "intermediate_size")?,
                shared_intermediate_size: None,
                sparse_step: 1,
                dense_layers: Vec::new(),
                mixtral: true,
            },
            "qwen2_moe" | "qwen3_moe" => ExpertsConfig {
                count: dim(map, "num_experts")?,
                per_token: dim(map, "num_experts_per_tok")?,
                norm_topk_prob: flag(map, "norm_topk_prob")?.unwrap_or(false),
                intermediate_size: dim(map, "moe_intermediate_size")?,
                shared_intermediate_size: match model_type {
                    "qwen2_moe" => Some(dim(map, "shared_expert_intermediate_size")?),
                    _ => None,
                },
                sparse_step: optional_dim(map, "decoder_sparse_step")?.unwrap_or(1),
                dense_layers: list_of_dims(map, "mlp_only_layers")?,
                mixtral: false,
            },
            _ => return Ok(None),
        };
        if config.per_token > config.count {
            return Err(Error::invalid(format!(
                "config.json: num_experts_per_tok is {}; there are {} experts",
                config.per_token, config.count
            )));
        }
        Ok(Some(config))
    }

    /// Whether layer `i` has experts.
    pub fn in_layer(&self, i: usize) -> bool {
        (i + 1).is_multiple_of(self.sparse_step) && !self.dense_layers.contains(&i)
    }

    /// What the router of a block is called.
    pub fn router(&self) -> &'static str {
        if self.mixtral { "block_sparse_moe.gate" } else { "mlp.gate" }
    }

    /// What gate, up and down of expert `e` of a block are called.
    pub fn expert(&self, e: usize) -> [String; 3] {
        if self.mixtral {
            ["w1", "w3", "w2"].map(|name| format!("block_sparse_moe.experts.{e}.{name}"))
        } else {
            ["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.experts.{e}.{name}"))
        }
    }

    /// What gate, up and down of the shared expert are called.
    pub fn shared(&self) -> [String; 3] {
        ["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.shared_expert.{name}"))
    }
}

/// What the shared expert's gate is called.
pub const SHARED_GATE: &str = "mlp.shared_expert_gate";

/// Whether a linear layer chooses among experts, and is none of what they compute.
pub fn is_router(module: &str) -> bool {
    ["mlp.gate", "block_sparse_moe.gate", SHARED_GATE].iter().any(|name| module.ends_with(name))
}

/// A gated feed-forward.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the checkpoint")]
pub struct Dense {
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub down_proj: Linear,
}

/// Experts and who chooses among them.
#[derive(Clone, Debug)]
pub struct Experts {
    /// Its rows are the experts.
    pub router: Linear,
    /// One after another.
    pub experts: Vec<Dense>,
    /// Qwen2-MoE's expert of all tokens, and the gate before its result.
    pub shared: Option<(Dense, Linear)>,
    /// How they are used.
    pub config: ExpertsConfig,
}

/// What follows the attention of a block.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has a few dozen of them")]
pub enum FeedForward {
    /// The same layers for every token.
    Dense(Dense),
    /// Some of many for each token.
    Experts(Experts),
}

impl FeedForward {
    /// The layers of all tokens; an error where there are experts, which `what` cannot do.
    pub fn dense(&self, what: &str) -> Result<&Dense> {
        match self {
            FeedForward::Dense(dense) => Ok(dense),
            FeedForward::Experts(_) => Err(no_experts(what)),
        }
    }

    /// The same, to be changed.
    pub fn dense_mut(&mut self, what: &str) -> Result<&mut Dense> {
        match self {
            FeedForward::Dense(dense) => Ok(dense),
            FeedForward::Experts(_) => Err(no_experts(what)),
        }
    }

    /// The linear layers by their names in a block, in the order in which they run.
    pub(super) fn linears(&self) -> Vec<(String, &Linear)> {
        match self {
            FeedForward::Dense(dense) => dense.named(DENSE.map(str::to_owned)).into(),
            FeedForward::Experts(all) => {
                let mut named = vec![(all.config.router().to_owned(), &all.router)];
                for (e, expert) in all.experts.iter().enumerate() {
                    named.extend(expert.named(all.config.expert(e)));
                }
                if let Some((shared, gate)) = &all.shared {
                    named.extend(shared.named(all.config.shared()));
                    named.push((SHARED_GATE.to_owned(), gate));
                }
                named
            }
        }
    }

    pub(super) fn linear_mut(&mut self, name: &str) -> Option<&mut Linear> {
        match self {
            FeedForward::Dense(dense) => dense.find(&DENSE.map(str::to_owned), name),
            FeedForward::Experts(all) => {
                if name == all.config.router() {
                    return Some(&mut all.router);
                }
                if let Some((shared, gate)) = &mut all.shared {
                    if name == SHARED_GATE {
                        return Some(gate);
                    }
                    if let Some(found) = shared.find(&all.config.shared(), name) {
                        return Some(found);
                    }
                }
                let config = &all.config;
                let mut experts = all.experts.iter_mut().enumerate();
                experts.find_map(|(e, expert)| expert.find(&config.expert(e), name))
            }
        }
    }
}

const DENSE: [&str; 3] = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

fn no_experts(what: &str) -> Error {
    Error::invalid(format!("{what} does not know experts: choose a model without them"))
}

impl Dense {
    fn named(&self, [gate, up, down]: [String; 3]) -> [(String, &Linear); 3] {
        [(gate, &self.gate_proj), (up, &self.up_proj), (down, &self.down_proj)]
    }

    fn find(&mut self, [gate, up, down]: &[String; 3], name: &str) -> Option<&mut Linear> {
        match name {
            _ if name == gate => Some(&mut self.gate_proj),
            _ if name == up => Some(&mut self.up_proj),
            _ if name == down => Some(&mut self.down_proj),
            _ => None,
        }
    }

    /// `down(silu(gate(x)) · up(x))` of `m` rows.
    fn forward(&self, cpu: &Cpu, x: &[f32], m: usize) -> Result<Vec<f32>> {
        let rows = |linear: &Linear| vec![0.0; m * linear.weight.shape().0];
        let (mut gate, mut up) = (rows(&self.gate_proj), rows(&self.up_proj));
        apply(cpu, &self.gate_proj, x, m, &mut gate)?;
        apply(cpu, &self.up_proj, x, m, &mut up)?;
        let mut hidden = vec![0.0; gate.len()];
        activation::silu_mul(cpu, &gate, &up, &mut hidden);
        let mut y = rows(&self.down_proj);
        apply(cpu, &self.down_proj, &hidden, m, &mut y)?;
        Ok(y)
    }
}

fn apply(cpu: &Cpu, linear: &Linear, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
    linear.weight.linear(cpu, x, m, y)?;
    if let Some(bias) = &linear.bias {
        let bias = bias.as_slice::<f32>()?;
        for row in y.chunks_exact_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    Ok(())
}

/// The experts of each token and how much each counts, from the router's logits `(M, experts)`: the softmax's largest,
/// the first of equal ones.
pub fn route(logits: &[f32], config: &ExpertsConfig) -> Vec<Vec<(usize, f32)>> {
    let choose = |row: &[f32]| {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f32> = row.iter().map(|x| (x - most).exp()).collect();
        let sum: f32 = powers.iter().sum();
        let mut chosen: Vec<(usize, f32)> =
            powers.into_iter().map(|p| p / sum).enumerate().collect();
        chosen.sort_by(|a, b| b.1.total_cmp(&a.1));
        chosen.truncate(config.per_token);
        if config.norm_topk_prob {
            let sum: f32 = chosen.iter().map(|(_, p)| p).sum();
            chosen.iter_mut().for_each(|(_, p)| *p /= sum);
        }
        chosen
    };
    logits.chunks_exact(config.count).map(choose).collect()
}

impl Experts {
    /// What `m` rows become.
    pub(super) fn forward(&self, cpu: &Cpu, x: &[f32], m: usize) -> Result<Vec<f32>> {
        let k = x.len().checked_div(m).unwrap_or(0);
        let mut logits = vec![0.0; m * self.config.count];
        apply(cpu, &self.router, x, m, &mut logits).within(self.config.router())?;
        let chosen = route(&logits, &self.config);
        let mut y = vec![0.0; x.len()];
        for (e, expert) in self.experts.iter().enumerate() {
            let tokens: Vec<(usize, f32)> = chosen
                .iter()
                .enumerate()
                .filter_map(|(row, all)| {
                    all.iter().find(|(chosen, _)| *chosen == e).map(|(_, weight)| (row, *weight))
                })
                .collect();
            if tokens.is_empty() {
                continue;
            }
            let rows: Vec<f32> =
                tokens.iter().flat_map(|(row, _)| x[row * k..][..k].iter().copied()).collect();
            let out = expert.forward(cpu, &rows, tokens.len()).within(format!("expert {e}"))?;
            for ((row, weight), out) in tokens.iter().zip(out.chunks_exact(k)) {
                y[row * k..][..k].iter_mut().zip(out).for_each(|(y, x)| *y += weight * x);
            }
        }
        if let Some((shared, gate)) = &self.shared {
            let mut open = vec![0.0; m];
            apply(cpu, gate, x, m, &mut open).within(SHARED_GATE)?;
            let out = shared.forward(cpu, x, m).within("mlp.shared_expert")?;
            for ((y, out), open) in y.chunks_exact_mut(k).zip(out.chunks_exact(k)).zip(&open) {
                let share = 1.0 / (1.0 + (-open).exp());
                y.iter_mut().zip(out).for_each(|(y, x)| *y += share * x);
            }
        }
        Ok(y)
    }
}
