//! Weights of 4 or 8 bits for gemlite's kernels: torchao's `UIntxWeightOnlyConfig` and
//! `Int8DynamicActivationUIntxWeightConfig` (P06).
//!
//! - 4 bits: HQQ in groups (N19, raw output): codes 0 ..= 15, `w = (q − zero) · scale` with a float zero, scale and zero in f16.
//! - 8 bits: a row shares a scale, `q = clamp(round(w / s), −128, 127)`, `s = max(amax / 127.5, 1e-5)` (N02).
//!
//! The dynamic one rounds every token to int8 first, `s = amax / 127`. torchao packs codes into words of 8, 16 or 32 bits for
//! Triton (`packing_bitwidth`), which changes no number; here they lie in the kernels' panels, with `−zero · scale` beside them
//! in f32, which holds that product exactly.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::Recipe;
use super::config::{Typed, to_dict};
use super::packed::{Activations, Codec, Kind, PackedWeight, Parts, Zeros, quantize_rows};
use super::primitives::{
    CodeRange, HqqOptions, IntType, IntxRows, MappingType, QParamsOptions, choose_qparams_affine,
    choose_qparams_and_quantize_affine_hqq, quantize_affine,
};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::packed_linear::Tokens;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// Weights of 4 bits in groups with float zeros, or of 8 bits a row; activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct UIntxWeightOnlyConfig {
    /// How many neighbours of a row share a scale and a zero, 32 to 1024 [default: 128; of 8 bits a row shares a scale]
    #[arg(long, value_name = "SIZE")]
    pub group_size: Option<usize>,
    /// 4 (fitted by HQQ) or 8 (symmetric)
    #[arg(long, default_value_t = 4, value_name = "BITS")]
    pub bit_width: u32,
    /// The width of gemlite's words; it changes no number.
    #[arg(skip)]
    pub packing_bitwidth: Option<u32>,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
}

impl Default for UIntxWeightOnlyConfig {
    fn default() -> UIntxWeightOnlyConfig {
        UIntxWeightOnlyConfig {
            group_size: Some(128),
            bit_width: 4,
            packing_bitwidth: None,
            set_inductor_config: true,
        }
    }
}

/// The same weights; activations rounded to 8 bits at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(transparent)]
pub struct Int8DynamicActivationUIntxWeightConfig {
    /// The weights.
    #[command(flatten)]
    pub weights: UIntxWeightOnlyConfig,
}

const TYPE: &str = "UIntxWeightOnlyConfig";
const DYNAMIC_TYPE: &str = "Int8DynamicActivationUIntxWeightConfig";
const VERSION: u64 = 1;
const GROUPS: [usize; 6] = [32, 64, 128, 256, 512, 1024];

