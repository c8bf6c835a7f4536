//! The records of a zip archive, as `torch.save` writes one: stored or deflated, zip64 or not.
//!
//! `records… · central directory · (zip64 end, its locator) · end`. Every number is held against the length of the
//! file before it is believed; a deflated record may claim no more than deflate can make of its bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::tensor::MappedBytes;

const END: &[u8; 4] = b"PK\x05\x06";
const END_64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR_64: &[u8; 4] = b"PK\x06\x07";
const DIRECTORY_ENTRY: &[u8; 4] = b"PK\x01\x02";
const LOCAL: &[u8; 4] = b"PK\x03\x04";

const END_LEN: usize = 22;
const DIRECTORY_ENTRY_LEN: usize = 46;
const LOCAL_LEN: usize = 30;
/// A comment of the whole archive has a length of 16 bits.
const MAX_COMMENT: usize = 0xffff;
/// Deflate writes at most 258 bytes for two bits.
const MAX_RATIO: u64 = 1032;

/// An archive whose directory was read and checked.
#[derive(Debug)]
pub(super) struct Archive {
    file: MappedBytes,
    records: BTreeMap<String, Record>,
}

#[derive(Debug)]
struct Record {
    deflated: bool,
    crc: u32,
    size: u64,
    /// The packed bytes within the file.
    range: Range<usize>,
}

impl Archive {
    pub(super) fn open(file: MappedBytes) -> Result<Archive, String> {
        let bytes = file.bytes();
        let (mut at, count) = directory(bytes)?;
        if count > (bytes.len() / DIRECTORY_ENTRY_LEN) as u64 {
            return Err(format!("the archive claims {count} records, more than fit into it"));
        }
        let mut records = BTreeMap::new();
        for _ in 0..count {
            let (name, record, next) = directory_entry(bytes, at)?;
            if records.contains_key(&name) {
                return Err(format!("the archive holds the record {name:?} twice"));
            }
            records.insert(name, record);
            at = next;
        }
        Ok(Archive { file, records })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }

    /// How many bytes a record has once it is unpacked.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.records.get(name).map(|record| record.size)
    }

    /// The bytes of a record: those of the file where they are stored, new ones where they are deflated.
    ///
    /// The checksum is held against deflated records only: torch may be told to write none for stored ones.
    pub(super) fn read(&self, name: &str) -> Result<MappedBytes, String> {
        let record = self.records.get(name).ok_or_else(|| format!("there is no record {name}"))?;
        let packed = self.file.slice(record.range.clone());
        let packed = packed.ok_or_else(|| format!("record {name} lies outside of the file"))?;
        if !record.deflated {
            return Ok(packed);
        }
        let size = usize::try_from(record.size).map_err(|_| format!("{name} is too large"))?;
        let unpacked = miniz_oxide::inflate::decompress_to_vec_with_limit(packed.bytes(), size)
            .map_err(|error| format!("record {name} cannot be inflated: {error}"))?;
        if unpacked.len() != size || crc32fast::hash(&unpacked) != record.crc {
            return Err(format!("record {name} is damaged: its length or checksum differ"));
        }
        Ok(MappedBytes::owned(Arc::new(unpacked)))
    }
}

/// Where the directory begins, and how many entries it has.
fn directory(bytes: &[u8]) -> Result<(usize, u64), String> {
    let cut = || {
        "the zip archive has no directory at its end: the file is cut short, or is no file of torch.save"
            .to_owned()
    };
    let first = bytes.len().saturating_sub(END_LEN + MAX_COMMENT);
    let last = bytes.len().checked_sub(END_LEN).ok_or_else(cut)?;
    let fits = |at: usize| {
        let comment = usize::from(u16_at(bytes, at + 20)?);
        (bytes.get(at..at + 4)? == END && at + END_LEN + comment == bytes.len()).then_some(at)
    };
    let end = (first..=last).rev().find_map(fits).ok_or_else(cut)?;
    let count = u16_at(bytes, end + 10).ok_or_else(cut)?;
    let start = u32_at(bytes, end + 16).ok_or_else(cut)?;
    let (count, start) = match zip64(bytes, end)? {
        Some(wide) => wide,
        None if count == u16::MAX || start == u32::MAX => {
            return Err("the archive needs a zip64 directory and has none".into());
        }
        None => (u64::from(count), u64::from(start)),
    };
    let start = usize::try_from(start).ok().filter(|start| *start <= end);
    let start = start.ok_or("the archive's directory is said to lie outside of the file")?;
    Ok((start, count))
}

