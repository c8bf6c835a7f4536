//! Int8 dynamic activations and int8 weights: torchao's `Int8DynamicActivationInt8WeightConfig` (Q07).
//!
//! Weights are kept as in int8 weight-only, one f32 scale a row or one a tensor (N02). Activations are
//! quantized anew at every call, one scale a token (N02 symmetric, N04 asymmetric), and multiplied as integers:
//! `y = (Σ a · q · s_x − zp_x · s_x · Σ q) · s_w` (N27), each step rounded to f32 in this order. It is the format for long
//! prompts, where arithmetic and not memory is what costs.
//!
//! `reduce_range` keeps codes within −64 ..= 63, for processors that add products in 16 bits.
//! Unlike torchao, `weight_only_decode` is refused instead of ignored: there it does nothing.

mod granularities;
mod weight;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use self::granularities::Granularities;
use self::weight::{ActivationQuantizer, Int8DynamicWeight};
use super::Recipe;
use super::config::{Typed, to_dict};
use super::primitives::{
    CodeRange, Granularity, IntType, MappingType, QParamsOptions, choose_qparams_affine,
    quantize_affine,
};
use super::rows::for_row_blocks;
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::int8_linear::ROW_SUM_MAX_K;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// Int8 weights, activations quantized to int8 at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Int8DynamicActivationInt8WeightConfig {
    /// How a token's range is mapped onto codes: symmetric or asymmetric
    #[arg(long, default_value = "symmetric", value_name = "MAPPING")]
    pub act_mapping_type: MappingType,
    /// Always false: torchao has the option, but it does nothing there.
    #[arg(skip)]
    pub weight_only_decode: bool,
    /// What shares a scale: per-row or per-tensor, or two of them, ACTIVATION,WEIGHT
    #[arg(long, default_value = "per-row", value_name = "GRANULARITY")]
    pub granularity: Granularities,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
    /// Keep codes of weights and activations within -64..=63
    #[arg(long)]
    pub reduce_range: bool,
}

impl Default for Int8DynamicActivationInt8WeightConfig {
    fn default() -> Int8DynamicActivationInt8WeightConfig {
        Int8DynamicActivationInt8WeightConfig {
            act_mapping_type: MappingType::Symmetric,
            weight_only_decode: false,
            granularity: Granularities::Both(Granularity::PER_ROW),
            set_inductor_config: true,
            reduce_range: false,
        }
    }
}

const TYPE: &str = "Int8DynamicActivationInt8WeightConfig";
const VERSION: u64 = 2;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "int8-dynamic-activation-int8-weight",
    ids: &["Q07"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-row, per-tensor; activations per token",
    kernel: "int8_activation, int8_linear::dynamic",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Int8DynamicActivationInt8WeightConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Int8DynamicWeight::read(typed, stored)?))
}

impl Int8DynamicActivationInt8WeightConfig {
    /// Refuses what torchao refuses, whatever the weight.
    fn check_options(&self) -> Result<()> {
        if self.weight_only_decode {
            return Err(Error::invalid(
                "weight_only_decode does nothing in torchao and is not supported here; use int8-weight-only",
            ));
        }
        check_activation(&self.activation())?;
        check_granularity("weights", self.granularity.act_and_weight().1)
    }

    fn activation(&self) -> ActivationQuantizer {
        ActivationQuantizer {
            mapping_type: self.act_mapping_type,
            granularity: self.granularity.act_and_weight().0.clone(),
            reduce_range: self.reduce_range,
        }
    }
}

fn check_activation(activation: &ActivationQuantizer) -> Result<()> {
    if activation.mapping_type == MappingType::SymmetricNoClippingErr {
        return Err(Error::invalid(format!(
            "act_mapping_type {} is not for activations; use symmetric or asymmetric",
            activation.mapping_type
        )));
    }
    check_granularity("activations", &activation.granularity)
}

