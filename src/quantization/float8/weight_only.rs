//! `Float8WeightOnlyConfig` (Q09): float8 weights, activations as they are.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::quantize::quantize;
use super::weight::{self, Activation, Float8Weight, check_float8};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::quantization::Recipe;
use crate::quantization::config::{Typed, to_dict};
use crate::quantization::primitives::{Float8, Granularity};
use crate::quantization::stored::Stored;
use crate::quantization::workflows::Workflow;

/// Float8 weights, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Float8WeightOnlyConfig {
    /// The type of the codes: float8_e4m3fn or float8_e5m2
    #[arg(long, default_value = "float8_e4m3fn", value_name = "FLOAT8")]
    pub weight_dtype: Float8,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
    /// Which weights share a scale: per-row, per-tensor or per-group:SIZE
    #[arg(long, default_value = "per-row", value_name = "GRANULARITY")]
    pub granularity: Granularity,
}

impl Default for Float8WeightOnlyConfig {
    fn default() -> Float8WeightOnlyConfig {
        Float8WeightOnlyConfig {
            weight_dtype: Float8::E4m3fn,
            set_inductor_config: true,
            granularity: Granularity::PER_ROW,
        }
    }
}

const TYPE: &str = "Float8WeightOnlyConfig";
const VERSION: u64 = 2;

pub(in crate::quantization) const WORKFLOW: Workflow = Workflow {
    name: "float8-weight-only",
    ids: &["Q09"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-row, per-tensor, per-group:SIZE",
    kernel: "float_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Float8WeightOnlyConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Float8Weight::read(typed, stored)?))
}

impl Float8WeightOnlyConfig {
    /// Refuses what torchao refuses, whatever the weight.
    fn check_options(&self) -> Result<()> {
        check_float8(self.weight_dtype)?;
        match self.granularity {
            Granularity::PerTensor | Granularity::PerGroup { .. } => Ok(()),
            Granularity::PerRow { dim: -1 | 1 } => Ok(()),
            ref other => Err(Error::invalid(format!(
                "granularity {other} is not for float8 weights; use per-row, per-tensor or per-group:SIZE"
            ))),
        }
    }
}

impl Recipe for Float8WeightOnlyConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        self.granularity.block_size(&[n, k]).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let format = (self.weight_dtype, &self.granularity);
        Ok(Arc::new(quantize(cpu, weight, format, Activation::AsIs)?))
    }
}
