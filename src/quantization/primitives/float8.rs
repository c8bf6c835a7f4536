//! The scale of float8 tensors as inference has it: divide, then cast (N13).

use super::blocks::BlockGrid;
use super::cast::{check_float, round_to};
use super::qparams::{nan_max, nan_min};
use crate::error::Result;
use crate::tensor::Tensor;

/// A float8 type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float8 {
    /// 4 exponent bits, 3 mantissa bits, no infinity; the largest value is 448.
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
    let values = x.to_f32_vec();
    let mut amax = vec![0.0; grid.len()];
    grid.for_each_run(|block, run| {
        amax[block] = values[run].iter().fold(amax[block], |most, x| nan_max(most, x.abs()));
    });
    let dtype = x.dtype();
    let scales = amax.into_iter().map(|amax| {
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
