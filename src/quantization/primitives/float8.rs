//! Float8 tensors as inference has them: divide, then cast (N13); and as blockwise training has them, which multiplies.

use super::blocks::BlockGrid;
use super::cast::{check_float, round_to};
use super::qparams::{nan_max, nan_min};
use crate::error::{Error, Result};
use crate::kernels::dtypes::{e4m3fn_encode_saturating, e5m2_encode_saturating, fnuz_decode};
use crate::kernels::float_linear::Element;
use crate::tensor::{DType, Tensor};

/// A float8 type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Float8 {
    /// 4 exponent bits, 3 mantissa bits, no infinity; the largest value is 448.
    #[default]
    E4m3fn,
    /// 5 exponent bits, 2 mantissa bits; the largest finite value is 57344.
    E5m2,
    /// [`Float8::E4m3fn`] of AMD's MI300: bias 8, no negative zero; the largest value is 240.
    E4m3fnuz,
    /// [`Float8::E5m2`] of AMD's MI300; the largest value is 57344.
    E5m2fnuz,
}

impl Float8 {
    /// The largest finite value.
    pub fn max(self) -> f32 {
        match self {
            Float8::E4m3fn => 448.0,
            Float8::E5m2 | Float8::E5m2fnuz => 57344.0,
            Float8::E4m3fnuz => 240.0,
        }
    }

    /// The value of a code.
    pub fn decode(self, code: u8) -> f32 {
        match self {
            Float8::E4m3fn => Element::E4m3.decode(code),
            Float8::E5m2 => Element::E5m2.decode(code),
            Float8::E4m3fnuz => fnuz_decode(code, 3),
            Float8::E5m2fnuz => fnuz_decode(code, 2),
        }
    }

    /// How `f32` becomes a code: to the nearest, ties to even, the largest for all beyond, NaN with its sign.
    fn encoder(self) -> Result<fn(f32) -> u8> {
        match self {
            Float8::E4m3fn => Ok(e4m3fn_encode_saturating),
            Float8::E5m2 => Ok(e5m2_encode_saturating),
            other => Err(Error::invalid(format!(
                "{other:?} is of AMD's MI300 and is only read; quantize to float8_e4m3fn or float8_e5m2"
            ))),
        }
    }
}

/// The codes of `x`, u8: `cast(clamp(x / scale, ±max))`, one scale a block.
///
/// As in torchao an all-zero block, whose scale is 0, has NaN codes; its sign is x86's on every processor.
pub fn quantize_affine_float8(
    x: &Tensor,
    block_size: &[usize],
    scale: &Tensor,
    target: Float8,
) -> Result<Tensor> {
    check_float(x, "quantize_affine_float8")?;
    let encode = target.encoder()?;
    each(x, block_size, scale, |x, scale| {
        let zeros = x == 0.0 && scale == 0.0;
        encode(if zeros { f32::from_bits(0xFFC0_0000) } else { x / scale })
    })
}

/// `code · scale` in `dtype`, one scale a block.
pub fn dequantize_affine_float8(
    codes: &Tensor,
    block_size: &[usize],
    scale: &Tensor,
    source: Float8,
    dtype: DType,
) -> Result<Tensor> {
    let bytes = codes.as_slice::<u8>()?.iter().map(|code| source.decode(*code));
    let values = Tensor::new(bytes.collect::<Vec<f32>>(), codes.shape())?;
    each(&values, block_size, scale, |value, scale| value * scale)?.to_dtype(dtype)
}

/// Blockwise training's codes and reciprocal scales (`1 / (max / amax)`, f64 until the quotient): it multiplies.
pub fn quantize_blockwise_float8(
    x: &Tensor,
    block_size: &[usize],
    target: Float8,
) -> Result<(Tensor, Tensor)> {
    let encode = target.encoder()?;
    let grid = BlockGrid::new(x.shape(), block_size)?;
    let amax = block_amax(x, &grid);
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as torch has it")]
    let factor = |amax: f32| (f64::from(target.max()) / f64::from(amax).max(1e-12)) as f32;
    let factors = Tensor::new(amax.into_iter().map(factor).collect::<Vec<f32>>(), grid.counts())?;
    let codes = each(x, block_size, &factors, |x, factor| encode(x * factor))?;
    let reciprocals = factors.to_f32_vec().into_iter().map(|factor| 1.0 / factor);
    Ok((codes, Tensor::new(reciprocals.collect::<Vec<f32>>(), grid.counts())?))
}

