//! A 2:4 weight as a layer: parts under one another, and gates multiplied after the product.

use super::run::silu_mul;
use super::{HostWeight, Linear, Output, Rows};
use crate::cuda::sparse::{Sparse24Linear, Sparse24Tiling, Stored24};
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

pub(super) fn upload(
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
    CudaError::new("the parts of a 2:4 layer differ in format or are not whole")
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
    /// The product of a 2:4 weight; gates are multiplied by a second kernel.
    pub(super) fn run_sparse(
        &self,
        layer: &Sparse24Linear,
        x: &Buffer<u16>,
        m: usize,
        y: &Output<'_>,
    ) -> CudaResult<()> {
        let mut scratch = self.device.scratch();
        let tiling = Sparse24Tiling::choose(m);
        if self.rows == Rows::Plain {
            return layer.run_in(&mut scratch, tiling, (x, m), y);
        }
        let both: Buffer<u16> = scratch.take(&self.device, 2, m * self.n)?;
        layer.run_in(&mut scratch, tiling, (x, m), &Output::Bf16(&both))?;
        silu_mul(&self.device, &both, m, self.n / 2, self.n / 2, y.address())
    }
}
