//! `Float8DynamicActivationFloat8WeightConfig` (Q10, P23): float8 weights, and activations rounded to float8 at every call.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::options::{Float8Granularities, Float8MMConfig, Float8PackingFormat};
use super::quantize::quantize;
use super::weight::{self, Activation, Float8Weight, check_float8};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::quantization::Recipe;
use crate::quantization::config::{Typed, to_dict};
use crate::quantization::primitives::{Float8, KernelPreference};
use crate::quantization::stored::Stored;
use crate::quantization::workflows::Workflow;

/// Float8 weights, and float8 activations with a scale of their own at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Float8DynamicActivationFloat8WeightConfig {
    /// The type of activations: float8_e4m3fn or float8_e5m2
    #[arg(long, default_value = "float8_e4m3fn", value_name = "FLOAT8")]
    pub activation_dtype: Float8,
    /// The type of weights: float8_e4m3fn or float8_e5m2
    #[arg(long, default_value = "float8_e4m3fn", value_name = "FLOAT8")]
    pub weight_dtype: Float8,
    /// What shares a scale: per-tensor, per-row (a token, a row) or per-block (1x128, 128x128)
    #[arg(long, default_value = "per-tensor", value_name = "GRANULARITY")]
    pub granularity: Float8Granularities,
    /// How codes lie: plain
    #[arg(skip = Float8PackingFormat::Plain)]
    pub packing_format: Float8PackingFormat,
    /// How torchao multiplies on a GPU; it does nothing here.
    #[arg(skip)]
    pub mm_config: Option<Float8MMConfig>,
    /// The least amax of activations
    #[arg(long, value_name = "NUMBER")]
    pub activation_value_lb: Option<f32>,
    /// The greatest amax of activations: beyond it they saturate
    #[arg(long, value_name = "NUMBER")]
    pub activation_value_ub: Option<f32>,
    /// Which kernels torchao is to run; it does nothing here.
    #[arg(skip = KernelPreference::Auto)]
    pub kernel_preference: KernelPreference,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
    /// Which algorithm of hipSPARSELt; it does nothing here.
    #[arg(skip)]
    pub alg_id: u64,
}

impl Default for Float8DynamicActivationFloat8WeightConfig {
    fn default() -> Float8DynamicActivationFloat8WeightConfig {
        Float8DynamicActivationFloat8WeightConfig {
            activation_dtype: Float8::E4m3fn,
            weight_dtype: Float8::E4m3fn,
            granularity: Float8Granularities::PerTensor,
            packing_format: Float8PackingFormat::Plain,
            mm_config: None,
            activation_value_lb: None,
            activation_value_ub: None,
            kernel_preference: KernelPreference::Auto,
            set_inductor_config: true,
            alg_id: 0,
        }
    }
}

const TYPE: &str = "Float8DynamicActivationFloat8WeightConfig";
const VERSION: u64 = 2;

pub(in crate::quantization) const WORKFLOW: Workflow = Workflow {
    name: "float8-dynamic-activation-float8-weight",
    ids: &["Q10", "P23"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-tensor, per-row, per-block (1x128, 128x128)",
    kernel: "float_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Float8DynamicActivationFloat8WeightConfig = typed.read(VERSION)?;
    config.activation().check()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Float8Weight::read(typed, stored)?))
}

impl Float8DynamicActivationFloat8WeightConfig {
    fn activation(&self) -> Activation {
        let [granularity, _] = self.granularity.act_and_weight();
        Activation::Dynamic {
            float8_dtype: self.activation_dtype,
            granularity,
            hp_value_lb: self.activation_value_lb,
            hp_value_ub: self.activation_value_ub,
        }
    }
}

impl Recipe for Float8DynamicActivationFloat8WeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    /// As torchao writes it, which fills in its own way of multiplying.
    fn config_to_dict(&self) -> Json {
        let fast = self.granularity != Float8Granularities::PerBlock;
        let mm_config = self.mm_config.or(Some(Float8MMConfig::fast(fast)));
        to_dict(TYPE, VERSION, &Self { mm_config, ..self.clone() })
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        check_float8(self.weight_dtype)?;
        self.activation().check()?;
        if !n.is_multiple_of(16) || !k.is_multiple_of(16) {
            return Err(Error::invalid(format!(
                "N = {n} and K = {k}: float8 activations and weights want multiples of 16; use float8-weight-only"
            )));
        }
        let [act, weight] = self.granularity.act_and_weight();
        act.block_size(&[1, k])?;
        weight.block_size(&[n, k]).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let [_, granularity] = self.granularity.act_and_weight();
        let format = (self.weight_dtype, &granularity);
        Ok(Arc::new(quantize(cpu, weight, format, self.activation())?))
    }
}
