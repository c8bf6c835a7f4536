//! Which elements share a scale, as a word; lowered to a block size (§ granularity of torchao).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::error::{Error, Result, did_you_mean};
use crate::quantization::config::{Typed, unknown_field};

/// Which elements share a scale. Every variant lowers to one block size of the tensor's rank.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// The whole tensor.
    PerTensor,
    /// Everything that has the same index in dimension `axis`.
    PerAxis {
        /// The dimension that is kept; negative counts from the last.
        axis: isize,
    },
    /// `group_size` neighbours in the last dimension.
    PerGroup {
        /// How many.
        group_size: usize,
    },
    /// A row along `dim`.
    PerRow {
        /// The dimension that is reduced; negative counts from the last.
        dim: isize,
    },
    /// A token: the last dimension.
    PerToken,
    /// A block of the last dimensions.
    PerBlock {
        /// Its size; leading dimensions that it lacks count 1.
        block_size: Vec<usize>,
    },
}

impl Granularity {
    /// A row along the last dimension, torchao's `PerRow()`.
    pub const PER_ROW: Granularity = Granularity::PerRow { dim: -1 };

    /// The block size for a tensor of `shape`: as many numbers, each a divisor of its dimension.
    pub fn block_size(&self, shape: &[usize]) -> Result<Vec<usize>> {
        let ones = vec![1; shape.len()];
        let last = shape.last().copied().unwrap_or(1);
        match self {
            Granularity::PerTensor => Ok(shape.to_vec()),
            Granularity::PerAxis { axis } => {
                let mut block = shape.to_vec();
                block[dimension(*axis, shape)?] = 1;
                Ok(block)
            }
            Granularity::PerRow { dim } => {
                let mut block = ones;
                let dim = dimension(*dim, shape)?;
                block[dim] = shape[dim];
                Ok(block)
            }
            Granularity::PerToken => Ok(with_last(ones, last)),
            Granularity::PerGroup { group_size } => {
                check_group_size(last, *group_size)?;
                Ok(with_last(ones, *group_size))
            }
            Granularity::PerBlock { block_size } => padded(block_size, shape),
        }
    }
}

fn with_last(mut block: Vec<usize>, last: usize) -> Vec<usize> {
    if let Some(slot) = block.last_mut() {
        *slot = last;
    }
    block
}

/// A block size of fewer dimensions than the tensor counts 1 in the leading ones.
fn padded(block_size: &[usize], shape: &[usize]) -> Result<Vec<usize>> {
    let missing = shape.len().checked_sub(block_size.len()).ok_or_else(|| {
        Error::invalid(format!("block size {block_size:?} has more dimensions than {shape:?}"))
    })?;
    let block: Vec<usize> = std::iter::repeat_n(1, missing).chain(block_size.to_vec()).collect();
    if shape.iter().zip(&block).any(|(dim, block)| *block == 0 || dim % block != 0) {
        return Err(Error::invalid(format!(
            "block size {block_size:?} does not divide the shape {shape:?}"
        )));
    }
    Ok(block)
}

fn dimension(index: isize, shape: &[usize]) -> Result<usize> {
    let rank = isize::try_from(shape.len()).unwrap_or(isize::MAX);
    let from_front = if index < 0 { index + rank } else { index };
    usize::try_from(from_front).ok().filter(|dim| *dim < shape.len()).ok_or_else(|| {
        Error::invalid(format!("dimension {index} of a tensor of shape {shape:?}: there is none"))
    })
}

