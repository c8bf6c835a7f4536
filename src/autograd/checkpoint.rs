//! Gradient checkpointing: memory for time.

use super::{Tape, Upstream, Var};
use crate::error::{Error, Result};

impl Tape {
    /// `f(inputs)` without keeping what it computes in between: the backward pass computes that again.
    ///
    /// `f` must do the same both times (dropout takes a seed), and gradients flow through `inputs` only.
    pub fn checkpoint(
        &self,
        inputs: &[&Var],
        f: impl Fn(&Tape, &[Var]) -> Result<Var> + 'static,
    ) -> Result<Var> {
        let quiet = Tape::no_grad(&self.cpu).with_precision(self.precision);
        let constants: Vec<Var> = inputs.iter().map(|var| var.detached()).collect();
        let y = f(&quiet, &constants)?;
        self.custom("checkpoint", inputs, y.value, move |up, dy| again(up, &constants, f, dy))
    }
}

fn again(
    up: &Upstream<'_>,
    inputs: &[Var],
    f: impl Fn(&Tape, &[Var]) -> Result<Var>,
    dy: crate::Tensor,
) -> Result<Vec<Option<crate::Tensor>>> {
    let tape = Tape::new(up.cpu).with_precision(up.precision);
    let inputs: Vec<Var> = inputs
        .iter()
        .zip(up.needs)
        .map(|(var, needed)| if *needed { tape.leaf(var.value.clone()) } else { var.clone() })
        .collect();
    let y = f(&tape, &inputs)?;
    if !y.needs_gradient() {
        return Err(Error::invalid("checkpoint: the second run does not depend on the inputs"));
    }
    let mut gradients = tape.backward_from(&y, dy)?;
    Ok(inputs.iter().map(|var| gradients.take(var)).collect())
}
