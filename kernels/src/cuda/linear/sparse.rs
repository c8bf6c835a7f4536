//! A sparse weight as a layer: parts under one another, and gates multiplied after the product.

use super::run::silu_mul;
use super::{Data, HostWeight, Linear, Output, Rows};
use crate::cuda::memory::Scratch;
use crate::cuda::sparse::{
    BlockSparseLinear, Sparse24Linear, Sparse24Tiling, Stored24, StoredBlocks,
};
use crate::cuda::{Buffer, CudaError, CudaResult, Device};
use crate::sparse24_linear::code_bytes;

/// What the parts of a layer store, under one another.
#[derive(Default)]
struct Joined {
    codes: Vec<u8>,
    bf16: Vec<u16>,
    int8: Vec<i8>,
    bytes: Vec<u8>,
    scale: Vec<f32>,
}

/// What the first part's format makes of the parts; `None` for one that is not sparse.
pub(super) fn upload(
    device: &Device,
    parts: &[(HostWeight<'_>, usize)],
    shape: (usize, usize),
    bias: Option<&[f32]>,
) -> CudaResult<Option<Data>> {
    Ok(match parts.first() {
        Some((HostWeight::TwoOfFour { .. }, _)) => {
            Some(Data::TwoOfFour(two_of_four(device, parts, shape, bias)?))
        }
        Some((HostWeight::Blocks(_), _)) => Some(Data::Blocks(blocks(device, parts, shape, bias)?)),
        _ => None,
    })
}

fn blocks(
    device: &Device,
    parts: &[(HostWeight<'_>, usize)],
    shape: (usize, usize),
    bias: Option<&[f32]>,
) -> CudaResult<BlockSparseLinear> {
    let (mut values, mut crow, mut col) = (Vec::new(), vec![0], Vec::new());
    for (part, _) in parts {
        let HostWeight::Blocks(part) = part else { return Err(unlike()) };
        let before = i32::try_from(col.len()).map_err(|_| unlike())?;
        values.extend_from_slice(part.values);
        crow.extend(part.crow.iter().skip(1).map(|at| before.saturating_add(*at)));
        col.extend_from_slice(part.col);
    }
    let stored = StoredBlocks { values: &values, crow: &crow, col: &col };
    BlockSparseLinear::new(device, stored, shape, bias)
}

fn two_of_four(
    device: &Device,
    parts: &[(HostWeight<'_>, usize)],
    (n, k): (usize, usize),
    bias: Option<&[f32]>,
) -> CudaResult<Sparse24Linear> {
    let mut all = Joined::default();
    let mut first = None;
    for (part, rows) in parts {
        let HostWeight::TwoOfFour { stored, codes } = *part else { return Err(unlike()) };
        let of_rows = rows * code_bytes(k);
        all.codes.extend_from_slice(codes.get(..of_rows).ok_or_else(unlike)?);
        all.add(stored, *first.get_or_insert(stored))?;
    }
    // Two bytes behind the last row's may be read.
    all.codes.extend([0, 0]);
    let stored = match first.ok_or_else(unlike)? {
        Stored24::Bf16(_) => Stored24::Bf16(&all.bf16),
        Stored24::Int8Dynamic { .. } => Stored24::Int8Dynamic { q: &all.int8, scale: &all.scale },
        Stored24::Float8Dynamic { .. } => {
            Stored24::Float8Dynamic { q: &all.bytes, scale: &all.scale }
        }
        Stored24::Int4 { group_size, .. } => {
            Stored24::Int4 { q: &all.bytes, scale: &all.scale, group_size }
        }
    };
    Sparse24Linear::new(device, (stored, &all.codes), (n, k), bias)
}

fn unlike() -> CudaError {
    CudaError::new("the parts of a sparse layer differ in format or are not whole")
}

impl Joined {
    fn add(&mut self, part: Stored24<'_>, first: Stored24<'_>) -> CudaResult<()> {
        match (part, first) {
            (Stored24::Bf16(values), Stored24::Bf16(_)) => self.bf16.extend_from_slice(values),
            (Stored24::Int8Dynamic { q, scale }, Stored24::Int8Dynamic { .. }) => {
                self.int8.extend_from_slice(q);
                self.scale.extend_from_slice(scale);
            }
            (Stored24::Float8Dynamic { q, scale }, Stored24::Float8Dynamic { .. }) => {
                self.bytes.extend_from_slice(q);
                self.scale.extend_from_slice(scale);
            }
            (
                Stored24::Int4 { q, scale, group_size },
                Stored24::Int4 { group_size: wanted, .. },
            ) if group_size == wanted => {
                self.bytes.extend_from_slice(q);
                self.scale.extend_from_slice(scale);
            }
            _ => return Err(unlike()),
        }
        Ok(())
    }
}

impl Linear {
    /// The product of a sparse weight; gates are multiplied by a second kernel.
    pub(super) fn run_sparse(&self, x: &Buffer<u16>, m: usize, y: &Output<'_>) -> CudaResult<()> {
        let mut scratch = self.device.scratch();
        let product = |scratch: &mut Scratch, y: &Output<'_>| match &self.data {
            Data::TwoOfFour(layer) => layer.run_in(scratch, Sparse24Tiling::choose(m), (x, m), y),
            Data::Blocks(layer) => layer.run(x, m, y),
            _ => Err(unlike()),
        };
        if self.rows == Rows::Plain {
            return product(&mut scratch, y);
        }
        let both: Buffer<u16> = scratch.take(&self.device, 2, m * self.n)?;
        product(&mut scratch, &Output::Bf16(&both))?;
        silu_mul(&self.device, &both, m, self.n / 2, self.n / 2, y.address())
    }
}
