//! `spinquant`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::quantization::spinquant::{SpinQuantOptions, apply_spinquant};
use crate::session::Session;
use crate::value::{Kind, Value};

/// Turn a model so that outliers spread before it is quantized.
///
/// Hadamard rotations leave what the model computes as it is, and make weights and activations more even. Nothing is
/// quantized: quantize what comes out. Without options only down_proj's input is turned (R4), as in torchao.
#[derive(Debug, clap::Args)]
pub(super) struct SpinQuant {
    #[command(flatten)]
    options: SpinQuantOptions,
}

impl Command for SpinQuant {
    const NAME: &'static str = "spinquant";
    const GROUP: Group = Group::Change;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Model);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | spinquant | quantize int4-weight-only --group-size 32 | size",
            about: "down_proj's input turned at every call, its weight beforehand",
            expect: "total",
        },
        Example {
            line: "load tiny | spinquant --use-r1 --use-r2 --no-r4 | eval kl tiny --windows 1",
            about: "rotations that cost nothing later, and change nothing but rounding",
            expect: "same top-1",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let mut model = input.into_model()?;
        apply_spinquant(session.cpu(), &mut model, &self.options)?;
        model.name = format!("{}·spinquant", model.name);
        Ok(Value::Model(model))
    }
}
