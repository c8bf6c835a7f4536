//! OCP MX: blocks that share a power of two (M02 to M08), as torchao 0.18's `to_mx` and `to_dtype` have it.
//!
//! Where torchao's later versions differ (an infinity there spoils its block, and RCEIL is exact), 0.18 is followed:
//! RCEIL takes `ceil(log2(amax / max))` in f32, so that an amax a few units above a power of two stays below it, and
//! a block whose scale is 2⁻¹²⁷ is not scaled at all. MX's int8, which torchao lacks, is OCP MX 1.0, §5.3.4.

use crate::error::{Error, Result};
use crate::kernels::dtypes::{
    e4m3fn_encode_saturating, e5m2_encode_saturating, e8m0_decode, floatx_encode, round_to_i8,
};
use crate::kernels::float_linear::Element;
use crate::kernels::{float4_round, float8_round};
use crate::quantization::config::words;
use crate::quantization::primitives::qparams::nan_max;
use crate::tensor::Tensor;

words! {
    /// How the power of two of a block is chosen (M03 to M06).
    ScaleCalculationMode "a scaling mode" {
        /// `floor(log2 amax) − emax`: the largest values may saturate.
        Floor = "FLOOR",
        /// `ceil(log2(amax / max))`: nothing saturates.
        Rceil = "RCEIL",
        /// `ceil(log2 amax) − emax`.
        Ceil = "CEIL",
        /// amax is rounded to the element's mantissa first.
        Even = "EVEN",
    }
}

/// The largest power of two, the mantissa bits and the largest value of an element (M02).
fn limits(element: Element) -> Result<(i32, u32, f32)> {
    match element {
        Element::E4m3 => Ok((8, 3, 448.0)),
        Element::E5m2 => Ok((15, 2, 57344.0)),
        Element::E2m3 => Ok((2, 3, 7.5)),
        Element::E3m2 => Ok((4, 2, 28.0)),
        Element::E2m1 => Ok((2, 1, 6.0)),
        Element::Int8 => Ok((0, 6, 127.0 / 64.0)),
        other => Err(Error::invalid(format!(
            "{} is not an element of MX; wanted e4m3, e5m2, e2m3, e3m2, e2m1 or int8",
            other.name()
        ))),
    }
}

/// The e8m0 scales `(…, K / block_size)` and the codes of `x (…, K)`, one a byte.
pub fn to_mx(
    x: &Tensor,
    element: Element,
    block_size: usize,
    mode: ScaleCalculationMode,
) -> Result<(Tensor, Tensor)> {
    let limits = limits(element)?;
    let shape = scales_shape(x.shape(), block_size)?;
    let values = x.to_f32_vec();
    let (mut scales, mut codes) = (Vec::new(), Vec::with_capacity(values.len()));
    for block in values.chunks_exact(block_size) {
        // torch's maximum of a block with a NaN is NaN.
        let amax = block.iter().fold(0.0, |amax, x| nan_max(amax, x.abs()));
        let (scale, factor) = match mode {
            ScaleCalculationMode::Rceil => rceil(amax, limits.2),
            _ => by_exponent(amax, mode, limits),
        };
        scales.push(scale);
        codes.extend(block.iter().map(|x| encode(element, scaled(*x, factor))));
    }
    Ok((Tensor::new(scales, &shape)?, Tensor::new(codes, x.shape())?))
}

/// Rounds the numbers of one block to those that MX gives back: [`to_mx`] and [`from_mx`] without the codes.
pub fn mx_round_block(block: &mut [f32], element: Element, mode: ScaleCalculationMode) {
    // What is no element of MX stays as it is; configurations refuse it at their door.
    let Ok(limits) = limits(element) else { return };
    let amax = block.iter().fold(0.0, |amax, x| nan_max(amax, x.abs()));
    let (code, factor) = match mode {
        ScaleCalculationMode::Rceil => rceil(amax, limits.2),
        _ => by_exponent(amax, mode, limits),
    };
    let scale = e8m0_decode(code);
    for x in block {
        let inside = scaled(*x, factor);
        *x = scale
            * match element {
                Element::E4m3 => float8_round::e4m3(inside),
                Element::E5m2 => float8_round::e5m2(inside),
                Element::E2m1 => float4_round::e2m1(inside),
                other => other.decode(encode(other, inside)),
            };
    }
}

