//! Where the bytes of a file's storages lie, and tensors as views of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::object::{Storage, Stored};
use super::zip::Archive;
use crate::tensor::{MappedBytes, Tensor};

/// The storages of a file, by their keys.
#[derive(Debug)]
pub(super) enum Storages {
    /// Records `prefix/data/KEY`.
    Zip { archive: Archive, prefix: String },
    /// One after another at the end of a file from before torch 1.6.
    Legacy { file: MappedBytes, ranges: BTreeMap<String, Range<usize>> },
}

/// A view may repeat what its storage holds once (strides of 0); so many elements it may have at least.
const MAX_REPEATED: u64 = 1 << 24;

impl Storages {
    /// The number of bytes of a storage.
    fn nbytes(&self, key: &str) -> Option<u64> {
        match self {
            Storages::Zip { archive, prefix } => archive.size(&format!("{prefix}/data/{key}")),
            Storages::Legacy { ranges, .. } => ranges.get(key).map(|range| range.len() as u64),
        }
    }

    fn read(&self, key: &str) -> Result<MappedBytes, String> {
        match self {
            Storages::Zip { archive, prefix } => archive.read(&format!("{prefix}/data/{key}")),
            Storages::Legacy { file, ranges } => ranges
                .get(key)
                .and_then(|range| file.slice(range.clone()))
                .ok_or_else(|| format!("there is no storage {key}")),
        }
    }

    /// Checks that every element of a view lies in its storage.
    pub(super) fn check(&self, tensor: &Stored) -> Result<(), String> {
        let Storage { key, ty, numel } = &tensor.storage;
        let nbytes = self.nbytes(key);
        let nbytes = nbytes.ok_or_else(|| format!("the storage {key:?} is not in the file"))?;
        let claimed = numel.checked_mul(ty.size() as u64);
        if claimed.is_none_or(|claimed| claimed > nbytes) {
            return Err(format!(
                "its storage claims {numel} {}, and has {nbytes} bytes",
                ty.name()
            ));
        }
        let there = nbytes / tensor.ty.size() as u64;
        let product = tensor.shape.iter().try_fold(1_u64, |p, dim| p.checked_mul(*dim));
        let elements = product.filter(|elements| *elements <= there.max(MAX_REPEATED));
        let elements = elements.ok_or_else(|| {
            format!(
                "shape {:?} has more elements than its storage, which holds {there}",
                tensor.shape
            )
        })?;
        if elements == 0 {
            return Ok(());
        }
        let steps = tensor.shape.iter().zip(&tensor.strides);
        let last = steps.clone().try_fold(tensor.offset, |at, (dim, stride)| {
            at.checked_add((dim - 1).checked_mul(*stride)?)
        });
        if last.is_none_or(|last| last >= there) {
            return Err(format!(
                "shape {:?}, strides {:?}, offset {} reach outside of its storage of {there} elements",
                tensor.shape, tensor.strides, tensor.offset
            ));
        }
        Ok(())
    }

    /// The tensor; it shares the file's bytes where it is row-major there, and else is gathered.
    pub(super) fn tensor(&self, tensor: &Stored) -> Result<Tensor, String> {
        self.check(tensor)?;
        let whole = "checked: it fits into memory that is there";
        let usizes = |values: &[u64]| -> Result<Vec<usize>, String> {
            let all: Result<Vec<usize>, _> = values.iter().map(|v| usize::try_from(*v)).collect();
            all.map_err(|_| whole.to_owned())
        };
        let (shape, strides) = (usizes(&tensor.shape)?, usizes(&tensor.strides)?);
        let size = tensor.ty.size();
        let numel: usize = shape.iter().product();
        let bytes = self.read(&tensor.storage.key)?;
        let start = if numel == 0 { 0 } else { usizes(&[tensor.offset])?[0] * size };
        let view = if row_major(&shape, &strides) || numel == 0 {
            bytes.slice(start..start + numel * size).ok_or("it lies outside of its storage")?
        } else {
            let gathered = gather(&bytes.bytes()[start..], &shape, &strides, size);
            MappedBytes::owned(Arc::new(gathered))
        };
        tensor.ty.read(view, &shape).map_err(|error| error.to_string())
    }
}

/// Whether elements follow each other as in a contiguous tensor; strides of dimensions of 1 say nothing.
fn row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(dim, stride)| {
        let fits = *dim == 1 || *stride == expected;
        expected *= dim;
        fits
    })
}

/// The elements of a view, row by row.
fn gather(bytes: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let numel: usize = shape.iter().product();
    let mut out = Vec::with_capacity(numel * size);
    let mut index = vec![0; shape.len()];
    for _ in 0..numel {
        let at: usize = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        out.extend_from_slice(&bytes[at * size..][..size]);
        for (i, dim) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *dim {
                break;
            }
            *i = 0;
        }
    }
    out
}
