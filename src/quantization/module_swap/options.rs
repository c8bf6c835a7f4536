//! How ranges are set, and what codes count from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::quantization::config::enum_from_word;

/// How a range is set.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum RangeSetting {
    /// From the extremes.
    MinMax,
    /// Shrunk to where the weight's error is least.
    #[default]
    Mse,
    /// Shrunk to where the error of the layer's outputs is least.
    ActivationLoss,
}

/// Whether codes have a sign.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum QuantizationMode {
    /// Codes about zero.
    #[default]
    Symmetric,
    /// Codes from the smallest number on.
    Asymmetric,
}

const SETTINGS: [(&str, RangeSetting); 3] = [
    ("MIN_MAX", RangeSetting::MinMax),
    ("MSE", RangeSetting::Mse),
    ("ACTIVATION_LOSS", RangeSetting::ActivationLoss),
];

const MODES: [(&str, QuantizationMode); 2] =
    [("SYMMETRIC", QuantizationMode::Symmetric), ("ASYMMETRIC", QuantizationMode::Asymmetric)];

impl FromStr for RangeSetting {
    type Err = Error;

    fn from_str(word: &str) -> Result<RangeSetting> {
        enum_from_word(word, "a range setting", &SETTINGS)
    }
}

impl FromStr for QuantizationMode {
    type Err = Error;

    fn from_str(word: &str) -> Result<QuantizationMode> {
        enum_from_word(word, "a quantization mode", &MODES)
    }
}

impl fmt::Display for RangeSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RangeSetting::MinMax => "min-max",
            RangeSetting::Mse => "mse",
            RangeSetting::ActivationLoss => "activation-loss",
        })
    }
}
