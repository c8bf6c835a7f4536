//! Writes a safetensors file tensor by tensor: nothing is gathered in memory first.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value as Json, json};

use super::header::name_of;
use crate::error::{AtPath, Error, Result};
use crate::io::files;
use crate::tensor::Tensor;

/// Writes `tensors` to `path`, through a temporary file that is renamed once it is complete.
/// The same tensors give the same bytes: wide dtypes come first (so that each tensor is aligned
/// for its elements), then the order is that of the names.
pub fn write(path: impl AsRef<Path>, tensors: &[(String, Tensor)]) -> Result<()> {
    let path = path.as_ref();
    let plan = Plan::new(tensors).map_err(|words| Error::file(path, words))?;
    files::write_atomically(path, |out| plan.write(out))
}

/// The types that tensors' bytes stand for, where these are not their own, and texts of the header.
pub(crate) type About<'a> = (&'a BTreeMap<String, &'static str>, &'a BTreeMap<String, String>);

/// Writes `tensors` to a new file in a folder that is itself temporary.
pub(crate) fn write_to(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    write_to_with(path, tensors, (&BTreeMap::new(), &BTreeMap::new()), None)
}

/// [`write_to`] with more in the header.
pub(crate) fn write_to_with(
    path: &Path,
    tensors: &[(String, Tensor)],
    about: About<'_>,
    stop: Option<&AtomicBool>,
) -> Result<()> {
    let plan = Plan::with(tensors, about).map_err(|words| Error::file(path, words))?;
    files::write_new(path, |out| plan.write(&mut files::Stoppable { out, stop })).at(path)
}

/// The header's bytes, and the tensors in the order of the file.
pub(crate) struct Plan<'a> {
    header: Vec<u8>,
    tensors: Vec<&'a Tensor>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(tensors: &'a [(String, Tensor)]) -> Result<Plan<'a>, String> {
        Plan::with(tensors, (&BTreeMap::new(), &BTreeMap::new()))
    }

    fn with(
        tensors: &'a [(String, Tensor)],
        (types, texts): About<'_>,
    ) -> Result<Plan<'a>, String> {
        let mut sorted: Vec<_> = tensors.iter().collect();
        sorted.sort_by(|(a, x), (b, y)| y.dtype().size().cmp(&x.dtype().size()).then(a.cmp(b)));
        let mut entries = Map::new();
        let mut metadata = json!({ "format": "pt" });
        for (name, text) in texts {
            metadata[name.as_str()] = text.as_str().into();
        }
        entries.insert("__metadata__".into(), metadata);
        let mut begin = 0;
        for (name, tensor) in &sorted {
            let end = begin + tensor.nbytes();
            let entry = json!({
                "dtype": types.get(name).copied().unwrap_or(name_of(tensor.dtype())),
                "shape": tensor.shape(),
                "data_offsets": [begin, end],
            });
            if entries.insert(name.clone(), entry).is_some() {
                return Err(format!("two tensors would be called {name}"));
            }
            begin = end;
        }
        let mut header = Json::Object(entries).to_string().into_bytes();
        // Spaces after the JSON are allowed; with them the data begins at a multiple of 8.
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok(Plan { header, tensors: sorted.into_iter().map(|(_, tensor)| tensor).collect() })
    }

    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.header.len() as u64).to_le_bytes())?;
        out.write_all(&self.header)?;
        self.tensors.iter().try_for_each(|tensor| out.write_all(tensor.bytes()))
    }
}
