//! Unsigned weights of 1 to 8 bits in groups, activations as they are: torchao's `UIntXWeightOnlyConfig` (X16, v0.13).
//!
//! `w = (q − zero_point) · scale`, asymmetric (N04), with f32's eps for every dtype. torchao packs codes of fewer than 8 bits
//! as shards (N26, L09), which [`super::primitives::pack_shards`] gives, and dequantizes them for every product; here they lie in
//! the kernels' panels. Zero points are codes; files keep them in a byte, counted from the middle code 2ᵇ⁻¹.
//!
//! `use_hqq` is refused: it is another algorithm, and a float zero.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::Recipe;
use super::code_type::CodeType;
use super::config::{Typed, to_dict};
use super::packed::{Activations, Codec, Kind, PackedWeight, Zeros, quantize_rows};
use super::primitives::{
    Granularity, IntxRows, MappingType, QParamsOptions, choose_qparams_affine, quantize_affine,
};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// Unsigned weights of 1 to 8 bits in groups, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct UIntXWeightOnlyConfig {
    /// The codes: uint1 to uint8
    #[arg(long, default_value = "uint4", value_name = "UINTX")]
    pub dtype: CodeType,
    /// How many neighbours of a row share a scale and a zero point; must divide K
    #[arg(long, default_value_t = 64, value_name = "SIZE")]
    pub group_size: usize,
    /// Along which dimension torchao packs; it changes no number.
    #[arg(skip = -1_isize)]
    pub pack_dim: isize,
    /// Always false: see above.
    #[arg(skip)]
    pub use_hqq: bool,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
}

impl Default for UIntXWeightOnlyConfig {
    fn default() -> UIntXWeightOnlyConfig {
        UIntXWeightOnlyConfig {
            dtype: CodeType::uint(4),
            group_size: 64,
            pack_dim: -1,
            use_hqq: false,
            set_inductor_config: true,
        }
    }
}

const TYPE: &str = "UIntXWeightOnlyConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "uintx-weight-only",
    ids: &["X16", "N26"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-group:SIZE",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

const KIND: Kind = Kind {
    workflow: "uintx-weight-only",
    weight_type: "UintxWeight",
    activations: Activations::AsTheyAre,
};

/// What files keep of the configuration.
#[derive(Serialize, Deserialize)]
struct Fields {
    code_dtype: CodeType,
    group_size: usize,
}

impl Fields {
    fn codec(&self) -> Codec {
        let bits = self.code_dtype.bits();
        Codec {
            bits,
            bias: middle(self.code_dtype),
            group_size: self.group_size,
            zeros: Zeros::Codes,
        }
    }

    fn details(&self) -> String {
        format!("{}, group_size {}", self.code_dtype, self.group_size)
    }
}

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: UIntXWeightOnlyConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    let names = ["code_dtype", "group_size"];
    let read = |fields: &Map<String, Json>, _| {
        let fields: Fields = serde_json::from_value(Json::Object(fields.clone()))
            .map_err(|error| Error::invalid(format!("{}: {error}", KIND.weight_type)))?;
        fields.code_dtype.check_signed("code_dtype", false)?;
        Ok((fields.codec(), fields.details()))
    };
    Ok(Arc::new(PackedWeight::read(typed, stored, KIND, &names, read)?))
}

impl UIntXWeightOnlyConfig {
    fn check_options(&self) -> Result<()> {
        self.dtype.check_signed("dtype", false)?;
        if self.use_hqq {
            return Err(Error::invalid("use_hqq is not supported; use false"));
        }
        if self.group_size == 0 {
            return Err(Error::invalid("group_size is 0; wanted a divisor of K, usual is 64"));
        }
        Ok(())
    }
}

impl Recipe for UIntXWeightOnlyConfig {
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
        let fields = Fields { code_dtype: self.dtype, group_size: self.group_size };
        let work = |rows: &Tensor| quantize_uintx(rows, self.dtype, self.group_size);
        let parts = quantize_rows(cpu, weight, (middle(self.dtype), true), work)?;
        let about = (fields_to_map(&fields), fields.details());
        let (shape, dtype) = (((n, k), fields.codec()), weight.dtype());
        Ok(Arc::new(PackedWeight::new(cpu, KIND, shape, &parts, dtype, about)?))
    }
}

/// The middle code, which zero points are counted from, so that those of 8 bits fit an i8.
fn middle(code_type: CodeType) -> i16 {
    1 << (code_type.bits() - 1)
}

/// Codes 0 ..= 2ᵇ − 1 of groups, and zero points counted from the middle code.
fn quantize_uintx(rows: &Tensor, code_type: CodeType, group_size: usize) -> Result<IntxRows> {
    let (block, range) = ([1, group_size], code_type.range()?);
    let options = QParamsOptions {
        eps: Some(f32::EPSILON),
        zero_point_dtype: Some(DType::U8),
        keepdim: true,
        ..QParamsOptions::default()
    };
    let (scale, zero) =
        choose_qparams_affine(rows, MappingType::Asymmetric, &block, range, options)?;
    let codes = quantize_affine(rows, &block, &scale, &zero, range)?;
    let middle = middle(code_type);
    let counted = |zero: &u8| i8::try_from(i16::from(*zero) - middle).unwrap_or_default();
    let zeros: Vec<i8> = zero.as_slice::<u8>()?.iter().map(counted).collect();
    let zero_point = Tensor::new(zeros, zero.shape())?;
    Ok(IntxRows { codes, scale, zero_point })
}

fn fields_to_map(fields: &Fields) -> Map<String, Json> {
    match serde_json::to_value(fields) {
        Ok(Json::Object(map)) => map,
        _ => Map::new(), // Fields are words and numbers, which always become an object.
    }
}
