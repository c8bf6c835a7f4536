//! `MXDynamicActivationMXWeightConfig` (M01): MX weights, and activations through the same format at every call.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::weight::{self, Activation, MxWeight};
use super::{BLOCK_SIZE, MxBlocks, check_block, quantize};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::float_linear::Element;
use crate::model::Weight;
use crate::quantization::config::{Typed, to_dict};
use crate::quantization::primitives::{KernelPreference, MxElement, ScaleCalculationMode};
use crate::quantization::stored::Stored;
use crate::quantization::workflows::Workflow;
use crate::quantization::{Columns, Recipe};

/// MX weights, and activations through the same format at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct MXDynamicActivationMXWeightConfig {
    /// Always 32.
    #[arg(skip = BLOCK_SIZE)]
    pub block_size: usize,
    /// The type of activations; the same as of weights
    #[arg(long, default_value = "e4m3", value_name = "ELEMENT")]
    pub activation_dtype: MxElement,
    /// The type of weights: e4m3, e5m2, e2m3, e3m2, e2m1 or int8
    #[arg(long, default_value = "e4m3", value_name = "ELEMENT")]
    pub weight_dtype: MxElement,
    /// Which kernels torchao is to run; it does nothing here.
    #[arg(skip = KernelPreference::Auto)]
    pub kernel_preference: KernelPreference,
    /// How a block's power of two is chosen: floor, ceil, even or rceil
    #[arg(long, default_value = "rceil", value_name = "MODE")]
    pub scaling_mode: ScaleCalculationMode,
}

impl Default for MXDynamicActivationMXWeightConfig {
    fn default() -> MXDynamicActivationMXWeightConfig {
        MXDynamicActivationMXWeightConfig {
            block_size: BLOCK_SIZE,
            activation_dtype: MxElement(Element::E4m3),
            weight_dtype: MxElement(Element::E4m3),
            kernel_preference: KernelPreference::Auto,
            scaling_mode: ScaleCalculationMode::Rceil,
        }
    }
}

const TYPE: &str = "MXDynamicActivationMXWeightConfig";
const VERSION: u64 = 1;

pub(in crate::quantization) const WORKFLOW: Workflow = Workflow {
    name: "mx-dynamic-activation-mx-weight",
    ids: &["M01", "M10"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "blocks of 32",
    kernel: "float_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: MXDynamicActivationMXWeightConfig = typed.read(VERSION)?;
    config.check((1, BLOCK_SIZE))?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(MxWeight::read(typed, stored)?))
}

impl Recipe for MXDynamicActivationMXWeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (_, k): (usize, usize)) -> Result<()> {
        if self.activation_dtype != self.weight_dtype {
            return Err(Error::invalid(format!(
                "activation_dtype is {} and weight_dtype {}; torchao wants the same for both",
                self.activation_dtype, self.weight_dtype
            )));
        }
        check_block(self.block_size, k)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let (element, mode) = (self.weight_dtype, self.scaling_mode);
        let activation =
            Activation::Dynamic { elem_dtype: self.activation_dtype, scaling_mode: mode };
        Ok(Arc::new(quantize(cpu, weight, element, mode, activation)?))
    }

    fn columns(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Box<dyn Columns>> {
        self.check(weight.shape())?;
        let (element, mode) = (self.weight_dtype, self.scaling_mode);
        let activation =
            Activation::Dynamic { elem_dtype: self.activation_dtype, scaling_mode: mode };
        Ok(MxBlocks::columns(cpu, weight, element, mode, activation))
    }
}
