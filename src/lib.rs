//! aolab: torchao's job done in Rust, as a laboratory.
#![forbid(unsafe_code)]

pub mod bench;
pub mod command;
pub mod compare;
pub mod data;
pub mod error;
pub mod eval;
pub mod generate;
pub mod io;
pub mod language;
pub mod model;
pub mod plot;
pub mod quantization;
pub mod rng;
pub mod session;
pub mod summary;
pub mod table;
pub mod tensor;
pub mod value;

pub use aolab_kernels as kernels;
pub use error::{Error, Result};
pub use session::Session;
pub use tensor::{DType, Tensor};
pub use value::{Kind, Value};

/// Loads the model that `source` names: `tiny`, a folder, a .safetensors or .gguf file. Models of the hub
/// (`hf:ORG/NAME`) need to know where it is: see [`load_with`].
///
/// ```
/// # fn main() -> aolab::Result<()> {
/// let model = aolab::load("tiny")?;
/// assert_eq!(model.parameters(), 6_819_072);
/// # Ok(()) }
/// ```
pub fn load(source: &str) -> Result<model::Model> {
    load_with(source, &io::LoadOptions::new(quantization::read_weight))
}

/// Loads a model as `options` say; with [`io::HubConfig`] also `hf:ORG/NAME` and `hf:ORG/NAME@REVISION`.
pub fn load_with(source: &str, options: &io::LoadOptions) -> Result<model::Model> {
    let found = io::open(source, options)?;
    model::Model::build(&found.name, found.config, &*found.parameters, found.tokenizer)
}
