//! OCP MX weights: torchao's `MXDynamicActivationMXWeightConfig` (M01 to M08, M10), and weights alone, which torchao lacks.
//!
//! Blocks of 32 columns share a power of two, stored as one byte (e8m0); the codes are fp8 (e4m3, e5m2), fp6 (e2m3,
//! e3m2), fp4 (e2m1), or OCP's int8, which torchao never had (`q / 64`, −128 unused). How the power is chosen is
//! `scaling_mode`: torchao 0.18's arithmetic to the bit, see `primitives::to_mx` (N25 for the small floats).
//! Activations stay as they are (`mx-weight-only`) or pass through the same format at every call
//! (`mx-dynamic-activation-mx-weight`), as torchao's emulated products have it.
//!
//! Files hold fp8 and int8 a byte each, fp4 two to a byte with the even column in the low nibble (L05), fp6 four in three
//! bytes as torchao 0.13 packed them (L07), and scales row by row; `primitives::to_blocked` is cuBLAS's order (L08).

mod dynamic;
mod weight;
mod weight_only;

pub use dynamic::MXDynamicActivationMXWeightConfig;
pub use weight_only::MXWeightOnlyConfig;

pub(super) use dynamic::WORKFLOW as DYNAMIC;
pub(super) use weight_only::WORKFLOW as WEIGHT_ONLY;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::float_linear::{Panels, Scales};
use crate::model::Weight;
use crate::quantization::Columns;
use crate::quantization::block_columns::{BlockColumns, Blocks};
use crate::quantization::primitives::{MxElement, ScaleCalculationMode, mx_round, to_mx};
use crate::quantization::rows::for_row_blocks;
use crate::tensor::{DType, Tensor};

use weight::{Activation, MxWeight};

/// Columns that share a scale: OCP's and every kernel's.
const BLOCK_SIZE: usize = 32;

fn check_block(block_size: usize, k: usize) -> Result<()> {
    if block_size != BLOCK_SIZE {
        return Err(Error::invalid(format!("block_size is {block_size}; MX has blocks of 32")));
    }
    if k.is_multiple_of(BLOCK_SIZE) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "K = {k} is not a multiple of 32, MX's block; use float8-weight-only or fpx-weight-only"
    )))
}

/// What both workflows make of a weight.
fn quantize(
    cpu: &Cpu,
    weight: &dyn Weight,
    element: MxElement,
    mode: ScaleCalculationMode,
    activation: Activation,
) -> Result<MxWeight> {
    let (n, k) = weight.shape();
    let mut codes = Vec::with_capacity(n * k);
    let mut scales = Vec::with_capacity(n * k / BLOCK_SIZE);
    let work = |rows: &Tensor| to_mx(rows, element.0, BLOCK_SIZE, mode);
    for_row_blocks(cpu, weight, work, |(scale, block): (Tensor, Tensor)| {
        codes.extend_from_slice(block.as_slice::<u8>()?);
        scales.extend_from_slice(scale.as_slice::<u8>()?);
        Ok(())
    })?;
    Ok(assemble(cpu, element, ((n, k), weight.dtype()), (&codes, scales), activation))
}

/// The weight of codes `(N, K)`, one a byte, and scales `(N, K / 32)`.
fn assemble(
    cpu: &Cpu,
    element: MxElement,
    ((n, k), dtype): ((usize, usize), DType),
    (codes, scales): (&[u8], Vec<u8>),
    activation: Activation,
) -> MxWeight {
    let row = |i: usize, to: &mut [u8]| to.copy_from_slice(&codes[i * k..][..k]);
    let panels = Panels::pack(cpu, element.0, (n, k), Scales::E8m0(scales), row);
    MxWeight::new(panels, dtype, activation)
}

/// The blocks of a weight, to be filled one column at a time.
#[derive(Debug)]
struct MxBlocks {
    cpu: Cpu,
    element: MxElement,
    mode: ScaleCalculationMode,
    activation: Activation,
    shape: (usize, usize),
    dtype: DType,
}

impl MxBlocks {
    fn columns(
        cpu: &Cpu,
        weight: &dyn Weight,
        element: MxElement,
        mode: ScaleCalculationMode,
        activation: Activation,
    ) -> Box<dyn Columns> {
        let (cpu, shape, dtype) = (cpu.clone(), weight.shape(), weight.dtype());
        let blocks = MxBlocks { cpu, element, mode, activation, shape, dtype };
        Box::new(BlockColumns::new(blocks, shape, BLOCK_SIZE))
    }
}

impl Blocks for MxBlocks {
    fn scales(&self, columns: &Tensor) -> Result<Tensor> {
        Ok(to_mx(columns, self.element.0, columns.dims2()?.1, self.mode)?.0)
    }

    fn round(&self, x: f32, scale: u8) -> (u8, f32) {
        mx_round(x, scale, self.element.0)
    }

    fn assemble(&self, codes: &[u8], scales: Vec<u8>) -> Result<Arc<dyn Weight>> {
        let about = (self.shape, self.dtype);
        let made = assemble(&self.cpu, self.element, about, (codes, scales), self.activation);
        Ok(Arc::new(made))
    }
}
