//! PyTorch's `.pt`, `.pth` and `.bin` files: what `torch.save` wrote, and what `torch.load(weights_only=True)` reads.
//!
//! Such a file is a zip archive with a pickle (`data.pkl`) and one record for each storage (`data/0`, `data/1` …), or, from
//! before torch 1.6, some pickles and then the storages. A pickle is a program; here only what builds tensors, containers
//! and scalars is understood, and whatever else it names is refused by that name. No code runs.

mod element;
mod flatten;
mod legacy;
mod object;
mod pickle;
mod storage;
mod write;
mod zip;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use self::element::{Float8, TorchType};
use self::flatten::Leaf;
use self::object::Stored;
use self::pickle::Pickle;
use self::storage::Storages;
pub use self::write::write_state_dict;
pub(crate) use self::write::write_state_dict_unless;
use self::zip::Archive;
use crate::error::{Error, Result, did_you_mean};
use crate::io::files;
use crate::table::{Cell, Table};
use crate::tensor::{MappedBytes, Tensor};

/// Pickles of state dicts take some 200 bytes for each tensor.
const MAX_PICKLE: u64 = 64 << 20;

/// An open file of `torch.save`. Its tensors share the mapped bytes where they are row-major.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    storages: Storages,
    tensors: BTreeMap<String, Stored>,
    /// Numbers and texts beside the tensors, as they are shown.
    scalars: Vec<(String, &'static str, String)>,
}

impl TorchFile {
    /// Maps the file and checks all that it says of its tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<TorchFile> {
        let path = path.as_ref();
        TorchFile::from_bytes(path, files::map(path)?).map_err(|words| Error::file(path, words))
    }

    fn from_bytes(path: &Path, file: MappedBytes) -> Result<TorchFile, String> {
        let (pickle, storages) = if file.bytes().starts_with(b"PK") {
            open_zip(file)?
        } else if legacy::begins(file.bytes()) {
            legacy::open(file)?
        } else {
            return Err("neither a zip archive nor a pickle of torch.save; wanted a file that PyTorch wrote".into());
        };
        let (mut tensors, mut scalars) = (BTreeMap::new(), Vec::new());
        for (name, leaf) in flatten::leaves(&pickle)? {
            match leaf {
                Leaf::Tensor(tensor) => {
                    storages.check(&tensor).map_err(|words| format!("tensor {name}: {words}"))?;
                    if tensors.insert(name.clone(), tensor).is_some() {
                        return Err(format!("two tensors are called {name}"));
                    }
                }
                Leaf::Scalar { kind, shown } => scalars.push((name, kind, shown)),
            }
        }
        Ok(TorchFile { path: path.to_path_buf(), storages, tensors, scalars })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted; those of nested containers are joined by dots.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The type of a tensor's elements as the file has it.
    pub fn dtype(&self, name: &str) -> Option<TorchType> {
        self.tensors.get(name).map(|tensor| tensor.ty)
    }

    /// The tensor called `name`. Types that a [`Tensor`] lacks come as the next wider one, as [`TorchType`] says.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let Some(stored) = self.tensors.get(name) else {
            let hint = match did_you_mean(name, self.names()) {
                Some(near) => format!("; did you mean {near}?"),
                None => format!("; it has {} tensors", self.tensors.len()),
            };
            return Err(Error::file(&self.path, format!("there is no tensor {name}{hint}")));
        };
        let tensor = self.storages.tensor(stored);
        tensor.map_err(|words| Error::file(&self.path, format!("tensor {name}: {words}")))
    }

    /// Calls the tensors below `prefix` by the rest of their names, and forgets all others: the state dict of a
    /// checkpoint that holds more than that.
    pub(crate) fn only_below(&mut self, prefix: &str) {
        let all = std::mem::take(&mut self.tensors);
        let below = all.into_iter();
        self.tensors = below
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor)))
            .collect();
    }

    /// Puts `prefix` in front of every name.
    pub(crate) fn put_below(&mut self, prefix: &str) {
        let all = std::mem::take(&mut self.tensors);
        self.tensors = all.into_iter().map(|(name, t)| (format!("{prefix}{name}"), t)).collect();
    }

    /// What the file holds: every tensor with type, shape and bytes, and the scalars beside them.
    pub fn table(&self) -> Result<Table> {
        let mut table = Table::new(crate::io::file_name(&self.path))
            .column("name")
            .column("type")
            .column("shape")
            .column("bytes");
        for (name, tensor) in &self.tensors {
            let dims: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
            let numel: u64 = tensor.shape.iter().product();
            let nbytes = usize::try_from(numel).unwrap_or(usize::MAX) * tensor.ty.size();
            table.push([
                name.as_str().into(),
                tensor.ty.name().into(),
                dims.join(" × ").into(),
                Cell::bytes(nbytes),
            ])?;
        }
        for (name, kind, shown) in &self.scalars {
            table.push([
                name.as_str().into(),
                (*kind).into(),
                shown.as_str().into(),
                Cell::Missing,
            ])?;
        }
        table.note("what the file says of itself; nothing in it was run");
        Ok(table)
    }
}

fn open_zip(file: MappedBytes) -> Result<(Pickle, Storages), String> {
    let archive = Archive::open(file)?;
    let mut prefixes = archive
        .names()
        .filter_map(|name| name.strip_suffix("/data.pkl"))
        .filter(|prefix| !prefix.contains('/'))
        .map(str::to_owned);
    let (prefix, more) = (prefixes.next(), prefixes.next());
    drop(prefixes);
    let prefix = match (prefix, more) {
        (Some(prefix), None) => prefix,
        (Some(_), Some(_)) => return Err("the archive holds two pickles data.pkl".into()),
        (None, _) => {
            return Err("a zip archive without data.pkl: torch.save did not write it".into());
        }
    };
    if archive.size(&format!("{prefix}/constants.pkl")).is_some() {
        return Err(SCRIPT.into());
    }
    let order = format!("{prefix}/byteorder");
    if archive.size(&order).is_some_and(|size| size != 6)
        || (archive.size(&order).is_some() && archive.read(&order)?.bytes() != b"little")
    {
        return Err("it was written on a big-endian machine, which is not supported".into());
    }
    let name = format!("{prefix}/data.pkl");
    if archive.size(&name).is_some_and(|size| size > MAX_PICKLE) {
        return Err(format!(
            "its data.pkl is larger than {} MiB, the most allowed",
            MAX_PICKLE >> 20
        ));
    }
    let (pickle, _) = pickle::read(archive.read(&name)?.bytes())?;
    Ok((pickle, Storages::Zip { archive, prefix }))
}

/// What a TorchScript archive is told by a program that cannot run it.
const SCRIPT: &str = "a TorchScript program, not a state dict: only libtorch reads it (`load FILE --torchscript` in a build with `--features torch`); \
     or save module.state_dict() in PyTorch";
