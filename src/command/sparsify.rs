//! `sparsify`

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use aolab_kernels::cuda::Device;
use clap::{FromArgMatches as _, Subcommand as _};
use regex::Regex;

use super::calibrate::{self, CalibrationArgs, apply, some_are_chosen};
use super::{Command, Example, Group, Output};
use crate::error::{Context as _, Error, Result};
use crate::io::files;
use crate::language::{TokenKind, lex};
use crate::model::{Linear, Model, sparse_of};
use crate::quantization::{FqnToConfig, QuantizeReport, Recipe, config_from_dict};
use crate::session::Session;
use crate::sparsity::gain::Work;
use crate::sparsity::{
    BlockSparseWeightConfig, FpgmPruner, Int4MarlinSparseConfig, MagnitudeSparsifier,
    NearlyDiagonalSparsifier, SaliencyPruner, SemiSparseWeightConfig, SparseGptSparsifier,
    WandaSparsifier, WeightNormSparsifier,
};
use crate::table::number;
use crate::value::{Kind, Value};

/// Prune the linear layers of a model, and keep them in a sparse format.
///
/// Zeros stay through what follows: `quantize` keeps them exactly, and so does `train`. On a quantized model the codes of
/// what is kept stay as they are. The model that comes in is not changed.
#[derive(Debug, clap::Args)]
#[command(subcommand_value_name = "SPARSIFIER", subcommand_help_heading = "Sparsifiers")]
pub(super) struct Sparsify {
    #[command(subcommand)]
    sparsifier: Option<Which>,
    /// Only the layers whose name this regular expression finds: 'mlp|self_attn', 'layers\.[0-3]\.'
    #[arg(long, value_name = "REGEX", global = true)]
    filter: Option<Regex>,
    /// Leave layers alone that the sparsifier cannot apply to, and say which
    #[arg(long, global = true)]
    skip_incompatible: bool,
    /// Take the configuration from JSON instead; it may tell layers apart
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tell layers apart: those called LAYERS, or matched by 're:PATTERN', take SPARSIFIER (with its options in one word), or
    /// stay as they are with 'none'. May be given often; the first that matches decides
    #[arg(long, num_args = 2, value_names = ["LAYERS", "SPARSIFIER"])]
    fqn: Vec<String>,
    /// What the layers that no --fqn names take
    #[arg(long, value_name = "SPARSIFIER")]
    default: Option<Words>,
    #[command(flatten)]
    calibration: CalibrationArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Which {
    /// Compress a weight that is 2:4 already
    SemiSparseWeight(SemiSparseWeightConfig),
    /// Keep only the blocks that are not zero
    BlockSparseWeight(BlockSparseWeightConfig),
    /// 2:4 in symmetric int4, pruned by magnitude where it is not 2:4 yet
    #[command(name = "marlin-24")]
    Marlin24(Int4MarlinSparseConfig),
    /// The smallest weights go: of a layer, of N:M neighbours, or block by block
    Magnitude(MagnitudeSparsifier),
    /// The smallest weights times the norms of their inputs go; reads a text first
    Wanda(WandaSparsifier),
    /// Weights go one column after another and the rest makes up for them; reads a text first
    SparseGpt(SparseGptSparsifier),
    /// Blocks of the lowest norm go
    WeightNorm(WeightNormSparsifier),
    /// All but a band around the diagonal goes
    NearlyDiagonal(NearlyDiagonalSparsifier),
    /// The rows with the smallest weights go
    Saliency(SaliencyPruner),
    /// The rows that are nearest to all others go
    Fpgm(FpgmPruner),
}

impl Which {
    fn recipe(self) -> Arc<dyn Recipe> {
        match self {
            Which::SemiSparseWeight(config) => Arc::new(config),
            Which::BlockSparseWeight(config) => Arc::new(config),
            Which::Marlin24(config) => Arc::new(config),
            Which::Magnitude(config) => Arc::new(config),
            Which::Wanda(config) => Arc::new(config),
            Which::SparseGpt(config) => Arc::new(config),
            Which::WeightNorm(config) => Arc::new(config),
            Which::NearlyDiagonal(config) => Arc::new(config),
            Which::Saliency(config) => Arc::new(config),
            Which::Fpgm(config) => Arc::new(config),
        }
    }
}

/// `magnitude --pattern 2:4` as the value of a flag.
#[derive(Clone)]
struct Words(Arc<dyn Recipe>);

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Words {
    type Err = Error;

    fn from_str(text: &str) -> Result<Words> {
        let (tokens, fault) = lex(text);
        if let Some(fault) = fault {
            return Err(fault.into_error(text));
        }
        if let Some(other) = tokens.iter().find(|token| token.kind != TokenKind::Word) {
            return Err(Error::usage(format!(
                "{:?} is no word of a sparsifier; wanted one and its options",
                other.text
            )));
        }
        let words = tokens.iter().map(|token| token.text.as_str());
        let command = clap::Command::new("sparsifier")
            .no_binary_name(true)
            .subcommand_required(true)
            .disable_help_flag(true)
            .disable_help_subcommand(true)
            .color(clap::ColorChoice::Never);
        let matches = Which::augment_subcommands(command).try_get_matches_from(words);
        let which = matches.and_then(|matches| Which::from_arg_matches(&matches));
        let which = which.map_err(|error| {
            let words = error.to_string();
            let first = words.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Error::usage(format!("{first}; `help sparsify` lists the sparsifiers"))
        })?;
        Ok(Words(which.recipe()))
    }
}

impl Command for Sparsify {
    const NAME: &'static str = "sparsify";
    const GROUP: Group = Group::Change;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Model);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | sparsify magnitude --pattern 2:4 | eval sparsity",
            about: "two of each four neighbours stay",
            expect: "2:4",
        },
        Example {
            line: "sparsify tiny magnitude --sparsity-level 0.9 --filter 'mlp'",
            about: "nine of ten weights of the feed-forward layers go",
            expect: "sparsified 18 of 43 linear layers",
        },
        Example {
            line: "sparsify tiny magnitude --pattern block:32 --sparsity-level 0.5 --skip-incompatible",
            about: "half of the blocks of 32 × 32 go",
            expect: "block:32",
        },
        Example {
            line: "sparsify tiny wanda --semi-structured-block-size 4 --sequences 2",
            about: "weights times the norms of their inputs, 2:4",
            expect: "2:4",
        },
        Example {
            line: "sparsify tiny sparse-gpt --pattern 2:4 --sequences 2 --filter 'layers.0.'",
            about: "what stays makes up for what goes",
            expect: "sparsified 7 of 43 linear layers",
        },
        Example {
            line: "load tiny | sparsify magnitude --pattern 2:4 | quantize int8-weight-only | eval sparsity",
            about: "quantizing keeps the zeros",
            expect: "int8-weight-only",
        },
        Example {
            line: "load tiny | quantize int4-weight-only --group-size 32 | sparsify magnitude --pattern 2:4",
            about: "the codes of what stays are kept",
            expect: "int4-weight-only",
        },
        Example {
            line: "sparsify tiny --fqn 're:.*down_proj' none --default 'magnitude --pattern 4:8'",
            about: "all layers but some",
            expect: "sparsified 37 of 43 linear layers",
        },
        Example {
            line: "sparsify tiny weight-norm --sparsity-level 1 --zeros-per-block 2",
            about: "2:4 as torchao's apply_fake_sparsity makes it",
            expect: "2:4",
        },
    ];

    fn run(mut self, session: &mut Session, input: Value) -> Result<Value> {
        let mut model = input.into_model()?;
        let before = model.clone();
        let filter = self.filter.clone();
        let chosen =
            |fqn: &str, _: &Linear| filter.as_ref().is_none_or(|regex| regex.is_match(fqn));
        if !self.skip_incompatible {
            some_are_chosen(&model, filter.as_ref(), &chosen)?;
        }
        let recipe = self.recipe()?;
        let work = calibrate::Work {
            recipe: &recipe,
            filter: filter.as_ref(),
            chosen: &chosen,
            skip_incompatible: self.skip_incompatible,
            doing: "sparsifying",
        };
        let report = apply(session, &mut model, &work, &self.calibration)?;
        if report.quantized() == 0 && !self.skip_incompatible {
            return Err(Error::invalid("no linear layer was chosen; `show` lists their names"));
        }
        tell(session, (&before, &model), &report, filter.as_ref())?;
        model.name = format!("{}·{}", model.name, recipe.name());
        Ok(Value::Model(model))
    }
}

