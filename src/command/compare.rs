//! `compare`

use super::eval::TextArgs;
use super::{Command, Example, Group, Output};
use crate::compare::{CompareConfig, compare};
use crate::error::{Error, Result};
use crate::inspect::per_layer;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Put several models side by side: size, perplexity, divergence from the first, speed.
///
/// The first model is the baseline; everything is measured in this one run.
#[derive(Debug, clap::Args)]
pub(super) struct Compare {
    /// $variables, or anything that load takes; the first is the baseline
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    text: TextArgs,
    /// Timed tokens; 0 leaves speed out
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Tokens of the timed prompt
    #[arg(long, default_value_t = 256)]
    prompt: usize,
    /// Compare two models at every layer's output and after every block, each on its own hidden states
    #[arg(long)]
    per_layer: bool,
}

impl Command for Compare {
    const NAME: &'static str = "compare";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const MEASURES: bool = true;
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "base = load tiny; int8 = $base | quantize int8-weight-only; compare $base $int8 --windows 2 --tokens 8",
            about: "what int8 weights cost and bring",
            expect: "mean KL",
        },
        Example {
            line: "base = load tiny; int4 = $base | quantize int4-weight-only --group-size 32; compare --per-layer $base $int4 --windows 1",
            about: "where the error comes in",
            expect: "residual stream after block 0",
        },
    ];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        let mut models = Vec::new();
        for word in &self.models {
            let mut model = session.model_called(word)?;
            // A variable's own name tells more than how it was made.
            if let Some(name) = word.strip_prefix('$') {
                model.name = name.to_owned();
            }
            models.push(model);
        }
        if models.len() < 2 {
            return Err(Error::usage("compare wants at least two models: `compare $base $int4`"));
        }
        for model in &models {
            session.measures(model, &[1, self.text.rows(model)]);
        }
        session.compares_with(&models[0]);
        let (text, eval) = self.text.read(session)?;
        if self.per_layer {
            let [base, model] = models.as_slice() else {
                return Err(Error::usage(
                    "compare --per-layer wants two models: the baseline and another",
                ));
            };
            let (base, model) = (session.placed(base.clone())?, session.placed(model.clone())?);
            let cpu = session.cpu().clone();
            let task = session.task("comparing");
            let progress = &mut |done, total| task.progress(done, total);
            return per_layer(&base, &model, &cpu, &text, &eval, progress).map(Value::Table);
        }
        let config =
            CompareConfig { eval, decode_tokens: self.tokens, prefill_tokens: self.prompt };
        let cpu = session.cpu().clone();
        let task = session.task("comparing");
        let progress = &mut |done, total| task.progress(done, total);
        compare(&models, &cpu, &text, &config, progress).map(Value::Table)
    }
}
