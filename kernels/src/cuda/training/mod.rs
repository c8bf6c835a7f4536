//! What training does on the GPU between two steps of its optimizer, forward and backward, activations in bf16, sums in f32.
//!
//! `y = x · Wᵀ, dx = dy · W, dW = dyᵀ · x` by cuBLASLt in bf16 and float8 and by `wgmma.cu` in 8 bits; RMSNorm, rotation, causal attention with
//! grouped queries, SwiGLU, the embedding, softmax cross-entropy, each with its gradient; the gradient's norm, clipping and AdamW.
//! The residual stream and its gradient are (M, hidden) f32; everything else that is (M, …) is bf16, row after row, M tokens of all
//! sequences behind each other. Parameters, gradients and moments are f32, with a copy of the parameters in bf16.
//! Error: that of a rounding to bf16, 2⁻⁹, for each result, and for attention one more of its weights. No sum depends on the order in which blocks run.
//! Source: Dao 2023 (arXiv 2307.08691) for attention's loops; the formulas are those of the CPU folders of the same names.

mod attention;
mod casts;
mod ops;
mod products;
mod step;

pub use attention::{
    AttentionShape, Gradient, attention_backward, attention_forward, has_tensor_cores,
};
pub use casts::{Amax, Cast, Coded, Codes, cast, largest, rows_product};
pub use ops::{
    NormGradient, Places, add_to_loss, cross_entropy, embedding_backward, repeat,
    rms_norm_backward, rms_norm_forward, rope, swiglu_backward, swiglu_forward,
};
pub use products::{Float8, Into, Products};
pub use step::{AdamStep, Norm, adam_step, gradient_norm, round_to_bf16};
