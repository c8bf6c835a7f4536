//! A codebook by k-means, after AQLM: torchao's `CodebookWeightOnlyConfig` of `codebook` (P10).
//!
//! Every `scale_block_size` neighbours of a row are divided by their scale, the weight is cut into blocks of `block_size`, and each
//! becomes the code of the nearest entry of one codebook: `w = codebook[code] · scale`. Everything is found in f32; codebook and
//! scales are then rounded to the weight's dtype.
//!
//! For blocks of one number torchao's scale is the signed maximum, not the largest magnitude; a group without positive
//! numbers has the scale 1e-9. Its tensors are reproduced as they are. Weights of more than 2²⁷ numbers are refused, where
//! torchao leaves them silently, and codes of 16 bits too.

mod weight;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::weight::CodebookWeight;
use super::Recipe;
use super::code_type::CodeType;
use super::config::{Typed, to_dict};
use super::primitives::{Blocks, codebook_scales, fit_kmeans, nearest_codes};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::Tensor;

/// Codes of one codebook found by k-means, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct CodebookWeightOnlyConfig {
    /// The codes: uint1 to uint8
    #[arg(long, default_value = "uint4", value_name = "UINTX")]
    pub dtype: CodeType,
    /// Rows and columns that share a code: 1,1 or 1,4
    #[arg(long, default_value = "1,1", value_parser = block_from_word, value_name = "CODE_BLOCK")]
    pub block_size: [usize; 2],
    /// How many neighbours of a row share a scale; a whole row if not given
    #[arg(long, value_name = "SIZE")]
    pub scale_block_size: Option<usize>,
}

impl Default for CodebookWeightOnlyConfig {
    fn default() -> CodebookWeightOnlyConfig {
        CodebookWeightOnlyConfig {
            dtype: CodeType::uint(4),
            block_size: [1, 1],
            scale_block_size: None,
        }
    }
}

fn block_from_word(word: &str) -> Result<[usize; 2]> {
    let parts = word.split_once(',').and_then(|(rows, columns)| {
        Some([rows.trim().parse().ok()?, columns.trim().parse().ok()?])
    });
    parts.ok_or_else(|| Error::usage(format!("{word:?} is no block; wanted ROWS,COLUMNS, as 1,4")))
}

const TYPE: &str = "CodebookWeightOnlyConfig";
const VERSION: u64 = 1;

/// The most numbers of a weight: beyond, torchao finds k-means too inexact.
const MOST_NUMBERS: usize = 1 << 27;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "codebook-weight-only",
    ids: &["P10"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-group:SIZE, per row",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: CodebookWeightOnlyConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(CodebookWeight::read(typed, stored)?))
}

impl CodebookWeightOnlyConfig {
    fn check_options(&self) -> Result<()> {
        self.dtype.check_signed("dtype", false)?;
        if self.block_size.contains(&0) || self.scale_block_size == Some(0) {
            return Err(Error::invalid("block_size and scale_block_size must be 1 or more"));
        }
        Ok(())
    }
}

/// Whether blocks and scale blocks cut `(n, k)` evenly.
fn check_blocks(
    (n, k): (usize, usize),
    [rows, columns]: [usize; 2],
    scale_block: usize,
) -> Result<()> {
    if rows == 0 || columns == 0 || !n.is_multiple_of(rows) || !k.is_multiple_of(columns) {
        return Err(Error::invalid(format!(
            "N = {n}, K = {k}: blocks of {rows} × {columns} do not cut them; wanted divisors"
        )));
    }
    if scale_block == 0 || !k.is_multiple_of(scale_block) {
        return Err(Error::invalid(format!(
            "K = {k} is not a multiple of scale_block_size {scale_block}; wanted a divisor"
        )));
    }
    Ok(())
}

impl Recipe for CodebookWeightOnlyConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        check_blocks((n, k), self.block_size, self.scale_block_size.unwrap_or(k))?;
        if n * k <= MOST_NUMBERS {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{n} × {k} are more than 2²⁷ numbers, too many for k-means; use nf4-weight-only"
        )))
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let (dtype, scale_block) = (weight.dtype(), self.scale_block_size.unwrap_or(k));
        let [rows, columns] = self.block_size;
        let blocks = Blocks { shape: (n, k), block: (rows, columns) };
        // k-means looks at all numbers at once: the whole weight is expanded.
        let w = weight.dequantize()?.to_f32_vec();
        let scales = codebook_scales(&w, scale_block, blocks.dim() == 1);
        let scaled: Vec<f32> = w
            .chunks(scale_block)
            .zip(&scales)
            .flat_map(|(block, scale)| block.iter().map(move |v| v / scale))
            .collect();
        let data = blocks.gather(&scaled);
        let entries = 1 << self.dtype.bits();
        let codebook = fit_kmeans(cpu, &data, blocks.dim(), entries);
        let codes = nearest_codes(cpu, &data, blocks.dim(), &codebook);
        let codebook = Tensor::new(codebook, &[entries, rows, columns])?.to_dtype(dtype)?;
        let scales = Tensor::new(scales, &[n, k / scale_block, 1])?.to_dtype(dtype)?;
        Ok(Arc::new(CodebookWeight::new(cpu, (n, k), &codes, codebook, scales)?))
    }
}
