//! How a weight is handed to a GPU.

use std::borrow::Cow;

use aolab_kernels::cuda::linear::{Float8Scales, HostWeight};
use aolab_kernels::cuda::sparse::{Stored24, StoredBlocks};
use aolab_kernels::dtypes::{e4m3fn_decode, e8m0_decode};
use aolab_kernels::float_linear::{Element, Panels, Scales};
use aolab_kernels::packed_linear::{self, Floats, Offset, Values};
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
        q: Cow<'a, [u8]>,
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
        q: Cow<'a, [i8]>,
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
    /// `table[q] · scale`, two codes a byte, the even column in the low nibble.
    Table4 {
        /// `(N, K / 2)`.
        q: Vec<u8>,
        /// What the codes stand for.
        table: [f32; 16],
        /// `(N, K / group_size)`.
        scale: Vec<f32>,
        /// Columns that share a scale.
        group_size: usize,
        /// Whether scales are bf16 numbers.
        bf16: bool,
    },
    /// `(q − 8) · scale`, with activations rounded to e4m3 by token.
    Float8Int4 {
        /// `(N, K / 2)`.
        q: Vec<u8>,
        /// `(N, K / group_size)`.
        scale: Vec<f32>,
        /// Columns that share a scale.
        group_size: usize,
        /// Whether scales are bf16 numbers.
        bf16: bool,
    },
    /// e4m3 codes times one scale a row, activations as they are.
    Float8 {
        /// `(N, K)`.
        q: Vec<u8>,
        /// `(N)`.
        scale: Vec<f32>,
    },
    /// The same with activations quantized to e4m3.
    Float8Dynamic {
        /// `(N, K)`.
        q: Vec<u8>,
        /// `(N)`.
        scale: Vec<f32>,
        /// Scales of activations.
        activations: Float8Scales,
    },
    /// `(N, K)` bf16.
    Bf16(Vec<u16>),
    /// Two of each four neighbours.
    TwoOfFour {
        /// Their numbers.
        stored: Stored<'a>,
        /// Their places, as [`crate::kernels::sparse24_linear::codes_of`] makes them.
        codes: Cow<'a, [u8]>,
    },
    /// Blocks of 64 by 64 that are not zero, in bf16.
    Blocks {
        /// `(blocks, 64, 64)`: of each a column's numbers side by side.
        values: Vec<u16>,
        /// Where each row of blocks begins, and the number of blocks.
        crow: Cow<'a, [i32]>,
        /// The column of blocks of each.
        col: Cow<'a, [i32]>,
    },
}

/// The numbers that a 2:4 weight stores.
#[derive(Clone, Debug)]
pub enum Stored<'a> {
    /// `(N, K / 2)`.
    Bf16(Cow<'a, [u16]>),
    /// `q · scale`, with activations quantized to int8 by token, symmetrically.
    Int8Dynamic {
        /// `(N, K / 2)`.
        q: Cow<'a, [i8]>,
        /// `(N)`.
        scale: Cow<'a, [f32]>,
    },
    /// e4m3 codes times one scale a row, with activations quantized to e4m3 by token.
    Float8Dynamic {
        /// `(N, K / 2)`.
        q: Cow<'a, [u8]>,
        /// `(N)`.
        scale: Cow<'a, [f32]>,
    },
    /// `(q − 8) · scale`.
    Int4 {
        /// In the order of [`crate::kernels::sparse24_linear::pack_int4`].
        q: Cow<'a, [u8]>,
        /// `(N, K / group_size)`.
        scale: Cow<'a, [f32]>,
        /// A multiple of 128.
        group_size: usize,
    },
}

impl Stored<'_> {
    fn host(&self) -> Stored24<'_> {
        match self {
            Stored::Bf16(values) => Stored24::Bf16(values),
            Stored::Int8Dynamic { q, scale } => Stored24::Int8Dynamic { q, scale },
            Stored::Float8Dynamic { q, scale } => Stored24::Float8Dynamic { q, scale },
            Stored::Int4 { q, scale, group_size } => {
                Stored24::Int4 { q, scale, group_size: *group_size }
            }
        }
    }
}

