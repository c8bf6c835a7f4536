//! Weights of 1 to 8 bits, activations as they are: torchao's `IntxWeightOnlyConfig` (Q13).
//!
//! A row, or each `group_size` neighbours of it, share a scale, and with asymmetric mapping a zero point:
//! `w = (q − zero_point) · scale` (N02, N03, N04). Scales are of the weight's dtype and at least its smallest normal number; with
//! another `scale_dtype` they are rounded to it and the codes made again.
//!
//! torchao keeps every code in a byte of its own (`UNPACKED_TO_INT8`), for export. Here codes take the bits that they
//! have, in memory and in files, and are unpacked in registers.

mod columns;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use self::columns::IntxColumns;
use super::code_type::CodeType;
use super::config::{Typed, float_dtype_from_word, optional_dtype, to_dict};
use super::intx_options::{IntxChooseQParamsAlgorithm, IntxPackingFormat, group_size};
use super::packed::{Activations, Codec, Kind, PackedWeight, Parts, quantize_rows};
use super::primitives::{Granularity, MappingType, intx_quantize};
use super::stored::Stored;
use super::workflows::Workflow;
use super::{Columns, Recipe};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::DType;

/// Weights of 1 to 8 bits, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct IntxWeightOnlyConfig {
    /// The codes: int1 to int8
    #[arg(long, default_value = "int8", value_name = "INTX")]
    pub weight_dtype: CodeType,
    /// Which weights share a scale: per-axis:0 (a row) or per-group:SIZE
    #[arg(long, default_value = "per-axis:0", value_name = "INTX_GRANULARITY")]
    pub granularity: Granularity,
    /// How a group's range is mapped onto codes: symmetric, symmetric-no-clipping-err or asymmetric
    #[arg(long, default_value = "symmetric", value_name = "WEIGHT_MAPPING")]
    pub mapping_type: MappingType,
    /// The dtype of scales, if not the weight's: f32, bf16 or f16
    #[arg(long, value_parser = float_dtype_from_word, value_name = "DTYPE")]
    #[serde(with = "optional_dtype")]
    pub scale_dtype: Option<DType>,
    /// torchao's layout for export; it changes no number.
    #[arg(skip)]
    pub intx_packing_format: IntxPackingFormat,
    /// How scales are chosen.
    #[arg(skip)]
    pub intx_choose_qparams_algorithm: IntxChooseQParamsAlgorithm,
}

impl Default for IntxWeightOnlyConfig {
    fn default() -> IntxWeightOnlyConfig {
        IntxWeightOnlyConfig {
            weight_dtype: CodeType::int(8),
            granularity: Granularity::PerAxis { axis: 0 },
            mapping_type: MappingType::Symmetric,
            scale_dtype: None,
            intx_packing_format: IntxPackingFormat::default(),
            intx_choose_qparams_algorithm: IntxChooseQParamsAlgorithm::default(),
        }
    }
}

const TYPE: &str = "IntxWeightOnlyConfig";
const VERSION: u64 = 2;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "intx-weight-only",
    ids: &["Q13", "N15"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-axis:0, per-group:SIZE",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

const KIND: Kind = Kind {
    workflow: "intx-weight-only",
    weight_type: "IntxWeight",
    activations: Activations::AsTheyAre,
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
    let config: IntxWeightOnlyConfig = typed.read(VERSION)?;
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

impl IntxWeightOnlyConfig {
    fn check_options(&self) -> Result<()> {
        self.weight_dtype.check_signed("weight_dtype", true)?;
        self.intx_packing_format.check_unpacked()?;
        group_size(&self.granularity, "granularity", 1).map(|_| ())
    }

    fn fields(&self, k: usize) -> Result<Fields> {
        Ok(Fields {
            weight_dtype: self.weight_dtype,
            group_size: group_size(&self.granularity, "granularity", k)?,
            mapping_type: self.mapping_type,
        })
    }

    /// The weight of parts whose zero points are dropped where the mapping has none.
    fn assemble(
        &self,
        cpu: &Cpu,
        (n, k): (usize, usize),
        dtype: DType,
        mut parts: Parts,
    ) -> Result<Arc<dyn Weight>> {
        let fields = self.fields(k)?;
        let codec = fields.codec();
        if !codec.zeros {
            parts.zero_point = None;
        }
        let about = (fields_to_map(&fields), fields.details(k));
        Ok(Arc::new(PackedWeight::new(cpu, KIND, ((n, k), codec), &parts, dtype, about)?))
    }
}

impl Recipe for IntxWeightOnlyConfig {
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
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let codec = self.fields(k)?.codec();
        let range = self.weight_dtype.range()?;
        let parts = quantize_rows(cpu, weight, (codec.bias, codec.zeros), |rows| {
            intx_quantize(rows, codec.group_size, self.mapping_type, range, self.scale_dtype)
        })?;
        self.assemble(cpu, (n, k), weight.dtype(), parts)
    }

    fn columns(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Box<dyn Columns>> {
        self.check(weight.shape())?;
        let group_size = self.fields(weight.shape().1)?.group_size;
        Ok(Box::new(IntxColumns::new(cpu, self, weight, group_size)?))
    }
}

fn fields_to_map(fields: &Fields) -> Map<String, Json> {
    match serde_json::to_value(fields) {
        Ok(Json::Object(map)) => map,
        _ => Map::new(), // Fields are words and numbers, which always become an object.
    }
}