/// How a block's numbers are brought to the element's range.
#[derive(Clone, Copy)]
enum Factor {
    Multiply(f32),
    Divide(f32),
}

fn scaled(x: f32, factor: Factor) -> f32 {
    match factor {
        // x86 keeps the first NaN of an operation; a positive NaN where only the factor is one.
        _ if x.is_nan() => x,
        Factor::Multiply(factor) if factor.is_nan() => f32::from_bits(0x7FC0_0000),
        Factor::Multiply(factor) => x * factor,
        Factor::Divide(scale) => x / scale,
    }
}

/// M06 as 0.18 computes it.
fn rceil(amax: f32, max: f32) -> (u8, Factor) {
    let descale = amax / max;
    if descale.is_nan() {
        return (255, Factor::Multiply(f32::NAN));
    }
    if descale.is_infinite() {
        return (254, Factor::Multiply(e8m0_decode(0)));
    }
    let exponent = single(f64::from(descale).log2()).ceil().clamp(-127.0, 127.0);
    let code = byte(exponent + 127.0);
    let factor = match code {
        254 => e8m0_decode(0),
        0 => 1.0,
        code => e8m0_decode(254 - code),
    };
    (code, Factor::Multiply(factor))
}

/// M03 to M05, M07.
fn by_exponent(
    amax: f32,
    mode: ScaleCalculationMode,
    (emax, mbits, _): (i32, u32, f32),
) -> (u8, Factor) {
    if amax.is_nan() {
        return (255, Factor::Divide(f32::INFINITY));
    }
    let mut bits = amax.to_bits();
    if mode == ScaleCalculationMode::Even {
        bits = (bits + (1 << (22 - mbits))) & 0xFF80_0000;
    }
    let mut exponent = (bits >> 23 & 0xFF).cast_signed() - 127;
    if mode == ScaleCalculationMode::Ceil && bits & 0x7F_FFFF > 0 {
        exponent += 1;
    }
    let biased = (exponent - emax).clamp(-127, 128) + 127;
    let scale = f32::from_bits(biased.cast_unsigned() << 23).max(f32::MIN_POSITIVE);
    (biased.to_le_bytes()[0], Factor::Divide(scale))
}

fn encode(element: Element, x: f32) -> u8 {
    match element {
        Element::E4m3 => e4m3fn_encode_saturating(x),
        Element::E5m2 => e5m2_encode_saturating(x),
        Element::E2m3 => floatx_encode(x, 2, 3),
        Element::E3m2 => floatx_encode(x, 3, 2),
        Element::E2m1 => floatx_encode(x, 2, 1),
        // −128 stays unused, so that the format is symmetric; NaN, which it lacks, is in the scale.
        _ => round_to_i8((64.0 * x).clamp(-127.0, 127.0)).cast_unsigned(),
    }
}

/// The code and the value of `x` in a block whose scale is the byte `scale`: to a power of two there is nothing to round.
pub fn mx_round(x: f32, scale: u8, element: Element) -> (u8, f32) {
    let scale = e8m0_decode(scale);
    let code = encode(element, x / scale);
    (code, element.decode(code) * scale)
}

/// `element · 2^(scale − 127)` of every code, f32.
pub fn from_mx(
    codes: &Tensor,
    scales: &Tensor,
    element: Element,
    block_size: usize,
) -> Result<Tensor> {
    let shape = scales_shape(codes.shape(), block_size)?;
    if scales.shape() != shape {
        return Err(Error::invalid(format!("scales are {:?}; wanted {shape:?}", scales.shape())));
    }
    let blocks = codes.as_slice::<u8>()?.chunks_exact(block_size).zip(scales.as_slice::<u8>()?);
    let value = |code: &u8, scale: f32| element.decode(*code) * scale;
    let values = blocks.flat_map(|(codes, scale)| {
        let scale = e8m0_decode(*scale);
        codes.iter().map(move |code| value(code, scale))
    });
    Tensor::new(values.collect::<Vec<f32>>(), codes.shape())
}

