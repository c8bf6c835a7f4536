//! Scales and zero points of blocks, from their minima and maxima (N02–N05, N09–N11).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::blocks::BlockGrid;
use super::cast::{CodeRange, cast, check_float, round_to, smallest_normal};
use crate::error::{Error, Result};
use crate::quantization::config::{enum_from_json, enum_from_word, enum_to_json};
use crate::tensor::{DType, Tensor};

/// How the range of a block is mapped onto the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingType {
    /// `scale = absmax / (steps / 2)` (N02): int8 divides by 127.5, so the extreme value may clip.
    Symmetric,
    /// `scale = max(min / quant_min, max / quant_max)` (N03): nothing clips.
    SymmetricNoClippingErr,
    /// `scale = (max − min) / steps`, with 0 inside the range (N04).
    Asymmetric,
}

impl MappingType {
    const NAMES: [(&'static str, MappingType); 3] = [
        ("SYMMETRIC", MappingType::Symmetric),
        ("SYMMETRIC_NO_CLIPPING_ERR", MappingType::SymmetricNoClippingErr),
        ("ASYMMETRIC", MappingType::Asymmetric),
    ];
}

impl FromStr for MappingType {
    type Err = Error;

    fn from_str(word: &str) -> Result<MappingType> {
        enum_from_word(word, "a mapping type", &MappingType::NAMES)
    }
}

impl std::fmt::Display for MappingType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MappingType::Symmetric => "symmetric",
            MappingType::SymmetricNoClippingErr => "symmetric-no-clipping-err",
            MappingType::Asymmetric => "asymmetric",
        })
    }
}

impl Serialize for MappingType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        enum_to_json("MappingType", self, &MappingType::NAMES).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for MappingType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<MappingType, D::Error> {
        let json = serde_json::Value::deserialize(deserializer)?;
        enum_from_json(&json, "MappingType", &MappingType::NAMES).map_err(serde::de::Error::custom)
    }
}

/// What a caller may set; `None` is torchao's default (N05).
#[derive(Clone, Copy, Debug, Default)]
pub struct QParamsOptions {
    /// The least scale. Default: the smallest normal number of the input's dtype.
    pub eps: Option<f32>,
    /// Default: the input's dtype.
    pub scale_dtype: Option<DType>,
    /// Default: int32; the input's dtype for a float zero point and for symmetric ranges that
    /// [`choose_qparams_affine_with_min_max`] gets.
    pub zero_point_dtype: Option<DType>,
    /// Whether scales keep one dimension for each of the input's.
    pub keepdim: bool,
}

/// Minima and maxima of blocks, or what an observer saw, in the dtype `dtype`.
struct Extremes {
    min: Vec<f32>,
    max: Vec<f32>,
    dtype: DType,
}

/// Scales and zero points before they are cast to the dtypes that the caller wants.
struct Chosen {
    scale: Vec<f32>,
    zero_point: Vec<f32>,
}

/// `(scale, zero_point)` of every block (N02–N05), integer zero points, 0 representable.
pub fn choose_qparams_affine(
    input: &Tensor,
    mapping: MappingType,
    block_size: &[usize],
    range: CodeRange,
    options: QParamsOptions,
) -> Result<(Tensor, Tensor)> {
    let (extremes, shape) = block_extremes(input, block_size, options)?;
    let chosen = choose(&extremes, mapping, range, options);
    let zero_point_dtype = options.zero_point_dtype.unwrap_or(DType::I32);
    finish(chosen, &extremes, (options.scale_dtype, zero_point_dtype), &shape)
}

/// [`choose_qparams_affine`] from the minima and maxima that an observer saw (N11).
pub fn choose_qparams_affine_with_min_max(
    min: &Tensor,
    max: &Tensor,
    mapping: MappingType,
    range: CodeRange,
    options: QParamsOptions,
) -> Result<(Tensor, Tensor)> {
    check_float(min, "min_val")?;
    if min.dtype() != max.dtype() || min.shape() != max.shape() {
        return Err(Error::invalid(format!(
            "min_val is {} {:?} and max_val is {} {:?}; wanted the same dtype and shape",
            min.dtype(),
            min.shape(),
            max.dtype(),
            max.shape()
        )));
    }
    let dtype = min.dtype();
    let extremes = Extremes { min: min.to_f32_vec(), max: max.to_f32_vec(), dtype };
    let chosen = choose(&extremes, mapping, range, options);
    let default = if mapping == MappingType::Asymmetric { DType::I32 } else { dtype };
    let zero_point_dtype = options.zero_point_dtype.unwrap_or(default);
    finish(chosen, &extremes, (options.scale_dtype, zero_point_dtype), min.shape())
}

