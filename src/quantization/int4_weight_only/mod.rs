//! Int4 weight-only: torchao's `Int4WeightOnlyConfig` (Q01–Q04).
//!
//! `group_size` neighbours of a row share a scale and a zero; each weight is a code of 4 bits and stands for
//! `(q − 8) · scale + zero`. Activations stay as they are. A quarter of the bytes of bf16, and as much
//! faster where weights are read from memory for every token.
//!
//! Three ways to choose scale and zero, told apart as in torchao by the packing format:
//!
//! - `plain` (Q01): `scale = max(max − min, 1e-6) / 15`, `zero = min + 8 · scale`, in f32, as MSLK has it; scale and
//!   zero are rounded to the weight's dtype after the codes are made. `preshuffled` (Q02) has the same numbers.
//! - `plain_int32` (Q03, torchao's for XPU): `scale = max((max − min) / 15, 1e-6)` with 0 between min and max (N04), an integer
//!   zero point, all in the weight's dtype, which is bf16 or f16. Here the value of code 8, `(8 − zero_point) · scale`, is kept
//!   as f32, which holds it exactly.
//! - `tile_packed_to_4d` (Q04): tinygemm's formulas (N09) in bf16, each operation rounded, scale and zero bf16.
//!   torchao takes bf16 weights only; a weight of another dtype is rounded to bf16 first, and its details say so.
//!   Its `hqq` algorithm (N19) fits the zeros to the whole weight in f32 before they are rounded.
//!
//! All are kept in one layout on the CPU, two codes a byte, the even column in the low nibble, codes 0 ..= 15: the tiles of
//! `tile_packed_to_4d` (`primitives::pack_tinygemm_tiles`), the words of `plain_int32` and the shuffle of `preshuffled` serve
//! accelerators and change no number. For the same reason its padding
//! of K to 1024 with zeros has no effect: groups never straddle the edge. f16 scales are kept as f32.
//!
//! `group_size` may be any divisor of an even K; torchao's documentation names 256, 128, 64 and 32, which are also the
//! fast ones. Where it does not divide K this is an error, while torchao skips the layer and logs a line.

mod columns;
mod options;
mod weight;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::columns::Int4Columns;
pub use self::options::{Int4ChooseQParamsAlgorithm, Int4PackingFormat};
use self::weight::Int4Weight;
use super::config::{Typed, to_dict};
use super::primitives::{
    CodeRange, Granularity, HqqCodes, HqqOptions, IntType, MappingType, QParamsOptions,
    choose_qparams_affine, choose_qparams_affine_tinygemm, choose_qparams_and_quantize_affine_hqq,
    int4_row_quantize_zp, quantize_affine, quantize_affine_tinygemm,
};
use super::rows::for_row_blocks;
use super::stored::Stored;
use super::workflows::Workflow;
use super::{Columns, Recipe};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// Int4 weights in groups, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Int4WeightOnlyConfig {
    /// How many neighbours of a row share a scale and a zero; must divide K. Usual are 256, 128, 64, 32
    #[arg(long, default_value_t = 128, value_name = "SIZE")]
    pub group_size: usize,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
    /// How scales and zeros are chosen: plain or preshuffled (in f32), plain-int32 (integer zeros), or
    /// tile-packed-to-4d (tinygemm's, in bf16)
    #[arg(
        id = "packing_format",
        long = "packing-format",
        default_value = "plain",
        value_name = "FORMAT"
    )]
    pub int4_packing_format: Int4PackingFormat,
    /// The algorithm of tile-packed-to-4d: tinygemm, or hqq, which fits zeros to the weight
    #[arg(
        id = "choose_qparams_algorithm",
        long = "choose-qparams-algorithm",
        default_value = "tinygemm",
        value_name = "ALGORITHM"
    )]
    pub int4_choose_qparams_algorithm: Int4ChooseQParamsAlgorithm,
    /// The height of a GPU's tile, 8 or 16; it changes no number.
    #[arg(skip = 8_usize)]
    pub int4_tile_packed_ntile: usize,
}

