//! Calibration: what a model's own inputs say about how to quantize its layers (A11).
//!
//! torchao prepares a model (observers are put in), runs it on data, and converts it. So here: [`Calibrated::prepare`] gives
//! an observer for a layer, the observer sees the layer's inputs, and its `convert` gives the quantized weight.
//! [`Calibration`] runs a model over sequences of a text one block at a time, so that memory holds the
//! residual stream of the sequences and what the observers of one block keep, whatever the model's depth.
//!
//! Sequences are drawn by a seed and read in order, and kernels give the same sums on any number of threads: the same
//! seed gives the same bytes.

mod hessian;
mod run;
mod sequences;

use std::fmt;
use std::sync::Arc;

pub use hessian::Hessian;
pub(super) use run::wrap_again;
pub use run::{Calibration, Steps};
pub use sequences::{Sequences, draw};

use super::{Choice, Recipe};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{BlockWeight, Model, Weight};

/// A recipe that looks at a layer's inputs before it quantizes.
pub trait Calibrated: Recipe {
    /// What watches the inputs of the linear layer `fqn` and then quantizes `weight`.
    fn prepare(&self, fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>>;

    /// Whether a block's inputs should come from the quantized blocks before it, not from the original ones.
    fn sequential(&self) -> bool {
        false
    }
}

/// Watches one linear layer.
pub trait LayerObserver: Send + fmt::Debug {
    /// The inputs `(M, K)` of one sequence, row-major.
    fn observe(&mut self, cpu: &Cpu, x: &[f32]) -> Result<()>;

    /// All sequences were seen. `true` asks to see them once more.
    fn another_pass(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// The quantized weight.
    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>>;
}

/// Whether `recipe` looks at inputs before it quantizes some linear layer of `model`.
pub fn needs_calibration(model: &Model, recipe: &dyn Recipe) -> bool {
    let calibrated = |(fqn, _): &(String, _)| match recipe.choose(fqn) {
        Choice::Itself => recipe.calibrated().is_some(),
        Choice::Other(other) => other.calibrated().is_some(),
        Choice::Leave(_) => false,
    };
    model.linears().iter().any(calibrated)
}

/// The error of a recipe that was asked to quantize without having seen inputs.
pub(crate) fn not_without_inputs(name: &str) -> Error {
    Error::invalid(format!(
        "{name} looks at a layer's inputs first; run it with quantization::calibration::Calibration"
    ))
}

/// Refuses a weight that was quantized already: its grid would only be quantized again. Blocks as a GGUF file has
/// them are as original as it gets.
pub(crate) fn check_original(name: &str, weight: &dyn Weight) -> Result<()> {
    let meta = weight.meta();
    let blocks = meta.get("_type").is_some_and(|name| name == BlockWeight::TYPE);
    if meta.is_null() || blocks {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the weight is {} already, and {name} starts from the original one; \
         load the model again, or quantize it with {name} first",
        weight.workflow()
    )))
}
