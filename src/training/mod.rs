//! Training: a model as named parameters, and what is done to them step by step.
//!
//! [`Network`] is the Llama family on a tape; a [`LinearRule`] says how its linear layers multiply, which is where
//! every kind of low-precision training differs. A [`Trainer`] is the loop: data, schedule, optimizer, checkpoints.

mod checkpoint;
mod config;
mod curve;
mod data;
pub mod distributed;
pub mod float8;
pub mod gpu;
mod initial;
pub mod int8;
pub mod mx;
mod network;
mod network_experts;
pub mod nvfp4;
pub mod optim;
mod parameters;
pub mod paretoq;
pub mod parq;
pub mod pat;
pub mod qat;
mod rule;
pub mod semi_sparse;
pub mod supermask;
mod teacher;
mod together;
mod trainer;
mod update;
mod zeros;

pub use config::{MatmulPrecision, Schedule, TrainConfig};
pub use curve::{Curve, Point};
pub use data::{Corpus, Windows};
pub use initial::initialize;
pub use network::{Batch, ForwardOptions, Network};
pub use parameters::{Parameters, Vars};
pub use rule::{LinearRule, Plain};
pub use trainer::{Ended, RunOptions, Trainer};