fn scales_shape(shape: &[usize], block_size: usize) -> Result<Vec<usize>> {
    let k = shape.last().copied().unwrap_or(0);
    if block_size == 0 || !k.is_multiple_of(block_size) {
        return Err(Error::invalid(format!(
            "K = {k} is not a multiple of block_size {block_size}"
        )));
    }
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last /= block_size;
    }
    Ok(shape)
}

#[expect(clippy::cast_possible_truncation, reason = "rounded to the nearest f32, as torch has it")]
fn single(x: f64) -> f32 {
    x as f32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a whole number from 0 to 254"
)]
fn byte(x: f32) -> u8 {
    x as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_a_block_is_encoding_and_decoding_it() {
        let elements = ["e4m3", "e5m2", "e2m3", "e3m2", "e2m1", "int8"];
        let modes = [
            ScaleCalculationMode::Floor,
            ScaleCalculationMode::Rceil,
            ScaleCalculationMode::Ceil,
            ScaleCalculationMode::Even,
        ];
        let mut rng = crate::rng::Rng::new(7);
        for (element, size) in
            elements.into_iter().flat_map(|e| [1.0, 1e-3, 3e4, 0.0, 1e-40].map(|size| (e, size)))
        {
            let element: super::super::MxElement = element.parse().expect("an element");
            let x: Vec<f32> = (0..320).map(|_| rng.normal() * size).collect();
            modes.into_iter().for_each(|mode| check(&x, element.0, mode));
        }
        let mut broken = [1.0, f32::NAN, 2.0];
        mx_round_block(&mut broken, Element::E4m3, ScaleCalculationMode::Rceil);
        assert!(broken.iter().all(|x| x.is_nan()), "{broken:?}");
    }

    fn check(x: &[f32], element: Element, mode: ScaleCalculationMode) {
        let tensor = Tensor::new(x.to_vec(), &[1, x.len()]).expect("a row");
        let (scales, codes) = to_mx(&tensor, element, 32, mode).expect("mx");
        let wanted = from_mx(&codes, &scales, element, 32).expect("numbers").to_f32_vec();
        let mut got = x.to_vec();
        got.chunks_mut(32).for_each(|block| mx_round_block(block, element, mode));
        for (got, wanted) in got.iter().zip(wanted) {
            // Zeros may differ in their sign.
            let same = (got + 0.0).to_bits() == (wanted + 0.0).to_bits();
            assert!(same, "{} {mode:?}: {got:e}, wanted {wanted:e}", element.name());
        }
    }

    #[test]
    fn int8_is_ocps() {
        let x = Tensor::new(vec![1.0_f32, -1.0, 0.5, 127.0 / 64.0], &[1, 4]).expect("four");
        let (scales, codes) = to_mx(&x, Element::Int8, 4, ScaleCalculationMode::Floor).expect("mx");
        assert_eq!(scales.as_slice::<u8>().expect("u8"), [127]);
        assert_eq!(codes.as_slice::<u8>().expect("u8"), [64, 192, 32, 127]);
        let back = from_mx(&codes, &scales, Element::Int8, 4).expect("values");
        assert_eq!(back.bytes(), x.bytes());
    }

    #[test]
    fn rceil_never_saturates_by_more_than_its_logarithms_rounding() {
        for bits in (0x0080_0000_u32..0x7F00_0000).step_by(99_991) {
            let amax = f32::from_bits(bits);
            let (code, _) = rceil(amax, 448.0);
            let largest = 448.0 * f64::from(e8m0_decode(code));
            assert!(f64::from(amax) <= largest * (1.0 + 4e-6), "{amax:e} {code}");
            assert!(code == 0 || f64::from(amax) > 0.4999 * largest, "{amax:e} {code}");
        }
    }
}
