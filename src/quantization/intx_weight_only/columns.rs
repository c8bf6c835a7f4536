//! Groups of 1 to 8 bit codes filled one column at a time.

use std::ops::Range;
use std::sync::Arc;

use super::{IntxWeightOnlyConfig, KIND};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::quantization::Columns;
use crate::quantization::intx_fields::IntxFields;
use crate::quantization::packed::Parts;
use crate::quantization::primitives::CodeRange;
use crate::tensor::{DType, Tensor};

/// Scales and zero points of the groups that were started, a column of N each.
#[derive(Debug)]
pub(super) struct IntxColumns {
    cpu: Cpu,
    config: IntxWeightOnlyConfig,
    fields: IntxFields,
    shape: (usize, usize),
    dtype: DType,
    group_size: usize,
    range: CodeRange,
    scale: Vec<f32>,
    zero: Vec<f32>,
}

impl IntxColumns {
    pub(super) fn new(
        cpu: &Cpu,
        config: &IntxWeightOnlyConfig,
        weight: &dyn Weight,
    ) -> Result<IntxColumns> {
        let (n, k) = weight.shape();
        let fields = config.fields(k)?;
        let group_size = fields.group_size();
        let numel = n * (k / group_size);
        Ok(IntxColumns {
            cpu: cpu.clone(),
            config: config.clone(),
            fields,
            shape: (n, k),
            dtype: weight.dtype(),
            group_size,
            range: config.weight_dtype.range()?,
            scale: vec![1.0; numel],
            zero: vec![0.0; numel],
        })
    }

    /// As N06 has it: times the reciprocal, rounded, shifted, clamped. Not rounded to bf16 in between.
    #[expect(clippy::cast_precision_loss, reason = "codes of at most 8 bits")]
    fn code(&self, w: f32, at: usize) -> f32 {
        let steps = (w * (1.0 / self.scale[at])).round_ties_even() + self.zero[at];
        steps.clamp(self.range.quant_min() as f32, self.range.quant_max() as f32)
    }
}

impl Columns for IntxColumns {
    fn group_size(&self) -> usize {
        self.group_size
    }

    fn start_group(&mut self, group: usize, columns: &Tensor) -> Result<()> {
        let n = self.shape.0;
        let width = columns.dims2()?.1;
        let columns = columns.to_dtype(self.dtype)?;
        let rows = self.fields.rows(&columns, width, self.config.choose())?;
        self.scale[group * n..][..n].copy_from_slice(&rows.scale.to_f32_vec());
        self.zero[group * n..][..n].copy_from_slice(&rows.zero_point.to_f32_vec());
        Ok(())
    }

    fn round(&self, group: usize, rows: Range<usize>, w: &[f32], out: &mut [f32]) {
        let first = group * self.shape.0 + rows.start;
        for (i, (out, w)) in out.iter_mut().zip(w).enumerate() {
            *out = (self.code(*w, first + i) - self.zero[first + i]) * self.scale[first + i];
        }
    }

    fn step(&self, group: usize, row: usize) -> Option<f32> {
        self.scale.get(group * self.shape.0 + row).copied()
    }

    fn finish(&self, w: &Tensor) -> Result<Arc<dyn Weight>> {
        let (n, k) = self.shape;
        let groups = k / self.group_size;
        let bias = f32::from(self.config.weight_dtype.bias());
        let group_of = |at: usize| at % k / self.group_size * n + at / k;
        let values = w.to_f32_vec();
        let codes = values.iter().enumerate();
        let codes = codes.map(|(at, w)| byte(self.code(*w, group_of(at)) + bias)).collect();
        let by_rows = |values: &[f32]| -> Vec<f32> {
            let rows = (0..n).flat_map(|row| (0..groups).map(move |group| group * n + row));
            rows.map(|at| values[at]).collect()
        };
        let scale = Tensor::new(by_rows(&self.scale), &[n, groups])?;
        let zero: Vec<i8> = by_rows(&self.zero).into_iter().map(small).collect();
        let parts = Parts {
            codes,
            // Numbers that were rounded to the dtype stay what they are on the way through f32.
            scale: scale.to_dtype(self.config.scale_dtype.unwrap_or(self.dtype))?,
            zero_point: Some(Tensor::new(zero, &[n, groups])?),
        };
        self.fields.assemble(&self.cpu, (self.shape, self.dtype), KIND, parts)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a code of at most 8 bits; NaN becomes 0")]
#[expect(clippy::cast_sign_loss, reason = "stored codes are not negative")]
fn byte(code: f32) -> u8 {
    code as u8
}

#[expect(clippy::cast_possible_truncation, reason = "a zero point is a code of at most 8 bits")]
fn small(zero: f32) -> i8 {
    zero as i8
}
