//! The granularity of activations and weights, together or each its own, as torchao's field has it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::quantization::primitives::Granularity;

/// One granularity for activations and weights, or one for each. `null` stands for per-row.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(from = "Option<Written>", into = "Written")]
pub enum Granularities {
    /// The same for both.
    Both(Granularity),
    /// The activations', then the weights'.
    Each(Granularity, Granularity),
}

/// How JSON has it: one granularity, or a list of two.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(untagged)]
enum Written {
    Each(Granularity, Granularity),
    Both(Granularity),
}

impl From<Option<Written>> for Granularities {
    fn from(written: Option<Written>) -> Granularities {
        match written {
            None => Granularities::Both(Granularity::PER_ROW),
            Some(Written::Both(both)) => Granularities::Both(both),
            Some(Written::Each(act, weight)) => Granularities::Each(act, weight),
        }
    }
}

impl From<Granularities> for Written {
    fn from(granularities: Granularities) -> Written {
        match granularities {
            Granularities::Both(both) => Written::Both(both),
            Granularities::Each(act, weight) => Written::Each(act, weight),
        }
    }
}

impl Granularities {
    /// The activations' and the weights'.
    pub fn act_and_weight(&self) -> (&Granularity, &Granularity) {
        match self {
            Granularities::Both(both) => (both, both),
            Granularities::Each(act, weight) => (act, weight),
        }
    }
}

impl fmt::Display for Granularities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Granularities::Both(both) => write!(f, "{both}"),
            Granularities::Each(act, weight) => write!(f, "{act},{weight}"),
        }
    }
}

impl FromStr for Granularities {
    type Err = Error;

    /// `per-row`, or `per-tensor,per-row`.
    fn from_str(word: &str) -> Result<Granularities> {
        match word.split_once(',') {
            None => Ok(Granularities::Both(word.parse()?)),
            Some((act, weight)) => Ok(Granularities::Each(act.parse()?, weight.parse()?)),
        }
    }
}
