//! Safetensors files: mapped into memory when read, streamed and renamed into place when written.

mod header;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use self::header::{Entry, StoredType};
pub use self::write::write;
pub(crate) use self::write::{write_to, write_to_with};
use crate::error::{Error, Result, did_you_mean};
use crate::io::files;
use crate::table::{Cell, Table};
use crate::tensor::{DType, MappedBytes, Tensor};

/// An open safetensors file. Its tensors share the mapped bytes, so that reading one copies nothing.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    data: MappedBytes,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Maps the file and checks its whole header.
    pub fn open(path: impl AsRef<Path>) -> Result<SafetensorsFile> {
        let path = path.as_ref();
        SafetensorsFile::from_bytes(path, &files::map(path)?)
    }

    /// Reads a file that is part of the program; `path` is what errors call it.
    pub fn from_constant(path: impl AsRef<Path>, bytes: &'static [u8]) -> Result<SafetensorsFile> {
        SafetensorsFile::from_bytes(path.as_ref(), &MappedBytes::constant(bytes))
    }

    fn from_bytes(path: &Path, bytes: &MappedBytes) -> Result<SafetensorsFile> {
        let header = header::parse(bytes.bytes()).map_err(|words| Error::file(path, words))?;
        let data = bytes
            .slice(header.data_start..bytes.len())
            .ok_or_else(|| Error::file(path, "the header is longer than the file"))?;
        Ok(SafetensorsFile {
            path: path.to_path_buf(),
            data,
            entries: header.entries,
            metadata: header.metadata,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// A text of the file's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// What the file holds: every tensor with type, shape and bytes.
    pub fn table(&self) -> Result<Table> {
        let mut table = Table::new(crate::io::file_name(&self.path))
            .column("name")
            .column("type")
            .column("shape")
            .column("bytes");
        for (name, entry) in &self.entries {
            let ty = match entry.dtype {
                StoredType::Known(dtype) => header::name_of(dtype),
                StoredType::Unsupported { name, .. } => name,
            };
            let dims: Vec<String> = entry.shape.iter().map(usize::to_string).collect();
            let nbytes = Cell::bytes(entry.range.len());
            table.push([name.as_str().into(), ty.into(), dims.join(" × ").into(), nbytes])?;
        }
        Ok(table)
    }

    /// The tensor called `name`; one of float8 or e8m0 numbers as its bytes, with the name of their type.
    pub fn tensor_or_bytes(&self, name: &str) -> Result<(Tensor, Option<&'static str>)> {
        match self.entries.get(name) {
            Some(Entry {
                dtype: StoredType::Unsupported { name: kind, bits: 8 },
                shape,
                range,
            }) if kind.starts_with("F8_") => {
                let bytes = self.data.slice(range.clone()).ok_or_else(|| {
                    Error::file(&self.path, format!("tensor {name} lies outside of the file"))
                })?;
                Ok((Tensor::mapped(bytes, DType::U8, shape)?, Some(kind)))
            }
            _ => Ok((self.tensor(name)?, None)),
        }
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let Some(entry) = self.entries.get(name) else {
            let hint = match did_you_mean(name, self.names()) {
                Some(near) => format!("; did you mean {near}?"),
                None => format!("; it has {} tensors", self.entries.len()),
            };
            return Err(Error::file(&self.path, format!("there is no tensor {name}{hint}")));
        };
        let dtype = match entry.dtype {
            StoredType::Known(dtype) => dtype,
            StoredType::Unsupported { name: dtype, .. } => {
                return Err(Error::file(
                    &self.path,
                    format!(
                        "tensor {name} is {dtype}, which is not supported; wanted F32, F16, BF16, F64, I8, U8, I16, I32 or I64"
                    ),
                ));
            }
        };
        let bytes = self.data.slice(entry.range.clone()).ok_or_else(|| {
            Error::file(&self.path, format!("tensor {name} lies outside of the file"))
        })?;
        Tensor::mapped(bytes, dtype, &entry.shape)
    }
}
