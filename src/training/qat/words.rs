//! Fake quantizers by a word, as the command line says them.

use super::config::{
    FakeQuantizeConfig, Int4Activation, Int4WeightFakeQuantizeConfig, IntxFakeQuantizeConfig,
    IntxGranularity,
};
use super::rule::QatConfig;
use crate::error::{Error, Result};
use crate::quantization::primitives::IntType;

impl QatConfig {
    /// `int4-weight-only`, `int2` … `int8` (symmetric weights), `8da2w` … `8da8w` (and int8 activations), with so many
    /// numbers a scale; without a group size a row shares one (`int4-weight-only`: 128).
    pub fn of_word(word: &str, group_size: Option<usize>) -> Result<QatConfig> {
        if word == "int4-weight-only" {
            let activation = Int4Activation::Bf16;
            let weight =
                Int4WeightFakeQuantizeConfig { group_size: group_size.unwrap_or(128), activation };
            return Ok(QatConfig::new(None, Some(FakeQuantizeConfig::Int4Weight(weight))));
        }
        let inner = word.strip_prefix("8da").and_then(|rest| rest.strip_suffix('w'));
        let bits = inner.or_else(|| word.strip_prefix("int")).and_then(|bits| bits.parse().ok());
        let bits: u32 = bits.filter(|bits| (2..=8).contains(bits)).ok_or_else(|| {
            Error::usage(format!(
                "{word} is not known to QAT; wanted int4-weight-only, int2 to int8, or 8da2w to 8da8w"
            ))
        })?;
        let granularity = group_size.map_or(IntxGranularity::PerChannel, IntxGranularity::PerGroup);
        let weight = IntxFakeQuantizeConfig::new(IntType::Int(bits), granularity);
        let activation =
            inner.map(|_| FakeQuantizeConfig::Intx(IntxFakeQuantizeConfig::int8_activation()));
        Ok(QatConfig::new(activation, Some(FakeQuantizeConfig::Intx(weight))))
    }
}
