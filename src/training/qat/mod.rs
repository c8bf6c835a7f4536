//! Quantization-aware training (T01–T15): the forward pass sees quantized numbers, the gradient passes
//! straight through the rounding, and what is trained is the weight behind it.
//!
//! `QATConfig(base, step = prepare)` of torchao is [`QatConfig::of_base`]: it finds the fake quantizers that belong to a
//! configuration of `quantize`. `step = convert` is `quantize` itself with that configuration: the numbers it stores are,
//! bit for bit, those that the last forward pass saw. T08's enabling and disabling is
//! [`QatRule::enable`] and, at a step, [`QatConfig::delay`]; the older flows (T09–T13) and names (T14) are the same configuration. DoRA (X26) is LoRA whose rows keep lengths of their own.

mod affine;
mod base;
mod blocks;
mod config;
mod dora;
mod float8;
mod int4_weight;
mod learned;
mod legacy;
mod rule;
mod words;

pub use config::{
    FakeQuantizeConfig, Float8FakeQuantizeConfig, Int4Activation, Int4WeightFakeQuantizeConfig,
    IntxFakeQuantizeConfig, IntxGranularity, MXFakeQuantizeConfig, NVFP4FakeQuantizeConfig,
};
pub use dora::{dora_weight, row_norms};
pub use learned::{LearnedRange, initial_range};
pub use legacy::LegacyQuantizer;
pub use rule::{LoraConfig, QatConfig, QatRule};
