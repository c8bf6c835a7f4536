//! [`Table`]: named, typed columns with units. Every measuring command returns one.
//!
//! A column takes its kind from its first cell; a cell of another kind is an error, except that
//! integers and floats mix (as floats) and [`Cell::Missing`] fits everywhere.
//!
//! ```
//! # fn main() -> aolab::Result<()> {
//! use aolab::table::Table;
//! let mut table = Table::new("Decode").column("model").column_unit("time", "ms");
//! table.push(["tiny".into(), 4.25.into()])?;
//! table.push(["tiny, int4".into(), 1.5.into()])?;
//! table.mark_baseline("tiny");
//! println!("{table}");
//! # Ok(()) }
//! ```

mod cell;
mod export;
mod json;
pub mod number;
mod parquet;
mod select;
mod text;
pub mod words;

pub use cell::{Cell, Kind};
pub(crate) use export::escape_html;

use crate::error::{Error, Result, did_you_mean};

/// Before the name of the row that the others are compared with, in a note.
const BASELINE_NOTE: &str = "baseline: ";

/// The name, unit and kind of one column.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Column {
    /// The name, unique in its table: `sqnr`, `time`.
    pub name: String,
    /// The unit: `dB`, `µs`, or nothing for plain numbers and texts.
    pub unit: String,
    /// What its cells are; [`Kind::Missing`] as long as there is none.
    pub kind: Kind,
}

impl Column {
    /// `time (µs)`, or the name alone.
    pub fn heading(&self) -> String {
        if self.unit.is_empty() {
            self.name.clone()
        } else {
            format!("{} ({})", self.name, self.unit)
        }
    }
}

/// Named, typed columns with units, a title and notes.
///
/// Serializes as the JSON of [`Table::to_json`] and reads it back.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "json::Wire", into = "json::Wire")]
pub struct Table {
    title: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
}

impl Table {
    /// A table without columns.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Adds a column of texts or plain numbers; bytes need no unit either.
    #[must_use]
    pub fn column(self, name: impl Into<String>) -> Self {
        self.column_unit(name, "")
    }

    /// Adds a column whose numbers have a unit.
    #[must_use]
    pub fn column_unit(mut self, name: impl Into<String>, unit: impl Into<String>) -> Self {
        let column = Column { name: name.into(), unit: unit.into(), kind: Kind::Missing };
        for row in &mut self.rows {
            row.push(Cell::Missing);
        }
        self.columns.push(column);
        self
    }

    /// Adds a sentence that belongs to the numbers: a convention, a kernel's name, a caveat.
    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.note(note);
        self
    }

    /// Adds a sentence that belongs to the numbers.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Says that the row whose first cell is `label` is what the others are compared with.
    pub fn mark_baseline(&mut self, label: &str) {
        self.notes.push(format!("{BASELINE_NOTE}{label}"));
    }

    /// Adds a row: one cell a column, of the column's kind.
    pub fn push(&mut self, cells: impl IntoIterator<Item = Cell>) -> Result<()> {
        let mut cells: Vec<Cell> = cells.into_iter().collect();
        self.check_shape(&cells)?;
        let mut kinds = Vec::with_capacity(cells.len());
        for (column, cell) in self.columns.iter().zip(&cells) {
            let kind = column.kind.joined(cell.kind()).ok_or_else(|| {
                Error::invalid(format!(
                    "table \"{}\": column \"{}\" holds {}, so it cannot take the {} {cell}",
                    self.title,
                    column.name,
                    column.kind.plural(),
                    cell.kind().singular(),
                ))
            })?;
            kinds.push(kind);
        }
        for (i, kind) in kinds.into_iter().enumerate() {
            cells[i] = std::mem::take(&mut cells[i]).widened(kind);
            if self.columns[i].kind != kind {
                self.columns[i].kind = kind;
                for row in &mut self.rows {
                    row[i] = std::mem::take(&mut row[i]).widened(kind);
                }
            }
        }
        self.rows.push(cells);
        Ok(())
    }

    /// Appends the rows of a table that has the same columns, and those of its notes that are new.
    pub fn append(&mut self, other: Self) -> Result<()> {
        let same = self.columns.len() == other.columns.len()
            && self.columns.iter().zip(&other.columns).all(|(a, b)| a.heading() == b.heading());
        if !same {
            return Err(Error::invalid(format!(
                "tables \"{}\" and \"{}\" cannot be joined: their columns are {} and {}",
                self.title,
                other.title,
                self.headings(),
                other.headings(),
            )));
        }
        for row in other.rows {
            self.push(row)?;
        }
        for note in other.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        Ok(())
    }

    /// The title.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Gives the table another title.
    pub fn set_title(&mut self, title: impl Into<String>) {
        self.title = title.into();
    }

    /// The columns, left to right.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The rows, each with one cell a column.
    pub fn rows(&self) -> &[Vec<Cell>] {
        &self.rows
    }

    /// The notes.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The row that the others are compared with, if [`Table::mark_baseline`] named one.
    pub fn baseline_row(&self) -> Option<usize> {
        let label = self.notes.iter().find_map(|note| note.strip_prefix(BASELINE_NOTE))?;
        self.rows.iter().position(|row| row.first().is_some_and(|cell| cell.to_string() == label))
    }

    fn check_shape(&self, cells: &[Cell]) -> Result<()> {
        if cells.len() != self.columns.len() {
            return Err(Error::invalid(format!(
                "table \"{}\": a row of {} cells for {} columns ({})",
                self.title,
                cells.len(),
                self.columns.len(),
                self.headings(),
            )));
        }
        let mut names: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::invalid(format!(
                "table \"{}\": two columns are named \"{}\"; each needs its own name",
                self.title, pair[0]
            ))),
            None => Ok(()),
        }
    }

    fn headings(&self) -> String {
        self.columns.iter().map(Column::heading).collect::<Vec<_>>().join(", ")
    }

    /// The position of the column named `name`, or an error that lists what there is.
    pub fn column_index(&self, name: &str) -> Result<usize> {
        if let Some(index) = self.columns.iter().position(|column| column.name == name) {
            return Ok(index);
        }
        let names = self.columns.iter().map(|column| column.name.as_str());
        let hint = match did_you_mean(name, names) {
            Some(near) => format!("; did you mean \"{near}\"?"),
            None => format!("; it has {}", self.headings()),
        };
        Err(Error::invalid(format!("table \"{}\" has no column \"{name}\"{hint}", self.title)))
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_text(None, false))
    }
}

#[cfg(test)]
mod tests;
