//! NVFP4 weights: torchao's `NVFP4WeightOnlyConfig` (M12) and `NVFP4DynamicActivationNVFP4WeightConfig` (M11).
//!
//! fp4 codes (N25) in blocks of 16 columns with an e4m3 scale, and one f32 scale above all blocks or none (M13): 4.5 bits
//! a weight. Activations stay as they are, or pass through the same format at every call, with a scale of the whole
//! that is their own or given. Files hold two codes to a byte, the even column in the low nibble (L05), and scales row by
//! row; `primitives::to_blocked` is cuBLAS's order (L08).
//!
//! torchao's 0 / 0 of an all-zero tensor with two levels of scales is stored as zeros.

mod dynamic;
mod weight;
mod weight_only;

pub use dynamic::NVFP4DynamicActivationNVFP4WeightConfig;
pub use weight_only::NVFP4WeightOnlyConfig;

pub(super) use dynamic::WORKFLOW as DYNAMIC;
pub(super) use weight_only::WORKFLOW as WEIGHT_ONLY;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::float_linear::{Element, Panels, Scales};
use crate::model::Weight;
use crate::quantization::Columns;
use crate::quantization::block_columns::{BlockColumns, Blocks};
use crate::quantization::primitives::{
    NVFP4_BLOCK, nvfp4_quantize, nvfp4_round, per_tensor_amax_to_scale,
};
use crate::quantization::rows::for_row_blocks;
use crate::tensor::{DType, Tensor};

use weight::{Activation, Nvfp4Weight};

fn check_shape((n, k): (usize, usize)) -> Result<()> {
    if n.is_multiple_of(16) && k.is_multiple_of(16) {
        return Ok(());
    }
    Err(Error::invalid(format!("N = {n} and K = {k}: NVFP4 wants multiples of 16")))
}

/// The largest magnitude; a NaN, once there, stays.
fn amax(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0.0, |most: f32, x| if most.is_nan() || x.abs() < most { most } else { x.abs() })
}

/// What both workflows make of a weight.
fn quantize(
    cpu: &Cpu,
    weight: &dyn Weight,
    two_levels: bool,
    activation: Activation,
) -> Result<Nvfp4Weight> {
    let (n, k) = weight.shape();
    let above = scale_above(cpu, weight, two_levels)?;
    // Nothing but zeros, or so little that its scale vanishes: one level holds zeros as well.
    let divisor = above.filter(|above| *above != 0.0);
    let mut codes = Vec::with_capacity(n * k);
    let mut scales = Vec::with_capacity(n * k / 16);
    let work = |rows: &Tensor| nvfp4_quantize(rows, divisor);
    for_row_blocks(cpu, weight, work, |(scale, block): (Tensor, Tensor)| {
        codes.extend_from_slice(block.as_slice::<u8>()?);
        scales.extend_from_slice(scale.as_slice::<u8>()?);
        Ok(())
    })?;
    Ok(assemble(cpu, (weight.shape(), weight.dtype()), (&codes, scales), above, activation))
}

/// The scale above all blocks, if there is to be one.
fn scale_above(cpu: &Cpu, weight: &dyn Weight, two_levels: bool) -> Result<Option<f32>> {
    let mut largest = 0.0_f32;
    if two_levels {
        let work = |rows: &Tensor| Ok(amax(&rows.to_f32_vec()));
        for_row_blocks(cpu, weight, work, |block| {
            largest = amax(&[largest, block]);
            Ok(())
        })?;
    }
    Ok(two_levels.then(|| per_tensor_amax_to_scale(largest)))
}

/// The weight of codes `(N, K)`, one a byte, and scales `(N, K / 16)`.
fn assemble(
    cpu: &Cpu,
    ((n, k), dtype): ((usize, usize), DType),
    (codes, scales): (&[u8], Vec<u8>),
    above: Option<f32>,
    activation: Activation,
) -> Nvfp4Weight {
    let row = |i: usize, to: &mut [u8]| to.copy_from_slice(&codes[i * k..][..k]);
    let scales = Scales::E4m3 { codes: scales, factor: above.unwrap_or(1.0) };
    let panels = Panels::pack(cpu, Element::E2m1, (n, k), scales, row);
    Nvfp4Weight::new(panels, above.is_some(), dtype, activation)
}

/// The blocks of a weight, to be filled one column at a time. The scale above is that of the weight as it came.
#[derive(Debug)]
struct Nvfp4Blocks {
    cpu: Cpu,
    above: Option<f32>,
    activation: Activation,
    shape: (usize, usize),
    dtype: DType,
}

impl Nvfp4Blocks {
    fn columns(
        cpu: &Cpu,
        weight: &dyn Weight,
        two_levels: bool,
        activation: Activation,
    ) -> Result<Box<dyn Columns>> {
        let above = scale_above(cpu, weight, two_levels)?;
        let (cpu, shape, dtype) = (cpu.clone(), weight.shape(), weight.dtype());
        let blocks = Nvfp4Blocks { cpu, above, activation, shape, dtype };
        Ok(Box::new(BlockColumns::new(blocks, shape, NVFP4_BLOCK)))
    }

    /// As in [`quantize`].
    fn divisor(&self) -> Option<f32> {
        self.above.filter(|above| *above != 0.0)
    }
}

impl Blocks for Nvfp4Blocks {
    fn scales(&self, columns: &Tensor) -> Result<Tensor> {
        Ok(nvfp4_quantize(columns, self.divisor())?.0)
    }

    fn round(&self, x: f32, scale: u8) -> (u8, f32) {
        nvfp4_round(x, scale, self.divisor())
    }

    fn assemble(&self, codes: &[u8], scales: Vec<u8>) -> Result<Arc<dyn Weight>> {
        let about = (self.shape, self.dtype);
        Ok(Arc::new(assemble(&self.cpu, about, (codes, scales), self.above, self.activation)))
    }
}
