//! Number formats below f32: what each code is worth, and which code a number rounds to.
//!
//! Every encoder rounds to the nearest value, ties to the even code, and says what becomes of NaN and of
//! what is too large. Source: IEEE 754-2019 (f16), Google's bfloat16, OCP OFP8 1.0 (e4m3fn, e5m2),
//! OCP Microscaling Formats 1.0 (e8m0, e2m1); the casts are PyTorch's.

pub(crate) mod float16;
mod float4;
mod float8;
mod floatx;
mod int;

pub use float4::{e2m1_decode, e2m1_encode};
pub use float8::{
    e4m3fn_decode, e4m3fn_encode, e4m3fn_encode_saturating, e5m2_decode, e5m2_encode,
    e5m2_encode_saturating, e8m0_decode, e8m0_encode_floor, fnuz_decode,
};
pub use float16::{
    SHAPES, bf16_from_f32, bf16_to_f32, cost, f16_from_f32, f16_to_f32, kernel_name,
};
pub use floatx::{floatx_decode, floatx_encode, floatx_max};
pub use half::{bf16, f16};
pub use int::{IntBounds, round_to_i8, round_to_i32, round_to_u8, sign_extend};
