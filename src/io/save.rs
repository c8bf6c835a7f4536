//! Writes a model as a Hugging Face folder that [`super::open_folder`] reads back bit for bit.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value as Json, json};

use super::files;
use super::safetensors::write_to_with;
use crate::data::Tokenizer;
use crate::error::{AtPath, Context as _, Error, Result};
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
    /// Writing gives up when this is set, and leaves nothing.
    pub stop: Option<&'a AtomicBool>,
}

/// A weight in another program's layout.
#[derive(Debug)]
pub struct Flat {
    /// What the layout says of it.
    pub meta: Json,
    /// Its tensors by their short names, and the type that their bytes stand for where it is not their own.
    pub tensors: Vec<(String, Tensor, Option<&'static str>)>,
}

/// Gives config.json's `quantization_config`, of what a layout says of each module and of the linear layers left alone.
pub(crate) type WriteConfig = fn(&[(String, Json)], &[String]) -> Result<Json>;

/// How another program keeps quantized weights in a folder.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Between a module's name and those of its tensors.
    pub separator: &'static str,
    /// Takes a weight apart.
    pub flatten: fn(&dyn Weight) -> Result<Flat>,
    /// Writes config.json's `quantization_config`.
    pub config: WriteConfig,
    /// Whether what is said of a weight goes into the metadata of the safetensors file.
    pub in_metadata: bool,
}

/// Writes the model to the folder `dir`. It appears under that name only when it is complete; a folder
/// that is there already is replaced only if `overwrite` says so, and stays if writing fails.
pub fn save(parts: &Parts<'_>, dir: &Path, overwrite: bool) -> Result<()> {
    save_as(parts, dir, overwrite, None)
}

/// [`save`] in the layout of another program.
pub fn save_as(
    parts: &Parts<'_>,
    dir: &Path,
    overwrite: bool,
    layout: Option<Layout>,
) -> Result<()> {
    if dir.symlink_metadata().is_ok() {
        check_replaceable(dir, overwrite)?;
    }
    let partial = files::partial_name(dir)?;
    let written = fs::create_dir(&partial)
        .at(&partial)
        .and_then(|()| write_files(parts, &partial, layout))
        .and_then(|()| if files::is_set(parts.stop) { Err(Error::Cancelled) } else { Ok(()) })
        .and_then(|()| swap(&partial, dir));
    if written.is_err() {
        // The first error is the one to report; that the rest may stay behind changes nothing in it.
        let _ = fs::remove_dir_all(&partial);
    }
    if written.is_err() && files::is_set(parts.stop) {
        return Err(Error::Cancelled);
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

/// What goes into the files of weights, and what config.json says of them.
#[derive(Default)]
struct Contents {
    tensors: Vec<(String, Tensor)>,
    /// The types that tensors' bytes stand for, where these are not their own.
    types: BTreeMap<String, &'static str>,
    metadata: BTreeMap<String, String>,
    quantization: Option<Json>,
}

/// Our own layout: every weight as it describes itself.
fn own_contents(parts: &Parts<'_>) -> Contents {
    let mut contents = Contents { tensors: parts.vectors.clone(), ..Contents::default() };
    let mut modules = Map::new();
    for (module, weight) in &parts.weights {
        if !weight.meta().is_null() {
            modules.insert(module.clone(), weight.meta());
        }
        let named = weight.tensors().into_iter().map(|(name, t)| (format!("{module}.{name}"), t));
        contents.tensors.extend(named);
    }
    if !modules.is_empty() {
        let quantization = json!({ "quant_method": "aolab", "version": 1, "modules": modules });
        contents.quantization = Some(quantization);
    }
    contents
}

fn contents_as(parts: &Parts<'_>, layout: Layout) -> Result<Contents> {
    let mut contents = Contents { tensors: parts.vectors.clone(), ..Contents::default() };
    let (mut modules, mut plain, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let dense = json!({ "_type": "Tensor" }).to_string();
    for (name, _) in &parts.vectors {
        names.push(name.clone());
        contents.metadata.insert(name.clone(), dense.clone());
    }
    for (module, weight) in &parts.weights {
        let name = format!("{module}.weight");
        names.push(name.clone());
        if weight.meta().is_null() {
            contents.metadata.insert(name, dense.clone());
            let named =
                weight.tensors().into_iter().map(|(part, t)| (format!("{module}.{part}"), t));
            contents.tensors.extend(named);
            if module != "model.embed_tokens" {
                plain.push(module.clone());
            }
            continue;
        }
        let flat = (layout.flatten)(weight.as_ref()).within(module)?;
        for (part, tensor, stands_for) in flat.tensors {
            let name = format!("{module}{}{part}", layout.separator);
            contents.types.extend(stands_for.map(|kind| (name.clone(), kind)));
            contents.tensors.push((name, tensor));
        }
        contents.metadata.insert(name, flat.meta.to_string());
        modules.push((module.clone(), flat.meta));
    }
    contents.metadata.insert("tensor_names".into(), json!(names).to_string());
    if !layout.in_metadata {
        contents.metadata.clear();
    }
    if !modules.is_empty() {
        contents.quantization = Some((layout.config)(&modules, &plain)?);
    }
    Ok(contents)
}

fn write_files(parts: &Parts<'_>, dir: &Path, layout: Option<Layout>) -> Result<()> {
    let contents = match layout {
        Some(layout) => contents_as(parts, layout)?,
        None => own_contents(parts),
    };
    let mut config = parts.config.json.clone();
    config.remove("quantization_config");
    if let Some(quantization) = contents.quantization {
        config.insert("quantization_config".into(), quantization);
    }
    let about = (&contents.types, &contents.metadata);
    write_to_with(&dir.join("model.safetensors"), &contents.tensors, about, parts.stop)?;
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