fn check_granularity(what: &str, granularity: &Granularity) -> Result<()> {
    match granularity {
        Granularity::PerTensor | Granularity::PerRow { dim: -1 } => Ok(()),
        other => Err(Error::invalid(format!(
            "granularity {other} is not for int8 {what}; use per-row or per-tensor"
        ))),
    }
}

impl Recipe for Int8DynamicActivationInt8WeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (_, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        if k <= ROW_SUM_MAX_K {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "K = {k}: sums of more than {ROW_SUM_MAX_K} int8 products may not fit 32 bits; use int8-weight-only"
        )))
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let range = code_range(self.reduce_range)?;
        let (_, granularity) = self.granularity.act_and_weight();
        let whole = match granularity {
            Granularity::PerTensor => Some(tensor_scale(cpu, weight, range)?),
            _ => None,
        };
        let mut codes = Vec::with_capacity(n * k);
        let mut scales = Vec::with_capacity(n);
        let work = |rows: &Tensor| {
            let (block, scale) = match &whole {
                Some(scale) => (rows.shape().to_vec(), scale.clone()),
                None => {
                    let block = granularity.block_size(rows.shape())?;
                    let scale = choose(rows, &block, range)?;
                    (block, scale)
                }
            };
            let zero = Tensor::zeros(DType::I8, scale.shape())?;
            Ok((quantize_affine(rows, &block, &scale, &zero, range)?, scale))
        };
        for_row_blocks(cpu, weight, work, |(block, scale): (Tensor, Tensor)| {
            codes.extend_from_slice(block.as_slice::<i8>()?);
            scales.extend_from_slice(scale.as_slice::<f32>()?);
            Ok(())
        })?;
        let scale = match whole {
            Some(scale) => scale,
            None => Tensor::new(scales, &[n, 1])?,
        };
        let qdata = Tensor::new(codes, &[n, k])?;
        Ok(Arc::new(Int8DynamicWeight::new(qdata, scale, weight.dtype(), self.activation())?))
    }
}

/// −128 ..= 127, or Python's `// 2` of both with `reduce_range`: −64 ..= 63.
fn code_range(reduce_range: bool) -> Result<CodeRange> {
    let (quant_min, quant_max) = if reduce_range { (-64, 63) } else { (-128, 127) };
    CodeRange::new(IntType::Int(8), quant_min, quant_max)
}

fn choose(rows: &Tensor, block_size: &[usize], range: CodeRange) -> Result<Tensor> {
    Ok(choose_qparams_affine(rows, MappingType::Symmetric, block_size, range, OPTIONS)?.0)
}

/// Scale and zero point of activations (N02, N04).
fn choose_activation(
    x: &Tensor,
    block_size: &[usize],
    activation: &ActivationQuantizer,
) -> Result<(Tensor, Tensor)> {
    let range = code_range(activation.reduce_range)?;
    choose_qparams_affine(x, activation.mapping_type, block_size, range, OPTIONS)
}

/// f32's eps for every dtype, as torchao has it: a bf16 eps would be 65 thousand times larger.
const OPTIONS: QParamsOptions = QParamsOptions {
    eps: Some(f32::EPSILON),
    scale_dtype: Some(DType::F32),
    zero_point_dtype: Some(DType::I8),
    keepdim: true,
};

/// One scale for all: the largest of the row blocks' scales, since a scale grows with its block's absmax.
fn tensor_scale(cpu: &Cpu, weight: &dyn Weight, range: CodeRange) -> Result<Tensor> {
    let mut largest = 0.0_f32;
    let work = |rows: &Tensor| Ok(choose(rows, rows.shape(), range)?.to_f32_vec());
    for_row_blocks(cpu, weight, work, |scales: Vec<f32>| {
        for scale in scales {
            // A NaN, once there, stays.
            largest = if largest.is_nan() || scale < largest { largest } else { scale };
        }
        Ok(())
    })?;
    Tensor::new(vec![largest], &[1, 1])
}
