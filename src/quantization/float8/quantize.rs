//! A weight's codes and scales, a few rows at a time (N13).

use super::weight::{Activation, Float8Weight};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::kernels::float_linear::{Element, Panels, Scales};
use crate::model::Weight;
use crate::quantization::primitives::{
    Float8, Granularity, choose_scale_float8, quantize_affine_float8,
};
use crate::quantization::rows::for_blocks_of_rows;
use crate::tensor::Tensor;

/// What all three workflows make of a weight; they differ in what becomes of activations.
pub(super) fn quantize(
    cpu: &Cpu,
    weight: &dyn Weight,
    (float8, granularity): (Float8, &Granularity),
    activation: Activation,
) -> Result<Float8Weight> {
    let (n, k) = weight.shape();
    let whole = match granularity {
        Granularity::PerTensor => Some(tensor_scale(cpu, weight, float8)?),
        _ => None,
    };
    let mut codes = Vec::with_capacity(n * k);
    let mut scales = Vec::new();
    let work = |rows: &Tensor| {
        let block = granularity.block_size(rows.shape())?;
        let scale = match whole {
            Some(scale) => Tensor::new(vec![scale], &[1, 1])?,
            None => choose_scale_float8(rows, &block, float8, (None, None), false)?,
        };
        Ok((quantize_affine_float8(rows, &block, &scale, float8)?, scale, rows.to_f32_vec()))
    };
    let rows_of_block = if matches!(granularity, Granularity::PerBlock { .. }) { 128 } else { 1 };
    type Block = (Tensor, Tensor, Vec<f32>);
    for_blocks_of_rows(cpu, weight, rows_of_block, work, |(block, scale, values): Block| {
        // 0 / 0, which is this NaN and no other, is stored as the zero that it was.
        let code = |(code, x): (&u8, f32)| match code {
            0xFF if x == 0.0 => zero_code(x),
            other => *other,
        };
        codes.extend(block.as_slice::<u8>()?.iter().zip(values).map(code));
        scales.extend_from_slice(scale.as_slice::<f32>()?);
        Ok(())
    })?;
    let scales = match (whole, granularity) {
        (Some(scale), _) => Scales::Tensor(scale),
        (None, Granularity::PerBlock { .. }) => Scales::Blocks128(scales),
        (None, Granularity::PerGroup { group_size }) => {
            Scales::Groups { values: scales, group_size: *group_size }
        }
        (None, _) => Scales::Groups { values: scales, group_size: k },
    };
    let row = |i: usize, to: &mut [u8]| to.copy_from_slice(&codes[i * k..][..k]);
    let panels = Panels::pack(cpu, element(float8), (n, k), scales, row);
    Ok(Float8Weight::new(panels, float8, weight.dtype(), activation))
}

fn zero_code(x: f32) -> u8 {
    if x.is_sign_negative() { 0x80 } else { 0 }
}

pub(super) fn element(float8: Float8) -> Element {
    match float8 {
        Float8::E5m2 | Float8::E5m2fnuz => Element::E5m2,
        Float8::E4m3fn | Float8::E4m3fnuz => Element::E4m3,
    }
}

/// One scale for all: the largest of the row blocks' scales, since a scale grows with its block's amax.
fn tensor_scale(cpu: &Cpu, weight: &dyn Weight, float8: Float8) -> Result<f32> {
    let mut largest = 0.0_f32;
    let work = |rows: &Tensor| {
        choose_scale_float8(rows, rows.shape(), float8, (None, None), false)
            .map(|scale| scale.to_f32_vec())
    };
    for_blocks_of_rows(cpu, weight, 1, work, |scales: Vec<f32>| {
        for scale in scales {
            // A NaN, once there, stays.
            largest = if largest.is_nan() || scale < largest { largest } else { scale };
        }
        Ok(())
    })?;
    Ok(largest)
}
