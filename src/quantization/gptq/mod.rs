//! GPTQ: torchao's `GPTQConfig` (P03), weights rounded so that a layer's outputs stay, not its weights.
//!
//! Columns are rounded in order; the error of each is spread over the columns that are still to come, by the inverse of
//! the inputs' second moments (Frantar et al. 2022, arXiv 2210.17323). The base's format stays as it is: scales
//! of a group are chosen from its weights as the errors before it have left them, and any base that is
//! [`Columns`] will do. Inputs that never fire get weight 0, and `percdamp` of the diagonal's mean is added to it.
//!
//! By default every layer sees the original model's inputs, as in torchao; with `sequential`, those that the quantized
//! blocks before it give. Unlike torchao, errors are kept in f32 whatever the weight's dtype, and a scale that a
//! whole row shares is chosen from the whole row, not from its first 256 columns, which clips the others.

mod solve;

use std::sync::Arc;

use serde_json::{Value as Json, json};

pub use self::solve::{Solver, gptq_quantize};
pub use super::calibration::Hessian;
use super::calibration::{Calibrated, LayerObserver, check_original, not_without_inputs};
use super::config::Typed;
use super::stored::Stored;
use super::workflows::Workflow;
use super::{Columns, Recipe};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;

/// A base format, filled so that the layer's outputs stay.
#[derive(Clone, Debug)]
pub struct GptqConfig {
    /// The format.
    pub base: Arc<dyn Recipe>,
    /// How much of the mean of the second moments' diagonal is added to it.
    pub percdamp: f64,
    /// Columns whose errors stay among themselves before they are passed on; it changes no number but by rounding.
    pub gptq_quantize_block_size: usize,
    /// Take the inputs that the quantized blocks before give, not the original model's.
    pub sequential: bool,
}

impl GptqConfig {
    /// torchao's defaults over `base`.
    pub fn new(base: Arc<dyn Recipe>) -> GptqConfig {
        GptqConfig { base, percdamp: 0.01, gptq_quantize_block_size: 256, sequential: false }
    }

    fn check_options(&self) -> Result<()> {
        if !(self.percdamp >= 0.0 && self.percdamp.is_finite()) {
            let got = self.percdamp;
            return Err(Error::invalid(format!(
                "percdamp is {got}; wanted 0 or more, usual is 0.01"
            )));
        }
        if self.gptq_quantize_block_size == 0 {
            return Err(Error::invalid(
                "gptq_quantize_block_size is 0; wanted 1 or more, usual is 256",
            ));
        }
        if self.base.calibrated().is_some() {
            return Err(Error::invalid(format!(
                "gptq rounds the columns of a format, and {} is an algorithm of its own; \
                 give its base to gptq instead, or put gptq inside it",
                self.base.name()
            )));
        }
        Ok(())
    }
}

const TYPE: &str = "GPTQConfig";

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "gptq",
    ids: &["P03"],
    config_type: TYPE,
    weight_type: "the base's",
    granularity: "the base's",
    kernel: "the base's",
    config_from_dict,
    read_weight,
};

fn read_weight(_: &Typed<'_>, _: Stored) -> Result<Arc<dyn Weight>> {
    Err(Error::invalid("gptq has no format of its own; its weights are its base's"))
}

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    typed.check_version(1)?;
    typed.known_fields(&[
        "step",
        "base_config",
        "percdamp",
        "gptq_quantize_block_size",
        "sequential",
    ])?;
    let default = GptqConfig::new(typed.base_config()?);
    let config = GptqConfig {
        percdamp: typed.field("percdamp", default.percdamp)?,
        gptq_quantize_block_size: typed
            .field("gptq_quantize_block_size", default.gptq_quantize_block_size)?,
        sequential: typed.field("sequential", false)?,
        ..default
    };
    config.check_options()?;
    Ok(Arc::new(config))
}

impl Recipe for GptqConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        let mut data = json!({
            "step": "convert",
            "base_config": self.base.config_to_dict(),
            "percdamp": self.percdamp,
            "gptq_quantize_block_size": self.gptq_quantize_block_size,
        });
        if self.sequential {
            // torchao has no such field, and reads none that it does not know.
            data["sequential"] = true.into();
        }
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

impl Calibrated for GptqConfig {
    fn prepare(&self, _fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        check_original(WORKFLOW.name, weight.as_ref())?;
        self.check(weight.shape())?;
        // Hears now whether the base has columns at all, not after the text was read.
        drop(self.base.columns(&Cpu::new(Some(1)), weight.as_ref())?);
        let hessian = Hessian::new(weight.shape().1);
        Ok(Box::new(GptqObserver { config: self.clone(), weight: Arc::clone(weight), hessian }))
    }

    fn sequential(&self) -> bool {
        self.sequential
    }
}

/// Gathers second moments, then solves.
#[derive(Debug)]
struct GptqObserver {
    config: GptqConfig,
    weight: Arc<dyn Weight>,
    hessian: Hessian,
}

impl LayerObserver for GptqObserver {
    fn observe(&mut self, cpu: &Cpu, x: &[f32]) -> Result<()> {
        self.hessian.update(cpu, x)
    }

    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let GptqConfig { base, percdamp, gptq_quantize_block_size, .. } = &self.config;
        let mut columns: Box<dyn Columns> = base.columns(cpu, self.weight.as_ref())?;
        let solver = Solver {
            percdamp: *percdamp,
            block_size: *gptq_quantize_block_size,
            whole_groups: true,
        };
        let w = self.weight.dequantize()?;
        gptq_quantize(cpu, self.hessian.values(), &w, columns.as_mut(), &solver)
    }
}
