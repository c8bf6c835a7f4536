//! The flags of `train` that prune.

use std::sync::Arc;

use crate::error::Result;
use crate::training::pat::{Grouper, PatConfig, PatRule, Prox};
use crate::training::{LinearRule, TrainConfig};

#[derive(Debug, clap::Args)]
pub(super) struct PatArgs {
    /// Prune while training (PAT): lasso, group-lasso, nuclear-norm, min-sparsity:SHARE, min-rank:SHARE, nm-sparse:COUNT …
    #[arg(long, value_name = "MAP", conflicts_with_all = ["qat", "qat_config", "lora_rank", "linear", "parq", "paretoq"])]
    pat: Option<Prox>,
    /// What is pruned together: elem, layer, dim0 (rows), dim1 (columns), k-element:SIZE, head-rows:SIZE, svd
    #[arg(long, value_name = "GROUPS", requires = "pat")]
    pat_group: Option<Grouper>,
    /// How strongly maps shrink
    #[arg(long, value_name = "LAMBDA", default_value_t = 0.0, requires = "pat")]
    pat_lambda: f64,
    /// Steps before pruning begins
    #[arg(long, value_name = "STEPS", default_value_t = 0, requires = "pat")]
    pat_warmup: usize,
    /// The step from which zeros stay
    #[arg(long, value_name = "STEP", requires = "pat")]
    pat_healing: Option<usize>,
    /// Let the share rise from 0 until then
    #[arg(long, requires = "pat_healing")]
    pat_schedule: bool,
    /// Steps between two prunings
    #[arg(long, value_name = "STEPS", default_value_t = 1, requires = "pat")]
    pat_every: usize,
}

impl PatArgs {
    /// The rule, where pruning was asked for.
    pub(super) fn rule(&self, run: &TrainConfig) -> Result<Option<Arc<dyn LinearRule>>> {
        let Some(prox) = self.pat else { return Ok(None) };
        let config = PatConfig {
            reg_lambda: self.pat_lambda,
            warmup_steps: self.pat_warmup,
            healing_start_step: self.pat_healing,
            min_sparsity_schedule: self.pat_schedule,
            prox_freq: self.pat_every,
            ..PatConfig::new(prox, self.pat_group.unwrap_or(prox.usual_group()))
        };
        Ok(Some(Arc::new(PatRule::new(config, run.clone())?)))
    }
}
