//! Quantization: the workflows, one folder each, and [`quantize_`], which applies them to a model.
//!
//! A workflow's folder holds its configuration (a [`Recipe`], named as in torchao), its weight's format (a
//! [`Weight`]) and nothing of another workflow. All of them are listed once, in [`WORKFLOWS`].

pub mod auto_round;
pub mod autoquant;
pub mod awq;
pub mod bitnet;
mod block_columns;
pub mod calibration;
pub mod code_type;
pub mod codebook;
pub mod codebook_coreml;
pub mod columns;
pub mod config;
pub mod embedding;
pub mod experts;
pub mod float8;
pub mod float8_dynamic_int4;
mod floatx;
mod fqn;
pub mod gguf;
pub mod gptq;
pub mod groupwise_lut;
pub mod int4_dynamic_int4;
pub mod int4_weight_only;
pub mod int8_dynamic;
pub mod int8_dynamic_int4;
pub mod int8_dynamic_intx;
pub mod int8_lut;
pub mod int8_static;
pub mod int8_weight_only;
mod intx_fields;
mod intx_options;
pub mod intx_weight_only;
pub mod layouts;
mod lut;
mod lut_options;
pub mod mixed_precision;
pub mod module_swap;
mod mx;
pub mod nf4;
mod nvfp4;
mod packed;
pub mod pre_scaled;
pub mod primitives;
mod quantize;
mod rows;
pub mod sinq;
pub mod smoothquant;
pub mod spinquant;
pub(crate) mod stored;
pub mod uintx_bit_packed;
pub mod uintx_weight_only;
mod workflows;

use std::sync::Arc;

use serde_json::Value as Json;

pub use auto_round::AutoRoundConfig;
pub use awq::AwqConfig;
pub use bitnet::BitNetConfig;
pub use calibration::{Calibrated, Calibration, LayerObserver};
pub use code_type::CodeType;
pub use codebook::CodebookWeightOnlyConfig;
pub use codebook_coreml::CodebookCoreMlWeightOnlyConfig;
pub use columns::Columns;
pub use config::{config_from_dict, config_to_dict};
pub use embedding::{EmbeddingQuantizer, TiedEmbeddingQuantizer};
pub use experts::ExpertWeights;
pub use float8::{
    Float8DynamicActivationFloat8WeightConfig, Float8Granularities,
    Float8StaticActivationFloat8WeightConfig, Float8WeightOnlyConfig,
};
pub use float8_dynamic_int4::{Float8DynamicActivationInt4WeightConfig, Float8Int4PackingFormat};
pub use floatx::FPXWeightOnlyConfig;
pub use fqn::FqnToConfig;
pub use gguf::{GgufBlockConfig, GgufType};
pub use gptq::GptqConfig;
pub use groupwise_lut::GroupwiseLutWeightConfig;
pub use int4_dynamic_int4::Int4DynamicActivationInt4WeightConfig;
pub use int4_weight_only::Int4WeightOnlyConfig;
pub use int8_dynamic::Int8DynamicActivationInt8WeightConfig;
pub use int8_dynamic_int4::Int8DynamicActivationInt4WeightConfig;
pub use int8_dynamic_intx::Int8DynamicActivationIntxWeightConfig;
pub use int8_lut::Int8LutConfig;
pub use int8_static::Int8StaticActivationInt8WeightConfig;
pub use int8_weight_only::Int8WeightOnlyConfig;
pub use intx_options::{IntxChooseQParamsAlgorithm, IntxPackingFormat};
pub use intx_weight_only::IntxWeightOnlyConfig;
pub use layouts::Layout;
pub use module_swap::QuantizationRecipe;
pub use mx::{MXDynamicActivationMXWeightConfig, MXWeightOnlyConfig};
pub use nf4::NF4WeightOnlyConfig;
pub use nvfp4::{NVFP4DynamicActivationNVFP4WeightConfig, NVFP4WeightOnlyConfig};
pub use primitives::{Granularity, MappingType};
pub use quantize::{
    LayerReport, Progress, QuantizeOptions, QuantizeReport, is_linear, quantize_, quantize_with,
};
pub use sinq::SinqConfig;
pub use smoothquant::SmoothQuantConfig;
pub use stored::read_weight;
pub use uintx_bit_packed::{Int8DynamicActivationUIntxWeightConfig, UIntxWeightOnlyConfig};
pub use uintx_weight_only::UIntXWeightOnlyConfig;
pub use workflows::{WORKFLOWS, Workflow, support_table};

use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;

/// A configuration that turns a weight into a quantized one. Every `XxxConfig` is one.
pub trait Recipe: Send + Sync + std::fmt::Debug {
    /// The workflow's name as its command says it: `int4-weight-only`.
    fn name(&self) -> &'static str;

    /// The configuration as torchao's JSON (A16).
    fn config_to_dict(&self) -> Json;

    /// Whether the configuration is sound and can apply to a weight `(N, K)`. If not, says what would.
    fn check(&self, shape: (usize, usize)) -> Result<()>;

    /// Quantizes `weight`, a few rows at a time, on the threads of `cpu`.
    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>>;

    /// The same of a weight that may be kept inside the new one, as recipes of sparsity do with quantized weights.
    fn quantize_shared(&self, cpu: &Cpu, weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        let quantized = self.quantize(cpu, weight.as_ref())?;
        keep_zeros(weight.as_ref(), quantized)
    }

    /// The recipe as one that looks at a layer's inputs first, if it is such a one.
    fn calibrated(&self) -> Option<&dyn Calibrated> {
        None
    }

    /// The format of `weight` as one that is filled column by column, which GPTQ and AutoRound ask for.
    fn columns(&self, _cpu: &Cpu, _weight: &dyn Weight) -> Result<Box<dyn Columns>> {
        Err(Error::invalid(format!(
            "{} chooses the codes of a block together and cannot round one column at a time; \
             take int4-weight-only, int8-weight-only, intx-weight-only, an mx- or an nvfp4- workflow as the base",
            self.name()
        )))
    }

    /// What is done to the linear layer `fqn`. Only [`FqnToConfig`] tells layers apart.
    fn choose(&self, _fqn: &str) -> Choice<'_> {
        Choice::Itself
    }

    /// Refuses names of layers that the model, whose linear layers are `fqns`, does not have; gives in
    /// words what a person may not have meant.
    fn check_layers(&self, _fqns: &[&str]) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// Puts the zeros of a sparse weight back into what it was quantized to.
pub(crate) fn keep_zeros(from: &dyn Weight, quantized: Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
    match from.as_sparse() {
        Some(sparse) if quantized.as_sparse().is_none() => sparse.around(quantized),
        _ => Ok(quantized),
    }
}

/// What a [`Recipe`] does to one layer.
#[derive(Clone, Debug)]
pub enum Choice<'a> {
    /// The recipe that was asked applies.
    Itself,
    /// Another one does.
    Other(&'a dyn Recipe),
    /// None does, for this reason.
    Leave(String),
}
