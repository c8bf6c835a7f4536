//! SINQ: rows and columns evened out before they are rounded (N21, Müller et al. 2025, arXiv 2509.22944). No text is read.
//!
//! Rows of groups and columns are divided in turn by their standard deviations until both are even, so that no outlier takes the
//! range of its group. What was divided out comes back as a scale a group and a scale a column: `w = q · scale_row · scale_col`.
//! torchao has the arithmetic as a primitive that no configuration uses. Here it is a workflow: an intx weight of `q` and `scale_row`
//! behind inputs that are multiplied with `scale_col`, as AWQ's are.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::Recipe;
use super::code_type::CodeType;
use super::config::{Typed, float_dtype_from_word, optional_dtype, to_dict};
use super::intx_fields::{IntxFields, WEIGHT_ONLY};
use super::packed::unsigned_parts;
use super::pre_scaled::{self, PreScaledWeight};
use super::primitives::{
    Granularity, IntxRows, MappingType, choose_qparams_and_quantize_scale_only_sinq,
};
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// Codes of 2 to 8 bits with a scale a group and a scale a column.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct SinqConfig {
    /// The codes: int2 to int8
    #[arg(long, default_value = "int4", value_name = "INTX")]
    pub weight_dtype: CodeType,
    /// How many neighbours of a row share a scale; must divide K
    #[arg(long, default_value_t = 64, value_name = "SIZE")]
    pub group_size: usize,
    /// What the deviations are computed in: f32, bf16 or f16 [default: f16, as in torchao]
    #[arg(long, value_parser = float_dtype_from_word, value_name = "DTYPE")]
    #[serde(with = "optional_dtype")]
    pub compute_dtype: Option<DType>,
}

impl Default for SinqConfig {
    fn default() -> SinqConfig {
        SinqConfig { weight_dtype: CodeType::int(4), group_size: 64, compute_dtype: None }
    }
}

const TYPE: &str = "SinqConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "sinq",
    ids: &["N21"],
    config_type: TYPE,
    weight_type: pre_scaled::TYPE,
    granularity: "per-group:SIZE and per column",
    kernel: "packed_linear",
    config_from_dict,
    read_weight: pre_scaled::read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: SinqConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

impl SinqConfig {
    fn check_options(&self) -> Result<()> {
        self.weight_dtype.check_signed("weight_dtype", true)?;
        if self.weight_dtype.bits() < 2 || self.group_size < 2 {
            return Err(Error::invalid(format!(
                "weight_dtype {} in groups of {}: SINQ wants int2 to int8 and two numbers a group at least",
                self.weight_dtype, self.group_size
            )));
        }
        Ok(())
    }
}

impl Recipe for SinqConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        let group = Granularity::PerGroup { group_size: self.group_size };
        group.block_size(&[n, k])?;
        if n * k >= 2 * self.group_size {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "a weight of {n} × {k} is one group of {}: its columns have no deviation; use intx-weight-only",
            self.group_size
        )))
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let shape = weight.shape();
        self.check(shape)?;
        let w = weight.dequantize()?;
        let compute_dtype = self.compute_dtype.unwrap_or(DType::F16);
        let half = 1_i8 << (self.weight_dtype.bits() - 1).min(6);
        let range = match self.weight_dtype.bits() {
            8 => (i8::MIN, i8::MAX),
            _ => (-half, half - 1),
        };
        let found =
            choose_qparams_and_quantize_scale_only_sinq(&w, range, self.group_size, compute_dtype)?;
        let columns = found.scale_col.to_f32_vec();
        let unsound = |scale: &&f32| !scale.is_finite() || **scale == 0.0;
        let rows = found.scale_row.to_f32_vec();
        if let Some(scale) = columns.iter().chain(&rows).find(unsound) {
            return Err(Error::invalid(format!(
                "a scale came out as {scale} in {compute_dtype}; use --compute-dtype f32, or intx-weight-only where weights are not finite"
            )));
        }
        let zero_point = Tensor::zeros(DType::I8, found.scale_row.shape())?;
        let rows = IntxRows { codes: found.codes, scale: found.scale_row, zero_point };
        let group = Granularity::PerGroup { group_size: self.group_size };
        let symmetric = MappingType::Symmetric;
        let fields =
            IntxFields::new(self.weight_dtype, (&group, "group_size"), symmetric, shape.1)?;
        let parts = unsigned_parts(&rows, self.weight_dtype.bias())?;
        let inner = fields.assemble(cpu, (shape, weight.dtype()), WEIGHT_ONLY, parts)?;
        Ok(Arc::new(PreScaledWeight::new(WORKFLOW.name, columns, inner)?))
    }
}
