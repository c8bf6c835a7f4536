//! Int4 groups filled one column at a time.

use std::ops::Range;
use std::sync::Arc;

use super::weight::{Int4Weight, Parts};
use super::{Int4ChooseQParamsAlgorithm, Int4PackingFormat, Int4WeightOnlyConfig, Quantized};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::{DenseWeight, Weight};
use crate::quantization::Columns;
use crate::quantization::primitives::round_to_dtype;
use crate::tensor::{DType, Tensor};

/// Scales and zeros of the groups that were started, a column of N each.
#[derive(Debug)]
pub(super) struct Int4Columns {
    config: Int4WeightOnlyConfig,
    shape: (usize, usize),
    dtype: DType,
    /// What scales and zeros are kept in.
    kept: DType,
    scale: Vec<f32>,
    zero: Vec<f32>,
}

impl Int4Columns {
    pub(super) fn new(config: &Int4WeightOnlyConfig, weight: &dyn Weight, kept: DType) -> Self {
        let (n, k) = weight.shape();
        let numel = n * (k / config.group_size);
        Int4Columns {
            config: config.clone(),
            shape: (n, k),
            dtype: weight.dtype(),
            kept,
            scale: vec![1.0; numel],
            zero: vec![0.0; numel],
        }
    }

    fn qparams(&self, columns: &Tensor) -> Result<Quantized> {
        let (_, width) = columns.dims2()?;
        if self.config.int4_choose_qparams_algorithm == Int4ChooseQParamsAlgorithm::Hqq {
            return super::hqq(&Cpu::new(Some(1)), &DenseWeight::new(columns.clone())?, width);
        }
        let columns = match self.config.int4_packing_format {
            Int4PackingFormat::TilePackedTo4d => columns.to_dtype(DType::BF16)?,
            _ => columns.clone(),
        };
        self.config.quantize_rows()(&columns, width)
    }
}

/// The code 0 ..= 15 of `w`, and the value of code 0.
fn code(w: f32, scale: f32, zero: f32) -> (f32, f32) {
    let min = zero - scale * 8.0;
    (((w - min) / scale).round_ties_even().clamp(0.0, 15.0), min)
}

impl Columns for Int4Columns {
    fn group_size(&self) -> usize {
        self.config.group_size
    }

    fn start_group(&mut self, group: usize, columns: &Tensor) -> Result<()> {
        let n = self.shape.0;
        let Quantized { scale, zero, .. } = self.qparams(columns)?;
        // Rounded now, so that errors are those of the weight that is kept.
        let keep = |to: &mut [f32], from: &Tensor| {
            let values = from.to_f32_vec();
            to.iter_mut().zip(values).for_each(|(to, v)| *to = round_to_dtype(self.kept, v));
        };
        keep(&mut self.scale[group * n..][..n], &scale);
        keep(&mut self.zero[group * n..][..n], &zero);
        Ok(())
    }

    fn round(&self, group: usize, rows: Range<usize>, w: &[f32], out: &mut [f32]) {
        let range = group * self.shape.0 + rows.start..group * self.shape.0 + rows.end;
        let qparams = self.scale[range.clone()].iter().zip(&self.zero[range]);
        for ((out, w), (scale, zero)) in out.iter_mut().zip(w).zip(qparams) {
            let (code, min) = code(*w, *scale, *zero);
            *out = code * scale + min;
        }
    }

    fn step(&self, group: usize, row: usize) -> Option<f32> {
        self.scale.get(group * self.shape.0 + row).copied()
    }

    fn finish(&self, w: &Tensor) -> Result<Arc<dyn Weight>> {
        let (n, k) = self.shape;
        let groups = k / self.config.group_size;
        let values = w.to_f32_vec();
        let code_at = |at: usize| {
            let group = at % k / self.config.group_size * n + at / k;
            byte(code(values[at], self.scale[group], self.zero[group]).0)
        };
        let qdata: Vec<u8> =
            (0..n * k).step_by(2).map(|at| code_at(at) | (code_at(at + 1) << 4)).collect();
        let by_rows = |values: &[f32]| -> Result<Tensor> {
            let rows = (0..n).flat_map(|row| (0..groups).map(move |group| group * n + row));
            let values: Vec<f32> = rows.map(|at| values[at]).collect();
            Tensor::new(values, &[n, groups])?.to_dtype(self.kept)
        };
        Ok(Arc::new(Int4Weight::new(Parts {
            qdata: Tensor::new(qdata, &[n, k / 2])?,
            scale: by_rows(&self.scale)?,
            zero_point: by_rows(&self.zero)?,
            dtype: self.dtype,
            packing_format: self.config.int4_packing_format,
        })?))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a code of 0 to 15; NaN becomes 0")]
#[expect(clippy::cast_sign_loss, reason = "codes are not negative")]
fn byte(code: f32) -> u8 {
    code as u8
}
