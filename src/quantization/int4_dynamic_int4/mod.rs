//! 4-bit weights and 4-bit activations: torchao's `Int4DynamicActivationInt4WeightConfig` (X15, v0.13).
//!
//! Rows of the weight and tokens are quantized alike: symmetric (N02), codes −8 ..= 7, `scale = absmax / 7.5` in f32 and at
//! least f32's eps. `y = Σ_k a · q · s_x · s_w`, the sum exact in integers. torchao runs it on CUTLASS only; its layout
//! packs two codes a byte. Accuracy is low: it is for models trained to bear it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::Recipe;
use super::config::{Typed, to_dict};
use super::packed::{Activations, Codec, Kind, PackedWeight, Zeros, quantize_rows};
use super::primitives::{
    CodeRange, IntType, IntxRows, MappingType, QParamsOptions, choose_qparams_affine,
    quantize_affine,
};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::packed_linear::Tokens;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// 4-bit weights, and activations rounded to 4 bits at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Int4DynamicActivationInt4WeightConfig {
    /// How a row's range is mapped onto codes: always symmetric, as in torchao.
    #[arg(skip = MappingType::Symmetric)]
    pub mapping_type: MappingType,
    /// How a token's range is mapped onto codes: always symmetric, as in torchao.
    #[arg(skip = MappingType::Symmetric)]
    pub act_mapping_type: MappingType,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
}

impl Default for Int4DynamicActivationInt4WeightConfig {
    fn default() -> Int4DynamicActivationInt4WeightConfig {
        Int4DynamicActivationInt4WeightConfig {
            mapping_type: MappingType::Symmetric,
            act_mapping_type: MappingType::Symmetric,
            set_inductor_config: true,
        }
    }
}

const TYPE: &str = "Int4DynamicActivationInt4WeightConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "int4-dynamic-activation-int4-weight",
    ids: &["X15"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-row; activations per token",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

const KIND: Kind = Kind {
    workflow: "int4-dynamic-activation-int4-weight",
    weight_type: "Int4DynamicInt4Weight",
    activations: Activations::Tokens(Tokens {
        qmin: -8,
        qmax: 7,
        asymmetric: false,
        eps: f32::EPSILON,
    }),
};

const DETAILS: &str = "int4, a scale a row, activations int4";

fn codec(k: usize) -> Codec {
    Codec { bits: 4, bias: 8, group_size: k, zeros: Zeros::None }
}

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Int4DynamicActivationInt4WeightConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    let read = |_: &Map<String, Json>, (_, k)| Ok((codec(k), DETAILS.to_owned()));
    Ok(Arc::new(PackedWeight::read(typed, stored, KIND, &[], read)?))
}

impl Int4DynamicActivationInt4WeightConfig {
    fn check_options(&self) -> Result<()> {
        for (field, mapping) in
            [("mapping_type", self.mapping_type), ("act_mapping_type", self.act_mapping_type)]
        {
            if mapping != MappingType::Symmetric {
                return Err(Error::invalid(format!("{field} is {mapping}; wanted symmetric")));
            }
        }
        Ok(())
    }
}

impl Recipe for Int4DynamicActivationInt4WeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, _: (usize, usize)) -> Result<()> {
        self.check_options()
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let parts = quantize_rows(cpu, weight, (8, false), quantize_row)?;
        let (shape, dtype) = (((n, k), codec(k)), weight.dtype());
        let about = (Map::new(), DETAILS.to_owned());
        Ok(Arc::new(PackedWeight::new(cpu, KIND, shape, &parts, dtype, about)?))
    }
}

fn quantize_row(rows: &Tensor) -> Result<IntxRows> {
    let block = [1, rows.dims2()?.1];
    let range = CodeRange::new(IntType::Int(8), -8, 7)?;
    let options = QParamsOptions {
        eps: Some(f32::EPSILON),
        scale_dtype: Some(DType::F32),
        zero_point_dtype: Some(DType::I8),
        keepdim: true,
    };
    let (scale, zero_point) =
        choose_qparams_affine(rows, MappingType::Symmetric, &block, range, options)?;
    let codes = quantize_affine(rows, &block, &scale, &zero_point, range)?;
    Ok(IntxRows { codes, scale, zero_point })
}
