//! aolab: torchao's job done in Rust, as a laboratory.
#![forbid(unsafe_code)]

pub mod data;
pub mod error;
pub mod eval;
pub mod generate;
pub mod io;
pub mod model;
pub mod quantization;
pub mod rng;
pub mod table;
pub mod tensor;

pub use aolab_kernels as kernels;
pub use error::{Error, Result};
pub use tensor::{DType, Tensor};
