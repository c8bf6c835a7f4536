//! Quantization: the workflows, one folder each, and `quantize_`, which applies them to a model.

use std::sync::Arc;

use crate::error::Result;
use crate::model::Weight;

/// A configuration that turns a weight into a quantized one. Every `XxxConfig` is one.
pub trait Recipe: Send + Sync + std::fmt::Debug {
    /// The workflow's name as its command says it: `int4-weight-only`.
    fn name(&self) -> &'static str;

    /// Quantizes `weight`. A weight that the configuration cannot apply to (K not a multiple of the
    /// group, say) is an error in words.
    fn quantize(&self, weight: &dyn Weight) -> Result<Arc<dyn Weight>>;
}

/// Reads a weight that a workflow wrote: its [`Weight::meta`] names the format.
pub fn read_weight(
    meta: &serde_json::Value,
    _tensors: Vec<(String, crate::Tensor)>,
    _shape: (usize, usize),
) -> Result<Arc<dyn Weight>> {
    Err(crate::Error::invalid(format!("no workflow reads weights described by {meta}")))
}
