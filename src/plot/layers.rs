//! A map of a model: kinds of layers down, blocks across.

use super::choose::Choice;
use super::data::{Content, distinct, labels, numbers, position};
use crate::error::{Error, Result};
use crate::table::Table;

/// Puts each row at its place. Rows that name no layer of a block (`lm_head`, `total`) are mentioned in `notes`.
pub(super) fn layer_map(
    table: &Table,
    choice: &Choice,
    notes: &mut Vec<String>,
) -> Result<Content> {
    let names = labels(table, choice.x);
    let places: Vec<Option<(usize, &str)>> = names.iter().map(|name| place(name)).collect();
    let mut blocks: Vec<usize> = places.iter().flatten().map(|(block, _)| *block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let kinds: Vec<String> = places.iter().flatten().map(|(_, kind)| (*kind).to_owned()).collect();
    let kinds = distinct(&kinds);
    if kinds.is_empty() {
        return Err(Error::invalid(format!(
            "no row of table \"{}\" names a layer of a block, such as model.layers.0.mlp.up_proj; \
             a layer map wants such a column as x, as `shapes` and `eval sqnr` give it",
            table.title()
        )));
    }
    let mut values = vec![vec![f64::NAN; blocks.len()]; kinds.len()];
    let mut taken = vec![vec![false; blocks.len()]; kinds.len()];
    let mut elsewhere = Vec::new();
    for ((name, place), value) in names.iter().zip(&places).zip(numbers(table, choice.y[0])) {
        let Some((block, kind)) = place else {
            elsewhere.push(name.as_str());
            continue;
        };
        let row = position(&kinds, kind);
        let column = blocks.partition_point(|b| b < block);
        if taken[row][column] {
            return Err(Error::invalid(format!("two rows are of {name}, and its place holds one")));
        }
        taken[row][column] = true;
        values[row][column] = value;
    }
    if !elsewhere.is_empty() {
        notes.push(format!("in no block, so not on the map: {}", elsewhere.join(", ")));
    }
    Ok(Content::Heat {
        rows: kinds,
        columns: blocks.iter().map(usize::to_string).collect(),
        values,
    })
}

/// `model.layers.3.mlp.up_proj` → (3, `mlp.up_proj`).
fn place(name: &str) -> Option<(usize, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if start > 0 && !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            let kind = name.get(end + 1..).filter(|kind| !kind.is_empty())?;
            return Some((part.parse().ok()?, kind));
        }
        start = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_a_block_and_a_kind() {
        let cases = [
            ("model.layers.3.mlp.up_proj", Some((3, "mlp.up_proj"))),
            ("blk.11.attn_q", Some((11, "attn_q"))),
            ("model.layers.7.mlp.experts.2.w1", Some((7, "mlp.experts.2.w1"))),
            ("lm_head", None),
            ("model.layers.3", None),
            ("3.x", None),
            ("a.99999999999999999999.x", None),
            ("model..x", None),
            ("", None),
        ];
        for (name, want) in cases {
            assert_eq!(place(name), want, "{name}");
        }
    }
}