/// The count and the start of the directory as the zip64 end says them, where there is one.
fn zip64(bytes: &[u8], end: usize) -> Result<Option<(u64, u64)>, String> {
    let Some(locator) = end.checked_sub(20) else { return Ok(None) };
    if bytes.get(locator..locator + 4) != Some(LOCATOR_64) {
        return Ok(None);
    }
    let wrong = || "the archive's zip64 directory is damaged".to_owned();
    let at = u64_at(bytes, locator + 8).and_then(|at| usize::try_from(at).ok());
    let at =
        at.filter(|at| at.checked_add(56).is_some_and(|to| to <= locator)).ok_or_else(wrong)?;
    if bytes.get(at..at + 4) != Some(END_64) {
        return Err(wrong());
    }
    let count = u64_at(bytes, at + 32).ok_or_else(wrong)?;
    let start = u64_at(bytes, at + 48).ok_or_else(wrong)?;
    Ok(Some((count, start)))
}

/// The entry of the directory at `at`, and where the next one begins.
fn directory_entry(bytes: &[u8], at: usize) -> Result<(String, Record, usize), String> {
    let cut = || "the archive's directory is damaged or cut short".to_owned();
    let head = at.checked_add(DIRECTORY_ENTRY_LEN).and_then(|to| bytes.get(at..to));
    let head = head.filter(|head| head.starts_with(DIRECTORY_ENTRY)).ok_or_else(cut)?;
    let field = |at: usize| u16_at(head, at).map(usize::from).ok_or_else(cut);
    let wide = |at: usize| u32_at(head, at).map(u64::from).ok_or_else(cut);
    let (flags, method) = (field(8)?, field(10)?);
    let (name_len, extra_len, comment_len) = (field(28)?, field(30)?, field(32)?);
    let name_at = at + DIRECTORY_ENTRY_LEN;
    let extra_at = name_at + name_len;
    let next = extra_at + extra_len + comment_len;
    let name = bytes.get(name_at..extra_at).ok_or_else(cut)?;
    let name = str::from_utf8(name).map_err(|_| "a record's name is not UTF-8".to_owned())?;
    let extra = bytes.get(extra_at..extra_at + extra_len).ok_or_else(cut)?;
    if flags & 1 == 1 {
        return Err(format!("record {name:?} is encrypted, which is not supported"));
    }
    if method != 0 && method != 8 {
        return Err(format!(
            "record {name:?} is packed by method {method}; wanted stored (0) or deflated (8)"
        ));
    }
    // Where a 32-bit field is full, the zip64 field holds the value; they come in this order.
    let mut values = [wide(24)?, wide(20)?, wide(42)?];
    let mut zip64 = zip64_field(extra);
    for value in values.iter_mut().filter(|value| **value == u64::from(u32::MAX)) {
        let (first, rest) = zip64.split_first_chunk::<8>().ok_or_else(cut)?;
        *value = u64::from_le_bytes(*first);
        zip64 = rest;
    }
    let [size, packed, local] = values;
    let range = data_range(bytes, local, packed, name)?;
    let most = if method == 0 { packed } else { packed.saturating_mul(MAX_RATIO) };
    if size > most || (method == 0 && size != packed) {
        return Err(format!("record {name:?} claims {size} bytes, which its {packed} cannot hold"));
    }
    let crc = u32_at(head, 16).ok_or_else(cut)?;
    Ok((name.to_owned(), Record { deflated: method == 8, crc, size, range }, next))
}

/// The bytes of a record, after its own header.
fn data_range(bytes: &[u8], local: u64, packed: u64, name: &str) -> Result<Range<usize>, String> {
    let outside = || format!("record {name:?} lies outside of the file, which is cut short");
    let at = usize::try_from(local).map_err(|_| outside())?;
    let head = at.checked_add(LOCAL_LEN).and_then(|to| bytes.get(at..to)).ok_or_else(outside)?;
    if !head.starts_with(LOCAL) {
        return Err(format!("record {name:?} does not begin where the directory says"));
    }
    let skip = u16_at(head, 26).zip(u16_at(head, 28)).ok_or_else(outside)?;
    let start = at + LOCAL_LEN + usize::from(skip.0) + usize::from(skip.1);
    let len = usize::try_from(packed).map_err(|_| outside())?;
    let end = start.checked_add(len).filter(|end| *end <= bytes.len()).ok_or_else(outside)?;
    Ok(start..end)
}

/// The zip64 field among the extra fields; empty where there is none.
fn zip64_field(mut extra: &[u8]) -> &[u8] {
    while let Some((id, len)) = u16_at(extra, 0).zip(u16_at(extra, 2)) {
        let Some(field) = extra.get(4..4 + usize::from(len)) else { break };
        if id == 1 {
            return field;
        }
        extra = &extra[4 + usize::from(len)..];
    }
    &[]
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}
