//! The words of the configuration, spelled as torchao spells them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;

use crate::error::{Error, Result};
use crate::quantization::config::{enum_from_json, enum_from_word, enum_to_json};

/// How scales and zeros are chosen (A14). Each belongs to an accelerator's layout in torchao; the order of the codes changes no
/// number, and here it is the kernels' own for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int4PackingFormat {
    /// MSLK's numerics in f32 (Q01).
    Plain,
    /// The same numbers: MSLK shuffles codes for a GPU's registers (Q02).
    Preshuffled,
    /// Integer zero points in bf16 or f16 (Q03).
    PlainInt32,
    /// tinygemm's numerics in bf16 (Q04).
    TilePackedTo4d,
}

const FORMATS: [(&str, Int4PackingFormat); 4] = [
    ("PLAIN", Int4PackingFormat::Plain),
    ("PRESHUFFLED", Int4PackingFormat::Preshuffled),
    ("PLAIN_INT32", Int4PackingFormat::PlainInt32),
    ("TILE_PACKED_TO_4D", Int4PackingFormat::TilePackedTo4d),
];

impl fmt::Display for Int4PackingFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Int4PackingFormat::Plain => "plain",
            Int4PackingFormat::Preshuffled => "preshuffled",
            Int4PackingFormat::PlainInt32 => "plain-int32",
            Int4PackingFormat::TilePackedTo4d => "tile-packed-to-4d",
        })
    }
}

impl FromStr for Int4PackingFormat {
    type Err = Error;

    fn from_str(word: &str) -> Result<Int4PackingFormat> {
        enum_from_word(word, "a packing format", &FORMATS)
    }
}

impl Serialize for Int4PackingFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        enum_to_json("Int4PackingFormat", self, &FORMATS).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Int4PackingFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        enum_from_json(&json, "Int4PackingFormat", &FORMATS).map_err(serde::de::Error::custom)
    }
}

/// How tinygemm's scales and zeros are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int4ChooseQParamsAlgorithm {
    /// From the extremes of a group (N09).
    Tinygemm,
    /// Zeros fitted so that the error's 0.7-norm is small (N19).
    Hqq,
}

const ALGORITHMS: [(&str, Int4ChooseQParamsAlgorithm); 2] =
    [("TINYGEMM", Int4ChooseQParamsAlgorithm::Tinygemm), ("HQQ", Int4ChooseQParamsAlgorithm::Hqq)];

impl FromStr for Int4ChooseQParamsAlgorithm {
    type Err = Error;

    fn from_str(word: &str) -> Result<Int4ChooseQParamsAlgorithm> {
        enum_from_word(word, "an algorithm", &ALGORITHMS)
    }
}

impl Serialize for Int4ChooseQParamsAlgorithm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        enum_to_json("Int4ChooseQParamsAlgorithm", self, &ALGORITHMS).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Int4ChooseQParamsAlgorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        enum_from_json(&json, "Int4ChooseQParamsAlgorithm", &ALGORITHMS)
            .map_err(serde::de::Error::custom)
    }
}
