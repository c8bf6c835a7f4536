//! Codes of one codebook by k-means: torchao's `CodeBookQuantizer`.
//!
//! Every row is divided by the mean of its magnitudes, `dim` neighbours of a row are the code of the nearest of 2^(bits · dim) entries:
//! `w = codebook[code] · mean|row|`. torchao finds the entries by faiss from random starts on rows that are not
//! divided, and moves them at every call; here they are found once, on what they are to stand for.

use std::sync::Arc;

use serde_json::json;

use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::quantization::code_type::CodeType;
use crate::quantization::config::dtype_to_dict;
use crate::quantization::primitives::{
    Blocks, fit_kmeans, nearest_codes, push_stream, stream_nbytes,
};
use crate::quantization::stored::read_weight;
use crate::tensor::Tensor;

/// The least scale.
const EPS: f32 = 1e-9;

/// The most numbers of a weight: k-means in f32 counts them.
const MOST_NUMBERS: usize = 1 << 27;

/// Whether codes of `bits · dim` bits can be had of a weight `(n, k)`.
pub(super) fn check((n, k): (usize, usize), bits: u32, dim: usize) -> Result<()> {
    if dim.saturating_mul(bits as usize) > 8 {
        return Err(Error::invalid(format!(
            "codes of weight_bits {bits} · codebook_dim {dim} bits: wanted at most 8"
        )));
    }
    if dim == 0 || !k.is_multiple_of(dim) {
        return Err(Error::invalid(format!(
            "K = {k} is not a multiple of codebook_dim {dim}; wanted a divisor"
        )));
    }
    match n.checked_mul(k) {
        Some(numel) if numel <= MOST_NUMBERS => Ok(()),
        _ => Err(Error::invalid(format!(
            "{n} × {k} are more than 2²⁷ numbers: too many for k-means"
        ))),
    }
}

/// The weight as codes of one codebook.
pub(super) fn quantize(
    cpu: &Cpu,
    weight: &dyn Weight,
    bits: u32,
    dim: usize,
) -> Result<Arc<dyn Weight>> {
    let ((n, k), dtype) = (weight.shape(), weight.dtype());
    check((n, k), bits, dim)?;
    let w = weight.dequantize()?.to_f32_vec();
    #[expect(clippy::cast_precision_loss, reason = "a row has fewer than 2²⁷ numbers")]
    let mean = |row: &[f32]| row.iter().map(|w| w.abs()).sum::<f32>() / row.len() as f32;
    let scale = |row: &[f32]| match mean(row) {
        mean if mean < EPS => EPS,
        mean => mean,
    };
    let scales: Vec<f32> = w.chunks_exact(k.max(1)).map(scale).collect();
    let rows = w.chunks_exact(k.max(1)).zip(&scales);
    let scaled: Vec<f32> =
        rows.flat_map(|(row, scale)| row.iter().map(move |w| w / scale)).collect();
    let data = Blocks { shape: (n, k), block: (1, dim) }.gather(&scaled);
    let code_bits = bits * u32::try_from(dim).unwrap_or(u32::MAX);
    let entries = 1 << code_bits;
    let codebook = fit_kmeans(cpu, &data, dim, entries);
    let codes = nearest_codes(cpu, &data, dim, &codebook);
    let mut bytes = Vec::new();
    codes.chunks_exact((k / dim).max(1)).for_each(|row| push_stream(row, code_bits, &mut bytes));
    let nbytes = stream_nbytes(k / dim, code_bits).unwrap_or(0);
    let tensors = vec![
        ("codes".to_owned(), Tensor::new(bytes, &[n, nbytes])?),
        ("codebook".to_owned(), Tensor::new(codebook, &[entries, 1, dim])?.to_dtype(dtype)?),
        ("scales".to_owned(), Tensor::new(scales, &[n, 1, 1])?.to_dtype(dtype)?),
    ];
    let data = json!({
        "dtype": dtype_to_dict(dtype),
        "code_dtype": CodeType::uint(code_bits),
        "block_size": [1, dim],
        "scale_block_size": k,
    });
    let meta = json!({ "_type": "CodebookWeight", "_version": 1, "_data": data });
    read_weight(&meta, tensors, (n, k))
}
