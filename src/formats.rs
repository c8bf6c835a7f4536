//! One model in many formats, one after another, so that only one copy is held: size, perplexity in both conventions,
//! divergence with its error over windows, signal-to-noise, speed.

use std::sync::Arc;

use aolab_kernels::Cpu;

use crate::bench::{self, DecodeConfig};
use crate::error::{Context as _, Error, Result};
use crate::eval::{self, Convention, EvalConfig, KlResult};
use crate::model::Model;
use crate::quantization::calibration::needs_calibration;
use crate::quantization::{Calibration, QuantizeOptions, Recipe, is_linear, quantize_with};
use crate::table::{Cell, Table};

/// What is measured of each format.
#[derive(Clone, Debug)]
pub struct FormatsConfig {
    /// Text windows; the convention is that of the divergence, perplexity is told in both.
    pub eval: EvalConfig,
    /// Timed tokens; 0 leaves speed out.
    pub decode_tokens: usize,
    /// Positions in the cache before the first timed token.
    pub decode_context: usize,
}

/// A row: what it is called and what makes it; `None` is the model as it came.
pub type Row = (String, Option<Arc<dyn Recipe>>);

/// What was found of one format.
#[derive(Clone, Debug)]
pub struct Found {
    /// What the row is called.
    pub label: String,
    /// How far its predictions moved.
    pub kl: KlResult,
    /// Its perplexity in the other convention.
    pub other_perplexity: f64,
    /// The bytes of the model.
    pub nbytes: usize,
    /// Bits of a weight of the linear layers, scales and all.
    pub bits_per_weight: f64,
    /// Tokens per second and the share of read bandwidth, if they were timed.
    pub decode: Option<(f64, f64)>,
}

/// Told how many rows are done, how many there are, and which is next; `false` stops.
pub type Progress<'a> = dyn FnMut(usize, usize, &str) -> bool + 'a;

/// `model` as `recipe` makes it; layers that it cannot apply to stay as they are. `sequences` are read by recipes that calibrate.
pub fn quantized(
    cpu: &Cpu,
    model: &Model,
    recipe: &Arc<dyn Recipe>,
    sequences: &[Vec<u32>],
) -> Result<Model> {
    if needs_calibration(model, recipe.as_ref()) {
        let mut work = Calibration::new(model, Arc::clone(recipe), &is_linear, true, sequences)?;
        work.run(cpu, &mut |_, _, _| true)?;
        return Ok(work.finish()?.0);
    }
    let mut made = model.clone();
    let options = QuantizeOptions { skip_incompatible: true, ..QuantizeOptions::default() };
    quantize_with(cpu, &mut made, recipe.as_ref(), &is_linear, options)?;
    Ok(made)
}

/// Measures every row against `base`. What was found before a stop, or before a row that fails, stands in `all`.
pub fn measure(
    cpu: &Cpu,
    (base, rows): (&Model, &[Row]),
    (text, sequences): (&str, &[Vec<u32>]),
    config: &FormatsConfig,
    progress: &mut Progress<'_>,
    all: &mut Vec<Found>,
) -> Result<()> {
    for (done, (label, recipe)) in rows.iter().enumerate() {
        if !progress(done, rows.len(), label) {
            return Err(Error::Cancelled);
        }
        let model = match recipe {
            Some(recipe) => quantized(cpu, base, recipe, sequences).within(label)?,
            None => base.clone(),
        };
        all.push(found(cpu, base, (label, &model), text, config).within(label)?);
    }
    progress(rows.len(), rows.len(), "");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2⁵³")]
fn found(
    cpu: &Cpu,
    base: &Model,
    (label, model): (&str, &Model),
    text: &str,
    config: &FormatsConfig,
) -> Result<Found> {
    let kl = eval::kl(base, &[model], cpu, text, &config.eval, &mut |_, _| true)?;
    let kl = kl.into_iter().next().ok_or_else(|| Error::invalid("nothing was measured"))?;
    let convention = match config.eval.convention {
        Convention::Window => Convention::Llamacpp,
        Convention::Llamacpp => Convention::Window,
    };
    let other = EvalConfig { convention, ..config.eval.clone() };
    let other = eval::perplexity(model, cpu, text, &other, &mut |_, _| true)?;
    let linears = model.linears();
    let bytes: usize = linears.iter().map(|(_, linear)| linear.weight.nbytes()).sum();
    let shapes = linears.iter().map(|(_, linear)| linear.weight.shape());
    let numel: usize = shapes.map(|(n, k)| n * k).sum();
    let decode = if config.decode_tokens == 0 {
        None
    } else {
        let times = DecodeConfig { context: config.decode_context, tokens: config.decode_tokens };
        let times = bench::decode(model, cpu, &times, &mut |_, _| true)?;
        Some((times.tokens_per_s, times.gb_per_s / times.read_gb_per_s))
    };
    Ok(Found {
        label: label.to_owned(),
        kl,
        other_perplexity: other.perplexity,
        nbytes: model.nbytes(),
        bits_per_weight: 8.0 * bytes as f64 / numel.max(1) as f64,
        decode,
    })
}

/// One row a format.
pub fn table(name: &str, all: &[Found], config: &FormatsConfig) -> Result<Table> {
    let (window, chunks) = ("perplexity", "perplexity (llamacpp)");
    let mut table = Table::new(format!("{name} in {} formats", all.len()))
        .column("format")
        .column_unit("weights", "bits each")
        .column("size")
        .column(window)
        .column(chunks)
        .column_unit("mean KL", "nat")
        .column_unit("± over windows", "nat")
        .column_unit("same top-1", "%")
        .column_unit("logits SQNR", "dB")
        .column_unit("decode", "tok/s")
        .column_unit("of read bandwidth", "%");
    for found in all {
        let (here, there) = match config.eval.convention {
            Convention::Window => (found.kl.perplexity, found.other_perplexity),
            Convention::Llamacpp => (found.other_perplexity, found.kl.perplexity),
        };
        let float = |value: f64| if value.is_finite() { Cell::Float(value) } else { Cell::Missing };
        let speed =
            |of: fn((f64, f64)) -> f64| found.decode.map_or(Cell::Missing, |d| Cell::Float(of(d)));
        table.push([
            found.label.as_str().into(),
            Cell::Float(found.bits_per_weight),
            Cell::bytes(found.nbytes),
            Cell::Float(here),
            Cell::Float(there),
            Cell::Float(found.kl.mean),
            float(found.kl.window_error()),
            Cell::Float(100.0 * found.kl.same_top_1),
            float(found.kl.logits_sqnr_db),
            speed(|(tokens, _)| tokens),
            speed(|(_, share)| 100.0 * share),
        ])?;
    }
    let windows = all.first().map_or(0, |found| found.kl.window_means.len());
    table.note(format!(
        "{windows} windows of {} tokens; KL, top-1 and SQNR against the model as it came, convention {}",
        all.first().map_or(0, |found| found.kl.context),
        config.eval.convention
    ));
    if config.decode_tokens > 0 {
        table.note(format!(
            "decode: batch 1, {} tokens behind a context of {}; read bandwidth measured beside each",
            config.decode_tokens, config.decode_context
        ));
    }
    Ok(table)
}
