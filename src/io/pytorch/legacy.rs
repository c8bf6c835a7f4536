//! Files from before torch 1.6: `magic · protocol · system · object · keys`, each a pickle, then every storage as
//! `u64 count · elements`, in the order of the keys.

use std::collections::BTreeMap;

use super::MAX_PICKLE;
use super::object::{Object, Storage};
use super::pickle::{self, Pickle};
use super::storage::Storages;
use crate::tensor::MappedBytes;

/// `0x1950a86a20f9469cfc6c` as a pickle of protocol 2.
const MAGIC: &[u8; 15] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

pub(super) fn begins(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

pub(super) fn open(file: MappedBytes) -> Result<(Pickle, Storages), String> {
    let bytes = file.bytes();
    let mut at = MAGIC.len();
    let mut next = || -> Result<Pickle, String> {
        let rest = &bytes[at..];
        let most = usize::try_from(MAX_PICKLE).unwrap_or(usize::MAX);
        let (pickle, taken) = pickle::read(&rest[..rest.len().min(most)])?;
        at += taken;
        Ok(pickle)
    };
    let (_protocol, system) = (next()?, next()?);
    if !little_endian(&system) {
        return Err("it was written on a big-endian machine, which is not supported".into());
    }
    let (root, keys) = (next()?, next()?);
    let sizes = sizes(&root);
    let Object::List(keys_in_order) = keys.objects.get(keys.root) else {
        return Err("its list of storages is no list".into());
    };
    let mut ranges = BTreeMap::new();
    for key in keys_in_order {
        let Object::Text(key) = keys.objects.get(*key) else {
            return Err("the key of a storage is no text".into());
        };
        let size = sizes.get(key).ok_or_else(|| format!("nothing uses the storage {key:?}"))?;
        let cut = || format!("the storage {key:?} lies outside of the file, which is cut short");
        let count = bytes.get(at..).and_then(|rest| rest.first_chunk().copied());
        let count = usize::try_from(u64::from_le_bytes(count.ok_or_else(cut)?));
        let start = at + 8;
        let end = count.ok().and_then(|count| count.checked_mul(*size)?.checked_add(start));
        let end = end.filter(|end| *end <= bytes.len()).ok_or_else(cut)?;
        if ranges.insert(key.clone(), start..end).is_some() {
            return Err(format!("the storage {key:?} is there twice"));
        }
        at = end;
    }
    Ok((root, Storages::Legacy { file, ranges }))
}

/// The size of an element of each storage that the pickle refers to.
fn sizes(pickle: &Pickle) -> BTreeMap<String, usize> {
    let objects = (0..pickle.objects.len()).map(|id| pickle.objects.get(id));
    objects
        .filter_map(|object| match object {
            Object::Storage(Storage { key, ty, .. }) => Some((key.clone(), ty.size())),
            _ => None,
        })
        .collect()
}

/// What the file says of the machine that wrote it; nothing said means little-endian.
fn little_endian(system: &Pickle) -> bool {
    let Object::Dict(pairs) = system.objects.get(system.root) else { return true };
    !pairs.iter().any(|(key, value)| {
        matches!(system.objects.get(*key), Object::Text(name) if name == "little_endian")
            && matches!(system.objects.get(*value), Object::Bool(false))
    })
}
