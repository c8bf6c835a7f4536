//! The head of a GGUF file (version 2 and 3), checked before anything is allocated for what it promises.
//!
//! `"GGUF" · u32 version · u64 tensors · u64 keys · keys · tensor infos · padding · data`. The data of each
//! tensor begins at a multiple of the alignment; the tensors do not overlap.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use aolab_kernels::ggml::BlockType;

use super::cursor::Cursor;
use super::value::{Array, Kind, Value};
use crate::error::{Error, Result, did_you_mean};
use crate::io::files;
use crate::tensor::MappedBytes;

/// A tensor of more dimensions does not exist in the format.
const MAX_RANK: u32 = 4;

/// The alignment where the metadata names none.
const DEFAULT_ALIGNMENT: u64 = 32;

/// An open GGUF file.
#[derive(Debug)]
pub(super) struct GgufFile {
    path: PathBuf,
    bytes: MappedBytes,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Where a tensor lies: `range` counts from the beginning of the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorInfo {
    /// The length of each dimension as the file has them: the innermost first.
    pub(super) dims: Vec<usize>,
    pub(super) block_type: BlockType,
    pub(super) range: Range<usize>,
}

impl GgufFile {
    pub(super) fn open(path: &Path) -> Result<GgufFile> {
        let bytes = files::map(path)?;
        let (metadata, tensors) =
            read_head(bytes.bytes()).map_err(|words| Error::file(path, words))?;
        Ok(GgufFile { path: path.to_path_buf(), bytes, metadata, tensors })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    pub(super) fn tensor(&self, name: &str) -> Result<(&TensorInfo, MappedBytes)> {
        let found = self.tensors.get(name);
        let found = found.and_then(|info| Some((info, self.bytes.slice(info.range.clone())?)));
        found.ok_or_else(|| {
            let near = did_you_mean(name, self.tensors.keys().map(String::as_str));
            let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            self.wrong(format!("there is no tensor {name}{hint}"))
        })
    }

    /// An error about this file.
    pub(super) fn wrong(&self, words: impl Into<String>) -> Error {
        Error::file(&self.path, words)
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(super) fn uint(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number", Value::as_u64)
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite floating-point number", |value| {
            value.as_f64().filter(|value| value.is_finite())
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let got = value.describe();
        read(value).map(Some).ok_or_else(|| self.wrong(format!("{key} is {got}; wanted {wanted}")))
    }

    /// The array under `key`, each element read by `element`.
    pub(super) fn array<'a, T>(
        &'a self,
        key: &str,
        kinds: &[Kind],
        element: impl Fn(&mut Cursor<'a>, Kind) -> Result<T, String>,
    ) -> Result<Option<Vec<T>>> {
        let Array { kind, len, range } = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) if kinds.contains(&array.kind) => array,
            Some(other) => {
                let got = other.describe();
                return Err(self.wrong(format!("{key} is {got}; wanted an array of {kinds:?}")));
            }
        };
        let mut cursor = Cursor::new(self.bytes.bytes(), range.start);
        let elements: Result<Vec<T>, String> =
            (0..*len).map(|_| element(&mut cursor, *kind)).collect();
        elements.map(Some).map_err(|words| self.wrong(words))
    }
}

type Head = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

fn read_head(bytes: &[u8]) -> Result<Head, String> {
    let mut cursor = Cursor::new(bytes, 0);
    if cursor.take(4)? != b"GGUF" {
        return Err("it does not begin with \"GGUF\": this is no GGUF file".into());
    }
    match cursor.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => {
            return Err("it is in big-endian byte order, which is not supported".into());
        }
        version => return Err(format!("GGUF version {version} is not supported; wanted 2 or 3")),
    }
    // A tensor info takes 24 bytes and more, a key with its value 14 and more.
    let tensor_count = cursor.count(24, "tensors")?;
    let key_count = cursor.count(14, "metadata keys")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = cursor.name()?;
        let kind = Kind::from_id(cursor.u32()?).map_err(|words| format!("{key}: {words}"))?;
        let value = cursor.value(kind).map_err(|words| format!("{key}: {words}"))?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(format!("the metadata key {key} is there twice"));
        }
    }
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        infos.push(read_info(&mut cursor)?);
    }
    let alignment = alignment(&metadata)?;
    let start = (cursor.position() as u64).next_multiple_of(alignment);
    Ok((metadata, place(infos, start, alignment, bytes.len() as u64)?))
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, String> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    // A page is the most that alignment can be good for; beyond it there is only an overflow to gain.
    let alignment = value.as_u64().filter(|value| value.is_power_of_two() && *value <= 1 << 16);
    alignment.ok_or_else(|| {
        format!("general.alignment is {}; wanted a power of two up to 65536", value.describe())
    })
}

