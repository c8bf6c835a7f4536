//! Reading and writing models: safetensors, PyTorch's files, Hugging Face folders, GGUF, the hub, the built-in model.
//!
//! Files are mapped into memory and checked before anything is allocated for what they promise. A tensor
//! that is read shares the mapped bytes, so that no whole model is ever copied.

pub(crate) mod files;
pub mod gguf;
mod hf;
mod hub;
mod parameters;
pub mod pytorch;
pub mod safetensors;
mod save;
mod source;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

#[cfg(feature = "torch")]
pub(crate) use self::hf::open_read;
pub use self::hf::{open_builtin, open_file, open_folder};
pub use self::hub::{DownloadNote, DownloadProgress, HubConfig, fetch};
pub use self::save::{Flat, Layout, Parts, save, save_as};
use self::source::Source;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, ParameterSource, Weight};
use crate::tensor::Tensor;

/// Reads a quantized weight: its [`Weight::meta`], its [`Weight::tensors`] and its shape `(N, K)`.
/// The formats live above this module; whoever loads a model says how they are read.
pub type ReadWeight = fn(
    meta: &Json,
    tensors: Vec<(String, Tensor)>,
    shape: (usize, usize),
) -> Result<Arc<dyn Weight>>;

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Reads weights of quantized formats.
    pub read_weight: ReadWeight,
    /// Where models of the hub come from; without it they are not looked for.
    pub hub: Option<HubConfig>,
}

impl LoadOptions {
    /// Options with which quantized weights are read by `read_weight`.
    pub fn new(read_weight: ReadWeight) -> LoadOptions {
        LoadOptions { read_weight, hub: None }
    }
}

/// A model that was found and checked, and whose parameters can be read.
pub struct Checkpoint {
    /// What it was called: `tiny`, a folder's or file's name, `ORG/NAME`.
    pub name: String,
    /// Its shape.
    pub config: ModelConfig,
    /// Its parameters.
    pub parameters: Box<dyn ParameterSource>,
    /// Its tokenizer, if it came with one.
    pub tokenizer: Option<Tokenizer>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("name", &self.name)
            .field("config", &self.config)
            .field("tokenizer", &self.tokenizer)
            .finish_non_exhaustive()
    }
}

/// The names of the models that are part of the program.
pub const BUILTIN_MODELS: [&str; 1] = ["tiny"];

/// Opens what `source` names: `tiny`, a folder, a .safetensors, .pt, .pth, .bin or .gguf file, `hf:ORG/NAME`.
pub fn open(source: &str, options: &LoadOptions) -> Result<Checkpoint> {
    match Source::find(source)? {
        Source::Builtin => open_builtin(options),
        Source::Folder(path) => open_folder(&path, options),
        Source::Safetensors(path) | Source::Torch(path) => open_file(&path, options),
        Source::Gguf(path) => gguf::open(&path),
        Source::Hub(model) => {
            let hub = options.hub.as_ref();
            let hub = hub.ok_or_else(|| {
                Error::invalid(format!(
                    "hf:{model}: nobody said where the hub is; give LoadOptions a HubConfig"
                ))
            })?;
            let mut checkpoint = open_folder(&fetch(&model, hub)?, options)?;
            checkpoint.name = model;
            Ok(checkpoint)
        }
    }
}

/// The last name of a path, for messages and for the name of a model.
pub(crate) fn file_name(path: &Path) -> String {
    // `.` and `..` have no name of their own; the folder they mean has.
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    absolute.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// An error about the JSON file `path`.
pub(crate) fn wrong_json(path: &Path, words: &str) -> Error {
    Error::file(path, words)
}
