//! Hugging Face folders: config.json, model.safetensors (or PyTorch's files) or shards with an index, and the tokenizer's files.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::Value as Json;

use super::parameters::{FileParameters, TensorFile};
use super::safetensors::SafetensorsFile;
use super::{Checkpoint, LoadOptions, file_name, files, wrong_json};
use crate::data::Tokenizer;
use crate::error::{Context, Error, Result};
use crate::model::ModelConfig;

/// Tokenizers of vocabularies of 256,000 tokens take 35 MB.
const MAX_TOKENIZER: u64 = 256 << 20;

/// Where a folder keeps its weights, the first that is there.
const WEIGHTS: [&str; 5] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
];

/// Opens a folder as the hub keeps it, as PyTorch's users keep it, and as [`super::save`] writes it.
pub fn open_folder(dir: &Path, options: &LoadOptions) -> Result<Checkpoint> {
    let found = WEIGHTS.iter().map(|name| dir.join(name)).find(|path| path.exists());
    let path = found.ok_or_else(|| {
        let wanted = WEIGHTS.join(", ");
        Error::file(dir, format!("wanted a folder with one of {wanted}; it holds neither of them"))
    })?;
    let is_index = path.extension().is_some_and(|extension| extension == "json");
    let paths = if is_index { shards(dir, &path)? } else { vec![path] };
    open_files(file_name(dir), dir, &paths, options)
}

/// Opens one .safetensors, .pt, .pth or .bin file; its config.json and tokenizer lie beside it.
pub fn open_file(path: &Path, options: &LoadOptions) -> Result<Checkpoint> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // What the file is, is checked first: a damaged one is not mended by a configuration.
    let file = TensorFile::open(path)?;
    if !dir.join("config.json").exists() {
        return Err(Error::file(
            path,
            "it holds tensors and no configuration: put the model's config.json beside it; \
             `tensors` lists what is in it",
        ));
    }
    open_tensors(name, dir, vec![file], options)
}

/// Opens tensors that another library read from `path`, beside which config.json and the tokenizer lie.
#[cfg(feature = "torch")]
pub(crate) fn open_read(
    path: &Path,
    tensors: Vec<(String, crate::Tensor)>,
    options: &LoadOptions,
) -> Result<Checkpoint> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let tensors = tensors.into_iter().collect();
    let file = TensorFile::Read { path: path.to_path_buf(), tensors };
    open_tensors(name, dir, vec![file], options)
}

/// Opens the model that is part of the program.
pub fn open_builtin(options: &LoadOptions) -> Result<Checkpoint> {
    const CONFIG: &[u8] = include_bytes!("../model/tiny/config.json");
    const TOKENIZER: &[u8] = include_bytes!("../model/tiny/tokenizer.json");
    const TOKENIZER_CONFIG: &[u8] = include_bytes!("../model/tiny/tokenizer_config.json");

    /// Constants are laid out byte by byte; tensors are read in place only where they are aligned.
    #[repr(C, align(64))]
    struct Aligned<T: ?Sized>(T);
    static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../model/tiny/model.safetensors"));

    let parse = |name: &str, bytes: &[u8]| -> Result<Json> {
        serde_json::from_slice(bytes)
            .map_err(|error| wrong_json(Path::new(name), &error.to_string()))
    };
    let config = ModelConfig::from_json(&parse("config.json", CONFIG)?)?;
    let tokenizer_config = parse("tokenizer_config.json", TOKENIZER_CONFIG)?;
    let tokenizer = Tokenizer::from_json(TOKENIZER, Some(&tokenizer_config))?;
    let file = SafetensorsFile::from_constant("tiny/model.safetensors", &WEIGHTS.0)?;
    let parameters = FileParameters::new(
        vec![TensorFile::Safetensors(file)],
        &config.json,
        options.read_weight,
    )?;
    Ok(Checkpoint {
        name: "tiny".into(),
        config,
        parameters: Box::new(parameters),
        tokenizer: Some(tokenizer),
    })
}

fn open_files(
    name: String,
    dir: &Path,
    paths: &[PathBuf],
    options: &LoadOptions,
) -> Result<Checkpoint> {
    let open = |path: &PathBuf| TensorFile::open(path);
    open_tensors(name, dir, paths.iter().map(open).collect::<Result<Vec<_>>>()?, options)
}

fn open_tensors(
    name: String,
    dir: &Path,
    mut files: Vec<TensorFile>,
    options: &LoadOptions,
) -> Result<Checkpoint> {
    let config_path = dir.join("config.json");
    let mut config =
        ModelConfig::from_json(&files::read_json(&config_path)?).within(dir.display())?;
    add_generation_config(&mut config, &dir.join("generation_config.json"))?;
    if let [file] = &mut files[..] {
        file.only_the_model();
    }
    let parameters =
        FileParameters::new(files, &config.json, options.read_weight).within(dir.display())?;
    let tokenizer = read_tokenizer(dir)?;
    Ok(Checkpoint { name, config, parameters: Box::new(parameters), tokenizer })
}

/// Reads tokenizer.json and tokenizer_config.json, if they are there.
fn read_tokenizer(dir: &Path) -> Result<Option<Tokenizer>> {
    let path = dir.join("tokenizer.json");
    let Some(json) = files::read_if_there(&path, MAX_TOKENIZER)? else { return Ok(None) };
    let config_path = dir.join("tokenizer_config.json");
    let config = if config_path.exists() { Some(files::read_json(&config_path)?) } else { None };
    Tokenizer::from_json(&json, config.as_ref()).within(path.display()).map(Some)
}

/// Generation may stop at more tokens than config.json knows of.
fn add_generation_config(config: &mut ModelConfig, path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let json = files::read_json(path)?;
    let ids = match json.get("eos_token_id") {
        None | Some(Json::Null) => return Ok(()),
        Some(Json::Array(ids)) => ids.clone(),
        Some(id) => vec![id.clone()],
    };
    for id in ids {
        let id = id
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| wrong_json(path, &format!("eos_token_id {id} is no token id")))?;
        if !config.eos_token_ids.contains(&id) {
            config.eos_token_ids.push(id);
        }
    }
    Ok(())
}

/// The files that an index names: plain names of files that lie beside it.
fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let json = files::read_json(index)?;
    let Some(Json::Object(map)) = json.get("weight_map") else {
        return Err(wrong_json(index, "there is no weight_map in it"));
    };
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| is_plain(name)).ok_or_else(|| {
            wrong_json(index, &format!("tensor {tensor} is said to lie in {file}; wanted the name of a file beside the index"))
        })?;
        names.insert(name);
    }
    if names.is_empty() {
        return Err(wrong_json(index, "its weight_map is empty"));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Whether a name is one component of a path: it cannot lead out of the folder.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}
