//! Small float types as words: torchao's JSON names them `torch.dtype`s, or `"fp6_e2m3"` where torch has no such type.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::Float8;
use crate::error::{Error, Result};
use crate::kernels::float_linear::Element;
use crate::quantization::config::Typed;

/// torch's name of each float8 type.
const FLOAT8: [(&str, Float8); 4] = [
    ("float8_e4m3fn", Float8::E4m3fn),
    ("float8_e5m2", Float8::E5m2),
    ("float8_e4m3fnuz", Float8::E4m3fnuz),
    ("float8_e5m2fnuz", Float8::E5m2fnuz),
];

impl fmt::Display for Float8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = FLOAT8.iter().find(|(_, value)| value == self).map_or("", |(name, _)| *name);
        f.pad(name)
    }
}

impl FromStr for Float8 {
    type Err = Error;

    /// `float8_e4m3fn`, or `e4m3` for short.
    fn from_str(word: &str) -> Result<Float8> {
        let full = match word.strip_prefix("float8_").unwrap_or(word) {
            "e4m3" => "e4m3fn",
            other => other,
        };
        let found = FLOAT8.iter().find(|(name, _)| name.strip_prefix("float8_") == Some(full));
        found.map(|(_, value)| *value).ok_or_else(|| {
            Error::usage(format!("{word} is no float8 type; wanted float8_e4m3fn or float8_e5m2"))
        })
    }
}

impl Serialize for Float8 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        json!({ "_type": "torch.dtype", "_data": self.to_string() }).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Float8 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Float8, D::Error> {
        let json = Json::deserialize(from)?;
        torch_dtype(&json).and_then(|name| name.parse()).map_err(serde::de::Error::custom)
    }
}

/// The elements of MX: as torchao has them, and int8 besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MxElement(pub Element);

/// Each element's name, and whether it is a `torch.dtype`.
const ELEMENTS: [(&str, bool, Element); 6] = [
    ("float8_e4m3fn", true, Element::E4m3),
    ("float8_e5m2", true, Element::E5m2),
    ("fp6_e2m3", false, Element::E2m3),
    ("fp6_e3m2", false, Element::E3m2),
    ("float4_e2m1fn_x2", true, Element::E2m1),
    ("int8", true, Element::Int8),
];

/// The short names that commands take besides.
const SHORT: [(&str, Element); 6] = [
    ("e4m3", Element::E4m3),
    ("e5m2", Element::E5m2),
    ("e2m3", Element::E2m3),
    ("e3m2", Element::E3m2),
    ("e2m1", Element::E2m1),
    ("int8", Element::Int8),
];

impl fmt::Display for MxElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(ELEMENTS.iter().find(|(_, _, element)| *element == self.0).map_or("", |e| e.0))
    }
}

impl FromStr for MxElement {
    type Err = Error;

    /// `float8_e4m3fn`, `fp6_e2m3`, `float4_e2m1fn_x2` …, or `e4m3`, `e2m3`, `e2m1` … for short.
    fn from_str(word: &str) -> Result<MxElement> {
        let long = ELEMENTS.iter().find(|(name, ..)| *name == word).map(|(.., element)| *element);
        let short = SHORT.iter().find(|(name, _)| *name == word).map(|(_, element)| *element);
        long.or(short).map(MxElement).ok_or_else(|| {
            let names: Vec<&str> = SHORT.iter().map(|(name, _)| *name).collect();
            Error::usage(format!("{word} is no element of MX; wanted {}", names.join(", ")))
        })
    }
}

impl Serialize for MxElement {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let known = ELEMENTS.iter().find(|(_, _, element)| *element == self.0);
        match known {
            Some((name, false, _)) => name.serialize(to),
            _ => json!({ "_type": "torch.dtype", "_data": self.to_string() }).serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for MxElement {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<MxElement, D::Error> {
        let json = Json::deserialize(from)?;
        let name = match json.as_str() {
            Some(word) => Ok(word.to_owned()),
            None => torch_dtype(&json),
        };
        name.and_then(|name| name.parse()).map_err(serde::de::Error::custom)
    }
}

/// The name in `{"_type": "torch.dtype", "_data": "float8_e4m3fn"}`.
fn torch_dtype(json: &Json) -> Result<String> {
    let typed = Typed::of(json, "a dtype")?;
    if typed.name != "torch.dtype" {
        return Err(typed.unknown_type(typed.name, &["torch.dtype"]));
    }
    match json.get("_data").and_then(Json::as_str) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Error::invalid(format!("torch.dtype: {json}; wanted the name of a type"))),
    }
}
