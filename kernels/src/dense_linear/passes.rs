//! The order in which a GEMV goes through its rows and tokens.
//!
//! Rows are read from end to end: cutting K into pieces that keep x in the first-level cache was
//! tried and was slower at four tokens (benches/record/LOG.md).

use std::ops::Range;

use super::Shape;

/// Tokens that go together when there are more than [`AT_ONCE`].
const TOKENS: usize = 4;

/// Up to so many tokens go in one pass, at the price of fewer rows together.
const AT_ONCE: usize = 6;

/// Rows that every group of tokens passes before the next rows, so that they come from memory once:
/// 12 × 16 KiB stay in the second-level cache. A multiple of every number of rows that go together.
const ROWS: usize = 12;

/// Some rows of the weight with some tokens (1 to 6).
#[derive(Clone, Debug)]
pub(super) struct Pass {
    pub(super) rows: Range<usize>,
    pub(super) tokens: Range<usize>,
    /// Columns of the weight.
    pub(super) k: usize,
    /// All tokens of the call.
    pub(super) m: usize,
}

/// All passes of `n` rows.
pub(super) fn passes(shape: Shape, n: usize) -> impl Iterator<Item = Pass> {
    let Shape { m, k, .. } = shape;
    let (rows, tokens) = if m <= AT_ONCE { (n, m) } else { (ROWS, TOKENS) };
    let starts = |end: usize, step: usize| (0..end).step_by(step.max(1));
    starts(n, rows).flat_map(move |row| {
        starts(m, tokens).map(move |token| Pass {
            rows: row..n.min(row + rows),
            tokens: token..m.min(token + tokens),
            k,
            m,
        })
    })
}

impl Pass {
    /// Row `i` of a matrix of K columns.
    pub(super) fn of<'a, T>(&self, matrix: &'a [T], i: usize) -> &'a [T] {
        &matrix[i * self.k..(i + 1) * self.k]
    }

    /// How many numbers ahead of a weight to ask for what lies there: the next pass's rows. Long runs of rows
    /// ([`crate::rows::side_by_side`]) are followed without, and 0 says so.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn ahead(&self) -> usize {
        if self.m > AT_ONCE { ROWS * self.k } else { 0 }
    }
}
