//! Writes a state dict as `torch.save` does: a stored zip archive with a pickle of protocol 2 and one record for each storage.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::element::TorchType;
use crate::error::{Error, Result};
use crate::io::files;
use crate::tensor::Tensor;

/// Storages begin at multiples of this, so that whoever maps the file finds them aligned.
const ALIGN: u64 = 64;

/// Writes `tensors` to `path` as an OrderedDict that `torch.load(weights_only=True)` reads, through a temporary file that
/// is renamed once it is complete. Tensors that share their memory share a storage there too. The same tensors give
/// the same bytes.
pub fn write_state_dict(path: impl AsRef<Path>, tensors: &[(String, Tensor)]) -> Result<()> {
    write_state_dict_unless(None, path.as_ref(), tensors)
}

/// [`write_state_dict`] that gives up when `stop` is set, and leaves nothing.
pub(crate) fn write_state_dict_unless(
    stop: Option<&AtomicBool>,
    path: &Path,
    tensors: &[(String, Tensor)],
) -> Result<()> {
    let mut names = BTreeSet::new();
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !names.insert(name)) {
        return Err(Error::file(path, format!("two tensors would be called {name}")));
    }
    let mut storages: Vec<&Tensor> = Vec::new();
    let mut keys = Vec::new();
    for (_, tensor) in tensors {
        let shared = storages.iter().position(|other| same_memory(other, tensor));
        keys.push(shared.unwrap_or(storages.len()));
        if shared.is_none() {
            storages.push(tensor);
        }
    }
    let pickle = pickle(tensors, &keys);
    files::write_unless(stop, path, |out| {
        let mut archive = Writer { out, at: 0, directory: Vec::new(), count: 0 };
        archive.record("model/data.pkl", &pickle)?;
        archive.record("model/byteorder", b"little")?;
        for (key, tensor) in storages.iter().enumerate() {
            archive.record(&format!("model/data/{key}"), tensor.bytes())?;
        }
        archive.record("model/version", b"3\n")?;
        archive.finish()
    })
}

fn same_memory(a: &Tensor, b: &Tensor) -> bool {
    a.nbytes() > 0 && a.dtype() == b.dtype() && std::ptr::eq(a.bytes(), b.bytes())
}

/// `OrderedDict([(name, _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())), …])`
fn pickle(tensors: &[(String, Tensor)], keys: &[usize]) -> Vec<u8> {
    const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = b"\x80\x02".to_vec();
    out.extend_from_slice(ORDERED_DICT);
    out.push(b'(');
    for ((name, tensor), key) in tensors.iter().zip(keys) {
        text(&mut out, name);
        out.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        let class = TorchType::storage_of(tensor.dtype());
        out.extend_from_slice(format!("ctorch\n{class}\n").as_bytes());
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        integer(&mut out, tensor.numel());
        out.extend_from_slice(b"tQ");
        integer(&mut out, 0);
        let mut stride = tensor.numel();
        let strides = tensor.shape().iter().map(|dim| {
            // An empty tensor has no elements to step over; torch then counts its empty dimensions as 1.
            stride = if tensor.numel() == 0 { 1 } else { stride / dim };
            stride
        });
        let strides: Vec<usize> = strides.collect();
        for dims in [tensor.shape(), &strides] {
            out.push(b'(');
            dims.iter().for_each(|dim| integer(&mut out, *dim));
            out.push(b't');
        }
        out.push(0x89);
        out.extend_from_slice(ORDERED_DICT);
        out.extend_from_slice(b"tR");
    }
    out.extend_from_slice(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    let len = u32::try_from(text.len()).expect("names are shorter than 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn integer(out: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(small) => {
            out.push(b'J');
            out.extend_from_slice(&small.to_le_bytes());
        }
        Err(_) => {
            // LONG1 of eight bytes: no size reaches the bit of the sign.
            out.extend_from_slice(&[0x8a, 8]);
            out.extend_from_slice(&(value as u64).to_le_bytes());
        }
    }
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    at: u64,
    directory: Vec<u8>,
    count: u64,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// A stored record whose bytes begin at a multiple of [`ALIGN`].
    fn record(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (crc, size, local) = (crc32fast::hash(bytes), bytes.len() as u64, self.at);
        let wide = size >= u64::from(u32::MAX);
        let mut extra = if wide { zip64(&[size, size]) } else { Vec::new() };
        // The rest of the extra field, after its own four bytes, moves the data to the boundary.
        let head = local + 30 + (name.len() + extra.len() + 4) as u64;
        let padding = usize::try_from(head.next_multiple_of(ALIGN) - head).unwrap_or(0);
        extra.extend_from_slice(b"FB");
        extra.extend_from_slice(&short(padding));
        extra.resize(extra.len() + padding, b'Z');
        let fields = fields(crc, size, name.len(), extra.len(), wide);
        self.put(b"PK\x03\x04")?;
        self.put(&fields)?;
        self.put(name.as_bytes())?;
        self.put(&extra)?;
        self.put(bytes)?;
        let far = local >= u64::from(u32::MAX);
        let mut values = if wide { vec![size, size] } else { Vec::new() };
        values.extend(far.then_some(local));
        let extra = if values.is_empty() { Vec::new() } else { zip64(&values) };
        let directory = &mut self.directory;
        directory.extend_from_slice(b"PK\x01\x02");
        directory.extend_from_slice(&short(45));
        directory.extend_from_slice(&self::fields(crc, size, name.len(), extra.len(), wide));
        // No comment, the first disk, no attributes.
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&clipped(local));
        directory.extend_from_slice(name.as_bytes());
        directory.extend_from_slice(&extra);
        self.count += 1;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        let (start, directory) = (self.at, std::mem::take(&mut self.directory));
        self.put(&directory)?;
        let (end, size) = (self.at, directory.len() as u64);
        if self.count >= u64::from(u16::MAX) || start >= u64::from(u32::MAX) {
            self.put(b"PK\x06\x06")?;
            self.put(&44_u64.to_le_bytes())?;
            self.put(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
            for value in [self.count, self.count, size, start] {
                self.put(&value.to_le_bytes())?;
            }
            self.put(b"PK\x06\x07\0\0\0\0")?;
            self.put(&end.to_le_bytes())?;
            self.put(&1_u32.to_le_bytes())?;
        }
        let count = u16::try_from(self.count).unwrap_or(u16::MAX).to_le_bytes();
        self.put(b"PK\x05\x06\0\0\0\0")?;
        self.put(&count)?;
        self.put(&count)?;
        self.put(&clipped(size))?;
        self.put(&clipped(start))?;
        self.put(&[0, 0])
    }
}

/// What the two headers of a record have in common, from the version on.
fn fields(crc: u32, size: u64, name: usize, extra: usize, wide: bool) -> Vec<u8> {
    // Version 4.5 for zip64, names in UTF-8, stored, the first day that zip knows: the same bytes every time.
    let mut out = vec![45, 0, 0, 8, 0, 0, 0, 0, 0x21, 0];
    out.extend_from_slice(&crc.to_le_bytes());
    let size = if wide { u32::MAX.to_le_bytes() } else { clipped(size) };
    out.extend_from_slice(&size);
    out.extend_from_slice(&size);
    out.extend_from_slice(&short(name));
    out.extend_from_slice(&short(extra));
    out
}

fn zip64(values: &[u64]) -> Vec<u8> {
    let mut out = vec![1, 0];
    out.extend_from_slice(&short(8 * values.len()));
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    out
}

fn short(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes()
}

/// A 32-bit field that is full where the zip64 field has the value.
fn clipped(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}
