//! Codes of lookup tables, one for blocks of columns or of rows, as CoreML has them: torchao's
//! `CodebookWeightOnlyConfig` of `codebook_coreml` (P11). `w = table[code]`, tables of 2ᵇ values.
//!
//! torchao asks CoreML's tools for the tables. Here each is the best there is, k-means in one dimension solved exactly, which
//! is also what those tools do for large weights; smaller ones they search at random. torchao gives two classes one name; this
//! one's configuration is therefore called `CodebookCoreMlWeightOnlyConfig` here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::Recipe;
use super::code_type::CodeType;
use super::config::{Typed, to_dict};
use super::lut::{LutKind, LutWeight, table_block};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::Weight;

/// Codes of lookup tables, one for blocks of columns or of rows, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct CodebookCoreMlWeightOnlyConfig {
    /// The codes: uint1 to uint8
    #[arg(long, default_value = "uint4", value_name = "UINTX")]
    pub dtype: CodeType,
    /// Rows and columns that share a table, -1 for all: -1,64 or 2,-1
    #[arg(long, default_value = "-1,64", value_parser = super::lut_options::block_from_word, allow_hyphen_values = true, value_name = "TABLE_BLOCK")]
    pub block_size: [isize; 2],
}

impl Default for CodebookCoreMlWeightOnlyConfig {
    fn default() -> CodebookCoreMlWeightOnlyConfig {
        CodebookCoreMlWeightOnlyConfig { dtype: CodeType::uint(4), block_size: [-1, 64] }
    }
}

const TYPE: &str = "CodebookCoreMlWeightOnlyConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "codebook-coreml-weight-only",
    ids: &["P11"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "a table per block of rows or columns",
    kernel: "lut_linear",
    config_from_dict,
    read_weight,
};

const KIND: LutKind =
    LutKind { workflow: "codebook-coreml-weight-only", weight_type: "CodebookCoreMlWeight" };

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: CodebookCoreMlWeightOnlyConfig = typed.read(VERSION)?;
    config.dtype.check_signed("dtype", false)?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(LutWeight::read(typed, stored, KIND)?))
}

impl Recipe for CodebookCoreMlWeightOnlyConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.dtype.check_signed("dtype", false)?;
        table_block(self.block_size, shape).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let block = table_block(self.block_size, weight.shape())?;
        Ok(Arc::new(LutWeight::quantize(cpu, KIND, weight, self.dtype.bits(), block)?))
    }
}
