//! Parameters that lie in safetensors files, or in files of PyTorch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::ReadWeight;
use super::pytorch::TorchFile;
use super::safetensors::SafetensorsFile;
use crate::error::{Context, Error, Result, did_you_mean};
use crate::model::{DenseWeight, ParameterSource, Weight};
use crate::tensor::{DType, Tensor};

/// A file of named tensors.
#[derive(Debug)]
pub(super) enum TensorFile {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
    /// Tensors that another library read.
    #[cfg(feature = "torch")]
    Read {
        path: PathBuf,
        tensors: BTreeMap<String, Tensor>,
    },
}

/// By this parameter a model is known among everything that a checkpoint may hold.
const EMBEDDING: &str = "embed_tokens.weight";

impl TensorFile {
    /// Opens a file by its ending: .safetensors, or PyTorch's .pt, .pth and .bin.
    pub(super) fn open(path: &Path) -> Result<TensorFile> {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return SafetensorsFile::open(path).map(TensorFile::Safetensors);
        }
        TorchFile::open(path).map(TensorFile::Torch)
    }

    /// Finds the model in a checkpoint: `{"state_dict": …}`, `module.` of data parallelism, or a model without its head,
    /// whose names lack `model.`. Of several the one with the shortest name is taken.
    pub(super) fn only_the_model(&mut self) {
        let TensorFile::Torch(file) = self else { return };
        let below = |name: &str| name.strip_suffix(EMBEDDING).map(str::to_owned);
        let Some(found) = file.names().filter_map(below).min_by_key(String::len) else { return };
        match found.strip_suffix("model.") {
            Some(prefix) => file.only_below(prefix),
            None => {
                file.only_below(&found);
                file.put_below("model.");
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            TensorFile::Safetensors(file) => file.path(),
            TensorFile::Torch(file) => file.path(),
            #[cfg(feature = "torch")]
            TensorFile::Read { path, .. } => path,
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            TensorFile::Safetensors(file) => file.names().map(str::to_owned).collect(),
            TensorFile::Torch(file) => file.names().map(str::to_owned).collect(),
            #[cfg(feature = "torch")]
            TensorFile::Read { tensors, .. } => tensors.keys().cloned().collect(),
        }
    }

    fn safetensors(&self) -> Option<&SafetensorsFile> {
        match self {
            TensorFile::Safetensors(file) => Some(file),
            _ => None,
        }
    }

    /// The tensor of a quantized weight; float8 numbers of a safetensors file as their bytes.
    fn stored(&self, name: &str) -> Result<Tensor> {
        match self.safetensors() {
            Some(file) => Ok(file.tensor_or_bytes(name)?.0),
            None => self.tensor(name),
        }
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        match self {
            TensorFile::Safetensors(file) => file.tensor(name),
            TensorFile::Torch(file) => file.tensor(name),
            #[cfg(feature = "torch")]
            TensorFile::Read { path, tensors } => tensors
                .get(name)
                .cloned()
                .ok_or_else(|| Error::file(path, format!("there is no tensor {name}"))),
        }
    }
}

/// The tensors of one or more files, and what config.json says of the quantized ones.
#[derive(Debug)]
pub(super) struct FileParameters {
    files: Vec<TensorFile>,
    /// The file that holds each tensor.
    place: BTreeMap<String, usize>,
    /// The `meta` of each quantized module.
    quantized: Map<String, Json>,
    read_weight: ReadWeight,
}

