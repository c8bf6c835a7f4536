//! The block formats of llama.cpp's GGUF files.
//!
//! [`BlockType`] names a format, [`dequantize`] defines it, [`quantize`] and [`quantize_weighted`] write them, and
//! [`linear`] multiplies by weights in every one of them.

mod block_type;
mod dequantize;
mod fields;
pub mod linear;
mod quantize;
#[cfg(test)]
mod tests;

pub use block_type::BlockType;
pub use dequantize::dequantize;
pub use quantize::{quantize, quantize_weighted};
