//! `quantize auto` and `quantize autoquant`: workflows that choose other ones, layer by layer.

use std::path::PathBuf;
use std::sync::Arc;

use super::recipe_words::RecipeWords;
use crate::data::texts;
use crate::error::{AtPath as _, Error, Result};
use crate::io::files;
use crate::model::{Linear, Model};
use crate::quantization::autoquant::{AutoquantCache, AutoquantOptions, autoquant};
use crate::quantization::calibration::{Sequences, draw};
use crate::quantization::mixed_precision::{Candidate, search};
use crate::quantization::{GptqConfig, Recipe};
use crate::session::Session;

/// Mixed precision's options.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AutoArgs {
    /// Bits a weight on average over the layers, scales and all
    #[arg(long, value_name = "BITS")]
    target_bits: f64,
    /// A workflow that layers may take, with its options in one word; may be given often [default: int8 per row, int4 in groups of
    /// 32 and of 128]; leaving a layer as it is always is one
    #[arg(long, value_name = "WORKFLOW")]
    candidate: Vec<RecipeWords>,
    /// Round the chosen formats by GPTQ, on the calibration text
    #[arg(long)]
    gptq: bool,
    /// Pieces of the calibration text, of 256 tokens, on which each layer's sensitivity is measured
    #[arg(long, default_value_t = 2, value_name = "COUNT")]
    sensitivity_sequences: usize,
}

/// Autoquant's options.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AutoquantArgs {
    /// A workflow that layers may take, with its options in one word; may be given often [default: int8-weight-only and
    /// int8-dynamic-activation-int8-weight]; leaving a layer as it is always is one
    #[arg(long, value_name = "WORKFLOW")]
    candidate: Vec<RecipeWords>,
    /// Rows of the activation: 1 for decoding, more for prompts
    #[arg(long, default_value_t = 1)]
    m: usize,
    /// The least signal-to-noise ratio of a layer's output
    #[arg(long, value_name = "DB")]
    min_sqnr: Option<f64>,
    /// Whether int8 products are judged between their whole call and the bare product, or as whole calls
    #[arg(long, value_enum, default_value_t = Mode::Interpolate)]
    mode: Mode,
    /// How far towards the whole call
    #[arg(long, default_value_t = 0.85, value_name = "C")]
    interpolate: f64,
    /// Seconds to time a candidate and a shape
    #[arg(long, default_value_t = 0.1)]
    seconds: f64,
    /// Keep times in this file, and take those that are there
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Between the two, as torchao's
    Interpolate,
    /// As whole calls
    Plain,
}

const AUTO: [&str; 3] =
    ["int4-weight-only --group-size 128", "int4-weight-only --group-size 32", "int8-weight-only"];
const AUTOQUANT: [&str; 2] = ["int8-weight-only", "int8-dynamic-activation-int8-weight"];

/// The original first, as torchao's lists have it.
fn candidates(given: Vec<RecipeWords>, default: &[&str]) -> Result<Vec<Candidate>> {
    let given: Vec<RecipeWords> = if given.is_empty() {
        default.iter().map(|words| words.parse()).collect::<Result<_>>()?
    } else {
        given
    };
    let mut all = vec![Candidate { words: "as it is".to_owned(), recipe: None }];
    all.extend(
        given
            .into_iter()
            .map(|one| Candidate { words: one.words().to_owned(), recipe: Some(one.recipe()) }),
    );
    Ok(all)
}

/// The mix within the target, with its table as a note.
pub(super) fn mix(
    session: &Session,
    model: &Model,
    filter: &dyn Fn(&str, &Linear) -> bool,
    args: AutoArgs,
) -> Result<Arc<dyn Recipe>> {
    let wanted = Sequences {
        count: args.sensitivity_sequences,
        length: Sequences::default().length.min(model.config.max_position_embeddings),
        seed: session.seed(),
    };
    let sequences = draw(model, texts::CALIBRATION, &wanted)?;
    let task = session.task("measuring sensitivity");
    let found = search(
        session.cpu(),
        model,
        candidates(args.candidate, &AUTO)?,
        args.target_bits,
        filter,
        &sequences,
        &mut |done, total| task.progress(done, total),
    )?;
    drop(task);
    session.note(found.table()?.to_text(None, false).trim_end());
    session.note(&format!(
        "{:.3} bits a weight of {} allowed; the layers' divergences add up to {:.4} nats on {} × {} tokens of calibration, seed {}",
        found.bits_per_weight(),
        args.target_bits,
        found.expected_kl(),
        wanted.count,
        wanted.length,
        wanted.seed
    ));
    let around = |recipe: Arc<dyn Recipe>| -> Arc<dyn Recipe> {
        if args.gptq { Arc::new(GptqConfig::new(recipe)) } else { recipe }
    };
    Ok(Arc::new(found.recipe(&around)?))
}

/// The fastest workflows, with what was tried as a note.
pub(super) fn fastest(
    session: &mut Session,
    model: &Model,
    filter: &dyn Fn(&str, &Linear) -> bool,
    args: AutoquantArgs,
) -> Result<Arc<dyn Recipe>> {
    let options = AutoquantOptions {
        m: args.m,
        min_sqnr: args.min_sqnr,
        interpolate: (args.mode == Mode::Interpolate).then_some(args.interpolate),
        seconds: args.seconds,
    };
    let mut cache = std::mem::take(&mut session.autoquant_cache);
    if let Some(path) = args.cache.as_ref().filter(|path| path.exists()) {
        let words = |error| Error::file(path, format!("not a cache of autoquant: {error}"));
        let kept: AutoquantCache =
            serde_json::from_value(files::read_json(path)?).map_err(words)?;
        cache.merge(kept);
    }
    let task = session.task("timing");
    let list = (candidates(args.candidate, &AUTOQUANT)?, filter);
    let found = autoquant(session.cpu(), model, list, &options, &mut cache, &mut |done, total| {
        task.progress(done, total)
    });
    drop(task);
    if let Some(path) = &args.cache {
        let text = serde_json::to_string_pretty(&cache);
        let text = text.map_err(|error| Error::file(path, error.to_string()))?;
        std::fs::write(path, text).at(path)?;
    }
    session.autoquant_cache = cache;
    let found = found?;
    session.note(found.table()?.to_text(None, false).trim_end());
    Ok(Arc::new(found.recipe()?))
}
