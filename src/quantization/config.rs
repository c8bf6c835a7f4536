//! Configurations as data, in exactly torchao's JSON (A16): `{"_type": …, "_version": …, "_data": {…}}`.
//!
//! Enumerations are `{"_type": "MappingType", "_data": "SYMMETRIC"}`, dtypes
//! `{"_type": "torch.dtype", "_data": "int8"}`, granularities nested dataclasses. What torchao 0.18 writes
//! is read, and what we write it reads. A missing field takes its default, as in Python; an unknown type,
//! version or field is an error that says what was meant, where torchao warns or guesses.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::{FqnToConfig, Recipe, WORKFLOWS};
use crate::error::{Error, Result, did_you_mean};
use crate::sparsity::SPARSIFIERS;
use crate::tensor::DType;

/// The configuration as torchao's `config_to_dict` writes it.
pub fn config_to_dict(config: &dyn Recipe) -> Json {
    config.config_to_dict()
}

/// The configuration that torchao's `config_to_dict`, or ours, wrote.
pub fn config_from_dict(json: &Json) -> Result<Arc<dyn Recipe>> {
    let typed = Typed::of(json, "a configuration")?;
    if matches!(typed.name, "FqnToConfig" | "ModuleFqnToConfig") {
        return Ok(Arc::new(FqnToConfig::from_typed(&typed)?));
    }
    if let Some(sparsifier) = SPARSIFIERS.iter().find(|one| one.config_type == typed.name) {
        return (sparsifier.config_from_dict)(&typed);
    }
    match WORKFLOWS.iter().find(|workflow| workflow.config_type == typed.name) {
        Some(workflow) => (workflow.config_from_dict)(&typed),
        None => {
            let mut known: Vec<&str> = WORKFLOWS.iter().map(|w| w.config_type).collect();
            known.extend(SPARSIFIERS.iter().map(|one| one.config_type));
            known.push("FqnToConfig");
            Err(typed.unknown_type(typed.name, &known))
        }
    }
}

/// A JSON object with `_type` and `_data`, and perhaps `_version`.
#[derive(Debug)]
pub struct Typed<'a> {
    /// The class.
    pub name: &'a str,
    version: Option<&'a Json>,
    data: &'a Json,
    what: &'a str,
}

