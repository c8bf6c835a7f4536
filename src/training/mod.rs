//! Training: a model as named parameters, and what is done to them step by step.
//!
//! [`Network`] is the Llama family on a tape; a [`LinearRule`] says how its linear layers multiply, which is where
//! every kind of low-precision training differs.

mod network;
pub mod optim;
mod parameters;
mod rule;

pub use network::{Batch, ForwardOptions, Network};
pub use parameters::{Parameters, Vars};
pub use rule::{LinearRule, Plain};
