//! MX weights, activations as they are. torchao has no such configuration; its fields are those of the one that it has.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::weight::{self, Activation, MxWeight};
use super::{BLOCK_SIZE, MxBlocks, check_block, quantize};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::kernels::float_linear::Element;
use crate::model::Weight;
use crate::quantization::config::{Typed, to_dict};
use crate::quantization::primitives::{MxElement, ScaleCalculationMode};
use crate::quantization::stored::Stored;
use crate::quantization::workflows::Workflow;
use crate::quantization::{Columns, Recipe};

/// MX weights, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct MXWeightOnlyConfig {
    /// Always 32.
    #[arg(skip = BLOCK_SIZE)]
    pub block_size: usize,
    /// The type of the codes: e4m3, e5m2, e2m3, e3m2, e2m1 or int8
    #[arg(long, default_value = "e4m3", value_name = "ELEMENT")]
    pub weight_dtype: MxElement,
    /// How a block's power of two is chosen: floor, ceil, even or rceil
    #[arg(long, default_value = "rceil", value_name = "MODE")]
    pub scaling_mode: ScaleCalculationMode,
}

impl Default for MXWeightOnlyConfig {
    fn default() -> MXWeightOnlyConfig {
        MXWeightOnlyConfig {
            block_size: BLOCK_SIZE,
            weight_dtype: MxElement(Element::E4m3),
            scaling_mode: ScaleCalculationMode::Rceil,
        }
    }
}

const TYPE: &str = "MXWeightOnlyConfig";
const VERSION: u64 = 1;

pub(in crate::quantization) const WORKFLOW: Workflow = Workflow {
    name: "mx-weight-only",
    ids: &["M02", "M03", "M04", "M05", "M06", "M07", "M08", "L05", "L07", "L08"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "blocks of 32",
    kernel: "float_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: MXWeightOnlyConfig = typed.read(VERSION)?;
    check_block(config.block_size, BLOCK_SIZE)?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(MxWeight::read(typed, stored)?))
}

impl Recipe for MXWeightOnlyConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (_, k): (usize, usize)) -> Result<()> {
        check_block(self.block_size, k)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let (element, mode) = (self.weight_dtype, self.scaling_mode);
        Ok(Arc::new(quantize(cpu, weight, element, mode, Activation::AsIs)?))
    }

    fn columns(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Box<dyn Columns>> {
        self.check(weight.shape())?;
        let (element, mode) = (self.weight_dtype, self.scaling_mode);
        let activation = Activation::AsIs;
        Ok(MxBlocks::columns(cpu, weight, element, mode, activation))
    }
}