/// The float zero point of tinygemm (N09): `zero_point = min + scale · mid_point`; 0 need not be representable.
pub fn choose_qparams_affine_tinygemm(
    input: &Tensor,
    block_size: &[usize],
    range: CodeRange,
    options: QParamsOptions,
) -> Result<(Tensor, Tensor)> {
    let (extremes, shape) = block_extremes(input, block_size, options)?;
    let dtype = extremes.dtype;
    let scale = raw_range_scales(&extremes, range, options);
    let mid_point = range.mid_point();
    let zero_points = scale.iter().zip(&extremes.min).map(|(scale, min)| {
        let shift = round_to(dtype, scale * mid_point);
        round_to(dtype, min + shift)
    });
    let chosen = Chosen { zero_point: zero_points.collect(), scale };
    let zero_point_dtype = options.zero_point_dtype.unwrap_or(dtype);
    finish(chosen, &extremes, (options.scale_dtype, zero_point_dtype), &shape)
}

/// Integer zero points for the range as it is, without widening it to hold 0 (N10).
pub fn choose_qparams_affine_dont_preserve_zero(
    input: &Tensor,
    block_size: &[usize],
    range: CodeRange,
    options: QParamsOptions,
) -> Result<(Tensor, Tensor)> {
    let (extremes, shape) = block_extremes(input, block_size, options)?;
    let scale = raw_range_scales(&extremes, range, options);
    let zero_point = integer_zero_points(&scale, &extremes.min, extremes.dtype, range);
    let chosen = Chosen { scale, zero_point };
    let zero_point_dtype = options.zero_point_dtype.unwrap_or(DType::I32);
    finish(chosen, &extremes, (options.scale_dtype, zero_point_dtype), &shape)
}

fn finish(
    chosen: Chosen,
    extremes: &Extremes,
    (scale_dtype, zero_point_dtype): (Option<DType>, DType),
    shape: &[usize],
) -> Result<(Tensor, Tensor)> {
    let scale = cast(chosen.scale, scale_dtype.unwrap_or(extremes.dtype), shape)?;
    Ok((scale, cast(chosen.zero_point, zero_point_dtype, shape)?))
}

/// The minimum and maximum of every block, and the shape that its scales take.
fn block_extremes(
    input: &Tensor,
    block_size: &[usize],
    options: QParamsOptions,
) -> Result<(Extremes, Vec<usize>)> {
    check_float(input, "choose_qparams")?;
    let grid = BlockGrid::new(input.shape(), block_size)?;
    let values = input.to_f32_vec();
    let mut min = vec![f32::INFINITY; grid.len()];
    let mut max = vec![f32::NEG_INFINITY; grid.len()];
    grid.for_each_run(|block, run| {
        let (low, high) = min_max(&values[run]);
        // A NaN, once there, stays: comparisons with it are false, and it compares unequal to itself.
        if low < min[block] || low.is_nan() {
            min[block] = low;
        }
        if high > max[block] || high.is_nan() {
            max[block] = high;
        }
    });
    let shape = if options.keepdim { grid.counts().to_vec() } else { grid.reduced_shape() };
    Ok((Extremes { min, max, dtype: input.dtype() }, shape))
}

/// The minimum and maximum; both NaN if any value is.
fn min_max(values: &[f32]) -> (f32, f32) {
    let (mut min, mut max, mut any_nan) = (f32::INFINITY, f32::NEG_INFINITY, false);
    for &value in values {
        min = if value < min { value } else { min };
        max = if value > max { value } else { max };
        any_nan |= value.is_nan();
    }
    if any_nan { (f32::NAN, f32::NAN) } else { (min, max) }
}

/// N02, N03 and N04: each line one operation of torch, rounded to the dtype of the extremes.
fn choose(
    extremes: &Extremes,
    mapping: MappingType,
    range: CodeRange,
    options: QParamsOptions,
) -> Chosen {
    let dtype = extremes.dtype;
    let at_least = least_scale(dtype, options);
    let min_neg: Vec<f32> = extremes.min.iter().map(|min| nan_min(*min, 0.0)).collect();
    let max_pos: Vec<f32> = extremes.max.iter().map(|max| nan_max(*max, 0.0)).collect();
    let pairs = min_neg.iter().zip(&max_pos);
    let scale: Vec<f32> = match mapping {
        MappingType::Symmetric => pairs
            .map(|(min, max)| {
                at_least(round_to(dtype, nan_max(-min, *max) / (range.steps() / 2.0)))
            })
            .collect(),
        MappingType::SymmetricNoClippingErr => pairs
            .map(|(min, max)| {
                let for_min = round_to(dtype, min / range.min_f32());
                let for_max = round_to(dtype, max / range.max_f32());
                // An unsigned range divides by 0: NaN and −∞ lose, as in torch.where(smin > smax, …).
                at_least(if for_min > for_max { for_min } else { for_max })
            })
            .collect(),
        MappingType::Asymmetric => pairs
            .map(|(min, max)| {
                let spread = round_to(dtype, max - min);
                at_least(round_to(dtype, spread / range.steps()))
            })
            .collect(),
    };
    let zero_point = match mapping {
        MappingType::Asymmetric => integer_zero_points(&scale, &min_neg, dtype, range),
        _ => vec![round_to(dtype, range.symmetric_zero_point()); scale.len()],
    };
    Chosen { scale, zero_point }
}

