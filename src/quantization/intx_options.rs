//! The words that torchao's intx configurations share (A14).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;

use super::config::{enum_from_json, enum_from_word, enum_to_json};
use super::primitives::{Granularity, MappingType};
use crate::error::{Error, Result};

/// How torchao lays codes out. Every one holds the same numbers, and here the kernels' own layout is used for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IntxPackingFormat {
    /// One code a byte, for export.
    #[default]
    UnpackedToInt8,
    /// ATen's KleidiAI kernels.
    OpaqueAtenKleidiai,
    /// torchao's choice of its kernels.
    OpaqueTorchaoAuto,
    /// torchao's KleidiAI kernels.
    OpaqueTorchaoKleidiai,
    /// torchao's own low-bit kernels.
    OpaqueTorchaoLowbit,
}

const FORMATS: [(&str, IntxPackingFormat); 5] = [
    ("UNPACKED_TO_INT8", IntxPackingFormat::UnpackedToInt8),
    ("OPAQUE_ATEN_KLEIDIAI", IntxPackingFormat::OpaqueAtenKleidiai),
    ("OPAQUE_TORCHAO_AUTO", IntxPackingFormat::OpaqueTorchaoAuto),
    ("OPAQUE_TORCHAO_KLEIDIAI", IntxPackingFormat::OpaqueTorchaoKleidiai),
    ("OPAQUE_TORCHAO_LOWBIT", IntxPackingFormat::OpaqueTorchaoLowbit),
];

impl IntxPackingFormat {
    /// Refuses the formats that torchao has for quantized activations only.
    pub(crate) fn check_unpacked(self) -> Result<()> {
        if self == IntxPackingFormat::UnpackedToInt8 {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "intx_packing_format {self} multiplies quantized activations; use unpacked-to-int8"
        )))
    }
}

impl fmt::Display for IntxPackingFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = FORMATS.iter().find(|(_, format)| format == self).map_or("", |(name, _)| name);
        f.write_str(&name.to_ascii_lowercase().replace('_', "-"))
    }
}

impl FromStr for IntxPackingFormat {
    type Err = Error;

    fn from_str(word: &str) -> Result<IntxPackingFormat> {
        enum_from_word(word, "a packing format", &FORMATS)
    }
}

impl Serialize for IntxPackingFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        enum_to_json("IntxPackingFormat", self, &FORMATS).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for IntxPackingFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        enum_from_json(&json, "IntxPackingFormat", &FORMATS).map_err(serde::de::Error::custom)
    }
}

/// How scales are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IntxChooseQParamsAlgorithm {
    /// From the extremes of a group (N02, N03, N04).
    #[default]
    Affine,
    /// Fitted to the weight by least squares (N20).
    HqqScaleOnly,
}

const ALGORITHMS: [(&str, IntxChooseQParamsAlgorithm); 2] = [
    ("AFFINE", IntxChooseQParamsAlgorithm::Affine),
    ("HQQ_SCALE_ONLY", IntxChooseQParamsAlgorithm::HqqScaleOnly),
];

impl IntxChooseQParamsAlgorithm {
    /// Refuses a mapping that the algorithm does not have.
    pub(crate) fn check(self, mapping: MappingType) -> Result<()> {
        if self == IntxChooseQParamsAlgorithm::Affine || mapping == MappingType::Symmetric {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "choose_qparams_algorithm hqq-scale-only fits scales and no zero points, and the mapping is {mapping}; \
             use symmetric"
        )))
    }
}

impl FromStr for IntxChooseQParamsAlgorithm {
    type Err = Error;

    fn from_str(word: &str) -> Result<IntxChooseQParamsAlgorithm> {
        enum_from_word(word, "an algorithm", &ALGORITHMS)
    }
}

impl fmt::Display for IntxChooseQParamsAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IntxChooseQParamsAlgorithm::Affine => "affine",
            IntxChooseQParamsAlgorithm::HqqScaleOnly => "hqq-scale-only",
        })
    }
}

impl Serialize for IntxChooseQParamsAlgorithm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        enum_to_json("IntxChooseQParamsAlgorithm", self, &ALGORITHMS).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for IntxChooseQParamsAlgorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        enum_from_json(&json, "IntxChooseQParamsAlgorithm", &ALGORITHMS)
            .map_err(serde::de::Error::custom)
    }
}

/// How many neighbours of a row of `k` share a scale: all of them per axis 0, or those of a group.
pub(crate) fn group_size(granularity: &Granularity, field: &str, k: usize) -> Result<usize> {
    match granularity {
        Granularity::PerAxis { axis: 0 } => Ok(k),
        Granularity::PerGroup { group_size } => Ok(*group_size),
        other => Err(Error::invalid(format!(
            "{field} {other} is not for intx weights; use per-axis:0 or per-group:SIZE"
        ))),
    }
}
