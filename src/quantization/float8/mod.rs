//! Float8 weights: torchao's `Float8WeightOnlyConfig` (Q09), `Float8DynamicActivationFloat8WeightConfig` (Q10, P23) and
//! `Float8StaticActivationFloat8WeightConfig` (P05).
//!
//! `scale = amax / fp8_max` of a tensor, a row, a group or a square of 128, and codes `cast(x / scale)` (N13): divided, not
//! multiplied by a reciprocal. Activations stay as they are, or become float8 too at every call, with a scale of their
//! own or with one that was measured before. Products are summed in f32 and scaled afterwards.
//!
//! Three things differ from torchao on purpose. An all-zero group is stored as zeros, where torchao divides 0 by 0 and
//! answers NaN. Rows and columns that are no multiples of 16 are an error for float8 activations, where torchao leaves
//! the layer alone without a word. And f32 weights may have a scale a row with float8 activations.

mod dynamic;
mod options;
mod quantize;
mod static_activation;
mod weight;
mod weight_only;

pub use dynamic::Float8DynamicActivationFloat8WeightConfig;
pub use options::{Float8Granularities, Float8MMConfig, Float8PackingFormat};
pub use static_activation::Float8StaticActivationFloat8WeightConfig;
pub use weight_only::Float8WeightOnlyConfig;

pub(super) use dynamic::WORKFLOW as DYNAMIC;
pub(super) use static_activation::WORKFLOW as STATIC;
pub(super) use weight_only::WORKFLOW as WEIGHT_ONLY;