/// `clamp(scale, min = eps)`, with eps rounded to the dtype as torch casts a bound. NaN stays.
fn least_scale(dtype: DType, options: QParamsOptions) -> impl Fn(f32) -> f32 {
    let eps = round_to(dtype, options.eps.unwrap_or_else(|| smallest_normal(dtype)));
    move |scale| nan_max(scale, eps)
}

/// `max((max − min) / steps, eps)` of the range as it is.
fn raw_range_scales(extremes: &Extremes, range: CodeRange, options: QParamsOptions) -> Vec<f32> {
    let dtype = extremes.dtype;
    let at_least = least_scale(dtype, options);
    let pairs = extremes.min.iter().zip(&extremes.max);
    pairs
        .map(|(min, max)| {
            let spread = round_to(dtype, max - min);
            at_least(round_to(dtype, spread / range.steps()))
        })
        .collect()
}

/// `clamp(quant_min − round(min / scale), quant_min, quant_max)`.
fn integer_zero_points(scale: &[f32], min: &[f32], dtype: DType, range: CodeRange) -> Vec<f32> {
    let (low, high) = (round_to(dtype, range.min_f32()), round_to(dtype, range.max_f32()));
    let zero_points = scale.iter().zip(min).map(|(scale, min)| {
        let steps = round_to(dtype, min / scale).round_ties_even();
        nan_min(nan_max(round_to(dtype, range.min_f32() - steps), low), high)
    });
    zero_points.collect()
}

/// The smaller; NaN if either is, as torch's `min`, `max` and `clamp` have it.
pub(super) fn nan_min(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.min(b) }
}

/// The larger; NaN if either is.
pub(super) fn nan_max(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "scales are bit-exact")]
mod tests {
    use super::super::cast::IntType;
    use super::*;

    fn choose_int8(values: Vec<f32>, dtype: DType, mapping: MappingType) -> (f32, f32) {
        let shape = [1, values.len()];
        let input = Tensor::new(values, &shape).and_then(|t| t.to_dtype(dtype)).expect("a tensor");
        let range = CodeRange::full(IntType::Int(8)).expect("int8");
        let (scale, zero_point) =
            choose_qparams_affine(&input, mapping, &shape, range, QParamsOptions::default())
                .expect("chooses");
        (scale.to_f32_vec()[0], zero_point.to_f32_vec()[0])
    }

    #[test]
    fn nan_and_infinity_are_torchs() {
        // Printed by torchao 0.18 on x86-64.
        let int_min = -2_147_483_648.0;
        for dtype in [DType::F32, DType::BF16] {
            let (scale, zero) = choose_int8(vec![1.0, f32::NAN], dtype, MappingType::Asymmetric);
            assert!(scale.is_nan() && zero == int_min, "{dtype}: {scale} {zero}");
            let (scale, zero) = choose_int8(vec![1.0, f32::NAN], dtype, MappingType::Symmetric);
            assert!(scale.is_nan() && zero == 0.0, "{dtype}: {scale} {zero}");
            let both = vec![f32::NEG_INFINITY, f32::INFINITY];
            let (scale, zero) = choose_int8(both, dtype, MappingType::Asymmetric);
            assert!(scale == f32::INFINITY && zero == int_min, "{dtype}: {scale} {zero}");
            let one = vec![-1.0, f32::INFINITY];
            let (scale, zero) = choose_int8(one, dtype, MappingType::Asymmetric);
            assert!(scale == f32::INFINITY && zero == -128.0, "{dtype}: {scale} {zero}");
        }
    }

    #[test]
    fn an_empty_range_has_the_least_scale() {
        let (scale, zero) = choose_int8(vec![0.0, -0.0], DType::F32, MappingType::Asymmetric);
        assert_eq!((scale, zero), (f32::MIN_POSITIVE, -128.0));
        let (scale, _) = choose_int8(vec![0.0], DType::F16, MappingType::Symmetric);
        assert_eq!(scale, 2.0_f32.powi(-14));
    }

    #[test]
    fn a_nan_in_a_later_run_of_the_block_is_not_forgotten() {
        let input = Tensor::new(vec![1.0_f32, 2.0, 3.0, f32::NAN, 5.0, 6.0, 0.5, 0.25], &[4, 2]);
        let range = CodeRange::full(IntType::Int(8)).expect("int8");
        let (scale, _) = choose_qparams_affine(
            &input.expect("a tensor"),
            MappingType::Symmetric,
            &[4, 1],
            range,
            QParamsOptions::default(),
        )
        .expect("chooses");
        let scale = scale.to_f32_vec();
        assert_eq!(scale[0], 5.0 / 127.5);
        assert!(scale[1].is_nan());
    }
}
