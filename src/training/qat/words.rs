//! Fake quantizers by a word, as the command line says them.

use super::config::{
    FakeQuantizeConfig, Int4Activation, Int4WeightFakeQuantizeConfig, IntxFakeQuantizeConfig,
    IntxGranularity, MXFakeQuantizeConfig, NVFP4FakeQuantizeConfig,
};
use super::legacy::LegacyQuantizer;
use super::rule::QatConfig;
use crate::error::{Error, Result};
use crate::kernels::float_linear::Element;
use crate::quantization::primitives::{IntType, MxElement, ScaleCalculationMode};

impl QatConfig {
    /// `int4-weight-only`, `int2` … `int8` (symmetric weights), `8da2w` … `8da8w` (and int8 activations), with so many
    /// numbers a scale; without a group size a row shares one (`int4-weight-only`: 128). `mxfp8`, `mxfp4` and `nvfp4` (weights
    /// and activations) have blocks of their own. torchtune's words for the older flows, such as `4w-embedding-qat+8da4w-qat`: see
    /// [`LegacyQuantizer`].
    pub fn of_word(word: &str, group_size: Option<usize>) -> Result<QatConfig> {
        if let Some(legacy) = LegacyQuantizer::of_word(word, group_size) {
            return legacy.prepare();
        }
        if word == "int4-weight-only" {
            let activation = Int4Activation::Bf16;
            let weight =
                Int4WeightFakeQuantizeConfig { group_size: group_size.unwrap_or(128), activation };
            return Ok(QatConfig::new(None, Some(FakeQuantizeConfig::Int4Weight(weight))));
        }
        if let Some(config) = blocks(word) {
            return match group_size {
                None => Ok(QatConfig::new(Some(config), Some(config))),
                Some(_) => {
                    Err(Error::usage(format!("{word} has blocks of its own; no group size")))
                }
            };
        }
        let inner = word.strip_prefix("8da").and_then(|rest| rest.strip_suffix('w'));
        let bits = inner.or_else(|| word.strip_prefix("int")).and_then(|bits| bits.parse().ok());
        let bits: u32 = bits.filter(|bits| (2..=8).contains(bits)).ok_or_else(|| {
            Error::usage(format!(
                "{word} is not known to QAT; wanted int4-weight-only, int2 to int8, 8da2w to 8da8w, mxfp8, \
                 mxfp4, nvfp4, 8da4w-qat, 4w-embedding-qat or fp8a4w-qat"
            ))
        })?;
        let granularity = group_size.map_or(IntxGranularity::PerChannel, IntxGranularity::PerGroup);
        let weight = IntxFakeQuantizeConfig::new(IntType::Int(bits), granularity);
        let activation =
            inner.map(|_| FakeQuantizeConfig::Intx(IntxFakeQuantizeConfig::int8_activation()));
        Ok(QatConfig::new(activation, Some(FakeQuantizeConfig::Intx(weight))))
    }
}

/// Formats whose blocks are fixed.
fn blocks(word: &str) -> Option<FakeQuantizeConfig> {
    let mx = |element| {
        FakeQuantizeConfig::MX(MXFakeQuantizeConfig {
            dtype: MxElement(element),
            block_size: 32,
            scaling_mode: ScaleCalculationMode::Rceil,
        })
    };
    match word {
        "mxfp8" => Some(mx(Element::E4m3)),
        "mxfp4" => Some(mx(Element::E2m1)),
        "nvfp4" => {
            Some(FakeQuantizeConfig::NVFP4(NVFP4FakeQuantizeConfig { use_per_tensor_scale: true }))
        }
        _ => None,
    }
}