/// A tensor info as the file has it: name, dimensions, type and where the data begins after the head.
type RawInfo = (String, Vec<usize>, BlockType, u64);

fn read_info(cursor: &mut Cursor<'_>) -> Result<RawInfo, String> {
    let name = cursor.name()?;
    let inner = |words: String| format!("tensor {name}: {words}");
    let rank = cursor.u32().map_err(inner)?;
    if !(1..=MAX_RANK).contains(&rank) {
        return Err(inner(format!("{rank} dimensions; wanted 1 to {MAX_RANK}")));
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        let dim = cursor.u64().map_err(inner)?;
        let fits = usize::try_from(dim).ok().filter(|dim| *dim > 0);
        dims.push(fits.ok_or_else(|| inner(format!("a dimension of length {dim}")))?);
    }
    let id = cursor.u32().map_err(inner)?;
    let block_type = BlockType::from_ggml_id(id).ok_or_else(|| {
        let known: Vec<_> = BlockType::ALL.iter().map(|known| known.name()).collect();
        inner(format!(
            "element type {} is not supported; wanted one of {}",
            type_name(id),
            known.join(", ")
        ))
    })?;
    let offset = cursor.u64().map_err(inner)?;
    Ok((name.to_owned(), dims, block_type, offset))
}

/// The names of llama.cpp's other types, so that a person can look for another file of the same model.
fn type_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return id.to_string(),
    };
    name.to_owned()
}

/// Computes where each tensor lies and checks that all are inside of the file, aligned and apart.
fn place(
    infos: Vec<RawInfo>,
    start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<BTreeMap<String, TensorInfo>, String> {
    let mut spans = Vec::with_capacity(infos.len());
    let mut tensors = BTreeMap::new();
    for (name, dims, block_type, offset) in infos {
        let nbytes =
            nbytes(&dims, block_type).map_err(|words| format!("tensor {name}: {words}"))?;
        if !offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor {name}: offset {offset} is not a multiple of the alignment {alignment}"
            ));
        }
        let begin = start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(nbytes)).filter(|end| *end <= file_len);
        let range = begin.zip(end).and_then(|(begin, end)| {
            Some(usize::try_from(begin).ok()?..usize::try_from(end).ok()?)
        });
        let Some(range) = range else {
            return Err(format!(
                "tensor {name}: {nbytes} bytes at offset {offset} reach past the end of the file ({file_len} bytes): it is cut short or damaged"
            ));
        };
        spans.push((range.start, range.end, name.clone()));
        if tensors.insert(name.clone(), TensorInfo { dims, block_type, range }).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(format!("tensors {} and {} overlap", pair[0].2, pair[1].2));
        }
    }
    Ok(tensors)
}

fn nbytes(dims: &[usize], block_type: BlockType) -> Result<u64, String> {
    let (name, block) = (block_type.name(), block_type.block_len());
    if !dims[0].is_multiple_of(block) {
        let got = dims[0];
        return Err(format!("rows of {got} numbers; {name} wants a multiple of {block}"));
    }
    let numel = dims.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim));
    let nbytes = numel.and_then(|numel| block_type.nbytes(numel));
    nbytes.map(|nbytes| nbytes as u64).ok_or_else(|| format!("shape {dims:?} of {name} overflows"))
}
