//! Blocks of every GGUF type, byte for byte as llama.cpp's own library writes them (`quantize gguf`); and torchao's outline
//! of one of them.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::collections::BTreeMap;

use aolab::kernels::ggml::{self, BlockType};
use aolab::quantization::primitives::{choose_qparams_gguf, dequantize_gguf, quantize_gguf};
use golden_support::Family;

/// A difference, as a person can look for it.
fn first_difference(ty: BlockType, got: &[u8], wanted: &[u8], row_nbytes: usize) -> String {
    let at = got.iter().zip(wanted).position(|(got, wanted)| got != wanted).unwrap_or(got.len());
    let count = got.iter().zip(wanted).filter(|(got, wanted)| got != wanted).count();
    let (row, byte) = (at / row_nbytes, at % row_nbytes);
    let block = byte / ty.block_bytes();
    format!(
        "{count} bytes differ, first: row {row}, block {block}, byte {}",
        byte % ty.block_bytes()
    )
}

#[test]
fn quantize_gives_the_bytes_of_llama_cpp() {
    let family = Family::read("ggml_quantize");
    let x = family.tensor("x");
    let importance = family.tensor("importance").to_f32_vec();
    let k = x.shape()[1];
    let mut complaints = Vec::new();
    for ty in BlockType::ALL.into_iter().filter(|ty| ty.is_quantized()) {
        for suffix in ["", ".weighted"] {
            let name = format!("{}{suffix}", ty.name());
            let wanted = family.tensor(&name);
            let mut got = vec![0xa5; wanted.nbytes()];
            if suffix.is_empty() {
                ggml::quantize(ty, &x.to_f32_vec(), &mut got);
            } else {
                ggml::quantize_weighted(ty, &x.to_f32_vec(), &importance, &mut got);
            }
            if got != wanted.bytes() {
                let row = k / ty.block_len() * ty.block_bytes();
                complaints
                    .push(format!("{name}: {}", first_difference(ty, &got, wanted.bytes(), row)));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn torchaos_gguf_primitives_are_equal_bit_for_bit() {
    let family = Family::read("gguf_q4k");
    let w = family.tensor("w");
    let qparams = choose_qparams_gguf(&w).expect("K is a multiple of 256");
    let q = quantize_gguf(&w, &qparams).expect("a matrix");
    let dq = dequantize_gguf(&q, &qparams).expect("a matrix");
    let computed = BTreeMap::from([
        ("super_scale".to_owned(), qparams.super_block_scale_scale),
        ("super_min".to_owned(), qparams.super_block_min_scale),
        ("qscale".to_owned(), qparams.quantized_block_scale),
        ("qmin".to_owned(), qparams.quantized_block_min),
        ("q".to_owned(), q),
        ("dq".to_owned(), dq),
    ]);
    family.check(&computed, &["w"]);
}
