//! Formats that can be filled one column at a time: what GPTQ and AutoRound need of their base.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::model::Weight;
use crate::tensor::Tensor;

/// A weight `(N, K)` that is being quantized column by column: the parameters of a group of columns are fixed first,
/// then each of its columns is rounded, and columns to come may change in between.
pub trait Columns: Send + Sync + fmt::Debug {
    /// How many neighbouring columns share their parameters.
    fn group_size(&self) -> usize;

    /// Fixes the parameters of group `group` from its columns as they are now: f32 `(N, group_size)`, or fewer columns
    /// where the caller wants them chosen from fewer.
    fn start_group(&mut self, group: usize, columns: &Tensor) -> Result<()>;

    /// The values that the format gives to `w`, the rows `rows` of a column of group `group`.
    fn round(&self, group: usize, rows: Range<usize>, w: &[f32], out: &mut [f32]);

    /// How far apart the values of row `row` of group `group` lie, where all neighbours are equally far.
    fn step(&self, _group: usize, _row: usize) -> Option<f32> {
        None
    }

    /// The weight with the parameters that were fixed, from columns f32 `(N, K)` that were rounded.
    fn finish(&self, w: &Tensor) -> Result<Arc<dyn Weight>>;
}
