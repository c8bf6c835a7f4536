//! Integer ranges (N01), and how numbers are rounded and cast between dtypes.
#![expect(
    clippy::cast_possible_truncation,
    reason = "narrowing casts are this file's subject; each says what it does with what does not fit"
)]

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// An integer type of 1 to 32 bits (N01). Codes of fewer than 8 bits are stored in i8 or u8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntType {
    /// `int1` … `int8`, `int16`, `int32`: two's complement.
    Int(u32),
    /// `uint1` … `uint8`.
    UInt(u32),
}

impl IntType {
    /// The lowest and highest value, or an error where torchao has no such type.
    pub fn bounds(self) -> Result<(i32, i32)> {
        match self {
            IntType::Int(bits @ (1..=8 | 16 | 32)) => {
                let half = 1_i64 << (bits - 1);
                Ok(((-half) as i32, (half - 1) as i32))
            }
            IntType::UInt(bits @ 1..=8) => Ok((0, (1 << bits) - 1)),
            other => Err(Error::invalid(format!(
                "{other:?}: wanted Int(1..=8), Int(16), Int(32) or UInt(1..=8)"
            ))),
        }
    }

    /// The dtype that its codes are stored in.
    pub fn container(self) -> DType {
        match self {
            IntType::UInt(_) => DType::U8,
            IntType::Int(0..=8) => DType::I8,
            IntType::Int(9..=16) => DType::I16,
            IntType::Int(_) => DType::I32,
        }
    }
}

/// The range of codes that a quantizer uses, inside the range of an integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeRange {
    quant_min: i32,
    quant_max: i32,
    container: DType,
}

impl CodeRange {
    /// All codes of `target`.
    pub fn full(target: IntType) -> Result<CodeRange> {
        let (quant_min, quant_max) = target.bounds()?;
        Ok(CodeRange { quant_min, quant_max, container: target.container() })
    }

    /// The codes `quant_min ..= quant_max` of `target`.
    pub fn new(target: IntType, quant_min: i32, quant_max: i32) -> Result<CodeRange> {
        let (lowest, highest) = target.bounds()?;
        if lowest <= quant_min && quant_min < quant_max && quant_max <= highest {
            return Ok(CodeRange { quant_min, quant_max, container: target.container() });
        }
        Err(Error::invalid(format!(
            "codes {quant_min}..={quant_max} do not fit {target:?}: wanted a range inside {lowest}..={highest}"
        )))
    }

    /// The lowest code.
    pub fn quant_min(self) -> i32 {
        self.quant_min
    }

    /// The highest code.
    pub fn quant_max(self) -> i32 {
        self.quant_max
    }

    /// The dtype that codes are stored in.
    pub fn container(self) -> DType {
        self.container
    }

    pub(super) fn min_f32(self) -> f32 {
        self.quant_min as f32
    }

    pub(super) fn max_f32(self) -> f32 {
        self.quant_max as f32
    }

    /// `quant_max − quant_min`, the number of steps.
    pub(super) fn steps(self) -> f32 {
        (i64::from(self.quant_max) - i64::from(self.quant_min)) as f32
    }

    /// `(quant_max + quant_min + 1) / 2`: 0 for signed, half the range for unsigned types.
    pub(super) fn mid_point(self) -> f32 {
        (i64::from(self.quant_max) + i64::from(self.quant_min) + 1) as f32 / 2.0
    }

    /// Python's `int(…)` of [`CodeRange::mid_point`], truncated towards zero: the symmetric zero point.
    pub(super) fn symmetric_zero_point(self) -> f32 {
        self.mid_point().trunc()
    }
}

/// The dtype that an operation on tensors of dtypes `a` and `b` gives: torch's promotion.
pub fn promote(a: DType, b: DType) -> DType {
    match (a.is_float(), b.is_float()) {
        (true, true) if a == b => a,
        (true, true) if a == DType::F64 || b == DType::F64 => DType::F64,
        (true, true) => DType::F32,
        (true, false) => a,
        (false, true) => b,
        (false, false) => DType::F32,
    }
}

/// How results are rounded to a float dtype: a type, so that loops over elements are compiled for each.
pub(super) trait Rounding {
    /// The nearest value of the dtype, ties to even.
    fn round(value: f32) -> f32;
}

/// f32: nothing to round.
pub(super) struct ToF32;
/// bf16.
pub(super) struct ToBf16;
/// f16.
pub(super) struct ToF16;

impl Rounding for ToF32 {
    fn round(value: f32) -> f32 {
        value
    }
}

