//! Distillation: the model that training began with teaches the one that it becomes.
//!
//! The cross-entropy of a small text teaches the text by heart; the logits of the model before quantization say what
//! is to be kept, for words of the text and for those beside them (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

use std::sync::Arc;

use super::{Batch, ForwardOptions, Network, Parameters, Plain};
use crate::autograd::{Function, Tape, Var};
use crate::error::Result;

/// The parameters that teach, and how much they count.
#[derive(Clone, Debug)]
pub(super) struct Teacher {
    parameters: Parameters,
    share: f64,
}

impl Teacher {
    /// `None` where it counts nothing.
    pub(super) fn new(parameters: &Parameters, share: f64) -> Option<Teacher> {
        (share > 0.0).then(|| Teacher { parameters: parameters.clone(), share })
    }

    /// `share · KL(teacher ‖ logits) + (1 − share) · cross-entropy`.
    pub(super) fn loss(
        &self,
        tape: &Tape,
        network: &Network,
        batch: &Batch,
        logits: &Var,
    ) -> Result<Var> {
        let quiet = Tape::no_grad(tape.cpu()).with_precision(tape.precision());
        let vars = self.parameters.on(&quiet, &|_| true)?;
        let options = ForwardOptions::new(Arc::new(Plain));
        let taught = network.logits(&quiet, &vars, batch, &options)?;
        let distance = tape.distillation(logits, taught.value())?;
        if self.share >= 1.0 {
            return Ok(distance);
        }
        let text = tape.cross_entropy(logits, &batch.targets)?;
        let distance = tape.map(Function::Scale(self.share), &distance)?;
        tape.add(&distance, &tape.map(Function::Scale(1.0 - self.share), &text)?)
    }
}
