//! `NVFP4WeightOnlyConfig` (M12): NVFP4 weights, activations as they are.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::weight::{self, Activation, Nvfp4Weight};
use super::{Nvfp4Blocks, check_shape, quantize};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::quantization::config::{Typed, to_dict};
use crate::quantization::stored::Stored;
use crate::quantization::workflows::Workflow;
use crate::quantization::{Columns, Recipe};

/// NVFP4 weights, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct NVFP4WeightOnlyConfig {
    /// Whether one f32 scale stands above the blocks' scales: true or false
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub use_dynamic_per_tensor_scale: bool,
}

impl Default for NVFP4WeightOnlyConfig {
    fn default() -> NVFP4WeightOnlyConfig {
        NVFP4WeightOnlyConfig { use_dynamic_per_tensor_scale: true }
    }
}

const TYPE: &str = "NVFP4WeightOnlyConfig";
const VERSION: u64 = 1;

pub(in crate::quantization) const WORKFLOW: Workflow = Workflow {
    name: "nvfp4-weight-only",
    ids: &["M12", "M13"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "blocks of 16, per-tensor above",
    kernel: "float_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    Ok(Arc::new(typed.read::<NVFP4WeightOnlyConfig>(VERSION)?))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Nvfp4Weight::read(typed, stored)?))
}

impl Recipe for NVFP4WeightOnlyConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        check_shape(shape)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let two_levels = self.use_dynamic_per_tensor_scale;
        Ok(Arc::new(quantize(cpu, weight, two_levels, Activation::AsIs)?))
    }

    fn columns(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Box<dyn Columns>> {
        self.check(weight.shape())?;
        Nvfp4Blocks::columns(cpu, weight, self.use_dynamic_per_tensor_scale, Activation::AsIs)
    }
}
