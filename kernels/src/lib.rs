//! The kernels of aolab: slices and shapes in, numbers out.
//!
//! This crate knows nothing of tensors, models or files. A kernel takes a [`Cpu`] (which instruction
//! set, which threads), slices and shapes; it checks the shapes at its door, once, and says what it
//! moved and computed ([`Cost`]).
//!
//! # How to add a kernel
//!
//! One folder per operation. `mod.rs` opens with five facts (formula, shapes, layout, error, source) and
//! holds, in this order: the public function with one visible `match cpu.isa()`, `cost()`, `kernel_name()`,
//! the scalar oracle, and `SHAPES`, which tests and benches share. `x86.rs` holds the AVX2 and
//! AVX-512 bodies, `aarch64.rs` the NEON one. Then one line below and one in `benches/kernels.rs`.
//!
//! Every instruction set this machine has is tested by name against the scalar oracle, and the oracle
//! against the formula in f64, over `SHAPES`, with outputs filled with NaN before the call.
//!
//! NEON bodies exist for dense, int8 dynamic, and (as rows in f32) int8 and int4 weight-only layers; the
//! other operations run their portable body there. `test_aarch64.sh` beside this crate runs every test
//! on an emulated ARM processor. No ARM processor was at hand to time them.

pub mod activation;
pub mod activation_backward;
pub mod adam;
pub mod attention;
pub mod attention_training;
mod block_int16;
pub mod bsr_linear;
pub mod buffers;
mod cost;
pub mod cross_entropy;
pub mod cuda;
pub mod dense_linear;
pub mod distillation;
pub mod dtypes;
pub mod embedding;
mod exact_f32;
pub mod float4_round;
pub mod float8_round;
pub mod float_linear;
pub mod ggml;
pub mod hadamard;
pub mod int4_linear;
pub mod int8_activation;
pub mod int8_linear;
pub mod isa;
pub mod kv_cache;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(feature = "torch")]
pub mod libtorch;
pub mod logits;
pub mod lut_linear;
pub mod machine;
pub mod matmul;
pub mod mmap;
pub mod norm;
pub mod norm_backward;
pub mod packed_linear;
pub mod pages;
pub mod parallel;
pub mod real;
pub mod rope;
mod rows;
#[cfg(test)]
mod sample;
mod shape;
pub mod softmax;
pub mod sparse24_linear;
pub mod stochastic_round;

pub use cost::Cost;
pub use isa::{Compute, Cpu, Isa};
pub use parallel::Threads;
pub use shape::Shape;
