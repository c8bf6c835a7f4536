//! PAT (P19): pruning while training, by proximal steps: torchao's `PruneOptimizer`.
//!
//! The optimizer moves a latent weight; after each step what is seen of it is the latent weight through a proximal map that zeros
//! groups of numbers (or singular values). The gradient of what is seen moves the latent weight. From `healing_start_step` on the
//! zeros stay where they are and only the other numbers are trained; ranks are kept by the map itself.
//! The embedding and the output layer are left alone.

mod group;
mod prox;
#[cfg(test)]
mod tests;
mod words;

use std::sync::atomic::{AtomicUsize, Ordering};

pub use group::Grouper;
pub use prox::{Prox, Score, prune_globally};

use crate::autograd::{Tape, Var};
use crate::error::{Context as _, Error, Result};
use crate::model::is_router;
use crate::tensor::{DType, Tensor};
use crate::training::{LinearRule, Parameters, TrainConfig, Vars};

/// torchao's `PruneOptimizer`, less its base optimizer, and the keys of its parameter group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatConfig {
    /// Which numbers are pruned together.
    pub group: Grouper,
    /// How.
    pub prox: Prox,
    /// How strongly, for maps that shrink.
    pub reg_lambda: f64,
    /// Steps before the map is applied.
    pub warmup_steps: usize,
    /// The step from which zeros stay; `None` is never.
    pub healing_start_step: Option<usize>,
    /// Lets a constraint's share rise from 0, as a cubic, until healing begins.
    pub min_sparsity_schedule: bool,
    /// Steps between two uses of the map.
    pub prox_freq: usize,
}

impl PatConfig {
    /// A map of groups, from the first step to the last.
    pub fn new(prox: Prox, group: Grouper) -> PatConfig {
        PatConfig {
            group,
            prox,
            reg_lambda: 0.0,
            warmup_steps: 0,
            healing_start_step: None,
            min_sparsity_schedule: false,
            prox_freq: 1,
        }
    }

    fn check(&self) -> Result<()> {
        self.prox.check(self.group)?;
        if self.healing_start_step.is_some_and(|healing| healing <= self.warmup_steps) {
            return Err(Error::invalid(format!(
                "healing begins at step {:?}, the warm-up ends at {}; wanted it later",
                self.healing_start_step, self.warmup_steps
            )));
        }
        if self.min_sparsity_schedule && self.healing_start_step.is_none() {
            return Err(Error::invalid(
                "a share that rises does so until healing begins; say when that is",
            ));
        }
        if !(self.reg_lambda.is_finite() && self.reg_lambda >= 0.0) || self.prox_freq == 0 {
            return Err(Error::invalid(format!(
                "reg_lambda is {}, prox_freq {}; wanted 0 or more, and 1 or more",
                self.reg_lambda, self.prox_freq
            )));
        }
        Ok(())
    }

    fn heals(&self, step: usize) -> bool {
        self.healing_start_step.is_some_and(|healing| step >= healing)
    }

    /// Whether the map is used after `step`, counted from 0.
    fn prunes(&self, step: usize) -> bool {
        let last = self.healing_start_step.is_some_and(|healing| step + 1 == healing);
        let since = step.checked_sub(self.warmup_steps);
        since.is_some_and(|since| {
            since.is_multiple_of(self.prox_freq) || (last && self.prox.is_constraint())
        })
    }

    /// The map of `step`: its share on its way to the target.
    #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2⁵³")]
    fn prox_at(&self, step: usize) -> Prox {
        let (Some(target), Some(healing), true) =
            (self.prox.target(), self.healing_start_step, self.min_sparsity_schedule)
        else {
            return self.prox;
        };
        if step + 1 >= healing {
            return self.prox;
        }
        if step <= self.warmup_steps {
            return self.prox.at(0.0);
        }
        let done = (step - self.warmup_steps) as f64 / (healing - self.warmup_steps) as f64;
        self.prox.at(target * (1.0 - (1.0 - done).powi(3)))
    }
}

/// Linear layers that see pruned weights.
#[derive(Debug)]
pub struct PatRule {
    config: PatConfig,
    /// Where learning rates come from.
    run: TrainConfig,
    step: AtomicUsize,
}

/// What is seen of a weight.
const SEEN: &str = "pat_seen";

impl PatRule {
    /// The rule of `config` in a run whose learning rates are `run`'s.
    pub fn new(config: PatConfig, run: TrainConfig) -> Result<PatRule> {
        config.check()?;
        Ok(PatRule { config, run, step: AtomicUsize::new(0) })
    }

    /// The sum of the learning rates of the steps that pruned, `step` the last.
    fn gamma(&self, step: usize) -> f64 {
        (self.config.warmup_steps..=step).map(|step| self.run.lr_at(step)).sum()
    }

