//! The header of a safetensors file, checked before anything is allocated for what it promises.
//!
//! `u64 length · JSON {"name": {"dtype", "shape", "data_offsets": [begin, end)}, …} · data`. The
//! ranges cover the data without holes or overlaps. Errors are words; the reader adds the file.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::tensor::DType;

/// What the format's own library allows.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor of more dimensions is no parameter of any model.
const MAX_RANK: usize = 8;

/// The type of a stored tensor's elements: one that a [`crate::Tensor`] can hold, or only its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum StoredType {
    Known(DType),
    Unsupported { name: &'static str, bits: usize },
}

impl StoredType {
    fn from_name(name: &str) -> Option<StoredType> {
        let known = |dtype| Some(StoredType::Known(dtype));
        let other = |name, bits| Some(StoredType::Unsupported { name, bits });
        match name {
            "F64" => known(DType::F64),
            "F32" => known(DType::F32),
            "F16" => known(DType::F16),
            "BF16" => known(DType::BF16),
            "I64" => known(DType::I64),
            "I32" => known(DType::I32),
            "I16" => known(DType::I16),
            "I8" => known(DType::I8),
            "U8" => known(DType::U8),
            "BOOL" => other("BOOL", 8),
            "U16" => other("U16", 16),
            "U32" => other("U32", 32),
            "U64" => other("U64", 64),
            "C64" => other("C64", 64),
            "F8_E4M3" => other("F8_E4M3", 8),
            "F8_E5M2" => other("F8_E5M2", 8),
            "F8_E8M0" => other("F8_E8M0", 8),
            "F8_E4M3FNUZ" => other("F8_E4M3FNUZ", 8),
            "F8_E5M2FNUZ" => other("F8_E5M2FNUZ", 8),
            "F6_E2M3" => other("F6_E2M3", 6),
            "F6_E3M2" => other("F6_E3M2", 6),
            "F4" => other("F4", 4),
            _ => None,
        }
    }

    fn bits(self) -> usize {
        match self {
            StoredType::Known(dtype) => 8 * dtype.size(),
            StoredType::Unsupported { bits, .. } => bits,
        }
    }
}

/// How a dtype is written in the header.
pub(super) fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::I8 => "I8",
        DType::U8 => "U8",
    }
}

/// Where a tensor lies: `range` counts from the first byte after the header.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) dtype: StoredType,
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<usize>,
}

#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// The first byte after the header.
    pub(crate) data_start: usize,
}

/// Reads and checks the header of a whole file.
pub(crate) fn parse(file: &[u8]) -> Result<Header, String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        let got = file.len();
        return Err(format!(
            "{got} bytes are too few for a safetensors file: it begins with 8 bytes of length"
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!(
            "the header claims {length} bytes; the most allowed is {MAX_HEADER}. Is this a safetensors file?"
        ));
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else {
        let got = rest.len();
        return Err(format!(
            "the header claims {length} bytes, but only {got} follow: the file is cut short"
        ));
    };
    if header.first() != Some(&b'{') {
        return Err("the header does not begin with '{': this is no safetensors file".into());
    }
    let raw: RawHeader = serde_json::from_slice(header)
        .map_err(|error| format!("the header is not valid: {error}"))?;
    let data = &rest[header.len()..];
    let entries = check(raw.entries, data.len())?;
    Ok(Header { entries, metadata: raw.metadata, data_start: 8 + header.len() })
}

fn check(raw: Vec<(String, RawEntry)>, data_len: usize) -> Result<BTreeMap<String, Entry>, String> {
    let mut spans = Vec::with_capacity(raw.len());
    let mut entries = BTreeMap::new();
    for (name, raw) in raw {
        let entry =
            check_entry(raw, data_len).map_err(|words| format!("tensor {name}: {words}"))?;
        spans.push((entry.range.start, entry.range.end, name.clone()));
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    spans.sort_unstable();
    let mut end = 0;
    for (start, stop, name) in spans {
        if start != end {
            let what = if start < end { "overlaps the tensor before it" } else { "leaves a hole" };
            return Err(format!(
                "tensor {name} begins at byte {start} of the data and {what}, which ends at {end}"
            ));
        }
        end = stop;
    }
    if end != data_len {
        return Err(format!(
            "the tensors cover {end} bytes of data, but the file holds {data_len}"
        ));
    }
    Ok(entries)
}

fn check_entry(raw: RawEntry, data_len: usize) -> Result<Entry, String> {
    let RawEntry { dtype, shape: Dims(shape), data_offsets: (begin, end) } = raw;
    let stored = StoredType::from_name(&dtype)
        .ok_or_else(|| format!("dtype {dtype:?} is unknown; wanted F32, BF16, F16, U8 …"))?;
    let bits = shape
        .iter()
        .try_fold(1_usize, |product, dim| product.checked_mul(*dim))
        .and_then(|numel| numel.checked_mul(stored.bits()));
    let bits = bits.ok_or_else(|| format!("shape {shape:?} of {dtype} overflows"))?;
    let fits = usize::try_from(begin).ok().zip(usize::try_from(end).ok());
    let Some((begin, end)) = fits.filter(|(begin, end)| begin <= end && *end <= data_len) else {
        return Err(format!(
            "data_offsets [{begin}, {end}) lie outside of the {data_len} bytes of data"
        ));
    };
    if !bits.is_multiple_of(8) || bits / 8 != end - begin {
        let got = end - begin;
        return Err(format!(
            "{dtype} {shape:?} takes {} bytes, its data_offsets span {got}",
            bits.div_ceil(8)
        ));
    }
    Ok(Entry { dtype: stored, shape, range: begin..end })
}

#[derive(Default)]
struct RawHeader {
    entries: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Dims,
    data_offsets: (u64, u64),
}

struct Dims(Vec<usize>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut seen_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name != "__metadata__" {
                header.entries.push((name, map.next_value()?));
            } else if std::mem::replace(&mut seen_metadata, true) {
                return Err(A::Error::custom("__metadata__ is there twice"));
            } else {
                header.metadata = map.next_value()?;
            }
        }
        Ok(header)
    }
}

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Dims, D::Error> {
        deserializer.deserialize_seq(DimsVisitor)
    }
}

struct DimsVisitor;

impl<'de> Visitor<'de> for DimsVisitor {
    type Value = Dims;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a shape of at most {MAX_RANK} dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
        let mut dims = Vec::new();
        while let Some(dim) = seq.next_element::<usize>()? {
            if dims.len() == MAX_RANK {
                return Err(A::Error::invalid_length(MAX_RANK + 1, &self));
            }
            dims.push(dim);
        }
        Ok(Dims(dims))
    }
}
