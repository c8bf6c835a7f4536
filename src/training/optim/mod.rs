//! Optimizers whose state is kept in few bits (O01–O07, O10–O16), and SGD.
//!
//! torchao's `Adam8bit`, `AdamW8bit`, `Adam4bit`, `AdamW4bit`, `AdamFp8`, `AdamWFp8` and `_AdamW` are one
//! [`AdamConfig`]; [`GaloreConfig`] makes its moments small. A parameter's moments are quantized where it has at least 4096 numbers and whole blocks of them; else
//! they stay in f32. Parameters in bf16 are updated in f32 and rounded at the end, at random if asked (O13).
//!
//! torchao draws its random bits from PyTorch's generator; ours come from the seed, the step and the place.

mod adam;
mod galore;
mod offload;
mod state;

use std::fmt;

use half::bf16;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use adam::{AdamConfig, StateBits};
pub use galore::{GaloreConfig, ProjType};
pub use offload::{CpuOffloadOptimizer, Gradients, OffloadOptions, Stepped};
use state::State;

use crate::error::{Context as _, Error, Result};
use crate::kernels::adam::Hyper;
use crate::kernels::{Cpu, stochastic_round};
use crate::tensor::{DType, Tensor};

/// Which optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerConfig {
    /// Adam or AdamW.
    Adam(AdamConfig),
    /// Stochastic gradient descent: `b ← momentum · b + g + weight_decay · p`, `p ← p − lr · b`, as PyTorch's.
    Sgd {
        /// How much of the last step goes on.
        momentum: f32,
        /// The decay, which goes to the gradient.
        weight_decay: f32,
    },
}

impl Default for OptimizerConfig {
    fn default() -> OptimizerConfig {
        OptimizerConfig::Adam(AdamConfig::default())
    }
}

impl OptimizerConfig {
    fn galore(&self) -> Option<&GaloreConfig> {
        match self {
            OptimizerConfig::Adam(adam) => adam.galore.as_ref(),
            OptimizerConfig::Sgd { .. } => None,
        }
    }

    /// The decay of one parameter.
    fn decay(&self, update: &Update<'_>) -> f32 {
        let (OptimizerConfig::Adam(AdamConfig { weight_decay, .. })
        | OptimizerConfig::Sgd { weight_decay, .. }) = self;
        if update.decays { *weight_decay } else { 0.0 }
    }

    /// Adam's step on what GaLore sees: without decay, and with its eps; see [`galore`].
    fn galore_hyper(&self, lr: f32, step: u32) -> Result<Hyper> {
        let OptimizerConfig::Adam(adam) = self else {
            return Err(Error::invalid("GaLore is AdamW's"));
        };
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as it is used")]
        let eps = match adam.state {
            StateBits::F32 => {
                let correction = 1.0 - adam.betas.1.powf(f64::from(step));
                (f64::from(adam.eps) / correction.sqrt()) as f32
            }
            _ => adam.eps,
        };
        let (betas, weight_decay, decoupled) = (adam.betas, 0.0, true);
        Ok(Hyper { lr, betas, eps, weight_decay, decoupled, step })
    }
}

impl fmt::Display for OptimizerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptimizerConfig::Adam(adam) => adam.fmt(f),
            OptimizerConfig::Sgd { .. } => f.pad("sgd"),
        }
    }
}

/// An optimizer at work: what it remembers of each parameter.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    seed: u64,
    states: IndexMap<String, State>,
}

/// One parameter's step.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its gradient, f32.
    pub gradient: &'a Tensor,
    /// The learning rate.
    pub lr: f32,
    /// Whether it decays: matrices do, norms and biases mostly do not.
    pub decays: bool,
}

impl Optimizer {
    /// An optimizer that remembers nothing yet.
    pub fn new(config: OptimizerConfig, seed: u64) -> Result<Optimizer> {
        if let OptimizerConfig::Adam(adam) = &config {
            adam.check()?;
        }
        Ok(Optimizer { config, seed, states: IndexMap::new() })
    }

    /// The parameter after one step along its gradient, in its own dtype.
    pub fn step(&mut self, cpu: &Cpu, parameter: Tensor, update: &Update<'_>) -> Result<Tensor> {
        let name = update.name;
        if parameter.shape() != update.gradient.shape() {
            let (got, wanted) = (update.gradient.shape(), parameter.shape());
            return Err(Error::invalid(format!("{name}: gradient {got:?}, parameter {wanted:?}")));
        }
        let (dtype, shape) = (parameter.dtype(), parameter.shape().to_vec());
        let mut p = match dtype {
            DType::F32 => parameter.into_vec::<f32>()?,
            DType::BF16 => parameter.to_f32_vec(),
            other => return Err(Error::invalid(format!("{name}: {other}; wanted f32 or bf16"))),
        };
        let index = self.states.len() as u64;
        if !self.states.contains_key(name) {
            let state = State::new(&self.config, (name, &shape), index);
            self.states.insert(name.to_owned(), state);
        }
        let state = self.states.get_mut(name).expect("it was put in just now");
        state.step += 1;
        state.update(cpu, &self.config, &mut p, update).within(name)?;
        if dtype == DType::F32 {
            return Tensor::new(p, &shape);
        }
        let at_random =
            matches!(&self.config, OptimizerConfig::Adam(adam) if adam.bf16_stochastic_round);
        let mut rounded = vec![bf16::ZERO; p.len()];
        if at_random {
            // Steps and parameters are far enough apart for 2⁴⁰ draws each.
            let place = state.index.wrapping_shl(24).wrapping_add(u64::from(state.step));
            let seed = self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(place << 20);
            stochastic_round::to_bf16(cpu, &p, seed, &mut rounded);
        } else {
            rounded.iter_mut().zip(&p).for_each(|(to, p)| *to = bf16::from_f32(*p));
        }
        Tensor::new(rounded, &shape)
    }

    /// The bytes of everything it remembers.
    pub fn nbytes(&self) -> usize {
        self.states.values().map(State::nbytes).sum()
    }

    /// Everything it remembers, as a checkpoint holds it: `NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.step` …
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::new();
        for (name, state) in &self.states {
            for (part, tensor) in state.tensors()? {
                all.push((format!("{name}.{part}"), tensor));
            }
        }
        Ok(all)
    }

    /// Remembers what `find` gives for the names of [`Optimizer::tensors`]; `parameters` are names and shapes.
    pub fn restore<'a>(
        &mut self,
        parameters: impl Iterator<Item = (&'a str, &'a [usize])>,
        find: &dyn Fn(&str) -> Option<Tensor>,
    ) -> Result<()> {
        let mut places = Vec::new();
        for (name, shape) in parameters {
            // A parameter that got no gradient yet has no state.
            let Some(step) = find(&format!("{name}.step")) else { continue };
            let mut state = State::new(&self.config, (name, shape), 0);
            state
                .restore(&self.config, &step, &|part| find(&format!("{name}.{part}")))
                .within(name)?;
            places.push((state.index, name.to_owned(), state));
        }
        places.sort_by_key(|(index, ..)| *index);
        self.states = places.into_iter().map(|(_, name, state)| (name, state)).collect();
        Ok(())
    }
}
