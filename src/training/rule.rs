//! How linear layers multiply while they are trained.

use std::fmt;

use super::{Parameters, Vars};
use crate::autograd::{Tape, Var};
use crate::error::Result;

/// A linear layer's multiplication with its own forward and backward: what a kind of low-precision training is.
pub trait LinearRule: fmt::Debug + Send + Sync {
    /// What it is called in results: `plain`, `qat int4-weight-only`.
    fn name(&self) -> String;

    /// `y = x · Wᵀ` of the linear layer `fqn`. `own` holds the parameters that [`LinearRule::prepare`] added.
    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, own: &Vars) -> Result<Var>;

    /// The rows `ids` of the embedding.
    fn embedding(&self, tape: &Tape, table: &Var, ids: &[u32]) -> Result<Var> {
        tape.embedding(table, ids)
    }

    /// Tokens must be a multiple of this; experts' groups are filled up with zeros.
    fn token_multiple(&self) -> usize {
        1
    }

    /// Adds the parameters that the rule trains besides (scales that are learned, adapters), before the first step.
    fn prepare(&self, parameters: &mut Parameters) -> Result<()> {
        let _ = parameters;
        Ok(())
    }

    /// Whether the parameter `name` stays as it is.
    fn is_frozen(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Told before each forward pass which step it is.
    fn begin_step(&self, step: usize) {
        let _ = step;
    }

    /// Told after step `step`, counted from 0, with the parameters as it left them.
    fn end_step(&self, step: usize, parameters: &mut Parameters) -> Result<()> {
        let _ = (step, parameters);
        Ok(())
    }

    /// The parameters that a model of the plain architecture gets: adapters merged, own parameters dropped.
    fn finish(&self, parameters: &Parameters) -> Result<Parameters> {
        Ok(parameters.clone())
    }
}

/// Linear layers as they are, in the tape's precision.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl LinearRule for Plain {
    fn name(&self) -> String {
        "plain".to_owned()
    }

    fn linear(&self, tape: &Tape, _fqn: &str, x: &Var, weight: &Var, _own: &Vars) -> Result<Var> {
        tape.linear(x, weight)
    }
}
