//! PARQ (P18): weights that are drawn to a few values while they are trained, by a map that hardens step by step.
//!
//! The optimizer moves a latent weight; what the forward pass sees is the latent weight through a piecewise-affine map
//! whose slopes grow from 1 to infinity, so that training ends with weights that *are* quantized. The gradient of what is
//! seen moves the latent weight, as torchao's `QuantOptimizer` has it.
//! Source: Jin et al. 2025, PARQ (arXiv 2503.15748).

mod lsbq;
mod prox;
mod quantizer;

use std::sync::atomic::{AtomicUsize, Ordering};

pub use prox::ProxMap;
pub use quantizer::{Quantized, Quantizer, stretched_code, stretched_scale};

use crate::autograd::{Tape, Var};
use crate::error::{Context as _, Error, Result};
use crate::model::is_router;
use crate::tensor::{DType, Tensor};
use crate::training::{LinearRule, Parameters, Vars};

/// torchao's `QuantOptimizer`, less its base optimizer.
#[derive(Clone, Debug, PartialEq)]
pub struct ParqConfig {
    /// What the values are.
    pub quantizer: Quantizer,
    /// 0 is ternary.
    pub bits: u32,
    /// How latent weights become those that are seen.
    pub prox_map: ProxMap,
    /// Steps before the map is applied.
    pub warmup_steps: usize,
    /// The values are chosen anew every so many steps.
    pub quant_period: usize,
    /// Values for each row, not for the whole weight.
    pub quant_per_channel: bool,
}

/// Linear layers that see mapped weights; the output layer as it is.
#[derive(Debug)]
pub struct ParqRule {
    config: ParqConfig,
    step: AtomicUsize,
}

const GRID: &str = "parq_grid";

impl ParqRule {
    /// The rule of `config`.
    pub fn new(config: ParqConfig) -> Result<ParqRule> {
        config.prox_map.check()?;
        config.quantizer.check(config.bits)?;
        if config.quant_period == 0 {
            return Err(Error::invalid("quant_period is 0; wanted 1 or more"));
        }
        Ok(ParqRule { config, step: AtomicUsize::new(0) })
    }

    fn quantize(&self, weight: &Tensor) -> Result<Quantized> {
        let config = &self.config;
        config.quantizer.quantize(weight, config.bits, config.quant_per_channel)
    }

    /// What is seen of `weight` after `steps` steps.
    fn seen(&self, weight: &Tensor, grid: &Tensor, steps: usize) -> Result<Tensor> {
        // torchao counts the step that has just been done from 0.
        match steps.checked_sub(1).filter(|done| *done >= self.config.warmup_steps) {
            Some(done) => self.config.prox_map.apply(weight, grid, done),
            None => Ok(weight.clone()),
        }
    }
}

/// The modules whose weights are mapped.
fn chosen(parameters: &Parameters) -> Vec<(String, Tensor)> {
    let module = |(name, tensor): (&String, &Tensor)| {
        let module = name.strip_suffix(".weight")?;
        let left_alone = ["model.embed_tokens", "lm_head"].contains(&module) || is_router(module);
        (tensor.shape().len() == 2 && !left_alone).then(|| (module.to_owned(), tensor.clone()))
    };
    parameters.iter().filter_map(module).collect()
}

impl LinearRule for ParqRule {
    fn name(&self) -> String {
        let ParqConfig { quantizer, bits, quant_per_channel, .. } = &self.config;
        let what = if *quant_per_channel { "channel" } else { "tensor" };
        match bits {
            0 => format!("parq ternary {quantizer} per {what}"),
            bits => format!("parq {bits} bits {quantizer} per {what}"),
        }
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, own: &Vars) -> Result<Var> {
        let Some(grid) = own.find(&format!("{fqn}.{GRID}")) else {
            return tape.linear(x, weight);
        };
        let seen = self.seen(weight.value(), grid.value(), self.step.load(Ordering::Relaxed))?;
        let seen = tape.custom("parq", &[weight], seen, |_, dy| Ok(vec![Some(dy)]))?;
        tape.linear(x, &seen)
    }

    fn prepare(&self, parameters: &mut Parameters) -> Result<()> {
        for (module, weight) in chosen(parameters) {
            let found = self.quantize(&weight.to_dtype(DType::F32)?).within(&module)?;
            parameters.set(&format!("{module}.{GRID}"), found.grid);
        }
        Ok(())
    }

    fn is_frozen(&self, name: &str) -> bool {
        name.ends_with(GRID)
    }

    fn begin_step(&self, step: usize) {
        self.step.store(step, Ordering::Relaxed);
    }

    fn end_step(&self, step: usize, parameters: &mut Parameters) -> Result<()> {
        let since = step.checked_sub(self.config.warmup_steps);
        if since.is_some_and(|since| since.is_multiple_of(self.config.quant_period)) {
            self.prepare(parameters)?;
        }
        self.begin_step(step + 1);
        Ok(())
    }

    fn finish(&self, parameters: &Parameters) -> Result<Parameters> {
        let steps = self.step.load(Ordering::Relaxed);
        let mut plain = Parameters::default();
        for (name, tensor) in parameters.iter().filter(|(name, _)| !name.ends_with(GRID)) {
            plain.set(name, tensor.clone());
        }
        for (module, weight) in chosen(&plain) {
            let grid = parameters.get(&format!("{module}.{GRID}"))?;
            let seen = self.seen(&weight.to_dtype(DType::F32)?, grid, steps)?;
            plain.set(&format!("{module}.weight"), seen.to_dtype(weight.dtype())?);
        }
        Ok(plain)
    }
}
