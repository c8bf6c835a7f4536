//! Quantization-aware training (T01–T08, T14, T15): the forward pass sees quantized numbers, the gradient passes
//! straight through the rounding, and what is trained is the weight behind it.
//!
//! `QATConfig(base, step = prepare)` of torchao is [`QatConfig::of_base`]: it finds the fake quantizers that belong to a
//! configuration of `quantize`. `step = convert` is `quantize` itself with that configuration: the numbers it stores are,
//! bit for bit, those that the last forward pass saw. T08's enabling and disabling is [`QatConfig::delay`]; T14's older
//! names are the same configuration.

mod affine;
mod base;
mod blocks;
mod config;
mod float8;
mod int4_weight;
mod learned;
mod rule;
mod words;

pub use config::{
    FakeQuantizeConfig, Float8FakeQuantizeConfig, Int4Activation, Int4WeightFakeQuantizeConfig,
    IntxFakeQuantizeConfig, IntxGranularity, MXFakeQuantizeConfig, NVFP4FakeQuantizeConfig,
};
pub use learned::{LearnedRange, initial_range};
pub use rule::{LoraConfig, QatConfig, QatRule};
