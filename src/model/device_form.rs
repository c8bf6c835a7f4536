//! How a weight is handed to a GPU.

use std::borrow::Cow;

use aolab_kernels::cuda::linear::HostWeight;
use half::{bf16, f16};

use super::Weight;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// A weight as a GPU kernel takes it. A format that has a kernel gives itself in one of these from
/// [`Weight::device_form`]; all others are dequantized to bf16 once, and reported.
#[derive(Clone, Debug)]
pub enum DeviceForm<'a> {
    /// `(q − 8) · scale + zero`, two codes a byte, the even column in the low nibble.
    Int4 {
        /// `(N, K / 2)`.
        q: &'a [u8],
        /// `(N, K / group_size)`.
        scale: Cow<'a, [f32]>,
        /// As `scale`.
        zero: Cow<'a, [f32]>,
        /// Columns that share a scale.
        group_size: usize,
        /// Whether scales and zeros are bf16 numbers.
        bf16: bool,
    },
    /// `q · scale`, one scale a row, activations as they are.
    Int8 {
        /// `(N, K)`.
        q: &'a [i8],
        /// `(N)`.
        scale: Vec<f32>,
    },
    /// The same with activations quantized to int8 by token, symmetrically.
    Int8Dynamic {
        /// `(N, K)`.
        q: &'a [i8],
        /// `(N)`.
        scale: Vec<f32>,
    },
    /// `(N, K)` bf16.
    Bf16(Vec<u16>),
}

impl DeviceForm<'_> {
    /// As the kernels take it.
    pub(super) fn host(&self) -> HostWeight<'_> {
        match self {
            DeviceForm::Int4 { q, scale, zero, group_size, bf16 } => {
                HostWeight::Int4 { q, scale, zero, group_size: *group_size, bf16: *bf16 }
            }
            DeviceForm::Int8 { q, scale } => HostWeight::Int8 { q, scale },
            DeviceForm::Int8Dynamic { q, scale } => HostWeight::Int8Dynamic { q, scale },
            DeviceForm::Bf16(w) => HostWeight::Bf16(w),
        }
    }

    /// Whether two weights can be one layer: the same format and options.
    pub(super) fn joins(&self, other: &DeviceForm<'_>) -> bool {
        match (self, other) {
            (DeviceForm::Int4 { group_size: a, .. }, DeviceForm::Int4 { group_size: b, .. }) => {
                a == b
            }
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// A dense tensor's elements as bf16; f32 and f16 are rounded, ties to even.
pub(super) fn dense_bf16(tensor: &Tensor) -> Result<Vec<u16>> {
    Ok(match tensor.dtype() {
        DType::BF16 => tensor.as_slice::<bf16>()?.iter().map(|v| v.to_bits()).collect(),
        DType::F16 => {
            let values = tensor.as_slice::<f16>()?.iter();
            values.map(|v| bf16::from_f32(v.to_f32()).to_bits()).collect()
        }
        _ => tensor.to_f32_vec().into_iter().map(|v| bf16::from_f32(v).to_bits()).collect(),
    })
}

/// Rows that are dequantized at a time.
const ROWS_AT_ONCE: usize = 256;

/// Any weight as bf16: what a format without a GPU kernel is multiplied as.
pub(super) fn dequantized_bf16(weight: &dyn Weight) -> Result<Vec<u16>> {
    let (n, k) = weight.shape();
    let mut all = Vec::with_capacity(n * k);
    let mut block = vec![0.0; ROWS_AT_ONCE.min(n) * k];
    for start in (0..n).step_by(ROWS_AT_ONCE) {
        let rows = ROWS_AT_ONCE.min(n - start);
        let block = &mut block[..rows * k];
        weight.dequantize_rows(start..start + rows, block)?;
        all.extend(block.iter().map(|v| bf16::from_f32(*v).to_bits()));
    }
    Ok(all)
}