impl Default for Int4WeightOnlyConfig {
    fn default() -> Int4WeightOnlyConfig {
        Int4WeightOnlyConfig {
            group_size: 128,
            set_inductor_config: true,
            int4_packing_format: Int4PackingFormat::Plain,
            int4_choose_qparams_algorithm: Int4ChooseQParamsAlgorithm::Tinygemm,
            int4_tile_packed_ntile: 8,
        }
    }
}

const TYPE: &str = "Int4WeightOnlyConfig";
const VERSION: u64 = 2;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "int4-weight-only",
    ids: &["Q01", "Q02", "Q03", "Q04"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-group:SIZE",
    kernel: "int4_linear::weight_only",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Int4WeightOnlyConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Int4Weight::read(typed, stored)?))
}

impl Int4WeightOnlyConfig {
    /// Refuses what torchao refuses, whatever the weight.
    fn check_options(&self) -> Result<()> {
        if self.group_size < 2 {
            return Err(Error::invalid(format!(
                "group_size is {}; wanted 2 or more, usual are 256, 128, 64 and 32",
                self.group_size
            )));
        }
        if ![8, 16].contains(&self.int4_tile_packed_ntile) {
            return Err(Error::invalid(format!(
                "int4_tile_packed_ntile is {}; wanted 8 or 16",
                self.int4_tile_packed_ntile
            )));
        }
        let hqq = self.int4_choose_qparams_algorithm == Int4ChooseQParamsAlgorithm::Hqq;
        if hqq && self.int4_packing_format != Int4PackingFormat::TilePackedTo4d {
            let got = self.int4_packing_format;
            return Err(Error::invalid(format!(
                "choose_qparams_algorithm hqq belongs to tile-packed-to-4d and the packing format is {got}; \
                 add --packing-format tile-packed-to-4d"
            )));
        }
        Ok(())
    }

    /// What scales and zeros are kept in.
    fn kept(&self, weight: &dyn Weight) -> DType {
        match (self.int4_packing_format, weight.dtype()) {
            (Int4PackingFormat::PlainInt32, _) => DType::F32,
            (Int4PackingFormat::TilePackedTo4d, _) | (_, DType::BF16) => DType::BF16,
            _ => DType::F32,
        }
    }

    /// How blocks of rows are quantized; HQQ looks at all rows at once, and is not among these.
    fn quantize_rows(&self) -> fn(&Tensor, usize) -> Result<Quantized> {
        match self.int4_packing_format {
            Int4PackingFormat::Plain | Int4PackingFormat::Preshuffled => plain_rows,
            Int4PackingFormat::PlainInt32 => integer_rows,
            Int4PackingFormat::TilePackedTo4d => tinygemm_rows,
        }
    }
}

/// What one block of rows becomes.
struct Quantized {
    /// Codes 0 ..= 15, one a byte.
    codes: Vec<u8>,
    scale: Tensor,
    zero: Tensor,
}

impl Recipe for Int4WeightOnlyConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        let granularity = Granularity::PerGroup { group_size: self.group_size };
        granularity.block_size(&[n, k])?;
        if k.is_multiple_of(2) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "K = {k} is odd, and two int4 codes share a byte; use int8-weight-only"
        )))
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let group_size = self.group_size;
        let mut qdata = Vec::with_capacity(n * k / 2);
        let (mut scale, mut zero) = (Vec::new(), Vec::new());
        let mut keep = |block: Quantized| {
            let (pairs, _) = block.codes.as_chunks::<2>();
            qdata.extend(pairs.iter().map(|[even, odd]| even | (odd << 4)));
            scale.extend(block.scale.to_f32_vec());
            zero.extend(block.zero.to_f32_vec());
            Ok(())
        };
        if self.int4_choose_qparams_algorithm == Int4ChooseQParamsAlgorithm::Hqq {
            keep(hqq(cpu, weight, group_size)?)?;
        } else {
            let quantize_rows = self.quantize_rows();
            for_row_blocks(cpu, weight, |rows| quantize_rows(rows, group_size), keep)?;
        }
        // Numbers that were rounded to bf16 stay what they are on the way through f32.
        let dtype = self.kept(weight);
        let shape = [n, k / group_size];
        Ok(Arc::new(Int4Weight::new(weight::Parts {
            qdata: Tensor::new(qdata, &[n, k / 2])?,
            scale: Tensor::new(scale, &shape)?.to_dtype(dtype)?,
            zero_point: Tensor::new(zero, &shape)?.to_dtype(dtype)?,
            dtype: weight.dtype(),
            packing_format: self.int4_packing_format,
        })?))
    }

    fn columns(&self, _cpu: &Cpu, weight: &dyn Weight) -> Result<Box<dyn Columns>> {
        self.check(weight.shape())?;
        Ok(Box::new(Int4Columns::new(self, weight, self.kept(weight))))
    }
}

