//! The values of GGUF metadata.

use std::ops::Range;

/// The type of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    pub(super) fn from_id(id: u32) -> Result<Kind, String> {
        const ALL: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::Text,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        let kind = usize::try_from(id).ok().and_then(|id| ALL.get(id).copied());
        kind.ok_or_else(|| format!("metadata type {id} is unknown; wanted 0 to 12"))
    }

    /// The bytes of a value; of a text, those of its length.
    pub(super) fn min_size(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::Text | Kind::U64 | Kind::I64 | Kind::F64 => 8,
            Kind::Array => 12,
        }
    }
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Uint(u64),
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// Where the elements of an array lie in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub(super) kind: Kind,
    pub(super) len: usize,
    pub(super) range: Range<usize>,
}

impl Value {
    pub(super) fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Uint(value) => Some(*value),
            Value::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Uint(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Bool(value) => value.to_string(),
            Value::Text(value) => format!("{:?}", value.chars().take(40).collect::<String>()),
            Value::Array(array) => format!("an array of {} values", array.len),
        }
    }
}
