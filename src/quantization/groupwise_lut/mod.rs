//! Codes of lookup tables for groups of rows or columns: torchao's `GroupwiseLutWeightConfig` (P12).
//!
//! `w = table[code]`, every `lut_block_shape` of the weight with a table of its own, found as for CoreML (P11); torchao packs
//! them for ARM's lookup kernels and fuses the bias, which changes no number. `code_dtype` int4 and uint4 both mean 16 values.
//!
//! Refused, as in torchao: `has_scale`. `use_qdq_reference`, which puts the dequantized weight back as floats, is refused
//! too: compare models instead.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::Recipe;
use super::code_type::CodeType;
use super::config::{Typed, dtype_from_dict, dtype_to_dict, to_dict};
use super::lut::{LutKind, LutWeight, table_block};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::DType;

/// Codes of lookup tables for groups of rows or columns, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct GroupwiseLutWeightConfig {
    /// The codes: int1 to int8
    #[arg(long, default_value = "int4", value_name = "INTX")]
    pub code_dtype: CodeType,
    /// The dtype of torchao's tables; here they are f32.
    #[arg(skip = FloatType(DType::F32))]
    pub weight_dtype: FloatType,
    /// torchao's way to find tables: auto or coreml; both mean the same here.
    #[arg(skip = "auto".to_owned())]
    pub backend: String,
    /// Rows and columns that share a table, one of them -1 for all: 2,-1 or -1,64
    #[arg(long, default_value = "2,-1", value_parser = super::lut_options::block_from_word, allow_hyphen_values = true, value_name = "TABLE_BLOCK")]
    pub lut_block_shape: [isize; 2],
    /// Always null: there are no scales.
    #[arg(skip)]
    pub scale_block_shape: Option<[isize; 2]>,
    /// Always false: see above.
    #[arg(skip)]
    pub use_qdq_reference: bool,
    /// torchao's choice of a kernel; it does nothing here.
    #[arg(skip)]
    pub target: Option<String>,
    /// Where torchao keeps tables that it found before; it does nothing here.
    #[arg(skip)]
    pub cache_dir: Option<String>,
    /// Always false, as in torchao.
    #[arg(skip)]
    pub has_scale: bool,
}

/// A float dtype in torchao's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatType(pub DType);

impl Serialize for FloatType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        dtype_to_dict(self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FloatType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<FloatType, D::Error> {
        let json = Json::deserialize(deserializer)?;
        dtype_from_dict(&json).map(FloatType).map_err(serde::de::Error::custom)
    }
}

impl Default for GroupwiseLutWeightConfig {
    fn default() -> GroupwiseLutWeightConfig {
        GroupwiseLutWeightConfig {
            code_dtype: CodeType::int(4),
            weight_dtype: FloatType(DType::F32),
            backend: "auto".to_owned(),
            lut_block_shape: [2, -1],
            scale_block_shape: None,
            use_qdq_reference: false,
            target: None,
            cache_dir: None,
            has_scale: false,
        }
    }
}

const TYPE: &str = "GroupwiseLutWeightConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "groupwise-lut-weight",
    ids: &["P12"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "a table per block of rows or columns",
    kernel: "lut_linear",
    config_from_dict,
    read_weight,
};

const KIND: LutKind =
    LutKind { workflow: "groupwise-lut-weight", weight_type: "GroupwiseLutWeight" };

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: GroupwiseLutWeightConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(LutWeight::read(typed, stored, KIND)?))
}

impl GroupwiseLutWeightConfig {
    fn check_options(&self) -> Result<()> {
        let refused = |what: &str| Err(Error::invalid(format!("{what} is not supported")));
        if !["auto", "coreml"].contains(&self.backend.as_str()) {
            return Err(Error::invalid(format!(
                "backend is {}; wanted auto or coreml",
                self.backend
            )));
        }
        match self {
            _ if self.has_scale => refused("has_scale, in torchao neither,"),
            _ if self.scale_block_shape.is_some() => refused("scale_block_shape"),
            _ if self.use_qdq_reference => refused("use_qdq_reference"),
            _ if self.lut_block_shape.iter().filter(|size| **size == -1).count() != 1 => {
                let [rows, columns] = self.lut_block_shape;
                Err(Error::invalid(format!(
                    "lut_block_shape is [{rows}, {columns}]; wanted exactly one -1, as [2, -1] or [-1, 64]"
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Recipe for GroupwiseLutWeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.check_options()?;
        table_block(self.lut_block_shape, shape).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let block = table_block(self.lut_block_shape, weight.shape())?;
        Ok(Arc::new(LutWeight::quantize(cpu, KIND, weight, self.code_dtype.bits(), block)?))
    }
}