impl<'a> Typed<'a> {
    /// The parts of `json`, which ought to be `what`.
    pub fn of(json: &'a Json, what: &'a str) -> Result<Typed<'a>> {
        let object = json.as_object().ok_or_else(|| {
            Error::invalid(format!("{what} is {json}; wanted an object with _type and _data"))
        })?;
        let keys = ["_type", "_version", "_data"];
        if let Some(key) = object.keys().find(|key| !keys.contains(&key.as_str())) {
            return Err(unknown_field(what, key, &keys));
        }
        let name = object.get("_type").and_then(Json::as_str).ok_or_else(|| {
            Error::invalid(format!("{what} has no _type; wanted the name of its class"))
        })?;
        let data = object
            .get("_data")
            .ok_or_else(|| Error::invalid(format!("{name} has no _data; wanted its fields")))?;
        Ok(Typed { name, version: object.get("_version"), data, what })
    }

    /// The fields.
    pub fn object(&self) -> Result<&'a Map<String, Json>> {
        self.data.as_object().ok_or_else(|| {
            Error::invalid(format!("{}: _data is {}; wanted its fields", self.name, self.data))
        })
    }

    /// The name that `_data` is.
    pub fn text(&self) -> Result<&'a str> {
        self.data.as_str().ok_or_else(|| {
            Error::invalid(format!("{}: _data is {}; wanted a name", self.name, self.data))
        })
    }

    /// The fields, none of which may be another than `known`.
    pub(crate) fn known_fields(&self, known: &[&str]) -> Result<&'a Map<String, Json>> {
        let data = self.object()?;
        match data.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(unknown_field(self.name, key, known)),
            None => Ok(data),
        }
    }

    /// The field `name`, or what it is where it is missing.
    pub(crate) fn field<T: DeserializeOwned>(&self, name: &str, missing: T) -> Result<T> {
        match self.object()?.get(name) {
            None => Ok(missing),
            Some(value) => serde_json::from_value(value.clone()).map_err(|error| {
                Error::invalid(format!("{}: {name} is {value}: {error}", self.name))
            }),
        }
    }

    /// The recipe in the field `base_config`.
    pub(crate) fn base_config(&self) -> Result<Arc<dyn Recipe>> {
        let base = self.object()?.get("base_config").ok_or_else(|| {
            let name = self.name;
            Error::invalid(format!("{name} has no base_config; wanted a configuration"))
        })?;
        config_from_dict(base)
    }

    /// Refuses every version but `wanted`. None stands for torchao's default, 1.
    pub fn check_version(&self, wanted: u64) -> Result<()> {
        let got = self.version.unwrap_or(&Json::Null);
        if got.as_u64() == Some(wanted) || (got.is_null() && wanted == 1) {
            return Ok(());
        }
        let got = if got.is_null() { &json!(1) } else { got };
        let name = self.name;
        Err(Error::invalid(format!("{name}: version {got} is not supported; wanted {wanted}")))
    }

    /// The error for a class that is not among `known`.
    pub fn unknown_type(&self, got: &str, known: &[&str]) -> Error {
        let hint = hint(got, known);
        Error::invalid(format!("{got} is not {}; known are {}{hint}", self.what, known.join(", ")))
    }

    /// The fields as a `T` of `version`. Fields that are missing take their default.
    pub fn read<T: DeserializeOwned + Serialize + Default>(&self, version: u64) -> Result<T> {
        self.check_version(version)?;
        let data = self.object()?;
        let defaults = serde_json::to_value(T::default()).unwrap_or_default();
        let known: Vec<&str> =
            defaults.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
        if let Some(key) = data.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(unknown_field(self.name, key, &known));
        }
        // One field at a time first, so that the message names the one that is wrong.
        for (key, value) in data {
            serde_json::from_value::<T>(json!({ key: value })).map_err(|error| {
                Error::invalid(format!("{}: {key} is {value}: {error}", self.name))
            })?;
        }
        serde_json::from_value(self.data.clone())
            .map_err(|error| Error::invalid(format!("{}: {error}", self.name)))
    }
}

/// `{"_type": name, "_version": version, "_data": the fields of config}`.
pub(crate) fn to_dict(name: &str, version: u64, config: &impl Serialize) -> Json {
    // Fields are numbers, words and nested dicts; nothing of that can fail to become JSON.
    let data = serde_json::to_value(config).unwrap_or_default();
    json!({ "_type": name, "_version": version, "_data": data })
}

/// `Int4WeightOnlyConfig has no field gruop_size; … did you mean group_size?`
pub(crate) fn unknown_field(name: &str, key: &str, known: &[&str]) -> Error {
    let hint = hint(key, known);
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Error::invalid(format!("{name} has no field {key}; its fields are {known}{hint}"))
}

fn hint(word: &str, known: &[&str]) -> String {
    did_you_mean(word, known.iter().copied())
        .map(|meant| format!("; did you mean {meant}?"))
        .unwrap_or_default()
}

/// `{"_type": type, "_data": "PLAIN"}`.
pub(crate) fn enum_to_json<T: PartialEq>(name: &str, value: &T, names: &[(&str, T)]) -> Json {
    let word = names.iter().find(|(_, candidate)| candidate == value).map(|(word, _)| *word);
    json!({ "_type": name, "_data": word })
}

/// The value of `{"_type": type, "_data": "PLAIN"}`, or of the plain word `"plain"`, which torchao keeps if given.
pub(crate) fn enum_from_json<T: Copy>(json: &Json, name: &str, names: &[(&str, T)]) -> Result<T> {
    if let Some(word) = json.as_str() {
        return enum_from_word(word, name, names);
    }
    let typed = Typed::of(json, name)?;
    if typed.name != name {
        return Err(typed.unknown_type(typed.name, &[name]));
    }
    let word = typed
        .data
        .as_str()
        .ok_or_else(|| Error::invalid(format!("{name}: _data is {}; wanted a name", typed.data)))?;
    enum_from_word(word, name, names)
}

