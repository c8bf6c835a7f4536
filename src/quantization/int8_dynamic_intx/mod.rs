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
use serde_json::{Map, Value as Json};

use super::Recipe;
use super::code_type::CodeType;
use super::config::{Typed, float_dtype_from_word, optional_dtype, to_dict};
use super::intx_options::{IntxChooseQParamsAlgorithm, IntxPackingFormat, group_size};
use super::packed::{Activations, Codec, Kind, PackedWeight, quantize_rows};
use super::primitives::{Granularity, MappingType, intx_quantize};
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
    /// How scales are chosen.
    #[arg(skip)]
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
    ids: &["Q14", "X14"],
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

/// What files keep of the configuration.
#[derive(Serialize, Deserialize)]
struct Fields {
    weight_dtype: CodeType,
    group_size: usize,
    mapping_type: MappingType,
}

impl Fields {
    fn codec(&self) -> Codec {
        Codec {
            bits: self.weight_dtype.bits(),
            bias: self.weight_dtype.bias(),
            group_size: self.group_size,
            zeros: self.mapping_type == MappingType::Asymmetric,
        }
    }

    fn details(&self, k: usize) -> String {
        let Fields { weight_dtype, group_size, mapping_type } = self;
        match *group_size == k {
            true => format!("{weight_dtype}, a scale a row, {mapping_type}"),
            false => format!("{weight_dtype}, group_size {group_size}, {mapping_type}"),
        }
    }
}

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Int8DynamicActivationIntxWeightConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    let names = ["weight_dtype", "group_size", "mapping_type"];
    let read = |fields: &Map<String, Json>, (_, k): (usize, usize)| {
        let fields: Fields = serde_json::from_value(Json::Object(fields.clone()))
            .map_err(|error| Error::invalid(format!("{}: {error}", KIND.weight_type)))?;
        fields.weight_dtype.check_signed("weight_dtype", true)?;
        Ok((fields.codec(), fields.details(k)))
    };
    Ok(Arc::new(PackedWeight::read(typed, stored, KIND, &names, read)?))
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
        group_size(&self.weight_granularity, "weight_granularity", 1).map(|_| ())
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
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let fields = Fields {
            weight_dtype: self.weight_dtype,
            group_size: group_size(&self.weight_granularity, "weight_granularity", k)?,
            mapping_type: self.weight_mapping_type,
        };
        let codec = fields.codec();
        let range = self.weight_dtype.range()?;
        let parts = quantize_rows(cpu, weight, (codec.bias, codec.zeros), |rows| {
            intx_quantize(
                rows,
                codec.group_size,
                self.weight_mapping_type,
                range,
                self.weight_scale_dtype,
            )
        })?;
        let about = (fields_to_map(&fields), fields.details(k));
        let dtype = weight.dtype();
        Ok(Arc::new(PackedWeight::new(cpu, KIND, ((n, k), codec), &parts, dtype, about)?))
    }
}

fn fields_to_map(fields: &Fields) -> Map<String, Json> {
    match serde_json::to_value(fields) {
        Ok(Json::Object(map)) => map,
        _ => Map::new(), // Fields are words and numbers, which always become an object.
    }
}
