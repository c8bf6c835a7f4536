//! Int4 rows as MSLK (the former FBGEMM) quantizes them: the numerics of torchao's plain `Int4Tensor` (Q01).

use super::blocks::BlockGrid;
use super::cast::{cast, check_float};
use super::granularity::check_group_size;
use super::qparams::{nan_max, nan_min};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Codes of a row quantizer with what dequantizes them: `x = q · scale + zero`.
#[derive(Clone, Debug)]
pub struct Int4Rows {
    /// i8 `(N, K)`, −8 ..= 7.
    pub codes: Tensor,
    /// `(N, K/g)` in the weight's dtype. MSLK itself keeps `(K/g, N)`.
    pub scale: Tensor,
    /// `(N, K/g)` in the weight's dtype; `None` for the symmetric quantizer.
    pub zero: Option<Tensor>,
}

/// `scale = max(max − min, 1e-6) / 15`, `zero = min + 8 · scale`,
/// `q = clamp(round((x − min) / scale), 0, 15) − 8`, all in f32.
///
/// Scale and zero are rounded to the weight's dtype after the codes are made.
pub fn int4_row_quantize_zp(w: &Tensor, group_size: usize) -> Result<Int4Rows> {
    let (n, k) = check_rows(w, group_size)?;
    let grid = BlockGrid::new(&[n, k], &[1, group_size])?;
    let mut values = w.to_f32_vec();
    let (mut scales, mut zeros) = (vec![0.0; grid.len()], vec![0.0; grid.len()]);
    grid.for_each_run(|group, run| {
        let values = &mut values[run];
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for value in values.iter() {
            min = nan_min(min, *value);
            max = nan_max(max, *value);
        }
        let scale = nan_max(max - min, 1e-6) / 15.0;
        (scales[group], zeros[group]) = (scale, min + scale * 8.0);
        for value in values {
            let steps = ((*value - min) / scale).round_ties_even();
            *value = nan_min(nan_max(steps, 0.0), 15.0) - 8.0;
        }
    });
    let shape = [n, k / group_size];
    Ok(Int4Rows {
        codes: cast(values, crate::DType::I8, &[n, k])?,
        scale: cast(scales, w.dtype(), &shape)?,
        zero: Some(cast(zeros, w.dtype(), &shape)?),
    })
}

/// `scale = max(absmax, 1e-6) / 8`, `q = clamp(round(x / scale), −8, 7)`, in f32.
pub fn int4_row_quantize(w: &Tensor, group_size: usize) -> Result<Int4Rows> {
    let (n, k) = check_rows(w, group_size)?;
    let grid = BlockGrid::new(&[n, k], &[1, group_size])?;
    let mut values = w.to_f32_vec();
    let mut scales = vec![0.0; grid.len()];
    grid.for_each_run(|group, run| {
        let values = &mut values[run];
        let amax = values.iter().fold(0.0, |amax, value| nan_max(amax, value.abs()));
        let scale = nan_max(amax, 1e-6) / 8.0;
        scales[group] = scale;
        for value in values {
            *value = nan_min(nan_max((*value / scale).round_ties_even(), -8.0), 7.0);
        }
    });
    Ok(Int4Rows {
        codes: cast(values, crate::DType::I8, &[n, k])?,
        scale: cast(scales, w.dtype(), &[n, k / group_size])?,
        zero: None,
    })
}

/// Two codes a byte, the even column in the low nibble, as two's complement nibbles: i8 `(N, K/2)`.
pub fn pack_int4(codes: &Tensor) -> Result<Tensor> {
    let (n, k) = codes.dims2()?;
    if !k.is_multiple_of(2) {
        return Err(Error::invalid(format!("K = {k} is odd: two int4 codes share a byte")));
    }
    let (pairs, _) = codes.as_slice::<i8>()?.as_chunks::<2>();
    let bytes = pairs.iter().map(|[low, high]| (low & 0x0f) | (high << 4));
    Tensor::new(bytes.collect::<Vec<i8>>(), &[n, k / 2])
}

fn check_rows(w: &Tensor, group_size: usize) -> Result<(usize, usize)> {
    check_float(w, "int4 rows")?;
    let (n, k) = w.dims2()?;
    check_group_size(k, group_size)?;
    Ok((n, k))
}