impl FileParameters {
    pub(super) fn new(
        files: Vec<TensorFile>,
        config: &Map<String, Json>,
        read_weight: ReadWeight,
    ) -> Result<FileParameters> {
        let mut place = BTreeMap::new();
        for (at, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(first) = place.insert(name.clone(), at) {
                    let first = files[first].path().display();
                    let words = format!("tensor {name} is there, but also in {first}");
                    return Err(Error::file(file.path(), words));
                }
            }
        }
        let quantized = quantized_modules(config, &files)?;
        Ok(FileParameters { files, place, quantized, read_weight })
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.place.get(name) {
            Some(at) => self.files[*at].tensor(name),
            None => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> Error {
        let near = did_you_mean(name, self.place.keys().map(String::as_str));
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        let path = match &self.files[..] {
            [file] => file.path().to_path_buf(),
            files => files
                .first()
                .and_then(|file| file.path().parent())
                .map_or_else(PathBuf::new, Path::to_path_buf),
        };
        Error::file(path, format!("there is no tensor {name}, which config.json asks for{hint}"))
    }

    /// The tensors of a quantized module, by the names that its weight gave them.
    fn tensors_of(&self, module: &str) -> Result<Vec<(String, Tensor)>> {
        let flattened = self.quantized.get(module).is_some_and(|meta| meta.get(FLAT).is_some());
        let prefix = if flattened { format!("{module}._weight_") } else { format!("{module}.") };
        self.place
            .range(prefix.clone()..)
            .map_while(|(name, at)| Some((name.strip_prefix(&prefix)?, name, at)))
            .filter(|(short, _, _)| *short != "bias")
            .map(|(short, name, at)| Ok((short.to_owned(), self.files[*at].stored(name)?)))
            .collect()
    }
}

impl ParameterSource for FileParameters {
    fn weight(&self, module: &str, shape: (usize, usize)) -> Result<Arc<dyn Weight>> {
        let weight = match self.quantized.get(module) {
            Some(meta) => {
                let tensors = self.tensors_of(module)?;
                (self.read_weight)(meta, tensors, shape).within(module)?
            }
            None => {
                DenseWeight::shared(self.tensor(&format!("{module}.weight"))?).within(module)?
            }
        };
        if weight.shape() == shape {
            return Ok(weight);
        }
        Err(wrong_shape(
            &format!("{module}.weight"),
            &[weight.shape().0, weight.shape().1],
            &[shape.0, shape.1],
        ))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        let tensor = self.tensor(name)?;
        if tensor.shape() != [len] {
            return Err(wrong_shape(name, tensor.shape(), &[len]));
        }
        if !tensor.dtype().is_float() {
            let got = tensor.dtype();
            return Err(Error::invalid(format!(
                "{name}: wanted floating-point numbers, got {got}"
            )));
        }
        tensor.to_dtype(DType::F32)
    }

