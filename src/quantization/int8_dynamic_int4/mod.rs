//! 4-bit weights with zero points and 8-bit activations: torchao's `Int8DynamicActivationInt4WeightConfig` of version 0.18,
//! "DA8W4" (P08). Version 0.13 used the name for what is [`super::Int8DynamicActivationIntxWeightConfig`] now.
//!
//! Weights: codes 0 ..= 15 of groups, asymmetric (N04) with eps 1e-6, f32 scales, int8 zero points. Activations: every
//! token asymmetric in 0 ..= 255 (N04), or symmetric in −127 ..= 127 (N02), a scale each; sums of products are exact in integers.
//! torchao packs weights for VNNI and wants N a multiple of 32; here any N will do.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::Recipe;
use super::config::{Typed, to_dict};
use super::packed::{Activations, Codec, Kind, PackedWeight, Zeros, quantize_rows};
use super::primitives::{
    CodeRange, Granularity, IntType, IntxRows, MappingType, QParamsOptions, choose_qparams_affine,
    quantize_affine,
};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::packed_linear::Tokens;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// 4-bit weights with zero points, activations rounded to 8 bits at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Int8DynamicActivationInt4WeightConfig {
    /// How many neighbours of a row share a scale and a zero point: 32, 64 or 128
    #[arg(long, default_value_t = 32, value_name = "SIZE")]
    pub group_size: usize,
    /// How a token's range is mapped onto codes: asymmetric or symmetric
    #[arg(long, default_value = "asymmetric", value_name = "MAPPING")]
    pub act_mapping_type: MappingType,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
}

impl Default for Int8DynamicActivationInt4WeightConfig {
    fn default() -> Int8DynamicActivationInt4WeightConfig {
        Int8DynamicActivationInt4WeightConfig {
            group_size: 32,
            act_mapping_type: MappingType::Asymmetric,
            set_inductor_config: true,
        }
    }
}

const TYPE: &str = "Int8DynamicActivationInt4WeightConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "int8-dynamic-activation-int4-weight",
    ids: &["P08"],
    config_type: TYPE,
    weight_type: WEIGHT_TYPE,
    granularity: "per-group:SIZE; activations per token",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

const WEIGHT_TYPE: &str = "Int8DynamicInt4Weight";

/// What files keep of the configuration.
#[derive(Serialize, Deserialize)]
struct Fields {
    group_size: usize,
    act_mapping_type: MappingType,
}

impl Fields {
    fn codec(&self) -> Codec {
        Codec { bits: 4, bias: 0, group_size: self.group_size, zeros: Zeros::Codes }
    }

    fn details(&self) -> String {
        let Fields { group_size, act_mapping_type } = self;
        format!("uint4, group_size {group_size}, activations {act_mapping_type}")
    }

    /// Codes 0 ..= 255 with their zero point give the products of −128 ..= 127 with theirs.
    fn kind(&self) -> Kind {
        let asymmetric = self.act_mapping_type == MappingType::Asymmetric;
        let qmin = if asymmetric { -128 } else { -127 };
        let to = Tokens { qmin, qmax: 127, asymmetric, eps: f32::EPSILON };
        Kind {
            workflow: "int8-dynamic-activation-int4-weight",
            weight_type: WEIGHT_TYPE,
            activations: Activations::Tokens(to),
        }
    }
}

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Int8DynamicActivationInt4WeightConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    let read = |fields: &Map<String, Json>| -> Result<Fields> {
        serde_json::from_value(Json::Object(fields.clone()))
            .map_err(|error| Error::invalid(format!("{WEIGHT_TYPE}: {error}")))
    };
    // The activations' mapping says which kind of weight this is.
    let mut own = typed.object()?.clone();
    own.remove("dtype");
    let names = ["group_size", "act_mapping_type"];
    let kind = match own.keys().find(|key| !names.contains(&key.as_str())) {
        Some(_) => Fields { group_size: 1, act_mapping_type: MappingType::Symmetric }.kind(),
        None => read(&own)?.kind(),
    };
    let codec = |fields: &Map<String, Json>, _: (usize, usize)| {
        let fields = read(fields)?;
        check_mapping(fields.act_mapping_type)?;
        Ok((fields.codec(), fields.details()))
    };
    Ok(Arc::new(PackedWeight::read(typed, stored, kind, &names, codec)?))
}

fn check_mapping(mapping: MappingType) -> Result<()> {
    if mapping != MappingType::SymmetricNoClippingErr {
        return Ok(());
    }
    Err(Error::invalid(format!("act_mapping_type is {mapping}; wanted asymmetric or symmetric")))
}

impl Int8DynamicActivationInt4WeightConfig {
    fn check_options(&self) -> Result<()> {
        check_mapping(self.act_mapping_type)?;
        if [32, 64, 128].contains(&self.group_size) {
            return Ok(());
        }
        Err(Error::invalid(format!("group_size is {}; wanted 32, 64 or 128", self.group_size)))
    }
}

impl Recipe for Int8DynamicActivationInt4WeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        Granularity::PerGroup { group_size: self.group_size }.block_size(&[n, k]).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let Int8DynamicActivationInt4WeightConfig { group_size, act_mapping_type, .. } = *self;
        let fields = Fields { group_size, act_mapping_type };
        let work = |rows: &Tensor| quantize_groups(rows, group_size);
        let parts = quantize_rows(cpu, weight, (0, true), work)?;
        let about = (fields_to_map(&fields), fields.details());
        let (shape, dtype) = (((n, k), fields.codec()), weight.dtype());
        Ok(Arc::new(PackedWeight::new(cpu, fields.kind(), shape, &parts, dtype, about)?))
    }
}

fn quantize_groups(rows: &Tensor, group_size: usize) -> Result<IntxRows> {
    let block = [1, group_size];
    let range = CodeRange::new(IntType::UInt(8), 0, 15)?;
    let options = QParamsOptions {
        eps: Some(1e-6),
        scale_dtype: Some(DType::F32),
        zero_point_dtype: Some(DType::I8),
        keepdim: true,
    };
    let (scale, zero_point) =
        choose_qparams_affine(rows, MappingType::Asymmetric, &block, range, options)?;
    let codes = quantize_affine(rows, &block, &scale, &zero_point, range)?;
    Ok(IntxRows { codes, scale, zero_point })
}

fn fields_to_map(fields: &Fields) -> Map<String, Json> {
    match serde_json::to_value(fields) {
        Ok(Json::Object(map)) => map,
        _ => Map::new(), // Fields are words and numbers, which always become an object.
    }
}