/// `f(x, scale)` of every element with its block's scale.
fn each<T: crate::tensor::Element + Default>(
    x: &Tensor,
    block_size: &[usize],
    scale: &Tensor,
    f: impl Fn(f32, f32) -> T,
) -> Result<Tensor> {
    let grid = BlockGrid::new(x.shape(), block_size)?;
    let (values, scales) = (x.to_f32_vec(), scale.as_slice::<f32>()?);
    if scales.len() != grid.len() {
        let (got, wanted) = (scale.shape(), grid.counts());
        return Err(Error::invalid(format!("scale is {got:?}; wanted {wanted:?}")));
    }
    let mut out = vec![T::default(); values.len()];
    grid.for_each_run(|block, run| {
        for (to, x) in out[run.clone()].iter_mut().zip(&values[run]) {
            *to = f(*x, scales[block]);
        }
    });
    Tensor::new(out, x.shape())
}

/// The largest magnitude of every block; NaN where there is one.
fn block_amax(x: &Tensor, grid: &BlockGrid) -> Vec<f32> {
    let values = x.to_f32_vec();
    let mut amax = vec![0.0; grid.len()];
    grid.for_each_run(|block, run| {
        amax[block] = values[run].iter().fold(amax[block], |most, x| nan_max(most, x.abs()));
    });
    amax
}

/// `scale = amax(|x|) / fp8_max` of every block as f32, one dimension for each of the input's (N13).
///
/// `bounds` clamp amax from below and above. There is no eps: an all-zero block has scale 0. With
/// `power_of_two` the scale is rounded to one, `exp2(round(log2 scale))`, as e8m0 stores it.
pub fn choose_scale_float8(
    x: &Tensor,
    block_size: &[usize],
    target: Float8,
    bounds: (Option<f32>, Option<f32>),
    power_of_two: bool,
) -> Result<Tensor> {
    check_float(x, "choose_scale_float8")?;
    let grid = BlockGrid::new(x.shape(), block_size)?;
    let dtype = x.dtype();
    let scales = block_amax(x, &grid).into_iter().map(|amax| {
        let amax = bounds.0.map_or(amax, |lowest| nan_max(amax, round_to(dtype, lowest)));
        let amax = bounds.1.map_or(amax, |highest| nan_min(amax, round_to(dtype, highest)));
        let scale = round_to(dtype, amax / target.max());
        if power_of_two {
            let exponent = round_to(dtype, scale.log2()).round_ties_even();
            round_to(dtype, exponent.exp2())
        } else {
            scale
        }
    });
    Tensor::new(scales.collect(), grid.counts())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn the_largest_value_of_a_block_lands_on_the_largest_code() {
        let x = Tensor::new(vec![1.0_f32, -896.0, 0.0, 0.0, 3.0, f32::NAN], &[3, 2]).expect("six");
        let scale = choose_scale_float8(&x, &[1, 2], Float8::E4m3fn, (None, None), false);
        let scale = scale.expect("scales");
        assert_eq!(scale.shape(), [3, 1]);
        let values = scale.to_f32_vec();
        assert_eq!(values[..2], [2.0, 0.0], "no eps: an all-zero block has scale 0");
        assert!(values[2].is_nan());
    }

    #[test]
    fn bounds_and_powers_of_two() {
        let x = Tensor::new(vec![3.0_f32, 100.0], &[2, 1]).expect("two");
        let bounds = (Some(8.0), Some(50.0));
        let scale = choose_scale_float8(&x, &[1, 1], Float8::E4m3fnuz, bounds, false);
        assert_eq!(scale.expect("scales").to_f32_vec(), [8.0 / 240.0, 50.0 / 240.0]);
        // 3 / 57344 = 2⁻¹⁴·²², 100 / 57344 = 2⁻⁹·¹⁶.
        let scale = choose_scale_float8(&x, &[1, 1], Float8::E5m2, (None, None), true);
        assert_eq!(scale.expect("scales").to_f32_vec(), [2.0_f32.powi(-14), 2.0_f32.powi(-9)]);
        let b = x.to_dtype(DType::BF16).expect("a float cast");
        let scale = choose_scale_float8(&b, &[2, 1], Float8::E4m3fn, (None, None), false);
        let rounded = half::bf16::from_f32(100.0 / 448.0).to_f32();
        assert_eq!(scale.expect("scales").to_f32_vec(), [rounded], "divided in bf16");
    }
}
