//! Writes a model as a GGUF file that llama.cpp runs and that [`super::open`] reads back bit for bit.
//!
//! A weight in llama.cpp's blocks keeps them, a float weight keeps its dtype, norms and biases are f32. The rows of query and
//! key projections of the llama architecture go into that format's order, whole and unrounded.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use aolab_kernels::ggml::BlockType;

use super::parameters::{gguf_name, pair};
use super::write_head::{Head, metadata};
use crate::error::{Context as _, Error, Result};
use crate::io::{Parts, files};
use crate::model::{ModelConfig, RopeScaling, Weight};
use crate::tensor::{DType, Tensor};

/// Where each tensor begins: what readers assume unless the metadata says otherwise.
const ALIGNMENT: usize = 32;

/// One tensor of the file: where its bytes come from is asked only when they are written.
pub(super) struct Entry {
    pub(super) name: String,
    /// The innermost dimension first.
    dims: Vec<u64>,
    block_type: BlockType,
    nbytes: usize,
    bytes: Bytes,
}

impl Entry {
    /// A tensor whose bytes are written as they are.
    pub(super) fn of(name: String, dims: Vec<u64>, block_type: BlockType, tensor: Tensor) -> Entry {
        Entry { name, dims, block_type, nbytes: tensor.nbytes(), bytes: Bytes::Of(tensor) }
    }
}

enum Bytes {
    /// As they are.
    Of(Tensor),
    /// Rows of so many bytes, of so many heads, to be put in pairs.
    Paired { rows: Tensor, row: usize, heads: usize },
}

/// Writes the model to `path`, through a temporary file that is renamed once it is complete. Linear layers and the embedding
/// must be floats or in llama.cpp's blocks.
pub fn write(parts: &Parts<'_>, path: &Path) -> Result<()> {
    let config = parts.config;
    let head = metadata(parts).within("save")?;
    let mut entries = Vec::new();
    for (module, weight) in &parts.weights {
        entries.push(matrix(config, module, weight)?);
    }
    for (name, vector) in &parts.vectors {
        entries.push(vector_entry(config, name, vector)?);
    }
    entries.extend(rope_divisors(config)?);
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    files::write_unless(parts.stop, path, |out| write_file(&head, &entries, out))
}

pub(super) fn write_file(head: &Head, entries: &[Entry], out: &mut dyn Write) -> io::Result<()> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend(head.count().to_le_bytes());
    bytes.extend(head.bytes());
    let mut offset = 0_u64;
    for entry in entries {
        bytes.extend((entry.name.len() as u64).to_le_bytes());
        bytes.extend(entry.name.as_bytes());
        bytes.extend(u32::try_from(entry.dims.len()).unwrap_or(0).to_le_bytes());
        entry.dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(entry.block_type.ggml_id().to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += entry.nbytes.next_multiple_of(ALIGNMENT) as u64;
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&bytes)?;
    for entry in entries {
        match &entry.bytes {
            Bytes::Of(tensor) => out.write_all(tensor.bytes())?,
            Bytes::Paired { rows, row, heads } => {
                let n = entry.nbytes / row;
                out.write_all(&pair(rows.bytes(), *row, *heads, n))?;
            }
        }
        let padding = entry.nbytes.next_multiple_of(ALIGNMENT) - entry.nbytes;
        out.write_all(&[0; ALIGNMENT][..padding])?;
    }
    Ok(())
}

fn name_in_file(name: &str) -> Result<String> {
    gguf_name(name).ok_or_else(|| Error::invalid(format!("{name}: GGUF files have no such tensor")))
}

/// The heads whose rows go in pairs in files of the llama architecture.
fn paired_heads(config: &ModelConfig, module: &str) -> Option<usize> {
    if !matches!(config.model_type.as_str(), "llama" | "mistral") {
        return None;
    }
    match module.rsplit('.').next()? {
        "q_proj" => Some(config.num_attention_heads),
        "k_proj" => Some(config.num_key_value_heads),
        _ => None,
    }
}

fn matrix(config: &ModelConfig, module: &str, weight: &Arc<dyn Weight>) -> Result<Entry> {
    let (n, k) = weight.shape();
    let (block_type, tensor) = stored(weight.as_ref()).within(module)?;
    let nbytes = tensor.nbytes();
    let bytes = match paired_heads(config, module) {
        Some(heads) => Bytes::Paired { rows: tensor, row: nbytes / n.max(1), heads },
        None => Bytes::Of(tensor),
    };
    let name = name_in_file(&format!("{module}.weight"))?;
    Ok(Entry { name, dims: vec![k as u64, n as u64], block_type, nbytes, bytes })
}

/// The type and the bytes of a weight, if GGUF has its format.
fn stored(weight: &dyn Weight) -> Result<(BlockType, Tensor)> {
    let workflow = weight.workflow();
    let mut tensors = weight.tensors();
    let float = |dtype| match dtype {
        DType::F32 => Some(BlockType::F32),
        DType::F16 => Some(BlockType::F16),
        DType::BF16 => Some(BlockType::Bf16),
        _ => None,
    };
    let found = match (tensors.pop(), tensors.is_empty()) {
        (Some((name, tensor)), true) if name == "blocks" => {
            BlockType::from_name(&workflow).map(|ty| (ty, tensor))
        }
        (Some((name, tensor)), true) if name == "weight" => {
            float(tensor.dtype()).map(|ty| (ty, tensor))
        }
        _ => None,
    };
    found.ok_or_else(|| {
        Error::invalid(format!(
            "a GGUF file has no format for {workflow}; `quantize gguf --type Q4_0` (or another type) makes one, or save a folder"
        ))
    })
}

fn vector_entry(config: &ModelConfig, name: &str, vector: &Tensor) -> Result<Entry> {
    let vector = vector.to_dtype(DType::F32)?;
    let (len, nbytes) = (vector.numel() as u64, vector.nbytes());
    let module = name.strip_suffix(".bias");
    let bytes = match module.and_then(|module| paired_heads(config, module)) {
        Some(heads) => Bytes::Paired { rows: vector, row: DType::F32.size(), heads },
        None => Bytes::Of(vector),
    };
    let name = name_in_file(name)?;
    Ok(Entry { name, dims: vec![len], block_type: BlockType::F32, nbytes, bytes })
}

/// Llama 3's scaling, as what each frequency is divided by.
fn rope_divisors(config: &ModelConfig) -> Result<Option<Entry>> {
    if !matches!(config.rope_scaling, Some(RopeScaling::Llama3 { .. })) {
        return Ok(None);
    }
    let plain = ModelConfig { rope_scaling: None, ..config.clone() }.inv_freq();
    let scaled = config.inv_freq();
    #[expect(clippy::cast_possible_truncation, reason = "the file keeps singles")]
    let divisors: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| (p / s) as f32).collect();
    let vector = Tensor::new(divisors, &[config.head_dim / 2])?;
    Ok(Some(Entry {
        name: "rope_freqs.weight".into(),
        dims: vec![vector.numel() as u64],
        block_type: BlockType::F32,
        nbytes: vector.nbytes(),
        bytes: Bytes::Of(vector),
    }))
}
