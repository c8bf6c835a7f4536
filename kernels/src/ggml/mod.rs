//! The block formats of llama.cpp's GGUF files.
//!
//! [`BlockType`] names a format, [`dequantize`] defines it, [`quantize`] writes the simple ones.

mod block_type;
mod dequantize;
mod quantize;
#[cfg(test)]
mod tests;

pub use block_type::BlockType;
pub use dequantize::dequantize;
pub use quantize::{QUANTIZABLE, quantize};
