//! Where a model's zeros are: how many, in which pattern, and what they cost each layer.

use serde::{Deserialize, Serialize};

use super::sqnr::SqnrResult;
use crate::error::{Error, Result};
use crate::model::{Mask, Model, Pattern, sparse_of};
use crate::table::{Cell, Table};

/// The zeros of one linear layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerSparsity {
    /// Its name.
    pub layer: String,
    /// Its workflow.
    pub workflow: String,
    /// `(N, K)`.
    pub shape: (usize, usize),
    /// The share of weights that are zero, counted in the dequantized weight.
    pub zeros: f64,
    /// The strictest pattern that the zeros are found to have.
    pub pattern: String,
    /// The share of 64 × 64 blocks that are empty; those at the edges may be smaller.
    pub empty_blocks: f64,
    /// What it should have, and whether it has: `None` for a weight that promises nothing.
    pub promised: Option<(String, bool)>,
    /// Of the weight against the baseline's, in dB.
    pub weight_db: Option<f64>,
    /// Of its output against the baseline's, both given the baseline's input, in dB.
    pub output_db: Option<f64>,
}

/// Blocks that are looked for.
const BLOCK: usize = 64;

/// The zeros of each linear layer of `model`.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
pub fn sparsity(model: &Model) -> Result<Vec<LayerSparsity>> {
    let linears = model.linears();
    let one = |(fqn, linear): &(String, crate::model::Linear)| {
        let weight = &linear.weight;
        let zeros = Mask::of_nonzero(&weight.dequantize()?.to_f32_vec(), weight.shape())?;
        let promised = match weight.as_sparse() {
            None => None,
            Some(sparse) => {
                // A zero that the weight keeps by chance is none too many; one number too many breaks the promise.
                let (mask, pattern) = (sparse.mask()?, sparse.pattern());
                Some((pattern.to_string(), mask.holds(pattern) && within(&zeros, &mask)))
            }
        };
        let (empty, all) = zeros.empty_blocks(BLOCK);
        Ok(LayerSparsity {
            layer: fqn.clone(),
            workflow: weight.workflow(),
            shape: weight.shape(),
            zeros: zeros.sparsity(),
            pattern: found(&zeros).to_string(),
            empty_blocks: empty as f64 / (all as f64).max(1.0),
            promised,
            weight_db: None,
            output_db: None,
        })
    };
    linears.iter().map(one).collect()
}

/// Whether all that is not zero is kept by the mask.
fn within(nonzero: &Mask, mask: &Mask) -> bool {
    let rows = 0..mask.shape().0;
    rows.into_iter().all(|n| nonzero.row(n).iter().zip(mask.row(n)).all(|(a, b)| a & !b == 0))
}

/// The strictest of the usual N:M patterns that holds.
fn found(zeros: &Mask) -> Pattern {
    let usual = [(1, 4), (2, 4), (4, 8), (1, 2), (8, 16)];
    let patterns = usual.map(|(n, m)| Pattern::NOfM { n, m });
    let holds = |pattern: &Pattern| pattern.check(zeros.shape()).is_ok() && zeros.holds(*pattern);
    patterns.into_iter().find(holds).unwrap_or(Pattern::Unstructured)
}

/// Adds the errors of each layer against a baseline.
pub fn with_errors(layers: &mut [LayerSparsity], errors: &SqnrResult) {
    for layer in layers {
        let found = errors.layers.iter().find(|other| other.layer == layer.layer);
        layer.weight_db = found.map(|found| found.weight_db);
        layer.output_db = found.map(|found| found.output_db);
    }
}

/// One row a layer.
pub fn sparsity_table(model: &str, layers: &[LayerSparsity]) -> Result<Table> {
    let with_errors = layers.iter().any(|layer| layer.weight_db.is_some());
    let mut table = Table::new(format!("Zeros of {model}"))
        .column("layer")
        .column("shape")
        .column("workflow")
        .column_unit("zeros", "%")
        .column("found")
        .column_unit("empty blocks", "%")
        .column("promise");
    if with_errors {
        table = table.column_unit("weight", "dB").column_unit("output", "dB");
    }
    for layer in layers {
        let promise = match &layer.promised {
            None => Cell::Missing,
            Some((pattern, true)) => format!("{pattern} holds").into(),
            Some((pattern, false)) => format!("{pattern} BROKEN").into(),
        };
        let mut row = vec![
            layer.layer.as_str().into(),
            format!("{} × {}", layer.shape.0, layer.shape.1).into(),
            layer.workflow.as_str().into(),
            (100.0 * layer.zeros).into(),
            layer.pattern.as_str().into(),
            (100.0 * layer.empty_blocks).into(),
            promise,
        ];
        if with_errors {
            row.push(layer.weight_db.map_or(Cell::Missing, Cell::from));
            row.push(layer.output_db.map_or(Cell::Missing, Cell::from));
        }
        table.push(row)?;
    }
    table.note(format!(
        "empty blocks are of {BLOCK} × {BLOCK}; zeros are counted in what is multiplied"
    ));
    Ok(table)
}

/// The zeros of one layer as a picture: a row of the table for some rows of the weight, a column for some columns, and in each cell the
/// share of numbers that are kept. Without a name the first sparse layer is taken; `corner` cuts out its first rows and columns.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
pub fn mask_table(
    model: &Model,
    layer: Option<&str>,
    corner: Option<usize>,
    cells: usize,
) -> Result<Table> {
    let linears = model.linears();
    let name = match layer {
        Some(name) => name.to_owned(),
        None => {
            let sparse = linears.iter().find(|(_, linear)| sparse_of(&linear.weight).is_some());
            sparse.map(|(fqn, _)| fqn.clone()).ok_or_else(|| {
                Error::invalid("no layer is sparse; `sparsify` makes some, or give --layer")
            })?
        }
    };
    let weight = &model.linear(&name)?.weight;
    let zeros = Mask::of_nonzero(&weight.dequantize()?.to_f32_vec(), weight.shape())?;
    let (n, k) = zeros.shape();
    let limit = corner.unwrap_or(usize::MAX);
    if limit == 0 {
        return Err(Error::usage("a corner of 0; wanted 1 or more"));
    }
    let (n, k) = (n.min(limit), k.min(limit));
    let (height, width) = (n.div_ceil(cells).max(1), k.div_ceil(cells).max(1));
    let span = |start: usize, size: usize, end: usize| match size {
        1 => start.to_string(),
        _ => format!("{start}–{}", end.min(start + size) - 1),
    };
    let mut table = Table::new(format!("Kept weights of {name} ({})", weight.workflow()));
    table = table.column("rows");
    for left in (0..k).step_by(width) {
        table = table.column(span(left, width, k));
    }
    for top in (0..n).step_by(height) {
        let mut row = vec![Cell::from(span(top, height, n))];
        for left in (0..k).step_by(width) {
            let (rows, columns) = (top..n.min(top + height), left..k.min(left + width));
            let all = rows.len() * columns.len();
            let kept: usize =
                rows.map(|n| columns.clone().filter(|k| zeros.keeps(n, *k)).count()).sum();
            row.push((kept as f64 / all as f64).into());
        }
        table.push(row)?;
    }
    table.note(format!(
        "each cell is {height} × {width} weights; 1 all are kept, 0 none; {:.1} % of the layer are zero",
        100.0 * zeros.sparsity()
    ));
    Ok(table)
}
