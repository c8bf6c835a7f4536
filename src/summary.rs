//! What a model consists of, as tables.

use std::sync::Arc;

use crate::error::Result;
use crate::model::{Model, Weight};
use crate::table::{Cell, Table, number};

/// One row of the summary: a linear layer, the embedding or a norm.
#[derive(Clone, PartialEq)]
struct Part {
    name: String,
    shape: String,
    workflow: String,
    details: String,
    parameters: usize,
    nbytes: usize,
}

/// The tree of `model`: every part with shape, workflow, bytes and bits per weight. Blocks that are alike
/// stand together in one unless `all`.
pub fn layers(model: &Model, all: bool) -> Result<Table> {
    let mut table = Table::new(model.name.clone())
        .column("layer")
        .column("shape")
        .column("workflow")
        .column("options")
        .column("parameters")
        .column("bytes")
        .column_unit("stored", "bits/weight");
    push(&mut table, "", &weight_part("model.embed_tokens", &model.embed_tokens), 1)?;
    let blocks: Vec<Vec<Part>> = (0..model.layers.len()).map(|i| block(model, i)).collect();
    let mut first = 0;
    while first < blocks.len() {
        let alike = blocks[first..].iter().take_while(|other| **other == blocks[first]).count();
        let count = if all { 1 } else { alike };
        let name = match count {
            1 => format!("model.layers.{first}"),
            _ => format!("model.layers.{first} … {}", first + count - 1),
        };
        let times = if count == 1 { String::new() } else { format!("{count} ×") };
        let missing = || Cell::Missing;
        let heading: [Cell; 7] =
            [name.into(), times.into(), "".into(), "".into(), missing(), missing(), missing()];
        table.push(heading)?;
        for part in &blocks[first] {
            push(&mut table, "  ", part, count)?;
        }
        first += count;
    }
    push(&mut table, "", &vector_part("model.norm", model.norm.numel(), model.norm.nbytes()), 1)?;
    match &model.lm_head {
        Some(head) => push(&mut table, "", &weight_part("lm_head", &head.weight), 1)?,
        None => table.note("lm_head is tied: the output layer is model.embed_tokens"),
    }
    table.note(format!(
        "{} parameters in all; shapes are (N, K), y = x · W transposed; blocks that are alike are summed",
        number::int(i64::try_from(model.parameters()).unwrap_or(i64::MAX))
    ));
    Ok(table)
}

fn push(table: &mut Table, indent: &str, part: &Part, times: usize) -> Result<()> {
    let bits = bits_per_weight(part.nbytes, part.parameters);
    table.push([
        format!("{indent}{}", part.name).into(),
        part.shape.clone().into(),
        part.workflow.clone().into(),
        part.details.clone().into(),
        (part.parameters * times).into(),
        Cell::bytes(part.nbytes * times),
        bits.into(),
    ])
}

fn weight_part(name: &str, weight: &Arc<dyn Weight>) -> Part {
    let (n, k) = weight.shape();
    Part {
        name: name.to_owned(),
        shape: format!("{n} × {k}"),
        workflow: weight.workflow(),
        details: weight.details(),
        parameters: n * k,
        nbytes: weight.nbytes(),
    }
}

fn vector_part(name: &str, numel: usize, nbytes: usize) -> Part {
    let workflow = if nbytes == 4 * numel { "f32" } else { "" };
    Part {
        name: name.to_owned(),
        shape: numel.to_string(),
        workflow: workflow.to_owned(),
        details: String::new(),
        parameters: numel,
        nbytes,
    }
}

/// The parts of block `i`, by their names within the block.
fn block(model: &Model, i: usize) -> Vec<Part> {
    let prefix = format!("model.layers.{i}.");
    let mut parts = Vec::new();
    for (name, linear) in model.linears() {
        let Some(short) = name.strip_prefix(&prefix) else { continue };
        parts.push(weight_part(short, &linear.weight));
        if let Some(bias) = &linear.bias {
            parts.push(vector_part(&format!("{short}.bias"), bias.numel(), bias.nbytes()));
        }
    }
    for (name, vector) in model.vectors() {
        let Some(short) = name.strip_prefix(&prefix) else { continue };
        let short = short.trim_end_matches(".weight");
        parts.push(vector_part(short, vector.numel(), vector.nbytes()));
    }
    parts
}

/// How many bytes each kind of part takes, and the whole.
pub fn sizes(model: &Model) -> Result<Table> {
    let mut groups = [
        ("embedding", 0, 0),
        ("attention", 0, 0),
        ("feed-forward", 0, 0),
        ("output layer", 0, 0),
        ("norms and biases", 0, 0),
    ];
    let mut add = |group: usize, parameters: usize, nbytes: usize| {
        groups[group].1 += parameters;
        groups[group].2 += nbytes;
    };
    let (n, k) = model.embed_tokens.shape();
    add(0, n * k, model.embed_tokens.nbytes());
    for (name, linear) in model.linears() {
        let (n, k) = linear.weight.shape();
        let group = if name == "lm_head" {
            3
        } else if name.contains("self_attn") {
            1
        } else {
            2
        };
        add(group, n * k, linear.weight.nbytes());
        if let Some(bias) = &linear.bias {
            add(4, bias.numel(), bias.nbytes());
        }
    }
    for (_, vector) in model.vectors() {
        add(4, vector.numel(), vector.nbytes());
    }
    let (parameters, nbytes) = (model.parameters(), model.nbytes());
    let mut table = Table::new(format!("Size of {}", model.name))
        .column("part")
        .column("parameters")
        .column("bytes")
        .column_unit("stored", "bits/weight")
        .column_unit("share", "%");
    let whole = [("total", parameters, nbytes)];
    for (part, parameters, bytes) in groups.into_iter().filter(|group| group.1 > 0).chain(whole) {
        table.push([
            part.into(),
            parameters.into(),
            Cell::bytes(bytes),
            bits_per_weight(bytes, parameters).into(),
            (100.0 * ratio(bytes, nbytes)).into(),
        ])?;
    }
    table.note(
        "bytes of all tensors in memory: codes, scales and zero points, without files' headers",
    );
    Ok(table)
}

fn bits_per_weight(nbytes: usize, parameters: usize) -> f64 {
    8.0 * ratio(nbytes, parameters)
}

#[expect(clippy::cast_precision_loss, reason = "a size is shown to a few digits")]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