pub(super) const WORKFLOW: Workflow = Workflow {
    name: KIND.workflow,
    ids: &["P06"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-group:SIZE (4 bits), per-row (8 bits)",
    kernel: "packed_linear",
    config_from_dict: |typed| {
        let config: UIntxWeightOnlyConfig = typed.read(VERSION)?;
        config.check_options()?;
        Ok(Arc::new(config))
    },
    read_weight: |typed, stored| read(typed, stored, KIND),
};

pub(super) const DYNAMIC: Workflow = Workflow {
    name: DYNAMIC_KIND.workflow,
    ids: &["P06"],
    config_type: DYNAMIC_TYPE,
    weight_type: DYNAMIC_KIND.weight_type,
    granularity: "per-group:SIZE (4 bits), per-row (8 bits); activations per token",
    kernel: "packed_linear",
    config_from_dict: |typed| {
        let config: Int8DynamicActivationUIntxWeightConfig = typed.read(VERSION)?;
        config.weights.check_options()?;
        Ok(Arc::new(config))
    },
    read_weight: |typed, stored| read(typed, stored, DYNAMIC_KIND),
};

const KIND: Kind = Kind {
    workflow: "uintx-bit-packed-weight-only",
    weight_type: "UIntxBitPackedWeight",
    activations: Activations::AsTheyAre,
};

const DYNAMIC_KIND: Kind = Kind {
    workflow: "int8-dynamic-activation-uintx-weight",
    weight_type: "Int8DynamicUIntxWeight",
    // gemlite's bound, below which a token counts as zeros.
    activations: Activations::Tokens(Tokens {
        qmin: -127,
        qmax: 127,
        asymmetric: false,
        eps: 1e-6,
    }),
};

impl Int8DynamicActivationUIntxWeightConfig {
    /// As options say it.
    pub(crate) fn of_options(self) -> Self {
        Self { weights: self.weights.of_options() }
    }
}

/// What files keep of the configuration.
#[derive(Serialize, Deserialize)]
struct Fields {
    bit_width: u32,
    group_size: usize,
}

impl Fields {
    fn codec(&self) -> Codec {
        let (bias, zeros) = match self.bit_width {
            8 => (128, Zeros::None),
            _ => (0, Zeros::Values),
        };
        Codec { bits: self.bit_width, bias, group_size: self.group_size, zeros }
    }

    fn details(&self) -> String {
        match self.bit_width {
            8 => "int8, a scale a row".to_owned(),
            _ => format!("uint4, group_size {}, hqq", self.group_size),
        }
    }

    fn to_map(&self) -> Map<String, Json> {
        match serde_json::to_value(self) {
            Ok(Json::Object(map)) => map,
            _ => Map::new(), // Numbers always become an object.
        }
    }
}

fn read(typed: &Typed<'_>, stored: Stored, kind: Kind) -> Result<Arc<dyn Weight>> {
    let fields = |fields: &Map<String, Json>, (_, k): (usize, usize)| {
        let fields: Fields = serde_json::from_value(Json::Object(fields.clone()))
            .map_err(|error| Error::invalid(format!("{}: {error}", kind.weight_type)))?;
        let row = fields.bit_width == 8 && fields.group_size == k;
        if row || fields.bit_width == 4 {
            return Ok((fields.codec(), fields.details()));
        }
        let Fields { bit_width, group_size } = fields;
        Err(Error::invalid(format!(
            "{bit_width} bits in groups of {group_size}; wanted 4 bits, or 8 and a row of {k}"
        )))
    };
    let names = ["bit_width", "group_size"];
    Ok(Arc::new(PackedWeight::read(typed, stored, kind, &names, fields)?))
}

impl UIntxWeightOnlyConfig {
    /// As options say it, which have no other word for torchao's default.
    pub(crate) fn of_options(self) -> UIntxWeightOnlyConfig {
        let group_size = self.group_size.or((self.bit_width == 4).then_some(128));
        UIntxWeightOnlyConfig { group_size, ..self }
    }

    /// Refuses what torchao refuses, whatever the weight.
    fn check_options(&self) -> Result<()> {
        let words = match (self.bit_width, self.group_size) {
            (4 | 8, None) => return self.check_packing(),
            (4, Some(group)) if GROUPS.contains(&group) => return self.check_packing(),
            (4, Some(group)) => {
                format!("group_size is {group}; wanted 32, 64, 128, 256, 512, 1024 or none")
            }
            (8, Some(group)) => {
                format!(
                    "group_size is {group} and bit_width 8; 8 bits have a scale a row: leave the group size out"
                )
            }
            (bits, _) => format!("bit_width is {bits}; wanted 4 or 8"),
        };
        Err(Error::invalid(words))
    }

    fn check_packing(&self) -> Result<()> {
        match self.packing_bitwidth {
            None | Some(8 | 16 | 32) => Ok(()),
            Some(got) => {
                Err(Error::invalid(format!("packing_bitwidth is {got}; wanted 8, 16, 32 or none")))
            }
        }
    }

    fn check_shape(&self, (_, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        match self.group_size {
            Some(group) if !k.is_multiple_of(group) => Err(Error::invalid(format!(
                "K = {k} is not a multiple of group_size {group}; leave the group size out, or use intx-weight-only"
            ))),
            _ => Ok(()),
        }
    }

    fn quantize_as(&self, cpu: &Cpu, weight: &dyn Weight, kind: Kind) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check_shape((n, k))?;
        let group_size = self.group_size.unwrap_or(k);
        let fields = Fields { bit_width: self.bit_width, group_size };
        let parts = match self.bit_width {
            8 => quantize_rows(cpu, weight, (128, false), symmetric)?,
            _ => hqq(cpu, weight, group_size)?,
        };
        let about = (fields.to_map(), fields.details());
        let (shape, dtype) = (((n, k), fields.codec()), weight.dtype());
        Ok(Arc::new(PackedWeight::new(cpu, kind, shape, &parts, dtype, about)?))
    }
}

/// 8 bits a row about zero.
fn symmetric(rows: &Tensor) -> Result<IntxRows> {
    let (n, k) = rows.dims2()?;
    let range = CodeRange::full(IntType::Int(8))?;
    let options = QParamsOptions { eps: Some(1e-5), keepdim: true, ..QParamsOptions::default() };
    let (scale, zero) =
        choose_qparams_affine(rows, MappingType::Symmetric, &[1, k], range, options)?;
    let codes = quantize_affine(rows, &[1, k], &scale, &zero, range)?;
    Ok(IntxRows { codes, scale, zero_point: Tensor::zeros(DType::I8, &[n, 1])? })
}

/// 4 bits with zeros that fit the whole weight.
fn hqq(cpu: &Cpu, weight: &dyn Weight, group_size: usize) -> Result<Parts> {
    let options = HqqOptions {
        nbits: 4,
        group_size,
        optimize: true,
        compute_dtype: DType::F16,
        raw_output: true,
    };
    let w = weight.dequantize()?.to_dtype(weight.dtype())?;
    let found = choose_qparams_and_quantize_affine_hqq(cpu, &w, &options)?;
    let pairs = found.zero.to_f32_vec().into_iter().zip(found.scale.to_f32_vec());
    let values: Vec<f32> = pairs.map(|(zero, scale)| -zero * scale).collect();
    Ok(Parts {
        codes: found.codes.as_slice::<u8>()?.to_vec(),
        zero_point: Some(Tensor::new(values, found.scale.shape())?),
        scale: found.scale,
    })
}

impl Recipe for UIntxWeightOnlyConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.check_shape(shape)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.quantize_as(cpu, weight, KIND)
    }
}

impl Recipe for Int8DynamicActivationUIntxWeightConfig {
    fn name(&self) -> &'static str {
        DYNAMIC.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(DYNAMIC_TYPE, VERSION, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.weights.check_shape(shape)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.weights.quantize_as(cpu, weight, DYNAMIC_KIND)
    }
}
