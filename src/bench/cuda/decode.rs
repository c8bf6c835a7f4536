//! A whole model on the GPU.

use std::time::Instant;

use super::{Ceilings, REPLAYS};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{Model, NoObserver, PartTime};
use crate::table::{Cell, Table};

/// Times single tokens behind `context` positions: each is one captured graph, argmax included. The second table tells its parts.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
pub fn decode(
    model: &Model,
    cpu: &Cpu,
    ceilings: &Ceilings,
    (context, tokens): (usize, usize),
) -> Result<(Table, Table)> {
    let limit = model.config.max_position_embeddings;
    if tokens == 0 || context + 2 * tokens + 2 > limit {
        return Err(Error::invalid(format!(
            "{} reads at most {limit} positions; {context} and twice {tokens} were asked for",
            model.name
        )));
    }
    let mut cache = model.context(context + 2 * tokens + 2);
    let prompt = prompt(model, context);
    if !prompt.is_empty() {
        model.forward(cpu, &prompt, &mut cache, &mut NoObserver)?;
    }
    let first = 1 % limit_of(model);
    let (us, nodes) = model.time_step(first, tokens, &mut cache)?;
    let parts = parts(&model.name, &model.time_parts(first, REPLAYS.min(tokens), &mut cache)?, us)?;
    let started = Instant::now();
    model.decode_greedy(first, tokens, &mut cache)?;
    let whole = started.elapsed().as_secs_f64() / tokens as f64;
    let weights = model.device_bytes_per_token()?.unwrap_or(0);
    let config = &model.config;
    let kv = 2 * 2 * context * config.num_key_value_heads * config.head_dim;
    let nbytes = weights + kv * config.num_hidden_layers;
    let bytes = nbytes as f64;
    let gb = bytes / us * 1e-3;
    let mut table = Table::new("decode on the GPU")
        .column("model")
        .column_unit("speed", "tok/s")
        .column_unit("median", "ms/token")
        .column_unit("by the clock", "ms/token")
        .column("bytes/token")
        .column_unit("bandwidth", "GB/s")
        .column_unit("of read bandwidth", "%")
        .column_unit("limit", "tok/s")
        .column("kernels")
        .with_note(format!(
            "batch 1, greedy, behind a context of {context}; one graph a token, timed by events, {tokens} tokens; bytes: \
             every weight and the cache once"
        ));
    table.push([
        model.name.as_str().into(),
        Cell::Float(1e6 / us),
        Cell::Float(1e-3 * us),
        Cell::Float(1e3 * whole),
        Cell::bytes(nbytes),
        Cell::Float(gb),
        Cell::Float(100.0 * gb / ceilings.read_gb_per_s),
        Cell::Float(1e9 * ceilings.read_gb_per_s / bytes),
        nodes.into(),
    ])?;
    Ok((table, parts))
}

/// What the parts of a token of `us` take by themselves.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
fn parts(model: &str, parts: &[PartTime], us: f64) -> Result<Table> {
    let sum: f64 = parts.iter().map(|part| part.us).sum();
    let mut table = Table::new("the parts of a token")
        .column("model")
        .column("part")
        .column("calls")
        .column("kernels")
        .column_unit("a call", "µs")
        .column_unit("a token", "µs")
        .column_unit("of the sum", "%")
        .with_note(format!(
            "each part in a graph of its own, all layers one after another; their sum is {sum:.0} µs, and the token, where they \
             overlap, {us:.0}"
        ));
    for part in parts {
        table.push([
            model.into(),
            part.name.into(),
            part.calls.into(),
            part.kernels.into(),
            Cell::Float(part.us / part.calls as f64),
            Cell::Float(part.us),
            Cell::Float(100.0 * part.us / sum),
        ])?;
    }
    Ok(table)
}

/// Tokens that differ and are all known.
fn prompt(model: &Model, count: usize) -> Vec<u32> {
    (0..97_u32.min(limit_of(model))).cycle().take(count).collect()
}

fn limit_of(model: &Model) -> u32 {
    u32::try_from(model.config.vocab_size).unwrap_or(u32::MAX)
}

/// Times whole prompts, hidden states copied to the host.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
pub fn prefill(
    model: &Model,
    cpu: &Cpu,
    ceilings: &Ceilings,
    (tokens, repeats): (usize, usize),
) -> Result<Table> {
    let limit = model.config.max_position_embeddings;
    if tokens == 0 || tokens > limit {
        return Err(Error::invalid(format!(
            "{} reads 1 to {limit} positions; {tokens} were asked for",
            model.name
        )));
    }
    let prompt = prompt(model, tokens);
    let mut cache = model.context(tokens);
    let mut times = Vec::new();
    for _ in 0..repeats.max(1) + 1 {
        cache.truncate(0);
        let started = Instant::now();
        model.forward(cpu, &prompt, &mut cache, &mut NoObserver)?;
        times.push(started.elapsed().as_secs_f64());
    }
    // The first compiles kernels.
    let median = crate::bench::Times::from_samples(times.split_off(1)).median();
    let flops: u64 = model.linears().iter().map(|(_, l)| l.weight.cost(tokens).flops).sum();
    let tflop = flops as f64 / median * 1e-12;
    let mut table = Table::new("prefill on the GPU")
        .column("model")
        .column_unit("speed", "tok/s")
        .column_unit("median", "ms")
        .column_unit("linear layers", "TFLOP/s")
        .column_unit("of cuBLASLt bf16", "%")
        .with_note(format!(
            "one prompt of {tokens} tokens, by the host's clock, hidden states copied back"
        ));
    table.push([
        model.name.as_str().into(),
        Cell::Float(tokens as f64 / median),
        Cell::Float(1e3 * median),
        Cell::Float(tflop),
        Cell::Float(100.0 * tflop / ceilings.bf16_tflop_per_s),
    ])?;
    Ok(table)
}
