//! From a configuration of `quantize` to the fake quantizers that belong to it (T02).

use serde_json::Value as Json;

use super::config::{
    FakeQuantizeConfig, Float8FakeQuantizeConfig, Int4Activation, Int4WeightFakeQuantizeConfig,
    IntxFakeQuantizeConfig, IntxGranularity, MXFakeQuantizeConfig, NVFP4FakeQuantizeConfig,
};
use crate::error::{Error, Result};
use crate::quantization::Recipe;
use crate::quantization::primitives::{Float8, IntType, MxElement, ScaleCalculationMode};

/// What is done to activations, and to weights.
pub(super) type Pair = (Option<FakeQuantizeConfig>, FakeQuantizeConfig);

/// The fake quantizers of `base`, read from its JSON: no workflow is named here.
pub(super) fn infer(base: &dyn Recipe) -> Result<Pair> {
    let dict = base.config_to_dict();
    let data = &dict["_data"];
    match dict["_type"].as_str().unwrap_or_default() {
        "Int4WeightOnlyConfig" => int4_weight_only(data),
        "IntxWeightOnlyConfig" => Ok((None, intx(data, "weight_dtype", "granularity")?)),
        "Int8DynamicActivationIntxWeightConfig" => {
            let activation = FakeQuantizeConfig::Intx(IntxFakeQuantizeConfig::int8_activation());
            Ok((Some(activation), intx(data, "weight_dtype", "weight_granularity")?))
        }
        "Float8DynamicActivationFloat8WeightConfig" => {
            let text = data["granularity"].to_string();
            let config = FakeQuantizeConfig::Float8(Float8FakeQuantizeConfig {
                dtype: Float8::E4m3fn,
                per_row: text.contains("PerRow"),
                bounds: (None, None),
            });
            Ok((Some(config), config))
        }
        "Float8DynamicActivationInt4WeightConfig" => {
            let rows = Float8FakeQuantizeConfig {
                dtype: Float8::E4m3fn,
                per_row: true,
                bounds: (None, None),
            };
            let weight =
                Int4WeightFakeQuantizeConfig { group_size: 128, activation: Int4Activation::Fp8 };
            Ok((Some(FakeQuantizeConfig::Float8(rows)), FakeQuantizeConfig::Int4Weight(weight)))
        }
        "MXDynamicActivationMXWeightConfig" => mx(data),
        "NVFP4DynamicActivationNVFP4WeightConfig" => {
            let use_per_tensor_scale =
                data["use_dynamic_per_tensor_scale"].as_bool().unwrap_or(true);
            let config =
                FakeQuantizeConfig::NVFP4(NVFP4FakeQuantizeConfig { use_per_tensor_scale });
            Ok((Some(config), config))
        }
        other => Err(Error::invalid(format!(
            "{other} has no fake quantizer; those of Int4WeightOnlyConfig, IntxWeightOnlyConfig, \
             Int8DynamicActivationIntxWeightConfig and the dynamic ones of float8, MX and NVFP4 are known"
        ))),
    }
}

fn mx(data: &Json) -> Result<Pair> {
    let wrong = |error: serde_json::Error| Error::invalid(format!("MX: {error}"));
    let element =
        |name: &str| serde_json::from_value::<MxElement>(data[name].clone()).map_err(wrong);
    let scaling_mode = serde_json::from_value::<ScaleCalculationMode>(data["scaling_mode"].clone());
    let scaling_mode = scaling_mode.map_err(wrong)?;
    let of = |dtype| {
        FakeQuantizeConfig::MX(MXFakeQuantizeConfig { dtype, block_size: 32, scaling_mode })
    };
    Ok((Some(of(element("activation_dtype")?)), of(element("weight_dtype")?)))
}

fn int4_weight_only(data: &Json) -> Result<Pair> {
    let format = data["int4_packing_format"]["_data"].as_str().unwrap_or("PLAIN");
    if !matches!(format, "PLAIN" | "PRESHUFFLED") {
        return Err(Error::invalid(format!(
            "int4_packing_format {format} has no fake quantizer; wanted plain"
        )));
    }
    let group_size = data["group_size"].as_u64().and_then(|size| usize::try_from(size).ok());
    let group_size = group_size.unwrap_or(128);
    let weight = Int4WeightFakeQuantizeConfig { group_size, activation: Int4Activation::Bf16 };
    Ok((None, FakeQuantizeConfig::Int4Weight(weight)))
}

/// A signed weight in groups or channels.
fn intx(data: &Json, dtype: &str, granularity: &str) -> Result<FakeQuantizeConfig> {
    let word = data[dtype]["_data"].as_str().unwrap_or_default();
    let bits = word.strip_prefix("int").and_then(|bits| bits.parse().ok());
    let bits: u32 = bits.filter(|bits| (2..=8).contains(bits)).ok_or_else(|| {
        Error::invalid(format!("{dtype} is {word:?}; wanted int2 to int8 for training"))
    })?;
    let mapping = data["mapping_type"].to_string() + &data["weight_mapping_type"].to_string();
    if mapping.contains("ASYMMETRIC") || mapping.contains("NO_CLIPPING") {
        return Err(Error::invalid("only symmetric weights have a fake quantizer in torchao"));
    }
    let algorithm = data["intx_choose_qparams_algorithm"].to_string();
    if algorithm.contains("HQQ") {
        return Err(Error::invalid("HQQ's scales have no fake quantizer; wanted affine ones"));
    }
    let group = &data[granularity]["_data"]["group_size"];
    let granularity = match group.as_u64().and_then(|size| usize::try_from(size).ok()) {
        Some(group) => IntxGranularity::PerGroup(group),
        None => IntxGranularity::PerChannel,
    };
    Ok(FakeQuantizeConfig::Intx(IntxFakeQuantizeConfig::new(IntType::Int(bits), granularity)))
}
