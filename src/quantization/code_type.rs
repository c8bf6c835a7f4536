//! `int1` … `int8` and `uint1` … `uint8`: the types of codes, as torch spells them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::config::Typed;
use super::primitives::{CodeRange, IntType};
use crate::error::{Error, Result, did_you_mean};

/// A type of 1 to 8 bits; in JSON `{"_type": "torch.dtype", "_data": "int4"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeType {
    bits: u32,
    signed: bool,
}

impl CodeType {
    /// `int1` … `int8`.
    pub const fn int(bits: u32) -> CodeType {
        CodeType { bits, signed: true }
    }

    /// `uint1` … `uint8`.
    pub const fn uint(bits: u32) -> CodeType {
        CodeType { bits, signed: false }
    }

    /// How many bits a code has.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Whether codes may be negative.
    pub fn is_signed(self) -> bool {
        self.signed
    }

    /// The codes from the lowest to the highest (N01).
    pub fn range(self) -> Result<CodeRange> {
        let kind = if self.signed { IntType::Int(self.bits) } else { IntType::UInt(self.bits) };
        CodeRange::full(kind)
    }

    /// What an unsigned stored code exceeds its number by: half the range, or nothing.
    pub fn bias(self) -> i16 {
        if self.signed { 1 << (self.bits - 1) } else { 0 }
    }

    /// Refuses a type of the other sign.
    pub(crate) fn check_signed(self, field: &str, signed: bool) -> Result<()> {
        if self.signed == signed {
            return Ok(());
        }
        let wanted = if signed { "int1 to int8" } else { "uint1 to uint8" };
        Err(Error::invalid(format!("{field} is {self}; wanted {wanted}")))
    }
}

impl fmt::Display for CodeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}int{}", if self.signed { "" } else { "u" }, self.bits)
    }
}

impl FromStr for CodeType {
    type Err = Error;

    fn from_str(word: &str) -> Result<CodeType> {
        let (signed, digits) = match (word.strip_prefix("uint"), word.strip_prefix("int")) {
            (Some(digits), _) => (false, digits),
            (None, Some(digits)) => (true, digits),
            (None, None) => (true, ""),
        };
        let bits = digits.parse().ok().filter(|bits| (1..=8).contains(bits));
        bits.map(|bits| CodeType { bits, signed }).ok_or_else(|| {
            let known: Vec<String> =
                (1..=8).flat_map(|bits| [format!("int{bits}"), format!("uint{bits}")]).collect();
            let hint = did_you_mean(word, known.iter().map(String::as_str))
                .map(|meant| format!("; did you mean {meant}?"))
                .unwrap_or_default();
            Error::usage(format!(
                "{word} is not a type of codes; wanted int1 to int8 or uint1 to uint8{hint}"
            ))
        })
    }
}

impl Serialize for CodeType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json!({ "_type": "torch.dtype", "_data": self.to_string() }).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CodeType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CodeType, D::Error> {
        let json = Json::deserialize(deserializer)?;
        read(&json).map_err(serde::de::Error::custom)
    }
}

fn read(json: &Json) -> Result<CodeType> {
    let typed = Typed::of(json, "a dtype")?;
    if typed.name != "torch.dtype" {
        return Err(typed.unknown_type(typed.name, &["torch.dtype"]));
    }
    typed.text()?.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read_as_it_is_written() {
        for bits in 1..=8 {
            for code_type in [CodeType::int(bits), CodeType::uint(bits)] {
                let word = code_type.to_string();
                assert_eq!(word.parse::<CodeType>().expect("a type"), code_type);
                let json = serde_json::to_value(code_type).expect("serializes");
                let back: CodeType = serde_json::from_value(json).expect("reads back");
                assert_eq!(back, code_type);
                let range = code_type.range().expect("a range");
                assert_eq!(range.quant_min(), -i32::from(code_type.bias()));
            }
        }
        for word in ["int0", "int9", "uint", "int", "float8", "int-1", "int33", ""] {
            let error = word.parse::<CodeType>().expect_err(word).to_string();
            assert!(error.contains("int1 to int8"), "{error}");
        }
    }
}
