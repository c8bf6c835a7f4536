//! GGUF files of llama.cpp, version 2 and 3: metadata, tokenizer and weights in their own blocks, read and written.
//!
//! Everything is named and ordered as Hugging Face has it once it is read: the names of modules, and the
//! rows of the query and key projections, which files of the llama architecture hold in another order.

mod config;
mod cursor;
mod imatrix;
mod parameters;
mod reader;
mod tokenizer;
mod value;
mod write;
mod write_head;
mod write_tokenizer;

use std::path::Path;

use self::parameters::GgufParameters;
use self::reader::GgufFile;
use super::Checkpoint;
use crate::error::{Context, Result};

pub use self::imatrix::{Importance, ImportanceMatrix};
pub use self::write::write;

/// Opens a GGUF file.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let file = GgufFile::open(path)?;
    let config = config::read(&file)?;
    let tokenizer = tokenizer::read(&file).within(path.display())?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let parameters = Box::new(GgufParameters::new(file, &config));
    Ok(Checkpoint { name, config, parameters, tokenizer })
}
