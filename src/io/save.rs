//! Writes a model as a Hugging Face folder that [`super::open_folder`] reads back bit for bit.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::files;
use super::safetensors::write_to;
use crate::data::Tokenizer;
use crate::error::{AtPath, Error, Result};
use crate::model::{ModelConfig, Weight};
use crate::tensor::Tensor;

/// What a model consists of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// What it is called.
    pub name: &'a str,
    /// Its shape; `quantization_config` is made anew from the weights.
    pub config: &'a ModelConfig,
    /// The linear layers and the embedding, by the names of their modules.
    pub weights: Vec<(String, Arc<dyn Weight>)>,
    /// Norms and biases, by their full names.
    pub vectors: Vec<(String, Tensor)>,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// Writes the model to the folder `dir`. It appears under that name only when it is complete; a folder
/// that is there already is replaced only if `overwrite` says so, and stays if writing fails.
pub fn save(parts: &Parts<'_>, dir: &Path, overwrite: bool) -> Result<()> {
    if dir.symlink_metadata().is_ok() {
        check_replaceable(dir, overwrite)?;
    }
    let partial = files::partial_name(dir)?;
    let written = fs::create_dir(&partial)
        .at(&partial)
        .and_then(|()| write_files(parts, &partial))
        .and_then(|()| swap(&partial, dir));
    if written.is_err() {
        // The first error is the one to report; that the rest may stay behind changes nothing in it.
        let _ = fs::remove_dir_all(&partial);
    }
    written.map_err(|error| in_final_place(error, &partial, dir))
}

/// The error with the name that was asked for, instead of the temporary one.
fn in_final_place(error: Error, partial: &Path, dir: &Path) -> Error {
    match error {
        Error::Io { path, source } => {
            let inside = path.strip_prefix(partial).map(Path::to_path_buf);
            let path = match inside {
                Ok(name) if name.as_os_str().is_empty() => dir.to_path_buf(),
                Ok(name) => dir.join(name),
                Err(_) => path,
            };
            Error::Io { path, source }
        }
        other => other,
    }
}

/// Only a folder that holds a model is replaced: a slip of the finger must not cost a home folder.
fn check_replaceable(dir: &Path, overwrite: bool) -> Result<()> {
    if !overwrite {
        return Err(Error::file(dir, "it exists already; choose another name or overwrite it"));
    }
    if !dir.is_dir() {
        return Err(Error::file(dir, "wanted a folder, but there is something else by that name"));
    }
    let empty = fs::read_dir(dir).at(dir)?.next().is_none();
    if empty || dir.join("config.json").is_file() {
        return Ok(());
    }
    Err(Error::file(
        dir,
        "it exists and holds no config.json: only a model's folder is overwritten",
    ))
}

fn write_files(parts: &Parts<'_>, dir: &Path) -> Result<()> {
    let mut tensors = parts.vectors.clone();
    let mut modules = Map::new();
    for (module, weight) in &parts.weights {
        if !weight.meta().is_null() {
            modules.insert(module.clone(), weight.meta());
        }
        tensors
            .extend(weight.tensors().into_iter().map(|(name, t)| (format!("{module}.{name}"), t)));
    }
    let mut config = parts.config.json.clone();
    config.remove("quantization_config");
    if !modules.is_empty() {
        let quantization = json!({ "quant_method": "aolab", "version": 1, "modules": modules });
        config.insert("quantization_config".into(), quantization);
    }
    write_to(&dir.join("model.safetensors"), &tensors)?;
    write_json(&dir.join("config.json"), &Json::Object(config))?;
    if !parts.config.eos_token_ids.is_empty() {
        let generation = json!({
            "bos_token_id": parts.config.bos_token_id,
            "eos_token_id": parts.config.eos_token_ids,
        });
        write_json(&dir.join("generation_config.json"), &generation)?;
    }
    if let Some(tokenizer) = parts.tokenizer {
        let path = dir.join("tokenizer.json");
        files::write_new(&path, |out| out.write_all(tokenizer.json())).at(&path)?;
        if !tokenizer.config().is_empty() {
            let config = Json::Object(tokenizer.config().clone());
            write_json(&dir.join("tokenizer_config.json"), &config)?;
        }
    }
    Ok(())
}

fn write_json(path: &Path, json: &Json) -> Result<()> {
    let write = |out: &mut dyn Write| {
        serde_json::to_writer_pretty(&mut *out, json).map_err(io::Error::from)?;
        out.write_all(b"\n")
    };
    files::write_new(path, write).at(path)
}

/// Gives the finished folder its name, and removes the one that had it.
fn swap(partial: &Path, dir: &Path) -> Result<()> {
    if !dir.exists() {
        return fs::rename(partial, dir).at(dir);
    }
    if exchange(partial, dir) {
        // What was the old folder now has the temporary name.
        return fs::remove_dir_all(partial).at(partial);
    }
    // Where names cannot be exchanged in one step the old folder steps aside, and comes back on failure.
    let aside = files::partial_name(&dir.with_file_name(format!("{}.old", super::file_name(dir))))?;
    fs::rename(dir, &aside).at(dir)?;
    if let Err(error) = fs::rename(partial, dir).at(dir) {
        fs::rename(&aside, dir).at(&aside)?;
        return Err(error);
    }
    fs::remove_dir_all(&aside).at(&aside)
}

/// Exchanges two names in one step, so that at no moment a name is missing. Not every file system can.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}
