//! Int8 weight-only: torchao's `Int8WeightOnlyConfig` (Q06).
//!
//! Each row, group or tensor of a weight gets one f32 scale, `absmax / 127.5` (N02), and codes −128 ..= 127
//! (N06). Activations stay as they are: `y = (x · qᵀ) · scale`. Half the bytes of bf16, and the error of one
//! part in 255 of the largest weight of a row is seldom seen in a model's answers.
//!
//! As in torchao the extremes are found in the weight's own dtype, so a bf16 weight's scale is a bf16
//! number kept in f32, and eps is f32's, 2⁻²³, for every dtype.

mod columns;
mod weight;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::columns::Int8Columns;
use self::weight::Int8Weight;
use super::config::{Typed, to_dict};
use super::primitives::{
    CodeRange, Granularity, IntType, MappingType, QParamsOptions, choose_qparams_affine,
    quantize_affine,
};
use super::rows::for_row_blocks;
use super::stored::Stored;
use super::workflows::Workflow;
use super::{Columns, Recipe};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// Int8 weights, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Int8WeightOnlyConfig {
    /// Always null: torchao's version 1 had it; give `granularity` per-group:SIZE instead.
    #[arg(skip)]
    pub group_size: Option<usize>,
    /// Which weights share a scale: per-row, per-tensor or per-group:SIZE
    #[arg(long, default_value = "per-row", value_name = "GRANULARITY")]
    pub granularity: Granularity,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
}

impl Default for Int8WeightOnlyConfig {
    fn default() -> Int8WeightOnlyConfig {
        Int8WeightOnlyConfig {
            group_size: None,
            granularity: Granularity::PER_ROW,
            set_inductor_config: true,
        }
    }
}

const TYPE: &str = "Int8WeightOnlyConfig";
const VERSION: u64 = 2;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "int8-weight-only",
    ids: &["Q06"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-row, per-tensor, per-group:SIZE",
    kernel: "int8_linear::weight_only",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Int8WeightOnlyConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Int8Weight::read(typed, stored)?))
}

impl Int8WeightOnlyConfig {
    /// Refuses what torchao refuses, whatever the weight.
    fn check_options(&self) -> Result<()> {
        if let Some(group_size) = self.group_size {
            return Err(Error::invalid(format!(
                "group_size {group_size} is of version 1; use granularity per-group:{group_size}"
            )));
        }
        match self.granularity {
            Granularity::PerTensor | Granularity::PerGroup { .. } => Ok(()),
            Granularity::PerRow { dim: -1 | 1 } => Ok(()),
            ref other => Err(Error::invalid(format!(
                "granularity {other} is not for int8 weights; use per-row, per-tensor or per-group:SIZE"
            ))),
        }
    }
}

impl Recipe for Int8WeightOnlyConfig {
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
        let whole = match self.granularity {
            Granularity::PerTensor => Some(tensor_scale(cpu, weight)?),
            _ => None,
        };
        let mut codes = Vec::with_capacity(n * k);
        let mut scales = Vec::new();
        let work = |rows: &Tensor| match &whole {
            Some(scale) => {
                let block = rows.shape().to_vec();
                quantize_affine(rows, &block, scale, &zero(scale)?, range()?)
                    .map(|codes| (codes, None))
            }
            None => {
                let block = self.granularity.block_size(rows.shape())?;
                let (scale, zero) = choose(rows, &block)?;
                let codes = quantize_affine(rows, &block, &scale, &zero, range()?)?;
                Ok((codes, Some(scale)))
            }
        };
        for_row_blocks(cpu, weight, work, |(block, scale): (Tensor, Option<Tensor>)| {
            codes.extend_from_slice(block.as_slice::<i8>()?);
            if let Some(scale) = scale {
                scales.extend_from_slice(scale.as_slice::<f32>()?);
            }
            Ok(())
        })?;
        let scale = match whole {
            Some(scale) => scale,
            None => {
                let per_row = scales.len().checked_div(n).unwrap_or(0);
                Tensor::new(scales, &[n, per_row])?
            }
        };
        let qdata = Tensor::new(codes, &[n, k])?;
        Ok(Arc::new(Int8Weight::new(qdata, scale, weight.dtype())?))
    }

    fn columns(&self, _cpu: &Cpu, weight: &dyn Weight) -> Result<Box<dyn Columns>> {
        self.check(weight.shape())?;
        Ok(Box::new(Int8Columns::new(&self.granularity, weight)?))
    }
}

fn range() -> Result<CodeRange> {
    CodeRange::full(IntType::Int(8))
}

fn zero(scale: &Tensor) -> Result<Tensor> {
    Tensor::zeros(DType::I8, scale.shape())
}

fn choose(rows: &Tensor, block_size: &[usize]) -> Result<(Tensor, Tensor)> {
    let options = QParamsOptions {
        eps: Some(f32::EPSILON),
        scale_dtype: Some(DType::F32),
        zero_point_dtype: Some(DType::I8),
        keepdim: true,
    };
    choose_qparams_affine(rows, MappingType::Symmetric, block_size, range()?, options)
}

/// One scale for all: the largest of the row blocks' scales, since a scale grows with its block's absmax.
fn tensor_scale(cpu: &Cpu, weight: &dyn Weight) -> Result<Tensor> {
    let mut largest = 0.0_f32;
    let work = |rows: &Tensor| Ok(choose(rows, rows.shape())?.0.to_f32_vec());
    for_row_blocks(cpu, weight, work, |scales: Vec<f32>| {
        for scale in scales {
            // A NaN, once there, stays.
            largest = if largest.is_nan() || scale < largest { largest } else { scale };
        }
        Ok(())
    })?;
    Tensor::new(vec![largest], &[1, 1])
}
