//! A table as JSON and back: the form of `--json` and of the run store.
//!
//! ```json
//! {"title": "Decode",
//!  "columns": [{"name": "model", "unit": "", "kind": "text"},
//!              {"name": "time", "unit": "ms", "kind": "float"}],
//!  "rows": [{"model": "tiny", "time": 4.25}],
//!  "notes": []}
//! ```
//!
//! Numbers have all their digits. A missing value is `null`. JSON has no NaN or infinity: these are
//! the strings `"NaN"`, `"inf"` and `"-inf"`, so that "it diverged" and "not measured" differ.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Cell, Column, Kind, Table};
use crate::error::{Error, Result};

/// The table as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wire {
    title: String,
    columns: Vec<Column>,
    rows: Vec<Map<String, Value>>,
    #[serde(default)]
    notes: Vec<String>,
}

impl Table {
    /// The table as a JSON value, numbers with all their digits.
    pub fn to_json(&self) -> Value {
        let wire = Wire::from(self.clone());
        serde_json::to_value(wire).expect("texts, finite numbers and null are always JSON")
    }

    /// Reads back what [`Table::to_json`] wrote.
    pub fn from_json(value: Value) -> Result<Self> {
        let wire: Wire = serde_json::from_value(value)
            .map_err(|error| Error::invalid(format!("this JSON is no table: {error}")))?;
        Self::try_from(wire)
    }
}

impl From<Table> for Wire {
    fn from(table: Table) -> Self {
        let names: Vec<String> = table.columns.iter().map(|c| c.name.clone()).collect();
        let rows = table.rows.into_iter();
        let rows = rows.map(|row| names.iter().cloned().zip(row.into_iter().map(value)).collect());
        Self {
            title: table.title,
            columns: table.columns,
            rows: rows.collect(),
            notes: table.notes,
        }
    }
}

impl TryFrom<Wire> for Table {
    type Error = Error;

    fn try_from(wire: Wire) -> Result<Self> {
        let mut table = Self::new(wire.title);
        for column in &wire.columns {
            table = table.column_unit(&column.name, &column.unit);
        }
        for mut row in wire.rows {
            let cells: Vec<Cell> = wire
                .columns
                .iter()
                .map(|column| match row.shift_remove(&column.name) {
                    Some(value) => cell(column, &value),
                    None => Ok(Cell::Missing),
                })
                .collect::<Result<_>>()?;
            if let Some(stray) = row.keys().next() {
                table.column_index(stray)?;
            }
            table.push(cells)?;
        }
        table.notes = wire.notes;
        Ok(table)
    }
}

fn value(cell: Cell) -> Value {
    match cell {
        Cell::Text(text) => Value::String(text),
        Cell::Int(value) => Value::from(value),
        Cell::Bytes(value) => Value::from(value),
        Cell::Float(value) if value.is_finite() => Value::from(value),
        Cell::Float(value) => Value::from(non_finite(value)),
        Cell::Missing => Value::Null,
    }
}

fn cell(column: &Column, value: &Value) -> Result<Cell> {
    let cell = match (column.kind, value) {
        (_, Value::Null) => Some(Cell::Missing),
        (Kind::Text, Value::String(text)) => Some(Cell::Text(text.clone())),
        (Kind::Int, Value::Number(number)) => number.as_i64().map(Cell::Int),
        (Kind::Bytes, Value::Number(number)) => number.as_u64().map(Cell::Bytes),
        (Kind::Float, Value::Number(number)) => number.as_f64().map(Cell::Float),
        (Kind::Float, Value::String(text)) => [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
            .into_iter()
            .find(|candidate| non_finite(*candidate) == text)
            .map(Cell::Float),
        _ => None,
    };
    cell.ok_or_else(|| {
        Error::invalid(format!(
            "column \"{}\" holds {}, and the JSON has {value} there",
            column.name,
            column.kind.plural()
        ))
    })
}

/// How a float that JSON cannot say is written, here and in CSV.
pub(super) fn non_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "inf"
    } else {
        "-inf"
    }
}