impl Rounding for ToBf16 {
    fn round(value: f32) -> f32 {
        bf16::from_f32(value).to_f32()
    }
}

impl Rounding for ToF16 {
    fn round(value: f32) -> f32 {
        f16::from_f32(value).to_f32()
    }
}

/// `value` rounded to `dtype`, for what is done once a block.
pub(crate) fn round_to(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::BF16 => ToBf16::round(value),
        DType::F16 => ToF16::round(value),
        _ => value,
    }
}

/// The smallest positive normal number: the default eps (N05).
pub(super) fn smallest_normal(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::MIN_POSITIVE.to_f32(),
        _ => f32::MIN_POSITIVE,
    }
}

/// Refuses what torchao refuses: tensors that are not f32, bf16 or f16.
pub(super) fn check_float(tensor: &Tensor, what: &str) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::BF16 | DType::F16 => Ok(()),
        other => Err(Error::invalid(format!("{what}: wanted f32, bf16 or f16, got {other}"))),
    }
}

/// A tensor of `dtype` from values: rounded for float dtypes, cast as torch does on x86 for integers.
pub(super) fn cast(values: Vec<f32>, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    fn each<T>(values: Vec<f32>, to: impl Fn(f32) -> T) -> Vec<T> {
        values.into_iter().map(to).collect()
    }
    match dtype {
        DType::F32 => Tensor::new(values, shape),
        DType::F64 => Tensor::new(each(values, f64::from), shape),
        DType::BF16 => Tensor::new(each(values, bf16::from_f32), shape),
        DType::F16 => Tensor::new(each(values, f16::from_f32), shape),
        DType::I64 => Tensor::new(each(values, to_i64), shape),
        DType::I32 => Tensor::new(each(values, to_i32), shape),
        DType::I16 => Tensor::new(each(values, |value| to_i32(value) as i16), shape),
        DType::I8 => Tensor::new(each(values, |value| to_i32(value) as i8), shape),
        #[expect(clippy::cast_sign_loss, reason = "the low 8 bits, as torch takes them")]
        DType::U8 => Tensor::new(each(values, |value| to_i32(value) as u8), shape),
    }
}

/// Truncates; NaN and what lies beyond 32 bits become `i32::MIN`, as x86's `cvttss2si` has it.
pub(super) fn to_i32(value: f32) -> i32 {
    const LIMIT: f32 = 2_147_483_648.0; // 2³¹
    if (-LIMIT..LIMIT).contains(&value) { value as i32 } else { i32::MIN }
}

fn to_i64(value: f32) -> i64 {
    const LIMIT: f32 = 9_223_372_036_854_775_808.0; // 2⁶³
    if (-LIMIT..LIMIT).contains(&value) { value as i64 } else { i64::MIN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_types() {
        for (target, bounds) in [
            (IntType::Int(1), (-1, 0)),
            (IntType::Int(4), (-8, 7)),
            (IntType::Int(8), (-128, 127)),
            (IntType::Int(16), (-32768, 32767)),
            (IntType::Int(32), (i32::MIN, i32::MAX)),
            (IntType::UInt(1), (0, 1)),
            (IntType::UInt(8), (0, 255)),
        ] {
            assert_eq!(target.bounds().expect("a type"), bounds, "{target:?}");
        }
        for target in [IntType::Int(0), IntType::Int(9), IntType::UInt(9), IntType::UInt(0)] {
            assert!(target.bounds().is_err(), "{target:?}");
        }
        assert!(CodeRange::new(IntType::Int(4), -8, 8).is_err());
        assert!(CodeRange::new(IntType::Int(4), 3, 3).is_err());
    }

    #[test]
    fn casts_to_integers_are_those_of_torch_on_x86() {
        // Printed by torch 2.13 on x86-64.
        let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 200.0, 300.0, 1e10];
        for (dtype, wanted) in [
            (DType::I32, [i32::MIN, i32::MIN, i32::MIN, -1, 200, 300, i32::MIN]),
            (DType::I8, [0, 0, 0, -1, -56, 44, 0]),
            (DType::U8, [0, 0, 0, 255, 200, 44, 0]),
        ] {
            let got = cast(values.to_vec(), dtype, &[values.len()]).expect("casts");
            let wanted: Vec<f32> = wanted.iter().map(|value| *value as f32).collect();
            assert_eq!(got.to_f32_vec(), wanted, "{dtype}");
        }
        assert_eq!(to_i64(f32::NAN), i64::MIN);
    }
}
