//! `NVFP4DynamicActivationNVFP4WeightConfig` (M11): NVFP4 weights, and activations through NVFP4 at every call.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::weight::{self, Activation, Nvfp4Weight};
use super::{Nvfp4Blocks, check_shape, quantize};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::quantization::config::{Typed, to_dict};
use crate::quantization::stored::Stored;
use crate::quantization::workflows::Workflow;
use crate::quantization::{Columns, Recipe};

/// NVFP4 weights, and activations through NVFP4 at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct NVFP4DynamicActivationNVFP4WeightConfig {
    /// Kept for torchao, where it chooses a GPU's kernel; it does nothing here.
    #[arg(skip = true)]
    pub use_triton_kernel: bool,
    /// Whether one f32 scale stands above the blocks' scales, of weights and activations: true or false
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub use_dynamic_per_tensor_scale: bool,
    /// torchao's step of calibration; here it is always null.
    #[arg(skip)]
    pub step: Option<String>,
}

impl Default for NVFP4DynamicActivationNVFP4WeightConfig {
    fn default() -> NVFP4DynamicActivationNVFP4WeightConfig {
        NVFP4DynamicActivationNVFP4WeightConfig {
            use_triton_kernel: true,
            use_dynamic_per_tensor_scale: true,
            step: None,
        }
    }
}

const TYPE: &str = "NVFP4DynamicActivationNVFP4WeightConfig";
const VERSION: u64 = 1;

pub(in crate::quantization) const WORKFLOW: Workflow = Workflow {
    name: "nvfp4-dynamic-activation-nvfp4-weight",
    ids: &["M11", "M13"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "blocks of 16, per-tensor above",
    kernel: "float_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: NVFP4DynamicActivationNVFP4WeightConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Nvfp4Weight::read(typed, stored)?))
}

impl NVFP4DynamicActivationNVFP4WeightConfig {
    fn check_options(&self) -> Result<()> {
        match &self.step {
            None => Ok(()),
            Some(step) => Err(Error::invalid(format!(
                "step {step:?}: static activations are not supported; leave step out"
            ))),
        }
    }
}

impl Recipe for NVFP4DynamicActivationNVFP4WeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.check_options()?;
        check_shape(shape)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let use_dynamic_per_tensor_scale = self.use_dynamic_per_tensor_scale;
        let activation = Activation::Dynamic { use_dynamic_per_tensor_scale };
        Ok(Arc::new(quantize(cpu, weight, use_dynamic_per_tensor_scale, activation)?))
    }

    fn columns(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Box<dyn Columns>> {
        self.check(weight.shape())?;
        let use_dynamic_per_tensor_scale = self.use_dynamic_per_tensor_scale;
        let activation = Activation::Dynamic { use_dynamic_per_tensor_scale };
        Nvfp4Blocks::columns(cpu, weight, use_dynamic_per_tensor_scale, activation)
    }
}