/// Whether groups of `group_size` cut K evenly; if not, says which ones do.
pub(crate) fn check_group_size(k: usize, group_size: usize) -> Result<()> {
    if group_size > 0 && k.is_multiple_of(group_size) {
        return Ok(());
    }
    // Groups of fewer than 4 need more bits for their scales than for their codes; and a K that no layer has (a file may
    // say anything) is not searched.
    let longest = if k <= 1 << 20 { k } else { 0 };
    let divisors: Vec<String> =
        (4..=longest).filter(|size| k.is_multiple_of(*size)).map(|size| size.to_string()).collect();
    let advice = match divisors.split_last() {
        Some((last, [])) => format!("; use {last}"),
        Some((last, rest)) => format!("; use {} or {last}", rest.join(", ")),
        None => String::new(),
    };
    Err(Error::invalid(format!("K = {k} is not a multiple of group_size {group_size}{advice}")))
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Granularity::PerTensor => f.write_str("per-tensor"),
            Granularity::PerAxis { axis } => write!(f, "per-axis:{axis}"),
            Granularity::PerGroup { group_size } => write!(f, "per-group:{group_size}"),
            Granularity::PerRow { dim: -1 } => f.write_str("per-row"),
            Granularity::PerRow { dim } => write!(f, "per-row:{dim}"),
            Granularity::PerToken => f.write_str("per-token"),
            Granularity::PerBlock { block_size } => {
                let sizes: Vec<String> = block_size.iter().map(usize::to_string).collect();
                write!(f, "per-block:{}", sizes.join("x"))
            }
        }
    }
}

const NAMES: [&str; 6] =
    ["per-tensor", "per-axis", "per-group", "per-row", "per-token", "per-block"];

impl FromStr for Granularity {
    type Err = Error;

    /// `per-row`, `per-tensor`, `per-group:32`, `per-axis:0`, `per-block:1x128`.
    fn from_str(word: &str) -> Result<Granularity> {
        let (name, argument) = match word.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (word, None),
        };
        let number = |what: &str| {
            argument.and_then(|text| text.parse::<usize>().ok()).filter(|n| *n > 0).ok_or_else(
                || Error::usage(format!("{word}: wanted {name}:{what}, as in {name}:32")),
            )
        };
        let signed = |text: &str| {
            text.parse().map_err(|_| Error::usage(format!("{word}: {text:?} is no dimension")))
        };
        match name {
            "per-tensor" if argument.is_none() => Ok(Granularity::PerTensor),
            "per-token" if argument.is_none() => Ok(Granularity::PerToken),
            "per-row" => Ok(Granularity::PerRow { dim: argument.map_or(Ok(-1), signed)? }),
            "per-axis" => Ok(Granularity::PerAxis { axis: signed(argument.unwrap_or("0"))? }),
            "per-group" => Ok(Granularity::PerGroup { group_size: number("SIZE")? }),
            "per-block" => {
                let sizes: Option<Vec<usize>> =
                    argument.unwrap_or("").split('x').map(|size| size.parse().ok()).collect();
                let block_size = sizes.filter(|sizes| !sizes.contains(&0)).ok_or_else(|| {
                    Error::usage(format!("{word}: wanted per-block:ROWSxCOLUMNS, as in 1x128"))
                })?;
                Ok(Granularity::PerBlock { block_size })
            }
            _ => {
                let hint = did_you_mean(name, NAMES)
                    .map(|name| format!("; did you mean {name}?"))
                    .unwrap_or_default();
                Err(Error::usage(format!(
                    "{word}: no such granularity; wanted per-row, per-tensor or per-group:SIZE{hint}"
                )))
            }
        }
    }
}

/// torchao's form: a nested dataclass, `{"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}`.
impl Serialize for Granularity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, data) = match self {
            Granularity::PerTensor => ("PerTensor", json!({})),
            Granularity::PerAxis { axis } => ("PerAxis", json!({ "axis": axis })),
            Granularity::PerGroup { group_size } => {
                ("PerGroup", json!({ "group_size": group_size }))
            }
            Granularity::PerRow { dim } => ("PerRow", json!({ "dim": dim })),
            Granularity::PerToken => ("PerToken", json!({})),
            Granularity::PerBlock { block_size } => {
                ("PerBlock", json!({ "block_size": block_size }))
            }
        };
        json!({ "_type": name, "_version": 1, "_data": data }).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Granularity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Granularity, D::Error> {
        let json = Json::deserialize(deserializer)?;
        from_json(&json).map_err(serde::de::Error::custom)
    }
}

const TYPES: [&str; 6] = ["PerTensor", "PerAxis", "PerGroup", "PerRow", "PerToken", "PerBlock"];

