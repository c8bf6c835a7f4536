//! f32 to block formats, bit for bit as llama.cpp makes its files.
//!
//! Each block, or sub-block of a K type, gets the scale (and minimum) that a formula or a small search finds; the K types then
//! round those to a few bits against two f16 numbers of the block, and code every number anew.
//! w (rows, k) f32, importance (k) f32 → blocks (rows · k / block_len) × block_bytes u8.
//! Layout as in `fields.rs`; f16 numbers are rounded ties to even.
//! Error: |w − dequantized| ≤ d/2 where the formulas choose d (Q4_0, Q5_0: d where the extreme's mirror image is cut off) plus the
//! rounding of d and m; the searches lower the (weighted) squared error instead, and have no bound for each number.
//! Source: llama.cpp, ggml/src/ggml-quants.c (`quantize_row_*_ref`, and `_impl` where columns have weights).

mod k_types;
mod search;
mod simple;

use super::BlockType;
use half::f16;

/// Writes `w` as blocks of `ty`, every number as important as its size says.
pub fn quantize(ty: BlockType, w: &[f32], blocks: &mut [u8]) {
    check(ty, w.len(), blocks.len());
    match ty {
        BlockType::F32 => each(w, blocks, |[x], b| *b = x.to_le_bytes()),
        BlockType::F16 => each(w, blocks, |[x], b| *b = f16::from_f32(*x).to_le_bytes()),
        BlockType::Bf16 => each(w, blocks, |[x], b| *b = half::bf16::from_f32(*x).to_le_bytes()),
        BlockType::Q4_0 => each(w, blocks, simple::q4_0),
        BlockType::Q4_1 => each(w, blocks, simple::q4_1),
        BlockType::Q5_0 => each(w, blocks, simple::q5_0),
        BlockType::Q5_1 => each(w, blocks, simple::q5_1),
        BlockType::Q8_0 => each(w, blocks, simple::q8_0),
        BlockType::Q2K => each(w, blocks, k_types::q2_k),
        BlockType::Q3K => each(w, blocks, k_types::q3_k),
        BlockType::Q4K => each(w, blocks, k_types::q4_k),
        BlockType::Q5K => each(w, blocks, k_types::q5_k),
        BlockType::Q6K => each(w, blocks, k_types::q6_k),
    }
}

/// [`quantize`] for rows of `importance.len()` numbers, whose column c matters `importance[c]` ≥ 0 times its squared error:
/// the mean square of the layer's input there, which llama.cpp calls an importance matrix.
///
/// The float types and Q8_0 choose nothing, so importance changes nothing in them.
pub fn quantize_weighted(ty: BlockType, w: &[f32], importance: &[f32], blocks: &mut [u8]) {
    check(ty, w.len(), blocks.len());
    let k = importance.len();
    assert!(
        k > 0 && w.len().is_multiple_of(k) && k.is_multiple_of(ty.block_len()),
        "quantize_weighted: rows are as long as importance, in whole blocks"
    );
    if !ty.is_quantized() || ty == BlockType::Q8_0 {
        return quantize(ty, w, blocks);
    }
    let row_nbytes = k / ty.block_len() * ty.block_bytes();
    for (row, blocks) in w.chunks_exact(k).zip(blocks.chunks_exact_mut(row_nbytes)) {
        match ty {
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 => {
                simple::weighted_row(ty, row, importance, blocks);
            }
            _ => k_types::weighted_row(ty, row, importance, blocks),
        }
    }
}

fn check(ty: BlockType, len: usize, nbytes: usize) {
    assert!(
        ty.nbytes(len) == Some(nbytes),
        "quantize: blocks must be w.len() / block_len blocks of block_bytes bytes"
    );
}

fn each<const B: usize, const L: usize>(
    w: &[f32],
    blocks: &mut [u8],
    encode: impl Fn(&[f32; L], &mut [u8; B]),
) {
    let (w, _) = w.as_chunks();
    let (blocks, _) = blocks.as_chunks_mut();
    for (w, block) in w.iter().zip(blocks) {
        encode(w, block);
    }
}

/// The f16 nearest to `value`, and what it stands for.
fn half(value: f32) -> ([u8; 2], f32) {
    let rounded = f16::from_f32(value);
    (rounded.to_le_bytes(), rounded.to_f32())
}
