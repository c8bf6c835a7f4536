//! Training on a GPU: the Llama family, forward and backward by kernels, with the CPU trainer's data, schedule, clipping and AdamW.
//!
//! The residual stream and its gradient are f32, other activations bf16; parameters, gradients and moments are f32 in one buffer each, with
//! a copy of the parameters in bf16 that products read. Matmuls of the blocks run in bf16, float8 or int8, the output layer in bf16.
//! Layers with one input (q, k, v; gate, up) are one layer here: where a scale is shared by a whole weight or gradient, they share it.
//! A step waits for the GPU once, for its loss and its norm. Nothing depends on the order in which blocks of threads run: the same
//! config, data and seed give the same bytes on the same GPU.

mod engine;
mod layout;
mod linear;
mod pass;
mod trainer;

pub use engine::{Engine, StepResult};
pub use layout::NetworkShape;
pub use linear::MatmulKind;
