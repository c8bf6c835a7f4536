//! Weights in the blocks of llama.cpp's GGUF files: Q4_0 … Q8_0 and Q2_K … Q6_K.
//!
//! torchao has one of them in outline, `GGUFWeightOnlyConfig` (P14, N22), which rounds neither its codes nor its scales and so is no
//! format of 4 bits; its arithmetic is in `primitives::gguf`. Here are the true ones: the bytes are those that llama.cpp's own
//! quantizer writes for the same numbers, and a model saved as NAME.gguf runs there.
//!
//! A block holds 32 numbers with an f16 scale (and, in the types that end with 1, a minimum), or 256 numbers in sub-blocks whose
//! scales are small integers themselves (the K types). What is chosen, and how: `aolab_kernels::ggml::quantize`.
//!
//! A block's parameters can be chosen so that the columns whose inputs are large lose least: each square of an error is weighed by the
//! mean square of the column's inputs. `importance` finds these on a text that the model reads first, `imatrix` takes them
//! from a file of llama.cpp's own tool.

mod importance;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::importance::GgufWithMatrix;
pub use self::importance::importance_matrix;
use super::Recipe;
use super::calibration::{Calibrated, not_without_inputs};
use super::config::{Typed, to_dict, unknown_field};
use super::rows::for_row_blocks;
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result, did_you_mean};
use crate::io::gguf::ImportanceMatrix;
use crate::kernels::Cpu;
use crate::kernels::ggml::{self, BlockType};
use crate::model::{BlockWeight, Weight};
use crate::tensor::{DType, Tensor};

/// Weights in llama.cpp's blocks, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct GgufBlockConfig {
    /// The blocks: Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0 of 32 numbers, Q2_K to Q6_K of 256
    #[arg(long = "type", default_value = "Q4_K", value_name = "BLOCK_TYPE")]
    pub block_type: GgufType,
    /// Weigh each column by the mean square of its inputs; reads a text first
    #[arg(long)]
    pub importance: bool,
    /// Weigh each column as this file says: an importance matrix of llama.cpp (.gguf or .dat), or one that `imatrix` wrote
    #[arg(long, value_name = "FILE", conflicts_with = "importance")]
    pub imatrix: Option<PathBuf>,
}

impl Default for GgufBlockConfig {
    fn default() -> GgufBlockConfig {
        let block_type = GgufType(BlockType::Q4K);
        GgufBlockConfig { block_type, importance: false, imatrix: None }
    }
}

impl GgufBlockConfig {
    /// The recipe, with the importance that a file holds: [`GgufBlockConfig::imatrix`] is read here.
    pub fn recipe(self) -> Result<Arc<dyn Recipe>> {
        match (&self.imatrix, self.importance) {
            (None, _) => Ok(Arc::new(self)),
            (Some(_), true) => Err(Error::usage(
                "importance is found on a text or taken from an imatrix file; give one of the two",
            )),
            (Some(path), false) => {
                let matrix = ImportanceMatrix::read(path)?;
                Ok(Arc::new(GgufWithMatrix::new(self, &matrix)))
            }
        }
    }
}

/// A quantized type of GGUF files, by llama.cpp's name.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(try_from = "String", into = "String")]
pub struct GgufType(BlockType);

impl GgufType {
    /// The type, if it is a quantized one.
    pub fn new(block_type: BlockType) -> Result<GgufType> {
        block_type.name().parse()
    }

    /// The same as the kernels know it.
    pub fn block_type(self) -> BlockType {
        self.0
    }
}

impl FromStr for GgufType {
    type Err = Error;

    fn from_str(word: &str) -> Result<GgufType> {
        let spelled = word.to_ascii_uppercase().replace('-', "_");
        let found = BlockType::from_name(&spelled).filter(|ty| ty.is_quantized());
        found.map(GgufType).ok_or_else(|| {
            let known: Vec<&str> = quantized_names().collect();
            let hint = did_you_mean(&spelled, known.iter().copied());
            let hint = hint.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            Error::usage(format!(
                "{word} is no quantized type of GGUF files; wanted {}{hint}",
                known.join(", ")
            ))
        })
    }
}

impl TryFrom<String> for GgufType {
    type Error = Error;

    fn try_from(word: String) -> Result<GgufType> {
        word.parse()
    }
}

impl From<GgufType> for String {
    fn from(ty: GgufType) -> String {
        ty.0.name().to_owned()
    }
}

impl std::fmt::Display for GgufType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

