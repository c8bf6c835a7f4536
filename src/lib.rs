//! aolab: torchao's job done in Rust, as a laboratory.
//!
//! A person loads a model, quantizes it with one command, sees at once what that did to accuracy, speed and
//! memory, and keeps the result. Each layer knows only those below it:
//!
//! ```text
//! repl · cli                       front ends: read a line, show a Value; only they print
//! sweep                            one pipeline with many settings, here or on a cluster
//! report · dashboard               a session as one page; the run store, live
//! command                          one file a command: a clap::Args struct and run()
//! session · language               models, variables, history, undo; pipes checked before they run
//! libtorch (feature `torch`)       PyTorch's library beside ours: reference, baseline, TorchScript
//! store                            every measured number with where it came from (SQLite)
//! quantization                     the workflows: one folder each, readable alone
//! compare · inspect · eval · bench · generate · plot · table · display     what a result is and how it is shown
//! model · data · io                Llama-family models; tokenizers, texts; safetensors, PyTorch, GGUF, folders
//! autograd                         a tape over tensors: gradients
//! tensor                           one owned tensor type, dtype known at run time
//! aolab_kernels                    slices and shapes; all `unsafe` lives there
//! ```
//!
//! # The central types
//!
//! [`Tensor`] holds numbers. A [`model::Weight`] is what a linear layer's weight can do: a format defines itself by
//! `dequantize_rows` and gets a kernel through `linear`. A [`quantization::Recipe`] turns a weight into a
//! quantized one; every `XxxConfig` is one. A [`model::Model`] holds `Arc<dyn Weight>`s, so cloning it costs nothing. A
//! [`table::Table`] is what every measuring command returns, a [`Value`] is what flows in a pipe, and a
//! [`Session`] is the state behind every front end. An [`Error`] says what, got, wanted, what next.
//!
//! # How to add a workflow
//!
//! 1. `src/quantization/NAME/mod.rs`: its story, the ids of what it does, the config (named as in torchao, `clap::Args` and serde)
//!    and `impl Recipe`; `weight.rs`: the format, `impl Weight`. It imports no other workflow: what two need is copied, or it is
//!    arithmetic and belongs in `primitives` or in the kernels.
//! 2. One `mod` line and one entry in `quantization::WORKFLOWS`, one variant in `command/quantize.rs`.
//! 3. A golden test in `tests/` against vectors made by torchao.
//!
//! # Invariants
//!
//! `unsafe` only in kernels; no workflow imports another; a configuration that cannot apply is an error or a reported skip, never
//! silent; every result names the kernel that ran and its convention; the same seed gives the same bytes; only front
//! ends print. `tests/tidy.rs` checks what a program can check.
#![forbid(unsafe_code)]

// The front ends name the library as any program does.
extern crate self as aolab;

pub mod autograd;
pub mod bench;
#[doc(hidden)]
pub mod cli;
pub mod command;
pub mod compare;
pub mod dashboard;
pub mod data;
pub mod display;
pub mod error;
pub mod eval;
pub mod formats;
pub mod generate;
pub mod inspect;
pub mod io;
#[cfg(feature = "jupyter")]
mod jupyter;
pub mod language;
#[cfg(feature = "torch")]
pub mod libtorch;
pub mod model;
pub mod plot;
pub mod quantization;
mod repl;
pub mod report;
pub mod rng;
pub mod session;
pub mod sparsity;
pub mod store;
pub mod summary;
pub mod sweep;
pub mod table;
pub mod tensor;
pub mod training;
pub mod value;
pub mod verify;

pub use aolab_kernels as kernels;
pub use error::{Error, Result};
/// Configurations and the descriptions of weights are its values.
pub use serde_json;
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

/// The Rust blocks of the tutorials, which `cargo test --doc` runs.
#[cfg(doctest)]
mod tutorials {
    #[doc = include_str!("../tutorials/01-quantize-a-language-model.md")]
    mod tutorial_01 {}
    #[doc = include_str!("../tutorials/02-formats.md")]
    mod tutorial_02 {}
    #[doc = include_str!("../tutorials/03-calibration.md")]
    mod tutorial_03 {}
    #[doc = include_str!("../tutorials/04-find-the-best-mix.md")]
    mod tutorial_04 {}
    #[doc = include_str!("../tutorials/07-quantization-aware-training.md")]
    mod tutorial_07 {}
    #[doc = include_str!("../tutorials/10-sparsity.md")]
    mod tutorial_10 {}
}