impl DeviceForm<'_> {
    /// As the kernels take it.
    pub(super) fn host(&self) -> HostWeight<'_> {
        match self {
            DeviceForm::Int4 { q, scale, zero, group_size, bf16 } => {
                HostWeight::Int4 { q, scale, zero, group_size: *group_size, bf16: *bf16 }
            }
            DeviceForm::Table4 { q, table, scale, group_size, bf16 } => {
                HostWeight::Table4 { q, table: *table, scale, group_size: *group_size, bf16: *bf16 }
            }
            DeviceForm::Float8Int4 { q, scale, group_size, bf16 } => {
                HostWeight::Float8Int4 { q, scale, group_size: *group_size, bf16: *bf16 }
            }
            DeviceForm::Float8 { q, scale } => HostWeight::Float8 { q, scale },
            DeviceForm::Float8Dynamic { q, scale, activations } => {
                HostWeight::Float8Dynamic { q, scale, activations: *activations }
            }
            DeviceForm::Int8 { q, scale } => HostWeight::Int8 { q, scale },
            DeviceForm::Int8Dynamic { q, scale } => HostWeight::Int8Dynamic { q, scale },
            DeviceForm::Bf16(w) => HostWeight::Bf16(w),
            DeviceForm::Blocks { values, crow, col } => {
                HostWeight::Blocks(StoredBlocks { values, crow, col })
            }
            DeviceForm::TwoOfFour { stored, codes } => {
                HostWeight::TwoOfFour { stored: stored.host(), codes }
            }
        }
    }

    /// Whether two weights can be one layer: the same format and options.
    pub(super) fn joins(&self, other: &DeviceForm<'_>) -> bool {
        match (self, other) {
            (DeviceForm::Int4 { group_size: a, .. }, DeviceForm::Int4 { group_size: b, .. })
            | (
                DeviceForm::Float8Int4 { group_size: a, .. },
                DeviceForm::Float8Int4 { group_size: b, .. },
            ) => a == b,
            (
                DeviceForm::Table4 { group_size: a, table: s, .. },
                DeviceForm::Table4 { group_size: b, table: t, .. },
            ) => a == b && s.map(f32::to_bits) == t.map(f32::to_bits),
            (DeviceForm::TwoOfFour { stored: a, .. }, DeviceForm::TwoOfFour { stored: b, .. }) => {
                match (a, b) {
                    (Stored::Int4 { group_size: a, .. }, Stored::Int4 { group_size: b, .. }) => {
                        a == b
                    }
                    _ => std::mem::discriminant(a) == std::mem::discriminant(b),
                }
            }
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// Two codes a byte, the even one in the low half.
fn nibbles(codes: &[u8], all: &mut Vec<u8>) {
    all.extend(codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4));
}

/// Whether all are bf16 numbers, bit for bit.
pub(crate) fn all_bf16(values: &[f32]) -> bool {
    values.iter().all(|v| bf16::from_f32(*v).to_f32().to_bits() == v.to_bits())
}

/// Numbers in f32, and whether all are bf16 numbers.
fn widened(floats: Floats) -> (Vec<f32>, bool) {
    match floats {
        Floats::F32(v) => (v, false),
        Floats::Bf16(v) => (v.into_iter().map(f32::from).collect(), true),
        Floats::F16(v) => (v.into_iter().map(f32::from).collect(), false),
    }
}

/// Packed codes of up to 4 bits as a GPU kernel takes them: whole numbers, or a table. `None` where groups or codes have no kernel.
pub(crate) fn packed_form(
    weight: &packed_linear::Weight,
    float8_activations: bool,
) -> Option<DeviceForm<'static>> {
    let (n, k, group_size) = (weight.n(), weight.k(), weight.group_size());
    if weight.bits() > 4 || !group_size.is_multiple_of(16) || !k.is_multiple_of(group_size) {
        return None;
    }
    let (scale, bf16) = widened(weight.scale());
    let mut row = vec![0_u8; k];
    let mut q = Vec::with_capacity(n * k / 2);
    // Kernels take a code of 8 for nothing. Where codes cannot be moved there, zeros take the difference.
    let most = (1_i16 << weight.bits()) - 1;
    let (moved, shift) = match weight.values() {
        Values::Table(_) => (0, 0.0),
        Values::Integers { bias } => match u8::try_from(8 - bias) {
            Ok(moved) if i16::from(moved) + most <= 15 => (moved, 0.0),
            _ => (0, f32::from(8 - bias)),
        },
    };
    for n in 0..n {
        weight.codes().row(n, &mut row);
        row.iter_mut().for_each(|code| *code += moved);
        nibbles(&row, &mut q);
    }
    let zero: Vec<f32> = match (weight.offset(), weight.values()) {
        (Offset::None, _) if shift == 0.0 => Vec::new(),
        (Offset::None, _) => scale.iter().map(|scale| shift * scale).collect(),
        (Offset::Zeros(zeros), Values::Integers { .. }) => {
            let both = zeros.iter().zip(&scale);
            both.map(|(zero, scale)| (shift - f32::from(*zero)) * scale).collect()
        }
        (Offset::Values(values), Values::Integers { .. }) => {
            let both = widened(values).0.into_iter().zip(&scale);
            both.map(|(value, scale)| value + shift * scale).collect()
        }
        _ => return None,
    };
    Some(match weight.values() {
        Values::Table(table) => {
            let mut all = [0.0; 16];
            for (to, value) in all.iter_mut().zip(table.values()) {
                *to = *value;
            }
            // The kernels keep a table in bf16, as torch multiplies it.
            if float8_activations {
                return None;
            }
            DeviceForm::Table4 { q, table: all, scale, group_size, bf16 }
        }
        Values::Integers { .. } if float8_activations => {
            if !zero.is_empty() {
                return None;
            }
            DeviceForm::Float8Int4 { q, scale, group_size, bf16 }
        }
        Values::Integers { .. } => {
            let exact = all_bf16(&zero);
            let zero = if zero.is_empty() { vec![0.0; scale.len()] } else { zero };
            DeviceForm::Int4 {
                q: q.into(),
                scale: scale.into(),
                zero: zero.into(),
                group_size,
                bf16: bf16 && exact,
            }
        }
    })
}

