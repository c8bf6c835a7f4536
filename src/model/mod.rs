//! Models: named modules whose linear layers hold any [`Weight`].

mod block_weight;
mod config;
mod cuda;
mod device_form;
mod experts;
mod forward;
mod llama;
mod sparse;
mod weight;

pub use block_weight::BlockWeight;
pub use config::{ModelConfig, RopeScaling};
pub use cuda::{PartTime, PlacedReport, to_device};
pub use device_form::{DeviceForm, Stored};
pub(crate) use device_form::{all_bf16, float_form, packed_form};
pub use experts::{Dense, Experts, ExpertsConfig, FeedForward, SHARED_GATE, is_router, route};
pub use forward::{Context, NoObserver, Observer};
pub use llama::{Layer, Linear, Model};
pub use sparse::{Mask, Pattern, Sparse, sparse_of};
pub use weight::{
    DenseWeight, InputTransform, Job, Weight, check_linear, dequantize_then_multiply,
    dequantize_then_multiply_name,
};

use std::sync::Arc;

use crate::error::Result;
use crate::tensor::Tensor;

/// Where [`Model::build`] gets its parameters: a folder, a file, a test.
/// Names are Hugging Face's: `model.layers.0.self_attn.q_proj`.
pub trait ParameterSource {
    /// The weight `(n, k)` of the linear layer or embedding `module` (its `.weight` and what belongs to it).
    fn weight(&self, module: &str, shape: (usize, usize)) -> Result<Arc<dyn Weight>>;

    /// The vector called `name` (a norm's weight, a bias), as f32 of `len` elements.
    fn vector(&self, name: &str, len: usize) -> Result<Tensor>;

    /// Whether there is a tensor called `name`.
    fn has(&self, name: &str) -> bool;
}
