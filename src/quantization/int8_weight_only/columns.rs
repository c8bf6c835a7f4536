//! Int8 rows or groups filled one column at a time.

use std::ops::Range;
use std::sync::Arc;

use super::weight::Int8Weight;
use super::{Granularity, choose};
use crate::error::Result;
use crate::model::Weight;
use crate::quantization::Columns;
use crate::tensor::{DType, Tensor};

/// Scales of the groups that were started: a column of N each, or one for the tensor.
#[derive(Debug)]
pub(super) struct Int8Columns {
    granularity: Granularity,
    shape: (usize, usize),
    dtype: DType,
    group_size: usize,
    scale: Vec<f32>,
}

impl Int8Columns {
    pub(super) fn new(granularity: &Granularity, weight: &dyn Weight) -> Result<Int8Columns> {
        let (n, k) = weight.shape();
        let group_size = granularity.block_size(&[n, k])?[1];
        let groups = k.checked_div(group_size).unwrap_or(0);
        Ok(Int8Columns {
            granularity: granularity.clone(),
            shape: (n, k),
            dtype: weight.dtype(),
            group_size,
            scale: vec![1.0; n * groups],
        })
    }
}

/// As N06 has it: times the reciprocal.
fn code(w: f32, scale: f32) -> f32 {
    (w * (1.0 / scale)).round_ties_even().clamp(-128.0, 127.0)
}

impl Columns for Int8Columns {
    fn group_size(&self) -> usize {
        self.group_size
    }

    fn start_group(&mut self, group: usize, columns: &Tensor) -> Result<()> {
        let (n, width) = columns.dims2()?;
        let block = match self.granularity {
            Granularity::PerTensor => [n, width],
            _ => [1, width],
        };
        let scale = choose(columns, &block)?.0.to_f32_vec();
        let scales = scale.iter().cycle();
        self.scale[group * n..][..n].iter_mut().zip(scales).for_each(|(to, scale)| *to = *scale);
        Ok(())
    }

    fn round(&self, group: usize, rows: Range<usize>, w: &[f32], out: &mut [f32]) {
        let scale = &self.scale[group * self.shape.0..][rows];
        for ((out, w), scale) in out.iter_mut().zip(w).zip(scale) {
            *out = code(*w, *scale) * scale;
        }
    }

    fn step(&self, group: usize, row: usize) -> Option<f32> {
        self.scale.get(group * self.shape.0 + row).copied()
    }

    fn finish(&self, w: &Tensor) -> Result<Arc<dyn Weight>> {
        let (n, k) = self.shape;
        let groups = k / self.group_size;
        let at = |i: usize| i % k / self.group_size * n + i / k;
        let values = w.to_f32_vec();
        let codes = values.iter().enumerate().map(|(i, w)| byte(code(*w, self.scale[at(i)])));
        let codes = Tensor::new(codes.collect::<Vec<i8>>(), &[n, k])?;
        let scale = if self.granularity == Granularity::PerTensor {
            Tensor::new(self.scale[..1].to_vec(), &[1, 1])?
        } else {
            let rows = (0..n).flat_map(|row| (0..groups).map(move |group| group * n + row));
            Tensor::new(rows.map(|at| self.scale[at]).collect::<Vec<f32>>(), &[n, groups])?
        };
        Ok(Arc::new(Int8Weight::new(codes, scale, self.dtype)?))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a code of −128 to 127; NaN becomes 0")]
fn byte(code: f32) -> i8 {
    code as i8
}
