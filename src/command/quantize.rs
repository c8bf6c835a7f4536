//! `quantize`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex::Regex;

use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::io::files;
use crate::model::Linear;
use crate::quantization::{
    GgufBlockConfig, Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig, QuantizeOptions, QuantizeReport, Recipe, config_from_dict, is_linear,
    quantize_with,
};
use crate::session::Session;
use crate::table::number;
use crate::value::{Kind, Value};

/// Quantize the linear layers of a model.
///
/// The workflows, their options and their numbers are torchao's. The model that comes in is not changed: the
/// two share what stays the same.
#[derive(Debug, clap::Args)]
#[command(subcommand_value_name = "WORKFLOW", subcommand_help_heading = "Workflows")]
pub(super) struct Quantize {
    #[command(subcommand)]
    workflow: Option<Workflow>,
    /// Only the layers whose name this regular expression finds: 'mlp|self_attn', 'layers\.[0-3]\.'
    #[arg(long, value_name = "REGEX", global = true)]
    filter: Option<Regex>,
    /// Leave layers alone that the workflow cannot apply to, and say which
    #[arg(long, global = true)]
    skip_incompatible: bool,
    /// Take the configuration from torchao's JSON instead; it may tell layers apart
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Workflow {
    /// The blocks of llama.cpp's GGUF files, 2 to 8 bits a weight
    Gguf(GgufBlockConfig),
    /// 4-bit weights in groups, activations as they are
    Int4WeightOnly(Int4WeightOnlyConfig),
    /// 8-bit weights, activations as they are
    Int8WeightOnly(Int8WeightOnlyConfig),
    /// 8-bit weights, and activations rounded to 8 bits at every call
    Int8DynamicActivationInt8Weight(Int8DynamicActivationInt8WeightConfig),
}

impl Workflow {
    fn recipe(self) -> Arc<dyn Recipe> {
        match self {
            Workflow::Gguf(config) => Arc::new(config),
            Workflow::Int4WeightOnly(config) => Arc::new(config),
            Workflow::Int8WeightOnly(config) => Arc::new(config),
            Workflow::Int8DynamicActivationInt8Weight(config) => Arc::new(config),
        }
    }
}

impl Command for Quantize {
    const NAME: &'static str = "quantize";
    const GROUP: Group = Group::Change;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Model);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | quantize int4-weight-only --group-size 32 | size",
            about: "4 bits a weight, a scale and a zero for every 32",
            expect: "total",
        },
        Example {
            line: "quantize tiny int8-weight-only --granularity per-row",
            about: "8 bits a weight, a scale for every row",
            expect: "int8-weight-only in 43 linear layers",
        },
        Example {
            line: "quantize tiny int8-dynamic-activation-int8-weight --act-mapping-type asymmetric",
            about: "8-bit activations too, on integer kernels",
            expect: "int8-dynamic-activation-int8-weight in 43 linear layers",
        },
        Example {
            line: "quantize tiny gguf --type Q4_K",
            about: "llama.cpp's blocks; `save NAME.gguf` makes a file for it",
            expect: "Q4_K in 43 linear layers",
        },
        Example {
            line: "quantize tiny int4-weight-only --group-size 64 --filter 'mlp\\.'",
            about: "only the feed-forward layers",
            expect: "int4-weight-only in 18 linear layers",
        },
        Example {
            line: "quantize tiny int4-weight-only --group-size 512 --skip-incompatible",
            about: "what a group size does not fit is left alone, and told",
            expect: "bf16 in 43 linear layers",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let mut model = input.into_model()?;
        let recipe = match (self.workflow, &self.config) {
            (Some(workflow), None) => workflow.recipe(),
            (None, Some(path)) => config_from(path)?,
            (Some(_), Some(_)) => {
                let words = "a workflow and --config are two answers to one question; give one";
                return Err(Error::usage(words));
            }
            (None, None) => {
                let words = "which workflow? `help quantize` lists them; or --config FILE.json";
                return Err(Error::usage(words));
            }
        };
        let chosen = |fqn: &str, linear: &Linear| {
            is_linear(fqn, linear) && self.filter.as_ref().is_none_or(|regex| regex.is_match(fqn))
        };
        let task = session.task("quantizing");
        let mut progress = |done, total, _: &str| {
            task.progress(done, total);
        };
        let options = QuantizeOptions {
            skip_incompatible: self.skip_incompatible,
            progress: Some(&mut progress),
            cancelled: Some(&|| task.cancelled()),
        };
        let report = quantize_with(session.cpu(), &mut model, recipe.as_ref(), &chosen, options)?;
        drop(task);
        if report.quantized() == 0 && !self.skip_incompatible {
            return Err(Error::invalid("no linear layer was chosen; `show` lists their names"));
        }
        tell(session, &report, self.filter.as_ref());
        model.name = format!("{}·{}", model.name, recipe.name());
        Ok(Value::Model(model))
    }
}

fn config_from(path: &Path) -> Result<Arc<dyn Recipe>> {
    config_from_dict(&files::read_json(path)?)
}

/// How many layers were quantized, and which were left alone although they were chosen.
fn tell(session: &Session, report: &QuantizeReport, filter: Option<&Regex>) {
    let (before, after) = report.nbytes();
    session.note(&format!(
        "quantized {} of {} linear layers: {} → {}",
        report.quantized(),
        report.layers.len(),
        number::bytes(before as u64),
        number::bytes(after as u64),
    ));
    for note in &report.notes {
        session.note(note);
    }
    for layer in &report.layers {
        let chosen = filter.is_none_or(|regex| regex.is_match(&layer.fqn));
        if let Some(why) = layer.skipped.as_ref().filter(|_| chosen) {
            session.note(&format!("left alone: {}: {why}", layer.fqn));
        }
    }
}

/// The words that an option of a workflow takes, by the name of its value, for completion.
pub(super) fn words_of(value_name: &str) -> &'static [&'static str] {
    match value_name {
        "SIZE" => &["32", "64", "128", "256"],
        "GRANULARITY" => &["per-row", "per-tensor", "per-group:32", "per-group:128"],
        "MAPPING" => &["symmetric", "asymmetric"],
        "FORMAT" => &["plain", "tile-packed-to-4d"],
        "ALGORITHM" => &["tinygemm"],
        "BLOCK_TYPE" => {
            &["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
        }
        _ => &[],
    }
}