fn from_json(json: &Json) -> Result<Granularity> {
    let typed = Typed::of(json, "a granularity")?;
    typed.check_version(1)?;
    let fields: &[&str] = match typed.name {
        "PerTensor" | "PerToken" => &[],
        "PerAxis" => &["axis"],
        "PerGroup" => &["group_size"],
        "PerRow" => &["dim"],
        "PerBlock" => &["block_size"],
        other => return Err(typed.unknown_type(other, &TYPES)),
    };
    let data = typed.object()?;
    if let Some(key) = data.keys().find(|key| !fields.contains(&key.as_str())) {
        return Err(unknown_field(typed.name, key, fields));
    }
    let wanted = |what: &str| {
        let field = fields.first().copied().unwrap_or_default();
        let got = data.get(field).map_or("nothing".to_owned(), Json::to_string);
        Error::invalid(format!("{}: {field} is {got}; wanted {what}", typed.name))
    };
    let size = |json: &Json| json.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    let signed =
        |field: &str| data.get(field).and_then(Json::as_i64).and_then(|n| isize::try_from(n).ok());
    match typed.name {
        "PerTensor" => Ok(Granularity::PerTensor),
        "PerToken" => Ok(Granularity::PerToken),
        "PerAxis" => {
            let axis = signed("axis").ok_or_else(|| wanted("a dimension"))?;
            Ok(Granularity::PerAxis { axis })
        }
        "PerRow" if data.is_empty() => Ok(Granularity::PER_ROW),
        "PerRow" => {
            let dim = signed("dim").ok_or_else(|| wanted("a dimension"))?;
            Ok(Granularity::PerRow { dim })
        }
        "PerGroup" => {
            let group_size = data.get("group_size").and_then(size);
            let group_size = group_size.ok_or_else(|| wanted("a positive number"))?;
            Ok(Granularity::PerGroup { group_size })
        }
        _ => {
            let sizes = data.get("block_size").and_then(Json::as_array);
            let sizes = sizes.and_then(|sizes| sizes.iter().map(size).collect());
            let block_size = sizes.ok_or_else(|| wanted("a list of positive numbers"))?;
            Ok(Granularity::PerBlock { block_size })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_granularity_lowers_to_one_block_size() {
        let shape = [4, 6, 32];
        for (word, block) in [
            ("per-tensor", [4, 6, 32]),
            ("per-axis:0", [1, 6, 32]),
            ("per-axis:-2", [4, 1, 32]),
            ("per-row", [1, 1, 32]),
            ("per-row:1", [1, 6, 1]),
            ("per-token", [1, 1, 32]),
            ("per-group:8", [1, 1, 8]),
            ("per-block:3x16", [1, 3, 16]),
        ] {
            let granularity: Granularity = word.parse().expect(word);
            assert_eq!(granularity.block_size(&shape).expect(word), block, "{word}");
            assert_eq!(granularity.to_string(), word);
            let json = serde_json::to_value(&granularity).expect("serializes");
            let back: Granularity = serde_json::from_value(json).expect("reads back");
            assert_eq!(back, granularity, "{word}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error_in_words() {
        let message = |granularity: &str, shape: &[usize]| {
            let granularity: Granularity = granularity.parse().expect(granularity);
            granularity.block_size(shape).expect_err("does not fit").to_string()
        };
        assert_eq!(
            message("per-group:32", &[3, 100]),
            "K = 100 is not a multiple of group_size 32; use 4, 5, 10, 20, 25, 50 or 100"
        );
        assert_eq!(
            message("per-group:32", &[3, 5]),
            "K = 5 is not a multiple of group_size 32; use 5"
        );
        assert!(message("per-block:3x5", &[4, 10]).contains("does not divide"));
        assert!(message("per-block:2x5x5", &[4, 10]).contains("more dimensions"));
        assert!(message("per-axis:2", &[4, 10]).contains("there is none"));
        assert!(message("per-row:-3", &[4, 10]).contains("there is none"));
        for (word, hint) in [("per-rwo", "per-row"), ("per-group", "per-group:32"), ("x", "wanted")]
        {
            let error = word.parse::<Granularity>().expect_err(word).to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
