//! What the words after `load` mean.

use std::fs;
use std::path::{Path, PathBuf};

use super::BUILTIN_MODELS;
use crate::error::{Error, Result, did_you_mean};

const WANTED: &str = "wanted tiny, a folder, a .safetensors, .pt or .gguf file, or hf:ORG/NAME";

#[derive(Debug, PartialEq)]
pub(super) enum Source {
    Builtin,
    Folder(PathBuf),
    Safetensors(PathBuf),
    Torch(PathBuf),
    Gguf(PathBuf),
    Hub(String),
}

impl Source {
    /// A built-in name wins over a folder of the same name; `./tiny` means the folder.
    pub(super) fn find(source: &str) -> Result<Source> {
        if BUILTIN_MODELS.contains(&source) {
            return Ok(Source::Builtin);
        }
        if let Some(model) = source.strip_prefix("hf:") {
            return Ok(Source::Hub(model.to_owned()));
        }
        let path = Path::new(source);
        if path.is_dir() {
            return Ok(Source::Folder(path.to_path_buf()));
        }
        if !path.exists() {
            return Err(missing(source, path));
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Ok(Source::Safetensors(path.to_path_buf())),
            Some("pt" | "pth" | "bin") => Ok(Source::Torch(path.to_path_buf())),
            Some("gguf") => Ok(Source::Gguf(path.to_path_buf())),
            _ => Err(Error::file(
                path,
                "not a model this program reads; wanted a folder with config.json, a .safetensors, .pt, .pth, .bin or .gguf file",
            )),
        }
    }
}

/// The error about a name that is nothing, with what was probably meant.
fn missing(source: &str, path: &Path) -> Error {
    if source.is_empty() {
        return Error::invalid(format!("no model was named; {WANTED}"));
    }
    if path.symlink_metadata().is_ok() {
        return Error::invalid(format!("{source}: a link that leads nowhere"));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let siblings: Vec<String> = fs::read_dir(parent.unwrap_or(Path::new(".")))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let near = did_you_mean(&name, siblings.iter().map(String::as_str));
    if let Some(near) = near {
        let near = path.with_file_name(near);
        return Error::invalid(format!(
            "{source}: no such file or folder; did you mean {}?",
            near.display()
        ));
    }
    if let Some(near) = did_you_mean(source, BUILTIN_MODELS) {
        return Error::invalid(format!("{source}: no such model; did you mean {near}?"));
    }
    let hub = if source.split('/').count() == 2 && !source.starts_with(['.', '/']) {
        format!("; for a model of the hub write hf:{source}")
    } else {
        format!("; {WANTED}")
    };
    Error::invalid(format!("{source}: no such file or folder{hub}"))
}
