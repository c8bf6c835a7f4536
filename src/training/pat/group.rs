//! Which numbers of a weight are pruned together: torchao's groupers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a weight `(N, K)` is cut into groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouper {
    /// `ElemGrouper`: each number.
    Elem,
    /// `LayerGrouper`: all numbers.
    Layer,
    /// `Dim0Grouper`: a row.
    Dim0,
    /// `Dim1Grouper`: a column.
    Dim1,
    /// `KElementGrouper`: so many neighbours of a row; the last group of a row counts as full.
    KElement(usize),
    /// `AttentionHeadGrouper` along the rows: so many of them.
    HeadRows(usize),
    /// The same along the columns.
    HeadColumns(usize),
    /// `SVDGrouper`: what is pruned are singular values.
    Svd,
}

/// The groups of one weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    grouper: Grouper,
    rows: usize,
    columns: usize,
}

impl Grouper {
    /// The groups of a weight of this shape; those of singular values are no groups of numbers.
    pub(super) fn of(self, (rows, columns): (usize, usize)) -> Result<Groups> {
        let fits = match self {
            Grouper::KElement(k) => k > 0,
            Grouper::HeadRows(size) => size > 0 && rows.is_multiple_of(size),
            Grouper::HeadColumns(size) => size > 0 && columns.is_multiple_of(size),
            _ => true,
        };
        if fits && rows > 0 && columns > 0 {
            return Ok(Groups { grouper: self, rows, columns });
        }
        Err(Error::invalid(format!(
            "{rows} × {columns} numbers have no whole groups of {self}; choose a size that divides them"
        )))
    }
}

impl fmt::Display for Grouper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grouper::Elem => f.write_str("elem"),
            Grouper::Layer => f.write_str("layer"),
            Grouper::Dim0 => f.write_str("dim0"),
            Grouper::Dim1 => f.write_str("dim1"),
            Grouper::KElement(k) => write!(f, "k-element:{k}"),
            Grouper::HeadRows(size) => write!(f, "head-rows:{size}"),
            Grouper::HeadColumns(size) => write!(f, "head-columns:{size}"),
            Grouper::Svd => f.write_str("svd"),
        }
    }
}

impl Groups {
    /// The group of the number at `at`, row-major.
    pub(super) fn of(&self, at: usize) -> usize {
        let (row, column) = (at / self.columns, at % self.columns);
        match self.grouper {
            Grouper::Elem => at,
            Grouper::Layer | Grouper::Svd => 0,
            Grouper::Dim0 => row,
            Grouper::Dim1 => column,
            Grouper::KElement(k) => row * self.columns.div_ceil(k) + column / k,
            Grouper::HeadRows(size) => row / size,
            Grouper::HeadColumns(size) => column / size,
        }
    }

    /// How many groups.
    pub(super) fn count(&self) -> usize {
        match self.grouper {
            Grouper::Elem => self.rows * self.columns,
            Grouper::Layer | Grouper::Svd => 1,
            Grouper::Dim0 => self.rows,
            Grouper::Dim1 => self.columns,
            Grouper::KElement(k) => self.rows * self.columns.div_ceil(k),
            Grouper::HeadRows(size) => self.rows / size,
            Grouper::HeadColumns(size) => self.columns / size,
        }
    }

    /// How many numbers a group counts.
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2⁵³")]
    pub(super) fn size(&self) -> f64 {
        let size = match self.grouper {
            Grouper::Elem => 1,
            Grouper::Layer | Grouper::Svd => self.rows * self.columns,
            Grouper::Dim0 => self.columns,
            Grouper::Dim1 => self.rows,
            Grouper::KElement(k) => k,
            Grouper::HeadRows(size) => size * self.columns,
            Grouper::HeadColumns(size) => size * self.rows,
        };
        size as f64
    }

    /// The length of each group.
    #[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
    pub(super) fn norms(&self, values: &[f32]) -> Vec<f32> {
        let mut squares = vec![0.0_f64; self.count()];
        for (at, x) in values.iter().enumerate() {
            squares[self.of(at)] += f64::from(*x) * f64::from(*x);
        }
        squares.into_iter().map(|square| square.sqrt() as f32).collect()
    }
}