    /// Every weight through the map of `step`.
    fn prune(&self, step: usize, weights: &mut [(String, Tensor)]) -> Result<()> {
        let prox = self.config.prox_at(step);
        let group = self.config.group;
        if let Prox::GlobalMinSparsity(share, score) = prox {
            let read = |(_, weight): &(String, Tensor)| Ok((weight.to_f32_vec(), weight.dims2()?));
            let mut all = weights.iter().map(read).collect::<Result<Vec<_>>>()?;
            prune_globally(group, (share, score), &mut all)?;
            for ((_, weight), (values, (n, k))) in weights.iter_mut().zip(all) {
                *weight = Tensor::new(values, &[n, k])?;
            }
            return Ok(());
        }
        let last = self.config.healing_start_step.map_or(step, |healing| step.min(healing - 1));
        let threshold = self.config.reg_lambda * self.gamma(last);
        for (module, weight) in weights {
            let shape = weight.dims2()?;
            let mut values = weight.to_f32_vec();
            prox.apply(group, &mut values, shape, threshold).within(&*module)?;
            *weight = Tensor::new(values, &[shape.0, shape.1])?;
        }
        Ok(())
    }

    /// A step while zeros stay: those of what was seen before go back.
    fn heal(&self, step: usize, parameters: &mut Parameters) -> Result<()> {
        let mut weights = chosen(parameters)?;
        if self.config.group == Grouper::Svd {
            // Soft maps end when healing begins; a rank is kept.
            if matches!(self.config.prox, Prox::MinRank(_)) {
                self.prune(step, &mut weights)?;
            }
        } else {
            for (module, weight) in &mut weights {
                let seen = parameters.get(&format!("{module}.{SEEN}"))?;
                let pairs = weight.to_f32_vec().into_iter().zip(seen.as_slice::<f32>()?);
                let kept = pairs.map(|(w, seen)| if *seen == 0.0 { 0.0 } else { w }).collect();
                *weight = Tensor::new::<f32>(kept, seen.shape())?;
            }
        }
        for (module, weight) in weights {
            set_weight(parameters, &module, &weight)?;
            parameters.set(&format!("{module}.{SEEN}"), weight);
        }
        Ok(())
    }
}

/// The weights that are pruned, in f32, by their modules.
fn chosen(parameters: &Parameters) -> Result<Vec<(String, Tensor)>> {
    let mut found = Vec::new();
    for (name, tensor) in parameters.iter() {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        let left_alone = ["model.embed_tokens", "lm_head"].contains(&module) || is_router(module);
        if tensor.shape().len() == 2 && !left_alone {
            found.push((module.to_owned(), tensor.to_dtype(DType::F32)?));
        }
    }
    Ok(found)
}

/// Puts a weight in, in the dtype of the one that was there.
fn set_weight(parameters: &mut Parameters, module: &str, weight: &Tensor) -> Result<()> {
    let name = format!("{module}.weight");
    let dtype = parameters.get(&name)?.dtype();
    parameters.set(&name, weight.to_dtype(dtype)?);
    Ok(())
}

impl LinearRule for PatRule {
    fn name(&self) -> String {
        format!("pat {} of {}", self.config.prox, self.config.group)
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, own: &Vars) -> Result<Var> {
        let Some(seen) = own.find(&format!("{fqn}.{SEEN}")) else {
            return tape.linear(x, weight);
        };
        let masks = self.config.heals(self.step.load(Ordering::Relaxed))
            && self.config.group != Grouper::Svd;
        let value = seen.value().clone();
        let kept = value.clone();
        let seen = tape.custom("pat", &[weight], value, move |_, dy| {
            if !masks {
                return Ok(vec![Some(dy)]);
            }
            let kept = kept.as_slice::<f32>()?;
            let dw = dy.changed::<f32>(|dy| {
                let pairs = dy.iter_mut().zip(kept).filter(|(_, seen)| **seen == 0.0);
                pairs.for_each(|(dy, _)| *dy = 0.0);
            })?;
            Ok(vec![Some(dw)])
        })?;
        tape.linear(x, &seen)
    }

    fn prepare(&self, parameters: &mut Parameters) -> Result<()> {
        for (module, weight) in chosen(parameters)? {
            self.config.group.of(weight.dims2()?).within(&module)?;
            parameters.set(&format!("{module}.{SEEN}"), weight);
        }
        Ok(())
    }

    fn is_frozen(&self, name: &str) -> bool {
        name.ends_with(SEEN)
    }

    fn begin_step(&self, step: usize) {
        self.step.store(step, Ordering::Relaxed);
    }

    fn end_step(&self, step: usize, parameters: &mut Parameters) -> Result<()> {
        if self.config.heals(step) {
            return self.heal(step, parameters);
        }
        let mut weights = chosen(parameters)?;
        if self.config.prunes(step) {
            self.prune(step, &mut weights)?;
        }
        for (module, weight) in weights {
            // Healing begins with what was seen, not with what was behind it.
            if self.config.heals(step + 1) {
                set_weight(parameters, &module, &weight)?;
            }
            parameters.set(&format!("{module}.{SEEN}"), weight);
        }
        Ok(())
    }

    fn finish(&self, parameters: &Parameters) -> Result<Parameters> {
        let mut plain = Parameters::default();
        for (name, tensor) in parameters.iter().filter(|(name, _)| !name.ends_with(SEEN)) {
            plain.set(name, tensor.clone());
        }
        for (module, _) in chosen(&plain)? {
            let seen = parameters.get(&format!("{module}.{SEEN}"))?;
            set_weight(&mut plain, &module, seen)?;
        }
        Ok(plain)
    }
}
