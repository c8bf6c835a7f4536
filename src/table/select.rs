//! Reading columns out of a table, and tables made of some of its rows or columns.

use std::cmp::Ordering;

use super::{Cell, Column, Kind, Table, number::FloatStyle};
use crate::error::{Error, Result};

impl Table {
    /// The numbers of a column; a missing value is NaN.
    pub fn column_f64(&self, name: &str) -> Result<Vec<f64>> {
        let index = self.column_index(name)?;
        let kind = self.columns()[index].kind;
        if kind == Kind::Text {
            return Err(Error::invalid(format!(
                "table \"{}\": column \"{name}\" holds texts, and numbers are wanted{}",
                self.title(),
                self.number_columns_hint(),
            )));
        }
        Ok(self.rows().iter().map(|row| row[index].as_f64().unwrap_or(f64::NAN)).collect())
    }

    fn number_columns_hint(&self) -> String {
        let numbers = self.columns().iter().filter(|column| column.kind.is_number());
        let names: Vec<_> = numbers.map(|column| column.name.as_str()).collect();
        match names.is_empty() {
            true => "; it has no column of numbers".into(),
            false => format!("; columns of numbers: {}", names.join(", ")),
        }
    }

    /// The cells of a column as they are shown, the numbers with a common number of decimals.
    pub fn column_text(&self, name: &str) -> Result<Vec<String>> {
        Ok(self.column_strings(self.column_index(name)?))
    }

    pub(super) fn column_strings(&self, index: usize) -> Vec<String> {
        let cells = || self.rows().iter().map(|row| &row[index]);
        let style = FloatStyle::of_column(cells().filter_map(|cell| match cell {
            Cell::Float(value) => Some(*value),
            _ => None,
        }));
        cells()
            .map(|cell| match cell {
                Cell::Float(value) => style.write(*value),
                other => other.to_string(),
            })
            .collect()
    }

    /// The cell of a row in a named column.
    pub fn cell(&self, row: usize, name: &str) -> Result<&Cell> {
        let index = self.column_index(name)?;
        let row = self.rows().get(row).ok_or_else(|| {
            Error::invalid(format!(
                "table \"{}\" has {} rows, so there is no row {row} (they count from 0)",
                self.title(),
                self.len()
            ))
        })?;
        Ok(&row[index])
    }

    /// Sorts the rows by a column, smallest first. NaN and missing values come last; ties keep
    /// their order.
    pub fn sort_by(&mut self, name: &str) -> Result<()> {
        let index = self.column_index(name)?;
        self.rows.sort_by(|a, b| compare(&a[index], &b[index], false));
        Ok(())
    }

    /// Sorts the rows by a column, largest first. NaN and missing values come last all the same.
    pub fn sort_by_descending(&mut self, name: &str) -> Result<()> {
        let index = self.column_index(name)?;
        self.rows.sort_by(|a, b| compare(&a[index], &b[index], true));
        Ok(())
    }

    /// The rows whose cell in a column passes `keep`.
    pub fn filter(&self, name: &str, keep: impl Fn(&Cell) -> bool) -> Result<Self> {
        let index = self.column_index(name)?;
        let rows = self.rows.iter().filter(|row| keep(&row[index])).cloned().collect();
        Ok(Self { rows, ..self.without_rows() })
    }

    /// The first `count` rows, with a note that says how many were left out.
    #[must_use]
    pub fn head(&self, count: usize) -> Self {
        let mut head = self.without_rows();
        head.rows = self.rows.iter().take(count).cloned().collect();
        if count < self.len() {
            head.note(format!("the first {count} of {} rows", self.len()));
        }
        head
    }

    /// The named columns, in this order.
    pub fn select(&self, names: &[&str]) -> Result<Self> {
        let indices: Vec<usize> =
            names.iter().map(|name| self.column_index(name)).collect::<Result<_>>()?;
        let columns: Vec<Column> = indices.iter().map(|&i| self.columns[i].clone()).collect();
        let pick = |row: &Vec<Cell>| indices.iter().map(|&i| row[i].clone()).collect();
        let rows = self.rows.iter().map(pick).collect();
        Ok(Self { title: self.title.clone(), columns, rows, notes: self.notes.clone() })
    }

    fn without_rows(&self) -> Self {
        Self {
            title: self.title.clone(),
            columns: self.columns.clone(),
            rows: Vec::new(),
            notes: self.notes.clone(),
        }
    }
}

fn compare(a: &Cell, b: &Cell, descending: bool) -> Ordering {
    let last = |cell: &Cell| match cell {
        Cell::Missing => true,
        Cell::Float(value) => value.is_nan(),
        _ => false,
    };
    match (last(a), last(b)) {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    let order = match (a, b) {
        (Cell::Text(a), Cell::Text(b)) => a.cmp(b),
        (Cell::Int(a), Cell::Int(b)) => a.cmp(b),
        (Cell::Bytes(a), Cell::Bytes(b)) => a.cmp(b),
        _ => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
    };
    if descending { order.reverse() } else { order }
}
