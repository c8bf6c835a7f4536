//! What a layer's inputs and results are rounded to: torchao's `IntQuantizer` for activations (P16), asymmetric.
//!
//! `scale = (max − min) / (2ᵇ − 1)`, `offset = clamp(round(−min / scale))`, `x ≈ (clamp(round(x / scale) + offset) − offset) · scale`, codes
//! 0 ..= 2ᵇ − 1: of each token, of neighbours in it, or of all that comes at once. Unlike the ranges of other formats these need not
//! hold 0. A group whose numbers are all 0 stays so, where torchao divides 0 by 0.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::range::{at_least, clamp, extremes};
use crate::error::{Error, Result};

/// Which activations share a scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ActivationGroups {
    /// Those of a token.
    #[default]
    PerToken,
    /// All that come at once.
    PerTensor,
    /// So many neighbours in a token.
    Size(usize),
}

impl FromStr for ActivationGroups {
    type Err = Error;

    fn from_str(word: &str) -> Result<ActivationGroups> {
        match word.replace('_', "-").as_str() {
            "per-token" => Ok(ActivationGroups::PerToken),
            "per-tensor" => Ok(ActivationGroups::PerTensor),
            other => match other.parse() {
                Ok(size) if size > 0 => Ok(ActivationGroups::Size(size)),
                _ => Err(Error::usage(format!(
                    "activation_group_size is {word}; wanted per-token, per-tensor or a number"
                ))),
            },
        }
    }
}

impl fmt::Display for ActivationGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ActivationGroups::PerToken => f.write_str("per-token"),
            ActivationGroups::PerTensor => f.write_str("per-tensor"),
            ActivationGroups::Size(size) => write!(f, "{size}"),
        }
    }
}

impl From<ActivationGroups> for String {
    fn from(groups: ActivationGroups) -> String {
        groups.to_string()
    }
}

impl TryFrom<String> for ActivationGroups {
    type Error = Error;

    fn try_from(word: String) -> Result<ActivationGroups> {
        word.parse()
    }
}

/// How activations are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rounding {
    pub(super) bits: u32,
    pub(super) groups: ActivationGroups,
    /// The smallest and the largest number that a text gave; `None` looks at every call's own.
    pub(super) range: Option<(f32, f32)>,
}

impl Rounding {
    pub(super) fn check(&self, width: usize) -> Result<()> {
        if !(2..=16).contains(&self.bits) {
            return Err(Error::invalid(format!(
                "activation_bits is {}; wanted 2 to 16",
                self.bits
            )));
        }
        if self.range.is_some_and(|(min, max)| !(min <= max && (max - min).is_finite())) {
            return Err(Error::invalid("the range of activations is none: wanted min ≤ max"));
        }
        match self.groups {
            ActivationGroups::Size(size) if size == 0 || !width.is_multiple_of(size) => {
                Err(Error::invalid(format!(
                    "activation_group_size {size} does not divide {width}; use per-token"
                )))
            }
            _ => Ok(()),
        }
    }

    /// `values`, rows of `width`, rounded where they are.
    pub(super) fn round(&self, values: &mut [f32], width: usize) {
        if let Some(range) = self.range {
            return self.round_group(values, range);
        }
        let group = match self.groups {
            ActivationGroups::PerToken => width,
            ActivationGroups::PerTensor => values.len(),
            ActivationGroups::Size(size) => size,
        };
        for group in values.chunks_mut(group.max(1)) {
            self.round_group(group, extremes(group));
        }
    }

    fn round_group(&self, values: &mut [f32], (min, max): (f32, f32)) {
        #[expect(clippy::cast_precision_loss, reason = "at most 2¹⁶")]
        let bounds = (0.0, ((1_u32 << self.bits) - 1) as f32);
        let scale = at_least((max - min) / bounds.1);
        let offset = clamp((-min / scale).round_ties_even(), bounds);
        for value in values {
            let code = clamp((*value / scale).round_ties_even() + offset, bounds);
            *value = (code - offset) * scale;
        }
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            None => write!(f, "{} bits {}", self.bits, self.groups),
            Some((min, max)) => write!(f, "{} bits of {min} to {max}", self.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (bits, groups, range, values, wanted), worked out by hand from the formula above.
    type Case = (u32, ActivationGroups, Option<(f32, f32)>, Vec<f32>, Vec<f32>);

    #[test]
    fn activations_are_rounded_between_their_extremes() {
        let cases: Vec<Case> = vec![
            // Scale 1, offset 0: ties to even.
            (
                2,
                ActivationGroups::PerToken,
                None,
                vec![0.0, 0.5, 1.5, 3.0],
                vec![0.0, 0.0, 2.0, 3.0],
            ),
            // Scale 1, offset 1.
            (
                2,
                ActivationGroups::PerToken,
                None,
                vec![-1.0, 0.4, 1.6, 2.0],
                vec![-1.0, 0.0, 2.0, 2.0],
            ),
            // Two tokens of two numbers: each its own; a tensor: shared.
            (
                2,
                ActivationGroups::Size(2),
                None,
                vec![0.0, 3.0, 0.0, 30.0],
                vec![0.0, 3.0, 0.0, 30.0],
            ),
            (
                2,
                ActivationGroups::PerTensor,
                None,
                vec![0.0, 3.0, 0.0, 30.0],
                vec![0.0, 0.0, 0.0, 30.0],
            ),
            // A range of a text clamps what is beyond it.
            (
                2,
                ActivationGroups::PerTensor,
                Some((0.0, 3.0)),
                vec![-5.0, 9.0, 1.1, 2.9],
                vec![0.0, 3.0, 1.0, 3.0],
            ),
            // All alike: 0 stays 0.
            (8, ActivationGroups::PerToken, None, vec![0.0; 4], vec![0.0; 4]),
        ];
        for (bits, groups, range, mut values, wanted) in cases {
            let rounding = Rounding { bits, groups, range };
            rounding.check(4).expect("sound");
            rounding.round(&mut values, 4);
            assert_eq!(values, wanted, "{rounding}");
        }
        let mut values = vec![1.0, f32::NAN, 2.0, 3.0];
        Rounding { bits: 8, groups: ActivationGroups::PerToken, range: None }.round(&mut values, 4);
        assert!(values.iter().all(|v| v.is_nan()), "{values:?}");
    }

    #[test]
    fn senseless_roundings_are_refused() {
        let sound = Rounding { bits: 8, groups: ActivationGroups::PerToken, range: None };
        for (rounding, words) in [
            (Rounding { bits: 1, ..sound }, "2 to 16"),
            (Rounding { groups: ActivationGroups::Size(3), ..sound }, "does not divide 4"),
            (Rounding { range: Some((1.0, 0.0)), ..sound }, "min ≤ max"),
            (Rounding { range: Some((0.0, f32::INFINITY)), ..sound }, "min ≤ max"),
        ] {
            let error = rounding.check(4).expect_err("is refused").to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!("0".parse::<ActivationGroups>().is_err());
        assert_eq!(
            "per_tensor".parse::<ActivationGroups>().ok(),
            Some(ActivationGroups::PerTensor)
        );
    }
}
