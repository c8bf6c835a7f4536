//! Rows of small floats with a scale each (X17): `scale = max(amax, 1e-12) / max_normal`, codes by N25.

use super::cast::{check_float, round_to};
use super::qparams::nan_max;
use crate::error::{Error, Result};
use crate::kernels::dtypes::{floatx_decode, floatx_encode, floatx_max};
use crate::tensor::Tensor;

fn check(ebits: u32, mbits: u32) -> Result<()> {
    if ebits > 0 && mbits > 0 && ebits + mbits < 8 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "e{ebits}m{mbits} is no small float; wanted at least one bit of each and 7 at most"
    )))
}

/// The scale of every row of a matrix, in its dtype.
pub fn choose_qparams_affine_floatx(x: &Tensor, ebits: u32, mbits: u32) -> Result<Tensor> {
    check(ebits, mbits)?;
    check_float(x, "choose_qparams_affine_floatx")?;
    let (n, k) = x.dims2()?;
    let values = x.to_f32_vec();
    let rows = (0..n).map(|row| &values[row * k..][..k]);
    let scales = rows.map(|row| {
        let amax = row.iter().fold(1e-12, |amax, x| nan_max(amax, x.abs()));
        round_to(x.dtype(), amax / floatx_max(ebits, mbits))
    });
    Tensor::new(scales.collect::<Vec<f32>>(), &[n])?.to_dtype(x.dtype())
}

/// The codes of a matrix, one a byte: `N25(x / scale)`.
pub fn quantize_affine_floatx(
    x: &Tensor,
    scale: &Tensor,
    ebits: u32,
    mbits: u32,
) -> Result<Tensor> {
    check(ebits, mbits)?;
    let (n, k) = rows_of(x, scale)?;
    let (values, scale) = (x.to_f32_vec(), scale.to_f32_vec());
    let rows = (0..n).map(|row| (&values[row * k..][..k], scale[row]));
    let codes = rows
        .flat_map(|(row, scale)| row.iter().map(move |x| floatx_encode(x / scale, ebits, mbits)));
    Tensor::new(codes.collect::<Vec<u8>>(), x.shape())
}

/// `code · scale`, f32.
pub fn dequantize_affine_floatx(
    codes: &Tensor,
    scale: &Tensor,
    ebits: u32,
    mbits: u32,
) -> Result<Tensor> {
    check(ebits, mbits)?;
    let (n, k) = rows_of(codes, scale)?;
    let (codes, scale) = (codes.as_slice::<u8>()?, scale.to_f32_vec());
    let rows = (0..n).map(|row| (&codes[row * k..][..k], scale[row]));
    let values = rows.flat_map(|(row, scale)| {
        row.iter().map(move |code| floatx_decode(*code, ebits, mbits) * scale)
    });
    Tensor::new(values.collect::<Vec<f32>>(), &[n, k])
}

fn rows_of(x: &Tensor, scale: &Tensor) -> Result<(usize, usize)> {
    let (n, k) = x.dims2()?;
    if scale.numel() == n {
        return Ok((n, k));
    }
    Err(Error::invalid(format!("scale is {:?}; wanted ({n})", scale.shape())))
}
