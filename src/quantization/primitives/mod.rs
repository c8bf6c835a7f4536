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
mod bits;
mod blocks;
mod cast;
mod cholesky;
mod codebook;
mod eigen;
mod float8;
mod float_words;
mod floatx;
mod gguf;
mod granularity;
mod groupwise;
mod hqq;
mod int4_layouts;
mod int4_row;
mod intx;
mod kernel_preference;
mod kmeans1d;
mod mx;
mod nf4;
mod nvfp4;
mod observers;
mod packing;
mod parts;
mod qparams;
mod sinq;
mod sqnr;
mod torch_pow;
mod torch_sum;

pub use activation::{per_token_dynamic_quant, quantize_activation_per_token_absmax};
pub use affine::{
    dequantize_affine, dequantize_affine_no_zero_point, dequantize_affine_tinygemm,
    quantize_affine, quantize_affine_no_zero_point, quantize_affine_tinygemm,
};
pub use bits::{
    check_streams, pack_i2_in_i8, pack_shards, push_stream, read_stream, shard_widths,
    stream_nbytes, unpack_i2_in_i8, unpack_shards,
};
pub use blocks::BlockGrid;
pub(crate) use cast::round_to as round_to_dtype;
pub use cast::{CodeRange, IntType, promote};
pub use cholesky::inverse_cholesky_upper;
pub use codebook::{Blocks, codebook_scales, fit_kmeans, nearest_codes};
pub use eigen::{Eigen, symmetric_eigen};
pub use float_words::MxElement;
pub use float8::{
    Float8, choose_scale_float8, dequantize_affine_float8, quantize_affine_float8,
    quantize_blockwise_float8,
};
pub use floatx::{choose_qparams_affine_floatx, dequantize_affine_floatx, quantize_affine_floatx};
pub use gguf::{GgufQParams, choose_qparams_gguf, dequantize_gguf, quantize_gguf};
pub use granularity::Granularity;
pub use groupwise::{
    ZeroPointDomain, dynamically_quantize_per_channel, get_group_qparams_symmetric,
    get_groupwise_affine_qparams, groupwise_affine_dequantize_tensor_from_qparams,
    groupwise_affine_quantize_tensor_from_qparams, pack_tinygemm_scales_and_zeros,
};
pub use hqq::{
    HqqCodes, HqqOptions, ScaleOnlyCodes, choose_qparams_and_quantize_affine_hqq,
    choose_qparams_and_quantize_scale_only_hqq,
};
pub use int4_layouts::{
    pack_int4_for_avx512, pack_plain_int32, pack_tinygemm_tiles, unpack_int4_for_avx512,
    unpack_plain_int32, unpack_tinygemm_tiles,
};
pub use int4_row::{Int4Rows, int4_row_quantize, int4_row_quantize_zp, pack_int4};
pub use intx::{IntxRows, intx_quantize};
pub use kernel_preference::KernelPreference;
pub use kmeans1d::{kmeans1d, nearest_of_ascending};
pub use mx::{ScaleCalculationMode, from_mx, mx_round, mx_round_block, to_mx};
pub use nf4::{
    NF4, Nf4Scalers, nf4_check, nf4_codes, nf4_dequantize_scalers, nf4_double_quantize_scalers,
    nf4_pack, nf4_unpack, nf4_values,
};
pub use nvfp4::{
    NVFP4_BLOCK, nvfp4_dequantize, nvfp4_quantize, nvfp4_round, nvfp4_scale,
    per_tensor_amax_to_scale,
};
pub use observers::{AffineQuantizedObserver, ObserverConfig, ObserverKind};
pub use packing::{
    from_blocked, pack_bits, pack_uint6, packed_len, to_blocked, unpack_bits, unpack_uint6,
};
pub(crate) use parts::map_parts;
pub use qparams::{
    MappingType, QParamsOptions, choose_qparams_affine, choose_qparams_affine_dont_preserve_zero,
    choose_qparams_affine_tinygemm, choose_qparams_affine_with_min_max,
};
pub use sinq::{SinqCodes, choose_qparams_and_quantize_scale_only_sinq};
pub use sqnr::compute_error;
pub(crate) use torch_pow::torch_pow;
pub(crate) use torch_sum::{torch_column_means, torch_mean};
