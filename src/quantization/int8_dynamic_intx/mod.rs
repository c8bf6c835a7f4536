//! Weights of 1 to 8 bits and activations quantized to 8 at every call: torchao's `Int8DynamicActivationIntxWeightConfig`
//! (Q14; 8da4w of v0.13 is X14, with symmetric groups of 32).
//!
//! Weights are those of intx weight-only (Q13). Every token becomes int8 codes with a scale and a zero point (N04), and
//! `y = Σ_g s_g · Σ_k (a − zp_x) · (q − zp_g) · s_x`: the inner sum is exact in integers. torchao's default layout
//! multiplies the same numbers as floats; its opaque layouts as integers, like here.
//!
//! `act_mapping_type` symmetric is refused, as torchao does when it applies it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::Recipe;
use super::code_type::CodeType;
use super::config::{Typed, float_dtype_from_word, optional_dtype, to_dict};
use super::intx_fields::IntxFields;
use super::intx_options::{IntxChooseQParamsAlgorithm, IntxPackingFormat};
use super::packed::{Activations, Kind};
use super::primitives::{Granularity, MappingType};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::packed_linear::Tokens;
use crate::model::Weight;
use crate::tensor::DType;

/// Weights of 1 to 8 bits, activations rounded to 8 bits at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Int8DynamicActivationIntxWeightConfig {
    /// The codes: int1 to int8
    #[arg(long, default_value = "int8", value_name = "INTX")]
    pub weight_dtype: CodeType,
    /// Which weights share a scale: per-axis:0 (a row) or per-group:SIZE
    #[arg(long, default_value = "per-group:32", value_name = "INTX_GRANULARITY")]
    pub weight_granularity: Granularity,
    /// How a group's range is mapped onto codes: symmetric, symmetric-no-clipping-err or asymmetric
    #[arg(long, default_value = "symmetric", value_name = "WEIGHT_MAPPING")]
    pub weight_mapping_type: MappingType,
    /// The dtype of scales, if not the weight's: f32, bf16 or f16
    #[arg(long, value_parser = float_dtype_from_word, value_name = "DTYPE")]
    #[serde(with = "optional_dtype")]
    pub weight_scale_dtype: Option<DType>,
    /// How a token's range is mapped onto codes: always asymmetric, as in torchao.
    #[arg(skip = MappingType::Asymmetric)]
    pub act_mapping_type: MappingType,
    /// torchao's layouts; they change no number here
    #[arg(long, default_value = "unpacked-to-int8", value_name = "INTX_FORMAT")]
    pub intx_packing_format: IntxPackingFormat,
    /// How scales are chosen: affine (from the extremes) or hqq-scale-only (fitted, symmetric)
    #[arg(
        id = "choose_qparams_algorithm",
        long = "choose-qparams-algorithm",
        default_value = "affine",
        value_name = "INTX_ALGORITHM"
    )]
    pub intx_choose_qparams_algorithm: IntxChooseQParamsAlgorithm,
}

impl Default for Int8DynamicActivationIntxWeightConfig {
    fn default() -> Int8DynamicActivationIntxWeightConfig {
        Int8DynamicActivationIntxWeightConfig {
            weight_dtype: CodeType::int(8),
            weight_granularity: Granularity::PerGroup { group_size: 32 },
            weight_mapping_type: MappingType::Symmetric,
            weight_scale_dtype: None,
            act_mapping_type: MappingType::Asymmetric,
            intx_packing_format: IntxPackingFormat::default(),
            intx_choose_qparams_algorithm: IntxChooseQParamsAlgorithm::default(),
        }
    }
}

const TYPE: &str = "Int8DynamicActivationIntxWeightConfig";
const VERSION: u64 = 2;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "int8-dynamic-activation-intx-weight",
    ids: &["Q14", "X14", "N20"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-axis:0, per-group:SIZE; activations per token",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

const KIND: Kind = Kind {
    workflow: "int8-dynamic-activation-intx-weight",
    weight_type: "Int8DynamicIntxWeight",
    activations: Activations::Tokens(Tokens {
        qmin: -128,
        qmax: 127,
        asymmetric: true,
        eps: f32::MIN_POSITIVE,
    }),
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Int8DynamicActivationIntxWeightConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    IntxFields::read(typed, stored, KIND)
}

impl Int8DynamicActivationIntxWeightConfig {
    fn check_options(&self) -> Result<()> {
        self.weight_dtype.check_signed("weight_dtype", true)?;
        if self.act_mapping_type != MappingType::Asymmetric {
            return Err(Error::invalid(format!(
                "act_mapping_type {} is not supported, in torchao neither; use asymmetric",
                self.act_mapping_type
            )));
        }
        self.intx_choose_qparams_algorithm.check(self.weight_mapping_type)?;
        self.fields(1).map(|_| ())
    }

    fn fields(&self, k: usize) -> Result<IntxFields> {
        let granularity = (&self.weight_granularity, "weight_granularity");
        IntxFields::new(self.weight_dtype, granularity, self.weight_mapping_type, k)
    }
}

impl Recipe for Int8DynamicActivationIntxWeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        self.weight_granularity.block_size(&[n, k]).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let choose = (self.intx_choose_qparams_algorithm, self.weight_scale_dtype);
        self.fields(weight.shape().1)?.quantize(cpu, weight, KIND, choose)
    }
}
