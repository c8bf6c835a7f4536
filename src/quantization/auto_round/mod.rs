//! AutoRound: which way each weight is rounded, and how far each group's range is clipped, learned by signed steps (X23;
//! Cheng et al. 2023, arXiv 2309.05516). torchao v0.18 handed this to an external package; here it is a loop of its own.
//!
//! Each weight gets an offset `v` of at most half a step before it is rounded, each group a share `α` of its largest and `β` of its
//! smallest value. For `iters` steps the sign of the gradient of the layer's squared output error moves them by a rate that
//! falls to 0; the best step is kept, and rounding to nearest is the first. The package takes the error of a whole block of layers,
//! this one that of each layer, whose second moments of inputs are all that it needs to know.
//!
//! Any base that is [`Columns`] with equal steps will do: int4, int8 and intx weights.

mod solve;

use std::sync::Arc;

use serde_json::{Value as Json, json};

pub use self::solve::{Rounding, auto_round};
use super::calibration::{Calibrated, Hessian, LayerObserver, check_original, not_without_inputs};
use super::config::Typed;
use super::stored::Stored;
use super::workflows::Workflow;
use super::{Columns, Recipe};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;

/// A base format whose roundings are learned.
#[derive(Clone, Debug)]
pub struct AutoRoundConfig {
    /// The format.
    pub base: Arc<dyn Recipe>,
    /// Signed steps.
    pub iters: usize,
    /// The first step's length; `None` is 1 / iters.
    pub lr: Option<f32>,
}

impl AutoRoundConfig {
    /// AutoRound's defaults over `base`.
    pub fn new(base: Arc<dyn Recipe>) -> AutoRoundConfig {
        AutoRoundConfig { base, iters: 200, lr: None }
    }

    fn check_options(&self) -> Result<()> {
        if self.lr.is_some_and(|lr| !(lr > 0.0 && lr <= 1.0)) {
            let got = self.lr.unwrap_or_default();
            return Err(Error::invalid(format!("lr is {got}; wanted more than 0 and at most 1")));
        }
        if self.base.calibrated().is_some() {
            return Err(Error::invalid(format!(
                "auto-round rounds the columns of a format, and {} is an algorithm of its own; give its base instead",
                self.base.name()
            )));
        }
        Ok(())
    }
}

const TYPE: &str = "AutoRoundConfig";

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "auto-round",
    ids: &["X23"],
    config_type: TYPE,
    weight_type: "auto-round has its base's",
    granularity: "the base's",
    kernel: "the base's",
    config_from_dict,
    read_weight,
};

fn read_weight(_: &Typed<'_>, _: Stored) -> Result<Arc<dyn Weight>> {
    Err(Error::invalid("auto-round has no format of its own; its weights are its base's"))
}

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    typed.check_version(1)?;
    typed.known_fields(&["base_config", "iters", "lr"])?;
    let default = AutoRoundConfig::new(typed.base_config()?);
    let config = AutoRoundConfig {
        iters: typed.field("iters", default.iters)?,
        lr: typed.field("lr", None)?,
        ..default
    };
    config.check_options()?;
    Ok(Arc::new(config))
}

impl Recipe for AutoRoundConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        let base = self.base.config_to_dict();
        let data = json!({ "base_config": base, "iters": self.iters, "lr": self.lr });
        json!({ "_type": TYPE, "_version": 1, "_data": data })
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.check_options()?;
        self.base.check(shape)
    }

    fn quantize(&self, _cpu: &Cpu, _weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        Err(not_without_inputs(WORKFLOW.name))
    }

    fn calibrated(&self) -> Option<&dyn Calibrated> {
        Some(self)
    }
}

impl Calibrated for AutoRoundConfig {
    fn prepare(&self, _fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        check_original(WORKFLOW.name, weight.as_ref())?;
        self.check(weight.shape())?;
        // Hears now whether the base has columns of equal steps, not after the text was read.
        let columns = self.base.columns(&Cpu::new(Some(1)), weight.as_ref())?;
        if columns.step(0, 0).is_none() {
            return Err(Error::invalid(format!(
                "the values of {} are not equally far apart, so that half a step is no number; \
                 take int4-weight-only, int8-weight-only or intx-weight-only, or gptq instead",
                self.base.name()
            )));
        }
        let hessian = Hessian::new(weight.shape().1);
        Ok(Box::new(Watch { config: self.clone(), weight: Arc::clone(weight), hessian }))
    }
}

/// Gathers second moments, then learns.
#[derive(Debug)]
struct Watch {
    config: AutoRoundConfig,
    weight: Arc<dyn Weight>,
    hessian: Hessian,
}

impl LayerObserver for Watch {
    fn observe(&mut self, cpu: &Cpu, x: &[f32]) -> Result<()> {
        self.hessian.update(cpu, x)
    }

    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let mut columns: Box<dyn Columns> = self.config.base.columns(cpu, self.weight.as_ref())?;
        #[expect(clippy::cast_precision_loss, reason = "steps are few")]
        let lr = self.config.lr.unwrap_or(1.0 / self.config.iters.max(1) as f32);
        let rounding = Rounding { iters: self.config.iters, lr };
        let w = self.weight.dequantize()?;
        auto_round(cpu, self.hessian.values(), &w, columns.as_mut(), rounding)
    }
}
