//! Quantization: the workflows, one folder each, and [`quantize_`], which applies them to a model.
//!
//! A workflow's folder holds its configuration (a [`Recipe`], named as in torchao), its weight's format (a
//! [`Weight`]) and nothing of another workflow. All of them are listed once, in [`WORKFLOWS`].

pub mod config;
mod fqn;
pub mod gguf;
pub mod int4_weight_only;
pub mod int8_dynamic;
pub mod int8_weight_only;
pub mod primitives;
mod quantize;
mod rows;
mod stored;
mod workflows;

use std::sync::Arc;

use serde_json::Value as Json;

pub use config::{config_from_dict, config_to_dict};
pub use fqn::FqnToConfig;
pub use gguf::{GgufBlockConfig, GgufType};
pub use int4_weight_only::Int4WeightOnlyConfig;
pub use int8_dynamic::Int8DynamicActivationInt8WeightConfig;
pub use int8_weight_only::Int8WeightOnlyConfig;
pub use primitives::{Granularity, MappingType};
pub use quantize::{
    LayerReport, Progress, QuantizeOptions, QuantizeReport, is_linear, quantize_, quantize_with,
};
pub use stored::read_weight;
pub use workflows::{WORKFLOWS, Workflow, support_table};

use crate::error::Result;
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