/// Q01: MSLK's numerics.
fn plain_rows(rows: &Tensor, group_size: usize) -> Result<Quantized> {
    let quantized = int4_row_quantize_zp(rows, group_size)?;
    let codes = quantized.codes.as_slice::<i8>()?;
    let zero = quantized.zero.ok_or_else(|| Error::invalid("the row quantizer gave no zeros"))?;
    let kept = if rows.dtype() == DType::F16 { DType::F32 } else { rows.dtype() };
    Ok(Quantized {
        codes: codes.iter().map(|code| code.wrapping_add(8).cast_unsigned()).collect(),
        scale: quantized.scale.to_dtype(kept)?,
        zero: zero.to_dtype(kept)?,
    })
}

/// Q03: torchao's for XPU, zero points 0 ..= 15.
fn integer_rows(rows: &Tensor, group_size: usize) -> Result<Quantized> {
    // torchao takes bf16 and f16 only.
    let dtype = if rows.dtype() == DType::F16 { DType::F16 } else { DType::BF16 };
    let rows = rows.to_dtype(dtype)?;
    let range = CodeRange::new(IntType::Int(32), 0, 15)?;
    let block = [1, group_size];
    let options = QParamsOptions { eps: Some(1e-6), keepdim: true, ..QParamsOptions::default() };
    let (scale, zero) =
        choose_qparams_affine(&rows, MappingType::Asymmetric, &block, range, options)?;
    let codes = quantize_affine(&rows, &block, &scale, &zero, range)?;
    let codes = codes.as_slice::<i32>()?.iter().map(|code| code.to_le_bytes()[0] & 15);
    let pairs = scale.to_f32_vec().into_iter().zip(zero.to_f32_vec());
    let middle: Vec<f32> = pairs.map(|(scale, zero)| (8.0 - zero) * scale).collect();
    Ok(Quantized {
        codes: codes.collect(),
        scale: scale.to_dtype(DType::F32)?,
        zero: Tensor::new(middle, scale.shape())?,
    })
}

/// Q04: tinygemm's numerics in bf16, eps the smallest normal number (N05), not N14's 1e-6.
fn tinygemm_rows(rows: &Tensor, group_size: usize) -> Result<Quantized> {
    let rows = rows.to_dtype(DType::BF16)?;
    let range = CodeRange::new(IntType::UInt(8), 0, 15)?;
    let block = [1, group_size];
    let options = QParamsOptions { keepdim: true, ..QParamsOptions::default() };
    let (scale, zero) = choose_qparams_affine_tinygemm(&rows, &block, range, options)?;
    let codes = quantize_affine_tinygemm(&rows, &block, &scale, &zero, range)?;
    Ok(Quantized { codes: codes.as_slice::<u8>()?.to_vec(), scale, zero })
}

/// Q04 with HQQ: the error that ends its iterations is that of the whole weight.
fn hqq(cpu: &Cpu, weight: &dyn Weight, group_size: usize) -> Result<Quantized> {
    let options = HqqOptions {
        nbits: 4,
        group_size,
        optimize: true,
        compute_dtype: DType::BF16,
        raw_output: false,
    };
    let w = weight.dequantize()?.to_dtype(DType::BF16)?;
    let HqqCodes { codes, scale, zero } =
        choose_qparams_and_quantize_affine_hqq(cpu, &w, &options)?;
    Ok(Quantized { codes: codes.as_slice::<u8>()?.to_vec(), scale, zero })
}
