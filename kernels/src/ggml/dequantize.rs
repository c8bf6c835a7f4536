//! Block formats to f32.
//!
//! `w = q·d`, `w = q·d + m`, and for the K types `w = (d·scale)·q − (dmin·min)`, in this order of f32 operations.
//! blocks (len / block_len) × block_bytes u8 → out (len) f32.
//! Little-endian; `fields.rs` is the table of which bits are what.
//! Error: none, the bits are those of llama.cpp without fused multiply-adds.
//! Source: llama.cpp, ggml/src/ggml-quants.c (`dequantize_row_*`) and ggml-common.h.

use super::BlockType;
use super::fields::{Fields, reader};
use half::{bf16, f16};

/// Writes the numbers that `blocks` stand for. This function is the definition of the formats.
pub fn dequantize(ty: BlockType, blocks: &[u8], out: &mut [f32]) {
    assert!(
        ty.nbytes(out.len()) == Some(blocks.len()),
        "dequantize: blocks must be out.len() / block_len blocks of block_bytes bytes"
    );
    match ty {
        BlockType::F32 => each(blocks, out, |b| f32::from_le_bytes(*b)),
        BlockType::F16 => each(blocks, out, |b| f16::from_le_bytes(*b).to_f32()),
        BlockType::Bf16 => each(blocks, out, |b| bf16::from_le_bytes(*b).to_f32()),
        _ => quantized(ty, blocks, out),
    }
}

fn each<const B: usize>(blocks: &[u8], out: &mut [f32], decode: impl Fn(&[u8; B]) -> f32) {
    let (blocks, _) = blocks.as_chunks();
    for (block, out) in blocks.iter().zip(out) {
        *out = decode(block);
    }
}

fn quantized(ty: BlockType, blocks: &[u8], out: &mut [f32]) {
    let read = reader(ty);
    let mut fields = Fields::ZERO;
    for (block, out) in
        blocks.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_len()))
    {
        read(block, &mut fields);
        values(ty, &fields, out);
    }
}

/// The numbers of a block that was taken apart. The order of operations is llama.cpp's.
pub(super) fn values(ty: BlockType, fields: &Fields, out: &mut [f32]) {
    let bias = f32::from(ty.bias());
    let (d, m) = (f16::from_le_bytes(fields.d).to_f32(), f16::from_le_bytes(fields.m).to_f32());
    for (j, (out, codes)) in
        out.chunks_mut(ty.sub_len()).zip(fields.codes.chunks(ty.sub_len())).enumerate()
    {
        // A type without minimums must not add one: −0 + 0 would lose its sign.
        let (scale, min) = match (ty.sub_scales(), ty.has_min()) {
            (0, false) => (d, None),
            (0, true) => (d, Some(m)),
            (_, false) => (d * f32::from(fields.scales[j]), None),
            (_, true) => (d * f32::from(fields.scales[j]), Some(-(m * f32::from(fields.mins[j])))),
        };
        for (y, &code) in out.iter_mut().zip(codes) {
            let product = scale * (f32::from(code) - bias);
            *y = min.map_or(product, |min| product + min);
        }
    }
}
