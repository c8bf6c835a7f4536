//! Other programs' layouts of quantized weights: written from ours, and read back into ours.
//!
//! A layout holds the same codes and scales under other names, shapes and nibbles; what cannot be told in it one to one is an error.
//!
//! - `torchao`: the flattened state dict of torchao's safetensors support (I02).
//! - `compressed`: compressed-tensors, which vLLM and llm-compressor read.

pub(crate) mod compressed;
pub(crate) mod torchao;

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value as Json, json};

use super::primitives::{push_stream, read_stream};
use crate::error::{Error, Result};
use crate::io::{Flat, Layout as FileLayout};
use crate::model::Weight;
use crate::tensor::Tensor;

/// How a folder keeps quantized weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// This program's own: every format, to the bit.
    #[default]
    Aolab,
    /// torchao's.
    Torchao,
    /// compressed-tensors'.
    CompressedTensors,
}

const LAYOUTS: [(&str, Layout); 3] = [
    ("aolab", Layout::Aolab),
    ("torchao", Layout::Torchao),
    ("compressed-tensors", Layout::CompressedTensors),
];

impl Layout {
    /// How the files of the layout are made; none for our own.
    pub fn of_files(self) -> Option<FileLayout> {
        match self {
            Layout::Aolab => None,
            Layout::Torchao => Some(FileLayout {
                separator: "._weight_",
                flatten: torchao::flatten,
                config: |_, _| Ok(json!({ "quant_method": "torchao" })),
                in_metadata: true,
            }),
            Layout::CompressedTensors => Some(FileLayout {
                separator: ".",
                flatten: compressed::flatten,
                config: compressed::config,
                in_metadata: false,
            }),
        }
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(word: &str) -> Result<Layout> {
        LAYOUTS.iter().find(|(name, _)| *name == word).map(|(_, layout)| *layout).ok_or_else(|| {
            Error::usage(format!(
                "{word} is no layout; wanted aolab, torchao or compressed-tensors"
            ))
        })
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LAYOUTS.iter().find(|(_, layout)| layout == self).map_or("", |(name, _)| name))
    }
}

/// A weight's own description and tensors, taken apart.
struct Ours {
    kind: String,
    data: Map<String, Json>,
    tensors: Vec<(String, Tensor)>,
    shape: (usize, usize),
}

impl Ours {
    fn of(weight: &dyn Weight, layout: &str) -> Result<Ours> {
        let meta = weight.meta();
        let kind = meta["_type"].as_str().unwrap_or_default().to_owned();
        match &meta["_data"] {
            Json::Object(data) if !kind.is_empty() => Ok(Ours {
                kind,
                data: data.clone(),
                tensors: weight.tensors(),
                shape: weight.shape(),
            }),
            _ => Err(none_in(layout, &weight.workflow())),
        }
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        let found = self.tensors.iter().find(|(known, _)| known == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| Error::invalid(format!("there is no {name}")))
    }

    fn field(&self, name: &str) -> Json {
        self.data.get(name).cloned().unwrap_or(Json::Null)
    }
}

/// A format that a layout has no word for.
fn none_in(layout: &str, workflow: &str) -> Error {
    Error::invalid(format!(
        "{layout} has no layout for {workflow}; save it without --layout, or as NAME.gguf if it is one of llama.cpp's types"
    ))
}

/// Rows of codes of `bits` bits, one a byte.
fn unpacked(stream: &Tensor, bits: u32, (n, k): (usize, usize)) -> Result<Vec<u8>> {
    let bytes = stream.as_slice::<u8>()?;
    let row = bytes.len().checked_div(n).unwrap_or(0);
    let mut codes = vec![0; n * k];
    for (bytes, codes) in bytes.chunks_exact(row.max(1)).zip(codes.chunks_exact_mut(k.max(1))) {
        read_stream(bytes, bits, codes);
    }
    Ok(codes)
}

/// The inverse: `(N, bytes of a row)`.
fn packed(codes: &[u8], bits: u32, (n, k): (usize, usize)) -> Result<Tensor> {
    let mut stream = Vec::new();
    codes.chunks_exact(k.max(1)).for_each(|row| push_stream(row, bits, &mut stream));
    let row = stream.len().checked_div(n).unwrap_or(0);
    Tensor::new(stream, &[n, row])
}

/// Signed codes as stored ones, which begin at 0, and refuses those of more bits.
fn biased(codes: &[i8], bits: u32) -> Result<Vec<u8>> {
    let half = 1_i16 << (bits - 1);
    let stored = |code: &i8| u8::try_from(i16::from(*code) + half).ok();
    let in_range = |code: &u8| i16::from(*code) < 2 * half;
    let found: Option<Vec<u8>> = codes.iter().map(|c| stored(c).filter(in_range)).collect();
    found.ok_or_else(|| Error::invalid(format!("a code does not fit {bits} bits")))
}

/// Stored codes as signed ones.
fn signed(codes: &[u8], bits: u32) -> Vec<i8> {
    let half = 1_u8 << (bits - 1);
    codes.iter().map(|code| code.wrapping_sub(half).cast_signed()).collect()
}

/// The matrix with rows and columns exchanged.
fn transposed(matrix: &Tensor) -> Result<Tensor> {
    let (n, k) = matrix.dims2()?;
    let size = matrix.dtype().size();
    let bytes = matrix.bytes();
    let mut turned = Vec::with_capacity(bytes.len());
    for column in 0..k {
        for row in 0..n {
            turned.extend_from_slice(&bytes[(row * k + column) * size..][..size]);
        }
    }
    Tensor::new(turned, &[matrix.nbytes()])?.view_as(matrix.dtype(), &[k, n])
}

/// `int4` of torch's JSON of a dtype, as a number of bits.
fn bits_of(dtype: &Json) -> Result<u32> {
    let word = dtype["_data"].as_str().unwrap_or_default();
    let bits = word.strip_prefix("int").and_then(|bits| bits.parse().ok());
    bits.filter(|bits| (1..=8).contains(bits))
        .ok_or_else(|| Error::invalid(format!("{dtype} is no type of int1 to int8")))
}

/// A flattened weight of tensors in their own dtypes.
fn flat(meta: Json, tensors: Vec<(&str, Tensor)>) -> Flat {
    let tensors = tensors.into_iter().map(|(name, t)| (name.to_owned(), t, None)).collect();
    Flat { meta, tensors }
}
