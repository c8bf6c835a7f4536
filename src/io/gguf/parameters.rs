//! The parameters of a GGUF file under Hugging Face's names and in its order.

use std::sync::Arc;

use aolab_kernels::ggml::BlockType;

use super::reader::{GgufFile, TensorInfo};
use crate::error::{Context, Error, Result};
use crate::io::parameters::wrong_shape;
use crate::model::{BlockWeight, DenseWeight, ModelConfig, ParameterSource, Weight};
use crate::tensor::{DType, Tensor};

#[derive(Debug)]
pub(super) struct GgufParameters {
    file: GgufFile,
    /// Files of the llama architecture hold the query and key rows of a head as pairs (i, i + d/2).
    paired_rows: bool,
    query_heads: usize,
    key_heads: usize,
}

impl GgufParameters {
    pub(super) fn new(file: GgufFile, config: &ModelConfig) -> GgufParameters {
        GgufParameters {
            file,
            paired_rows: config.model_type == "llama",
            query_heads: config.num_attention_heads,
            key_heads: config.num_key_value_heads,
        }
    }

    /// The heads whose rows lie in pairs in the tensor `name` of the file.
    fn paired_heads(&self, name: &str) -> Option<usize> {
        let part = name.rsplit('.').nth(1)?;
        match part {
            "attn_q" if self.paired_rows => Some(self.query_heads),
            "attn_k" if self.paired_rows => Some(self.key_heads),
            _ => None,
        }
    }
}

impl ParameterSource for GgufParameters {
    fn weight(&self, module: &str, (n, k): (usize, usize)) -> Result<Arc<dyn Weight>> {
        let name = gguf_name(&format!("{module}.weight"))
            .ok_or_else(|| Error::invalid(format!("{module}: GGUF files have no such module")))?;
        let (info, bytes) = self.file.tensor(&name)?;
        if info.dims != [k, n] {
            let got: Vec<usize> = info.dims.iter().rev().copied().collect();
            return Err(wrong_shape(&format!("{module}.weight"), &got, &[n, k]))
                .within(self.file.path().display());
        }
        let row = bytes.len() / n;
        let blocks = match self.paired_heads(&name) {
            Some(heads) => Tensor::new(unpair(bytes.bytes(), row, heads, n), &[n, row])?,
            None => Tensor::mapped(bytes, DType::U8, &[n, row])?,
        };
        weight_of(info.block_type, k, blocks).within(module)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        let stored = gguf_name(name)
            .ok_or_else(|| Error::invalid(format!("{name}: GGUF files have no such tensor")))?;
        let vector = float_vector(&self.file, &stored, len)?;
        match self.paired_heads(&stored) {
            Some(heads) => {
                let bytes = unpair(vector.bytes(), DType::F32.size(), heads, len);
                Tensor::new(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes), &[len])
            }
            None => Ok(vector),
        }
    }

    fn has(&self, name: &str) -> bool {
        gguf_name(name).is_some_and(|name| self.file.has(&name))
    }
}

/// A float weight stays dense, any other keeps its blocks.
fn weight_of(block_type: BlockType, k: usize, blocks: Tensor) -> Result<Arc<dyn Weight>> {
    let dtype = match block_type {
        BlockType::F32 => DType::F32,
        BlockType::F16 => DType::F16,
        BlockType::Bf16 => DType::BF16,
        quantized => return Ok(Arc::new(BlockWeight::new(quantized, k, blocks)?)),
    };
    let n = blocks.shape()[0];
    DenseWeight::shared(blocks.view_as(dtype, &[n, k])?)
}

/// A vector of `len` floats, as f32.
pub(super) fn float_vector(file: &GgufFile, name: &str, len: usize) -> Result<Tensor> {
    let (TensorInfo { dims, block_type, .. }, bytes) = file.tensor(name)?;
    if dims[..] != [len] {
        return Err(wrong_shape(name, dims, &[len])).within(file.path().display());
    }
    let dtype = match block_type {
        BlockType::F32 => DType::F32,
        BlockType::F16 => DType::F16,
        BlockType::Bf16 => DType::BF16,
        other => {
            let got = other.name();
            return Err(file.wrong(format!("{name} is {got}; wanted F32, F16 or BF16")));
        }
    };
    Tensor::mapped(bytes, dtype, &[len])?.to_dtype(DType::F32)
}

/// Copies `n` rows from the order of rotated pairs to Hugging Face's: of a head with d rows, row
/// 2i + j of the file is row j·d/2 + i. Rows are moved whole, so that nothing is rounded.
fn unpair(rows: &[u8], row: usize, heads: usize, n: usize) -> Vec<u8> {
    let d = n / heads;
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(d * row) {
        for to in 0..d {
            let (j, i) = (to / (d / 2), to % (d / 2));
            out.extend_from_slice(&head[(2 * i + j) * row..][..row]);
        }
    }
    out
}

/// The inverse of [`unpair`].
pub(super) fn pair(rows: &[u8], row: usize, heads: usize, n: usize) -> Vec<u8> {
    let d = n / heads;
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(d * row) {
        for to in 0..d {
            let (i, j) = (to / 2, to % 2);
            out.extend_from_slice(&head[(j * (d / 2) + i) * row..][..row]);
        }
    }
    out
}

/// The name in a GGUF file of the tensor that Hugging Face calls `name`.
pub(super) fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (module, kind) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
}