impl Sparsify {
    fn recipe(&mut self) -> Result<Arc<dyn Recipe>> {
        let by_name = !self.fqn.is_empty() || self.default.is_some();
        match (self.sparsifier.take(), &self.config, by_name) {
            (Some(which), None, false) => Ok(which.recipe()),
            (None, Some(path), false) => config_from_dict(&files::read_json(path)?),
            (None, None, true) => self.by_name(),
            (None, None, false) => {
                let words = "which sparsifier? `help sparsify` lists them; or --config FILE.json";
                Err(Error::usage(words))
            }
            _ => Err(Error::usage(
                "a sparsifier, --config, and --fqn with --default are answers to one question; give one",
            )),
        }
    }

    fn by_name(&mut self) -> Result<Arc<dyn Recipe>> {
        let mut entries = Vec::new();
        for pair in self.fqn.chunks_exact(2) {
            let recipe = match pair[1].as_str() {
                "none" => None,
                words => Some(words.parse::<Words>().within(&pair[0])?.0),
            };
            entries.push((pair[0].clone(), recipe));
        }
        if let Some(default) = self.default.take() {
            entries.push(("_default".to_owned(), Some(default.0)));
        }
        Ok(Arc::new(FqnToConfig::new(entries)?))
    }
}

/// How many layers became sparse, and what that may gain.
#[expect(clippy::cast_precision_loss, reason = "counts of weights are far below 2⁵³")]
fn tell(
    session: &Session,
    (was, model): (&Model, &Model),
    report: &QuantizeReport,
    filter: Option<&Regex>,
) -> Result<()> {
    let (mut kept, mut all, mut quantized) = (0, 0, 0);
    let (mut work_before, mut work_after) = (Work::default(), Work::default());
    let sparse_cores = session.device().is_some_and(Device::has_wgmma);
    for layer in report.layers.iter().filter(|layer| layer.skipped.is_none()) {
        if let Some(sparse) = sparse_of(&model.linear(&layer.fqn)?.weight) {
            kept += sparse.mask()?.kept();
            all += layer.shape.0 * layer.shape.1;
        }
        let was = was.linear(&layer.fqn)?.weight.as_ref();
        quantized += usize::from(!was.meta().is_null() && was.as_sparse().is_none());
        work_before.add(was, sparse_cores);
        work_after.add(model.linear(&layer.fqn)?.weight.as_ref(), sparse_cores);
    }
    let (before, after) = report.nbytes();
    session.note(&format!(
        "sparsified {} of {} linear layers ({:.1} % zeros): {} → {}",
        report.quantized(),
        report.layers.len(),
        100.0 * (all - kept) as f64 / (all as f64).max(1.0),
        number::bytes(before as u64),
        number::bytes(after as u64),
    ));
    if quantized > 0 {
        session.note(&format!(
            "{quantized} of them were quantized: what stays keeps its codes, and scales are those of the whole weights"
        ));
    }
    session.note(&work_before.gain(work_after).words());
    report.notes.iter().for_each(|note| session.note(note));
    for layer in &report.layers {
        let chosen = filter.is_none_or(|regex| regex.is_match(&layer.fqn));
        if let Some(why) = layer.skipped.as_ref().filter(|_| chosen) {
            session.note(&format!("left alone: {}: {why}", layer.fqn));
        }
    }
    Ok(())
}

/// The words that an option of a sparsifier takes, by the name of its value, for completion.
pub(super) fn words_of(value_name: &str) -> &'static [&'static str] {
    match value_name {
        "PATTERN" => &["unstructured", "2:4", "4:8", "block:16", "block:32", "block:64"],
        "SHARE" => &["0.5", "0.7", "0.8", "0.9"],
        _ => &[],
    }
}