    fn has(&self, name: &str) -> bool {
        let quantized =
            name.strip_suffix(".weight").is_some_and(|module| self.quantized.contains_key(module));
        quantized || self.place.contains_key(name)
    }
}

/// The error about a tensor whose shape is not what the configuration implies.
pub(super) fn wrong_shape(name: &str, got: &[usize], wanted: &[usize]) -> Error {
    let check = match name.rsplit('.').nth(1).unwrap_or_default() {
        "q_proj" | "o_proj" => "hidden_size, num_attention_heads and head_dim",
        "k_proj" | "v_proj" => "hidden_size, num_key_value_heads and head_dim",
        "q_norm" | "k_norm" => "head_dim",
        "gate_proj" | "up_proj" | "down_proj" => "hidden_size and intermediate_size",
        "embed_tokens" | "lm_head" => "vocab_size and hidden_size",
        _ => "hidden_size",
    };
    Error::invalid(format!(
        "{name}: the file has {got:?}, the configuration wants {wanted:?}; check {check}"
    ))
}

/// What a file of torchao's says of a tensor has this field; ours has not.
const FLAT: &str = "_tensor_data_names";

/// The modules that torchao flattened, by what the files' metadata say of them (I02).
fn flattened_modules(files: &[&SafetensorsFile]) -> Result<Map<String, Json>> {
    let mut modules = Map::new();
    for file in files {
        let wrong = |words: String| Error::file(file.path(), words);
        let Some(names) = file.metadata("tensor_names") else { continue };
        let names: Vec<String> = serde_json::from_str(names)
            .map_err(|error| wrong(format!("tensor_names of the metadata: {error}")))?;
        for name in names {
            let text = file.metadata(&name).unwrap_or_default();
            let mut meta: Json = serde_json::from_str(text)
                .map_err(|error| wrong(format!("the metadata of {name}: {error}")))?;
            let Some(module) = name.strip_suffix(".weight").filter(|_| meta.get(FLAT).is_some())
            else {
                continue;
            };
            let qdata = format!("{module}._weight_qdata");
            if let (true, Some(data)) = (file.contains(&qdata), meta["_data"].as_object_mut())
                && let Some(kind) = file.tensor_or_bytes(&qdata)?.1
            {
                data.insert("stored_as".into(), kind.into());
            }
            modules.insert(module.to_owned(), meta);
        }
    }
    if modules.is_empty() {
        return Err(Error::invalid(
            "config.json: quant_method is torchao, but the files' metadata name no flattened tensors; \
             save the model with torchao's flatten_tensor_state_dict",
        ));
    }
    Ok(modules)
}

/// The modules of compressed-tensors: those that have a scale, each under the group that names it.
fn compressed_modules(config: &Json, files: &[&SafetensorsFile]) -> Result<Map<String, Json>> {
    let Some(groups) = config["config_groups"].as_object().filter(|groups| !groups.is_empty())
    else {
        return Err(Error::invalid("config.json: quantization_config has no config_groups"));
    };
    let mut modules = Map::new();
    for name in files.iter().flat_map(|file| file.names()) {
        let Some(module) = name.strip_suffix(".weight_scale") else { continue };
        let names_it = |target: &Json| {
            let target = target.as_str().unwrap_or_default();
            let pattern = target.strip_prefix("re:").and_then(|p| regex::Regex::new(p).ok());
            target == "Linear" || target == module || pattern.is_some_and(|p| p.is_match(module))
        };
        let group = groups.values().find(|group| {
            group["targets"].as_array().is_some_and(|targets| targets.iter().any(names_it))
        });
        let group = group.ok_or_else(|| {
            Error::invalid(format!("config.json: no group of quantization_config names {module}"))
        })?;
        let format = if group["format"].is_string() { &group["format"] } else { &config["format"] };
        let data = serde_json::json!({
            "format": format, "weights": group["weights"],
            "input_activations": group["input_activations"],
        });
        let meta =
            serde_json::json!({ "_type": "compressed-tensors", "_version": 1, "_data": data });
        modules.insert(module.to_owned(), meta);
    }
    Ok(modules)
}

/// The quantized modules that config.json names. Formats of other programs are refused by their name.
fn quantized_modules(
    config: &Map<String, Json>,
    files: &[TensorFile],
) -> Result<Map<String, Json>> {
    let quantization = match config.get("quantization_config") {
        None | Some(Json::Null) => return Ok(Map::new()),
        Some(quantization) => quantization,
    };
    let method = quantization.get("quant_method").and_then(Json::as_str).unwrap_or("unnamed");
    let files: Vec<&SafetensorsFile> = files.iter().filter_map(TensorFile::safetensors).collect();
    match method {
        "torchao" => return flattened_modules(&files),
        "compressed-tensors" => return compressed_modules(quantization, &files),
        _ => {}
    }
    if method != "aolab" {
        return Err(Error::invalid(format!(
            "config.json: models quantized by {method:?} are not supported; load the unquantized model and quantize it here"
        )));
    }
    if quantization.get("version").and_then(Json::as_u64) != Some(1) {
        let got = quantization.get("version").unwrap_or(&Json::Null);
        return Err(Error::invalid(format!(
            "config.json: quantization_config version {got} is unknown; wanted 1"
        )));
    }
    match quantization.get("modules") {
        Some(Json::Object(modules)) => Ok(modules.clone()),
        _ => Err(Error::invalid("config.json: quantization_config has no modules")),
    }
}
