//! Small floats in blocks along a row, each with a scale of one byte, filled one column at a time (MX, NVFP4).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::Columns;
use crate::error::Result;
use crate::model::Weight;
use crate::tensor::Tensor;

/// What a format says of its blocks.
pub(crate) trait Blocks: Send + Sync + fmt::Debug {
    /// u8 `(N, 1)`: the scales of one block of columns f32 `(N, block)`.
    fn scales(&self, columns: &Tensor) -> Result<Tensor>;

    /// The code and the value of `x` in a block of this scale.
    fn round(&self, x: f32, scale: u8) -> (u8, f32);

    /// The weight of codes `(N, K)`, one a byte, and scales `(N, K / block)`.
    fn assemble(&self, codes: &[u8], scales: Vec<u8>) -> Result<Arc<dyn Weight>>;
}

/// Scales of the blocks that were started, a column of N each.
#[derive(Debug)]
pub(crate) struct BlockColumns<B> {
    blocks: B,
    shape: (usize, usize),
    size: usize,
    scale: Vec<u8>,
}

impl<B: Blocks> BlockColumns<B> {
    /// Of a weight `(N, K)` in blocks of `size`, which divides K.
    pub(crate) fn new(blocks: B, shape: (usize, usize), size: usize) -> BlockColumns<B> {
        BlockColumns { blocks, shape, size, scale: vec![0; shape.0 * (shape.1 / size)] }
    }
}

impl<B: Blocks> Columns for BlockColumns<B> {
    fn group_size(&self) -> usize {
        self.size
    }

    fn start_group(&mut self, group: usize, columns: &Tensor) -> Result<()> {
        let scales = self.blocks.scales(columns)?;
        let n = self.shape.0;
        self.scale[group * n..][..n].copy_from_slice(scales.as_slice::<u8>()?);
        Ok(())
    }

    fn round(&self, group: usize, rows: Range<usize>, w: &[f32], out: &mut [f32]) {
        let scales = &self.scale[group * self.shape.0..][rows];
        for ((out, w), scale) in out.iter_mut().zip(w).zip(scales) {
            *out = self.blocks.round(*w, *scale).1;
        }
    }

    fn finish(&self, w: &Tensor) -> Result<Arc<dyn Weight>> {
        let (n, k) = self.shape;
        let values = w.to_f32_vec();
        let scale_of = |at: usize| self.scale[at % k / self.size * n + at / k];
        let codes = values.iter().enumerate().map(|(at, w)| self.blocks.round(*w, scale_of(at)).0);
        let scales = (0..n * k).step_by(self.size).map(scale_of).collect();
        self.blocks.assemble(&codes.collect::<Vec<u8>>(), scales)
    }
}