/// Small floats as a GPU kernel takes them: e4m3 with a scale a row, fp4 in groups of whole sixteens. `None` for the others.
pub(crate) fn float_form(
    panels: &Panels,
    activations: Option<Float8Scales>,
) -> Option<DeviceForm<'static>> {
    let (n, k) = (panels.n(), panels.k());
    let mut row = vec![0_u8; k];
    if panels.element() == Element::E4m3 {
        let scale = match panels.scales() {
            Scales::Tensor(scale) => vec![scale; n],
            Scales::Groups { values, group_size } if group_size == k => values,
            _ => return None,
        };
        let mut q = Vec::with_capacity(n * k);
        for n in 0..n {
            panels.row_codes(n, &mut row);
            q.extend_from_slice(&row);
        }
        return Some(match activations {
            Some(activations) => DeviceForm::Float8Dynamic { q, scale, activations },
            None => DeviceForm::Float8 { q, scale },
        });
    }
    if panels.element() != Element::E2m1 || activations.is_some() {
        return None;
    }
    let (scale, group_size) = match panels.scales() {
        Scales::E8m0(codes) => (codes.into_iter().map(e8m0_decode).collect(), 32),
        Scales::E4m3 { codes, factor } => {
            (codes.into_iter().map(|code| e4m3fn_decode(code) * factor).collect(), 16)
        }
        Scales::Groups { values, group_size } => (values, group_size),
        _ => return None,
    };
    let scale: Vec<f32> = scale;
    let mut q = Vec::with_capacity(n * k / 2);
    for n in 0..n {
        panels.row_codes(n, &mut row);
        nibbles(&row, &mut q);
    }
    let mut table = [0.0; 16];
    for (code, to) in (0_u8..).zip(&mut table) {
        *to = Element::E2m1.decode(code);
    }
    let bf16 = all_bf16(&scale);
    Some(DeviceForm::Table4 { q, table, scale, group_size, bf16 })
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
