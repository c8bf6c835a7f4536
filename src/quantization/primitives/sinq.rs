//! SINQ: Sinkhorn-normalised quantization (N21, arXiv 2509.22944), a primitive that no workflow of torchao uses.
//!
//! Rows and columns are divided in turn by their standard deviations until both are even; what was divided out comes back as
//! a scale a row and a scale a column: `w = q · scale_row · scale_col`.

use super::cast::{cast, check_float, round_to};
use super::granularity::check_group_size;
use super::qparams::{nan_max, nan_min};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// What [`choose_qparams_and_quantize_scale_only_sinq`] gives.
#[derive(Clone, Debug)]
pub struct SinqCodes {
    /// i8 `(N, K)`.
    pub codes: Tensor,
    /// `(N, K / group_size)` in the compute dtype.
    pub scale_row: Tensor,
    /// `(K)` in the compute dtype: one scale a column of a group, repeated for every group.
    pub scale_col: Tensor,
}

const ITERATIONS: usize = 20;
const LEAST: f32 = 1e-8;

/// Symmetric codes with a scale for every group of a row and one for every column (N21); torchao's
/// `compute_dtype` is f16 unless told otherwise.
pub fn choose_qparams_and_quantize_scale_only_sinq(
    w: &Tensor,
    (quant_min, quant_max): (i8, i8),
    group_size: usize,
    compute_dtype: DType,
) -> Result<SinqCodes> {
    check_float(w, "quantize")?;
    let (n, k) = w.dims2()?;
    check_group_size(k, group_size)?;
    let groups = k / group_size;
    if quant_min >= quant_max || n * groups < 2 || group_size < 2 {
        return Err(Error::invalid(format!(
            "SINQ wants two groups of two at least and quant_min < quant_max; got ({n}, {k}) in groups of {group_size}"
        )));
    }
    let rounded = |x: f32| round_to(compute_dtype, x);
    let mut w: Vec<f32> = w.to_f32_vec().into_iter().map(rounded).collect();
    let deviation = Deviation { width: group_size, compute_dtype };
    let least = |all: &[f32]| all.iter().copied().fold(f32::INFINITY, nan_min);
    let target = least(&deviation.of_columns(&w)).min(least(&deviation.of_rows(&w)));
    let target = rounded(target.max(LEAST));
    let factor = |deviation: f32| nan_max(rounded(deviation / target), rounded(LEAST));
    let mut columns = vec![1.0; group_size];
    let mut rows = vec![1.0; n * groups];
    for _ in 0..ITERATIONS {
        let factors: Vec<f32> = deviation.of_columns(&w).into_iter().map(factor).collect();
        for row in w.chunks_exact_mut(group_size) {
            row.iter_mut().zip(&factors).for_each(|(w, by)| *w = rounded(*w / by));
        }
        columns.iter_mut().zip(&factors).for_each(|(all, by)| *all = rounded(*all * by));
        let factors: Vec<f32> = deviation.of_rows(&w).into_iter().map(factor).collect();
        for (row, by) in w.chunks_exact_mut(group_size).zip(&factors) {
            row.iter_mut().for_each(|w| *w = rounded(*w / by));
        }
        rows.iter_mut().zip(&factors).for_each(|(all, by)| *all = rounded(*all * by));
    }
    let (low, high) = (f32::from(quant_min), f32::from(quant_max));
    let mut codes = Vec::with_capacity(n * k);
    for (row, sinkhorn) in w.chunks_exact(group_size).zip(&mut rows) {
        let amax = row.iter().fold(0.0, |amax, w| nan_max(amax, w.abs()));
        let scale = nan_max(rounded(amax / high), rounded(LEAST));
        let code = |w: &f32| nan_min(nan_max(rounded(w / scale).round_ties_even(), low), high);
        codes.extend(row.iter().map(code));
        *sinkhorn = rounded(scale * *sinkhorn);
    }
    Ok(SinqCodes {
        codes: cast(codes, DType::I8, &[n, k])?,
        scale_row: cast(rows, compute_dtype, &[n, groups])?,
        scale_col: cast(columns.repeat(groups), compute_dtype, &[k])?,
    })
}

/// Standard deviations (n − 1) of a matrix of `width` columns, by Welford's update as torch does it: in f64,
/// and for f16 in f32.
struct Deviation {
    width: usize,
    compute_dtype: DType,
}

impl Deviation {
    fn of_rows(&self, w: &[f32]) -> Vec<f32> {
        w.chunks_exact(self.width).map(|row| self.of(row.iter().copied())).collect()
    }

    fn of_columns(&self, w: &[f32]) -> Vec<f32> {
        let column = |j: usize| w.iter().skip(j).step_by(self.width).copied();
        (0..self.width).map(|j| self.of(column(j))).collect()
    }

    #[expect(clippy::cast_possible_truncation, reason = "the result is rounded as torch rounds it")]
    fn of(&self, values: impl Iterator<Item = f32>) -> f32 {
        if self.compute_dtype == DType::F32 {
            let (mut mean, mut m2, mut count) = (0.0_f64, 0.0_f64, 0.0_f64);
            for value in values.map(f64::from) {
                count += 1.0;
                let delta = value - mean;
                mean += delta / count;
                m2 += delta * (value - mean);
            }
            return (m2 / (count - 1.0)).sqrt() as f32;
        }
        let (mut mean, mut m2, mut count) = (0.0_f32, 0.0_f32, 0.0_f32);
        for value in values {
            count += 1.0;
            let delta = value - mean;
            mean += delta / count;
            m2 += delta * (value - mean);
        }
        round_to(self.compute_dtype, (m2 / (count - 1.0)).sqrt())
    }
}
