//! Weights of 1 to 8 bits, activations as they are: torchao's `IntxWeightOnlyConfig` (Q13).
//!
//! A row, or each `group_size` neighbours of it, share a scale, and with asymmetric mapping a zero point:
//! `w = (q − zero_point) · scale` (N02, N03, N04). Scales are of the weight's dtype and at least its smallest normal number; with
//! another `scale_dtype` they are rounded to it and the codes made again.
//!
//! `hqq-scale-only` (N20) fits the scales of a symmetric mapping to the weight instead.
//!
//! torchao keeps every code in a byte of its own (`UNPACKED_TO_INT8`), for export. Here codes take the bits that they
//! have, in memory and in files, and are unpacked in registers.

mod columns;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::columns::IntxColumns;
use super::code_type::CodeType;
use super::config::{Typed, float_dtype_from_word, optional_dtype, to_dict};
use super::intx_fields::{Choose, IntxFields, WEIGHT_ONLY};
use super::intx_options::{IntxChooseQParamsAlgorithm, IntxPackingFormat};
use super::packed::Kind;
use super::primitives::{Granularity, MappingType};
use super::stored::Stored;
use super::workflows::Workflow;
use super::{Columns, Recipe};
use crate::error::Result;
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
    /// How scales are chosen: affine (from the extremes) or hqq-scale-only (fitted, symmetric)
    #[arg(
        id = "choose_qparams_algorithm",
        long = "choose-qparams-algorithm",
        default_value = "affine",
        value_name = "INTX_ALGORITHM"
    )]
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
    ids: &["Q13", "N15", "N20"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-axis:0, per-group:SIZE",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

const KIND: Kind = WEIGHT_ONLY;

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: IntxWeightOnlyConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    IntxFields::read(typed, stored, KIND)
}

impl IntxWeightOnlyConfig {
    fn check_options(&self) -> Result<()> {
        self.weight_dtype.check_signed("weight_dtype", true)?;
        self.intx_packing_format.check_unpacked()?;
        self.intx_choose_qparams_algorithm.check(self.mapping_type)?;
        self.fields(1).map(|_| ())
    }

    fn fields(&self, k: usize) -> Result<IntxFields> {
        let granularity = (&self.granularity, "granularity");
        IntxFields::new(self.weight_dtype, granularity, self.mapping_type, k)
    }

    fn choose(&self) -> Choose {
        (self.intx_choose_qparams_algorithm, self.scale_dtype)
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
        self.check(weight.shape())?;
        self.fields(weight.shape().1)?.quantize(cpu, weight, KIND, self.choose())
    }

    fn columns(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Box<dyn Columns>> {
        self.check(weight.shape())?;
        Ok(Box::new(IntxColumns::new(cpu, self, weight)?))
    }
}
