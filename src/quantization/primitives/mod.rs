//! The arithmetic that every workflow is made of, bit for bit as torchao 0.18 does it.
//!
//! One routine, [`BlockGrid`], cuts a tensor into the blocks that share a scale, whatever the
//! [`Granularity`]; everything below runs over its blocks (N02–N11, N13–N18, N22).
//!
//! # Rounding
//!
//! PyTorch computes each operation on bf16 and f16 tensors in f32 and rounds its result, so every single
//! operation here is rounded to the dtype that PyTorch's promotion gives it ([`promote`]). `round` means
//! to nearest, ties to even.
//!
//! # NaN and infinity
//!
//! PyTorch leaves the cast of NaN to an integer to the processor; we do what it does on x86, on every processor.
//!
//! - The minimum and the maximum of a block with a NaN are NaN, and so is its scale. `clamp` and `round` keep NaN.
//! - A NaN, an infinity or a value beyond 2³¹ becomes `i32::MIN`; narrower integers take the low bits of that, 0.
//!
//! So a block with a NaN has the codes 0 and, because its scale is NaN, dequantizes to NaN.

mod activation;
mod affine;
mod blocks;
mod cast;
mod float8;
mod gguf;
mod granularity;
mod groupwise;
mod int4_row;
mod qparams;
mod sqnr;

pub use activation::{per_token_dynamic_quant, quantize_activation_per_token_absmax};
pub use affine::{
    dequantize_affine, dequantize_affine_no_zero_point, dequantize_affine_tinygemm,
    quantize_affine, quantize_affine_no_zero_point, quantize_affine_tinygemm,
};
pub use blocks::BlockGrid;
pub use cast::{CodeRange, IntType, promote};
pub use float8::{Float8, choose_scale_float8};
pub use gguf::{GgufQParams, choose_qparams_gguf, dequantize_gguf, quantize_gguf};
pub use granularity::Granularity;
pub use groupwise::{
    ZeroPointDomain, dynamically_quantize_per_channel, get_group_qparams_symmetric,
    get_groupwise_affine_qparams, groupwise_affine_dequantize_tensor_from_qparams,
    groupwise_affine_quantize_tensor_from_qparams, pack_tinygemm_scales_and_zeros,
};
pub use int4_row::{Int4Rows, int4_row_quantize, int4_row_quantize_zp, pack_int4};
pub use qparams::{
    MappingType, QParamsOptions, choose_qparams_affine, choose_qparams_affine_dont_preserve_zero,
    choose_qparams_affine_tinygemm, choose_qparams_affine_with_min_max,
};
pub use sqnr::compute_error;