/// The value called `word`, in any case and with `-` or `_`.
pub(crate) fn enum_from_word<T: Copy>(word: &str, name: &str, names: &[(&str, T)]) -> Result<T> {
    let spelled = word.to_ascii_uppercase().replace('-', "_");
    names.iter().find(|(known, _)| *known == spelled).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<String> =
            names.iter().map(|(known, _)| known.to_ascii_lowercase().replace('_', "-")).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let hint = hint(&spelled.to_ascii_lowercase().replace('_', "-"), &known);
        Error::usage(format!("{word} is not {name}; wanted {}{hint}", known.join(" or ")))
    })
}

/// `Option<DType>` as torchao's JSON has it: `null`, or `{"_type": "torch.dtype", "_data": "bfloat16"}`.
pub(crate) mod optional_dtype {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::Value as Json;

    use crate::tensor::DType;

    #[expect(clippy::ref_option, reason = "serde's `with` calls it so")]
    pub(crate) fn serialize<S: Serializer>(
        dtype: &Option<DType>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        dtype.map(super::dtype_to_dict).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<DType>, D::Error> {
        match Json::deserialize(deserializer)? {
            Json::Null => Ok(None),
            json => super::dtype_from_dict(&json).map(Some).map_err(serde::de::Error::custom),
        }
    }
}

/// The float dtype that a person calls `f32`, `float32`, `bf16`, `bfloat16`, `f16` or `float16`.
pub(crate) fn float_dtype_from_word(word: &str) -> Result<DType> {
    match word {
        "f32" | "float32" => Ok(DType::F32),
        "bf16" | "bfloat16" => Ok(DType::BF16),
        "f16" | "float16" => Ok(DType::F16),
        _ => Err(Error::usage(format!("{word} is no float dtype; wanted f32, bf16 or f16"))),
    }
}

/// Words of a configuration: lists the variants of an enumeration and torchao's names for them, from which its
/// JSON, its options and its display come.
macro_rules! words {
    (
        $(#[$doc:meta])* $name:ident $what:literal {
            $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            const WORDS: &[(&'static str, $name)] = &[$(($word, $name::$variant)),+];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let word = Self::WORDS.iter().find(|(_, value)| value == self);
                let word = word.map_or("", |(word, _)| word);
                f.pad(&word.to_ascii_lowercase().replace('_', "-"))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::error::Error;

            fn from_str(word: &str) -> $crate::error::Result<$name> {
                $crate::quantization::config::enum_from_word(word, $what, Self::WORDS)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let json = $crate::quantization::config::enum_to_json(
                    stringify!($name), self, Self::WORDS,
                );
                json.serialize(to)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let json = serde_json::Value::deserialize(from)?;
                $crate::quantization::config::enum_from_json(
                    &json, stringify!($name), Self::WORDS,
                )
                .map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use words;

const DTYPES: [(&str, DType); 9] = [
    ("float64", DType::F64),
    ("float32", DType::F32),
    ("float16", DType::F16),
    ("bfloat16", DType::BF16),
    ("int64", DType::I64),
    ("int32", DType::I32),
    ("int16", DType::I16),
    ("int8", DType::I8),
    ("uint8", DType::U8),
];

/// `{"_type": "torch.dtype", "_data": "bfloat16"}`.
pub fn dtype_to_dict(dtype: DType) -> Json {
    enum_to_json("torch.dtype", &dtype, &DTYPES)
}

/// The dtype of `{"_type": "torch.dtype", "_data": "bfloat16"}`.
pub fn dtype_from_dict(json: &Json) -> Result<DType> {
    let typed = Typed::of(json, "a dtype")?;
    if typed.name != "torch.dtype" {
        return Err(typed.unknown_type(typed.name, &["torch.dtype"]));
    }
    let word = typed.data.as_str().unwrap_or_default();
    let known: Vec<&str> = DTYPES.iter().map(|(name, _)| *name).collect();
    DTYPES.iter().find(|(name, _)| *name == word).map(|(_, dtype)| *dtype).ok_or_else(|| {
        let hint = hint(word, &known);
        Error::invalid(format!("torch.dtype {}; known are {}{hint}", typed.data, known.join(", ")))
    })
}