fn quantized_names() -> impl Iterator<Item = &'static str> {
    BlockType::ALL.into_iter().filter(|ty| ty.is_quantized()).map(BlockType::name)
}

const TYPE: &str = "GgufBlockConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "gguf",
    ids: &["P14"],
    config_type: TYPE,
    weight_type: BlockWeight::TYPE,
    granularity: "blocks of 32, or 256 in 8 or 16 parts",
    kernel: "ggml::linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    typed.read::<GgufBlockConfig>(VERSION)?.recipe()
}

fn read_weight(typed: &Typed<'_>, mut stored: Stored) -> Result<Arc<dyn Weight>> {
    typed.check_version(1)?;
    let data = typed.object()?;
    if let Some(key) = data.keys().find(|key| *key != "block_type") {
        return Err(unknown_field(typed.name, key, &["block_type"]));
    }
    let name = data.get("block_type").and_then(Json::as_str).unwrap_or_default();
    let block_type = name.parse::<GgufType>()?.block_type();
    let (n, k) = stored.shape();
    let row = block_type.nbytes(k).ok_or_else(|| does_not_divide(block_type, k))?;
    let blocks = stored.take("blocks", &[DType::U8], &[n, row])?;
    stored.finish()?;
    Ok(Arc::new(BlockWeight::new(block_type, k, blocks)?))
}

/// llama.cpp takes these in place of a K type whose 256 numbers do not divide a row.
fn does_not_divide(ty: BlockType, k: usize) -> Error {
    let (name, block) = (ty.name(), ty.block_len());
    let instead = match ty {
        _ if !k.is_multiple_of(32) => "int8-weight-only takes any K",
        BlockType::Q2K | BlockType::Q3K | BlockType::Q4K => "use Q5_0, as llama.cpp does",
        BlockType::Q5K => "use Q5_1, as llama.cpp does",
        _ => "use Q8_0, as llama.cpp does",
    };
    Error::invalid(format!("K = {k} is not a multiple of {block}, the block of {name}; {instead}"))
}

impl Recipe for GgufBlockConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (_, k): (usize, usize)) -> Result<()> {
        let ty = self.block_type.block_type();
        ty.nbytes(k).map(|_| ()).ok_or_else(|| does_not_divide(ty, k))
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        if self.importance {
            return Err(not_without_inputs(WORKFLOW.name));
        }
        blocks_of(cpu, weight, self.block_type.block_type(), None)
    }

    fn calibrated(&self) -> Option<&dyn Calibrated> {
        self.importance.then_some(self as _)
    }
}

/// The blocks of a weight, its columns weighed by `importance`.
fn blocks_of(
    cpu: &Cpu,
    weight: &dyn Weight,
    ty: BlockType,
    importance: Option<&[f32]>,
) -> Result<Arc<dyn Weight>> {
    let (n, k) = weight.shape();
    let row = ty.nbytes(k).ok_or_else(|| does_not_divide(ty, k))?;
    let mut blocks = Vec::with_capacity(n * row);
    let work = |rows: &Tensor| quantize_rows(ty, &rows.to_f32_vec(), importance);
    for_row_blocks(cpu, weight, work, |part: Vec<u8>| {
        blocks.extend(part);
        Ok(())
    })?;
    Ok(Arc::new(BlockWeight::new(ty, k, Tensor::new(blocks, &[n, row])?)?))
}

/// The blocks of `w`, which must be finite and small enough for f16 scales.
fn quantize_rows(ty: BlockType, w: &[f32], importance: Option<&[f32]>) -> Result<Vec<u8>> {
    if let Some(bad) = w.iter().find(|v| !v.is_finite()) {
        return Err(Error::invalid(format!("a weight is {bad}; {} has no code for it", ty.name())));
    }
    let mut blocks = vec![0; ty.nbytes(w.len()).unwrap_or(0)];
    match importance {
        Some(importance) => ggml::quantize_weighted(ty, w, importance, &mut blocks),
        None => ggml::quantize(ty, w, &mut blocks),
    }
    let mut back = vec![0.0; w.len()];
    ggml::dequantize(ty, &blocks, &mut back);
    match back.iter().zip(w).find(|(back, _)| !back.is_finite()) {
        None => Ok(blocks),
        Some((_, w)) => Err(Error::invalid(format!(
            "beside a weight of {w:e} the scale of a {} block is beyond f16's 65504",
            ty.name()
        ))),
    }
}
