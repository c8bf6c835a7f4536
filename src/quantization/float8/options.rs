//! The words of the configurations, spelled as torchao spells them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value as Json, json};

use crate::error::{Error, Result};
use crate::quantization::config::{Typed, unknown_field, words};
use crate::quantization::primitives::Granularity;

words! {
    /// How the codes lie (A14). torchao's other two are for weights that are sparse 2:4.
    Float8PackingFormat "a packing format" {
        /// One after the other.
        Plain = "PLAIN",
    }
}

/// How torchao's scaled matrix products run on a GPU. Here sums are always f32's, so that the words are only kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Float8MMConfig {
    /// Multiply in f32.
    pub emulate: bool,
    /// Let the GPU add in fewer bits.
    pub use_fast_accum: bool,
    /// Pad K to a multiple of 16.
    pub pad_inner_dim: bool,
}

const MM_TYPE: &str = "Float8MMConfig";
const MM_FIELDS: [&str; 3] = ["emulate", "use_fast_accum", "pad_inner_dim"];

impl Float8MMConfig {
    /// torchao's default: fast but for squares of 128.
    pub fn fast(use_fast_accum: bool) -> Float8MMConfig {
        Float8MMConfig { emulate: false, use_fast_accum, pad_inner_dim: false }
    }

    fn read(json: &Json) -> Result<Float8MMConfig> {
        let typed = Typed::of(json, "a configuration of products")?;
        if typed.name != MM_TYPE {
            return Err(typed.unknown_type(typed.name, &[MM_TYPE]));
        }
        let data = typed.object()?;
        if let Some(key) = data.keys().find(|key| !MM_FIELDS.contains(&key.as_str())) {
            return Err(unknown_field(MM_TYPE, key, &MM_FIELDS));
        }
        let flag = |name: &str| match data.get(name) {
            None => Ok(false),
            Some(Json::Bool(flag)) => Ok(*flag),
            Some(other) => {
                Err(Error::invalid(format!("{MM_TYPE}: {name} is {other}; wanted true or false")))
            }
        };
        let [emulate, use_fast_accum, pad_inner_dim] = MM_FIELDS.map(flag);
        Ok(Float8MMConfig {
            emulate: emulate?,
            use_fast_accum: use_fast_accum?,
            pad_inner_dim: pad_inner_dim?,
        })
    }
}

impl Serialize for Float8MMConfig {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let data = json!({
            "emulate": self.emulate,
            "use_fast_accum": self.use_fast_accum,
            "pad_inner_dim": self.pad_inner_dim,
        });
        json!({ "_type": MM_TYPE, "_version": 1, "_data": data }).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Float8MMConfig {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Float8MMConfig, D::Error> {
        Float8MMConfig::read(&Json::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// The granularities that torchao takes for activations and weights together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float8Granularities {
    /// One scale for all activations, one for all weights.
    PerTensor,
    /// A scale a token, a scale a row.
    PerRow,
    /// 1 × 128 activations, 128 × 128 weights.
    PerBlock,
}

impl Float8Granularities {
    /// The activations' and the weights'.
    pub fn act_and_weight(self) -> [Granularity; 2] {
        let block = |rows| Granularity::PerBlock { block_size: vec![rows, 128] };
        match self {
            Float8Granularities::PerTensor => [Granularity::PerTensor, Granularity::PerTensor],
            Float8Granularities::PerRow => [Granularity::PER_ROW, Granularity::PER_ROW],
            Float8Granularities::PerBlock => [block(1), block(128)],
        }
    }

    fn of(act: &Granularity, weight: &Granularity) -> Result<Float8Granularities> {
        [Float8Granularities::PerTensor, Float8Granularities::PerRow, Float8Granularities::PerBlock]
            .into_iter()
            .find(|known| known.act_and_weight() == [act.clone(), weight.clone()])
            .ok_or_else(|| {
                Error::usage(format!(
                    "granularity {act},{weight} is not for float8 activations and weights; wanted per-tensor, per-row \
                     or per-block (1x128 and 128x128)"
                ))
            })
    }
}

impl fmt::Display for Float8Granularities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Float8Granularities::PerTensor => "per-tensor",
            Float8Granularities::PerRow => "per-row",
            Float8Granularities::PerBlock => "per-block",
        })
    }
}

impl FromStr for Float8Granularities {
    type Err = Error;

    /// `per-tensor`, `per-row`, `per-block`, or both by name: `per-block:1x128,per-block:128x128`.
    fn from_str(word: &str) -> Result<Float8Granularities> {
        match word.split_once(',') {
            Some((act, weight)) => Float8Granularities::of(&act.parse()?, &weight.parse()?),
            None if word == "per-block" => Ok(Float8Granularities::PerBlock),
            None => {
                let both: Granularity = word.parse()?;
                Float8Granularities::of(&both, &both)
            }
        }
    }
}

impl Serialize for Float8Granularities {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.act_and_weight().serialize(to)
    }
}

/// How JSON has it: one granularity, or a list of two.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Each(Granularity, Granularity),
    Both(Granularity),
}

impl<'de> Deserialize<'de> for Float8Granularities {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Option::<Written>::deserialize(from)? {
            None => Ok(Float8Granularities::PerTensor),
            Some(Written::Both(both)) => Float8Granularities::of(&both, &both),
            Some(Written::Each(act, weight)) => Float8Granularities::of(&act, &weight),
        }
        .map_err(serde::de::Error::custom)
    }
}
