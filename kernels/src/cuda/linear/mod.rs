//! Linear layers on the GPU: `y (M, N) = x (M, K) · W (N, K)ᵀ`, activations in bf16, sums in f32.
//!
//! Sparse weights run as [`super::sparse`] says. Formats: 4-bit groups, `(q − 8) · scale + zero` or `table[q] · scale`; int8 and e4m3 rows, `q · scale`; and bf16. Activations
//! stay as they are or are quantized to 8 bits by token (e4m3 also all at once). One token runs in `one_token.cu` where W is packed, few
//! in `few_tokens.cu`; both read W once and decode it in registers. More run on Hopper in `wgmma.cu`, which does the same for up to 256 tokens at a time and multiplies
//! 8 bits by 8 bits as they are; elsewhere through cuBLASLt, weight-only formats after one pass to bf16.
//! Error against the formula in f64 with x as rounded to bf16 or to its codes: 4 bits up to 16 tokens (8 from 12288 rows on), int8, e4m3 and bf16: K · 2⁻²² · Σ|x·w| and
//! the result's own rounding, 2⁻⁹ · |y| in bf16; 4 bits with more tokens: also 2⁻⁷ · Σ|x·w| (scale, zero and W are rounded to
//! bf16); e4m3 by e4m3: 2⁻¹⁰ · Σ|x·w| (Hopper adds such products with 14 bits).
//! Source: the order of int4 fragments follows Frantar et al. 2024 (arXiv 2408.11743); the code is our own.

mod choose;
mod hopper;
mod ladder;
mod one_token;
mod run;
mod sparse;
mod upload;

pub use choose::Tiling;
pub use hopper::HopperTiling;
pub(super) use hopper::rows8_product;
pub use ladder::{PlainInt4, Rung, run_rung};
pub use one_token::{Input, Norm, Streaming};
pub(super) use run::quantize_rows_into;

use super::sparse::{BlockSparseLinear, Sparse24Linear, Stored24, StoredBlocks};
use super::{Buffer, CudaError, CudaResult, Device};
use crate::Shape;

/// Columns are padded to this, so that every format's chunks are whole.
const K_GRAIN: usize = 64;

/// How activations are quantized to e4m3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float8Scales {
    /// One scale for each token.
    Rows,
    /// One for all.
    All,
}

/// A weight on the host, as its format keeps it. All are (N, K), row after row.
#[derive(Clone, Copy, Debug)]
pub enum HostWeight<'a> {
    /// `(q − 8) · scale + zero`.
    Int4 {
        /// Two codes a byte, the even column in the low nibble.
        q: &'a [u8],
        /// (N, K / group_size).
        scale: &'a [f32],
        /// (N, K / group_size).
        zero: &'a [f32],
        /// Columns that share a scale; a multiple of 16.
        group_size: usize,
        /// Whether scales and zeros are bf16 numbers, and may be stored as such.
        bf16: bool,
    },
    /// `table[q] · scale`.
    Table4 {
        /// Two codes a byte, the even column in the low nibble.
        q: &'a [u8],
        /// What the codes stand for; rounded to bf16.
        table: [f32; 16],
        /// (N, K / group_size).
        scale: &'a [f32],
        /// Columns that share a scale; a multiple of 16.
        group_size: usize,
        /// Whether scales are bf16 numbers, and may be stored as such.
        bf16: bool,
    },
    /// `(q − 8) · scale`, activations quantized to e4m3 by token.
    Float8Int4 {
        /// Two codes a byte, the even column in the low nibble.
        q: &'a [u8],
        /// (N, K / group_size).
        scale: &'a [f32],
        /// Columns that share a scale; a multiple of 16.
        group_size: usize,
        /// Whether scales are bf16 numbers, and may be stored as such.
        bf16: bool,
    },
    /// `q · scale`, activations as they are.
    Int8 {
        /// Codes.
        q: &'a [i8],
        /// (N).
        scale: &'a [f32],
    },
    /// `q · scale`, activations quantized to int8 by token, symmetrically.
    Int8Dynamic {
        /// Codes.
        q: &'a [i8],
        /// (N).
        scale: &'a [f32],
    },
    /// e4m3 codes times scale, activations as they are.
    Float8 {
        /// Codes.
        q: &'a [u8],
        /// (N).
        scale: &'a [f32],
    },
    /// The same with activations quantized to e4m3; Hopper alone.
    Float8Dynamic {
        /// Codes.
        q: &'a [u8],
        /// (N).
        scale: &'a [f32],
        /// Scales of activations.
        activations: Float8Scales,
    },
    /// bf16 bits.
    Bf16(&'a [u16]),
    /// Two of each four neighbours.
    TwoOfFour {
        /// Their numbers.
        stored: Stored24<'a>,
        /// Their places, as [`crate::sparse24_linear::codes_of`] makes them.
        codes: &'a [u8],
    },
    /// Blocks of 64 by 64 that are not zero.
    Blocks(StoredBlocks<'a>),
}

/// Whether the first half of W's rows are gates, and what a layer gives is `silu(gate) · up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Every row gives a result.
    Plain,
    /// Rows n and n + N / 2 give one result together.
    GatePairs,
}

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub enum Output<'a> {
    /// (M, N), or (M, N / 2) for gate pairs.
    Bf16(&'a Buffer<u16>),
    /// (M, N): added to what is there.
    AddF32(&'a Buffer<f32>),
    /// (M, N).
    F32(&'a Buffer<f32>),
}

/// A weight on the GPU.
#[derive(Debug)]
pub struct Linear {
    device: Device,
    n: usize,
    k: usize,
    /// K rounded up to [`K_GRAIN`], or K where W is sparse; activations have this many columns.
    k_padded: usize,
    rows: Rows,
    data: Data,
    bias: Option<Buffer<f32>>,
}

#[derive(Debug)]
enum Data {
    /// In the order of `decode.cuh`, with its groups' parameters.
    Codes4 {
        packed: Buffer<u32>,
        params: Buffer<u32>,
        bf16: bool,
        group: usize,
        /// Bytes of sixteen bf16 numbers, low ones first; without it codes are whole numbers.
        table: Option<[u32; 8]>,
        float8: bool,
    },
    /// In the order of `decode.cuh`.
    Codes8 {
        packed: Buffer<u32>,
        scale: Buffer<f32>,
        float8: bool,
    },
    /// Rows, multiplied by activations of the same type: int8, or e4m3.
    Rows8 {
        q: Buffer<u8>,
        scale: Buffer<f32>,
        float8: Option<Float8Scales>,
    },
    Bf16 {
        w: Buffer<u16>,
    },
    TwoOfFour(Sparse24Linear),
    Blocks(BlockSparseLinear),
}

/// Rows of a packed weight: with gate pairs, tiles of 16 are 8 gates and their partners.
fn packed_rows(n: usize, rows: Rows) -> usize {
    if rows == Rows::GatePairs { (n / 2).next_multiple_of(8) * 2 } else { n }
}

fn no_kernel(n: usize, k: usize) -> CudaError {
    CudaError::new(format!("a layer of {n} × {k} in this format has no kernel for this GPU"))
}

impl Linear {
    /// Copies weights to the GPU, one under the other, as one layer; all are of one format and K. `bias` has a number for each row.
    pub fn new(
        device: &Device,
        parts: &[(HostWeight<'_>, usize)],
        k: usize,
        rows: Rows,
        bias: Option<&[f32]>,
    ) -> CudaResult<Linear> {
        let n: usize = parts.iter().map(|(_, n)| n).sum();
        if n == 0 || k == 0 || n.max(k) > i32::MAX as usize / 64 {
            return Err(CudaError::new(format!("a weight of {n} × {k} is no layer")));
        }
        if rows == Rows::GatePairs && !n.is_multiple_of(2) {
            return Err(CudaError::new(format!("{n} rows are not pairs of gates")));
        }
        if let Some(data) = sparse::upload(device, parts, (n, k), bias)? {
            return Ok(Linear {
                device: device.clone(),
                n,
                k,
                k_padded: k,
                rows,
                data,
                bias: None,
            });
        }
        let k_padded = k.next_multiple_of(K_GRAIN);
        let data = upload::upload(device, parts, (n, k, k_padded), rows)?;
        if bias.is_some_and(|bias| bias.len() != n) {
            return Err(CudaError::new(format!("a bias for {n} rows was expected")));
        }
        let bias = bias.map(|bias| device.upload(bias)).transpose()?;
        Ok(Linear { device: device.clone(), n, k, k_padded, rows, data, bias })
    }

    /// (N, K); N counts both rows of a gate pair.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// Columns that activations must have: K and zeros behind it.
    pub fn k_padded(&self) -> usize {
        self.k_padded
    }

    /// Results of a token.
    pub fn outputs(&self) -> usize {
        if self.rows == Rows::GatePairs { self.n / 2 } else { self.n }
    }

    /// Bytes in device memory: what one token reads.
    pub fn nbytes(&self) -> usize {
        match &self.data {
            Data::Codes4 { packed, params, .. } => packed.nbytes() + params.nbytes(),
            Data::Codes8 { packed, scale, .. } => packed.nbytes() + scale.nbytes(),
            Data::Rows8 { q, scale, .. } => q.nbytes() + scale.nbytes(),
            Data::Bf16 { w } => w.nbytes(),
            Data::TwoOfFour(layer) => layer.nbytes(),
            Data::Blocks(layer) => layer.nbytes(),
        }
    }

    /// The name of the kernel for `m` tokens.
    pub fn kernel_name(&self, m: usize) -> String {
        let w = match &self.data {
            Data::TwoOfFour(layer) => return layer.kernel_name(m).to_owned(),
            Data::Blocks(layer) => return layer.kernel_name().to_owned(),
            Data::Codes4 { table: None, .. } => "int4",
            Data::Codes4 { .. } => "table4",
            Data::Codes8 { float8: false, .. } | Data::Rows8 { float8: None, .. } => "int8",
            Data::Codes8 { .. } | Data::Rows8 { .. } => "e4m3",
            Data::Bf16 { .. } => "bf16",
        };
        let (quantize, x) = match &self.data {
            Data::Codes4 { float8: true, .. } => ("cuda-quantize-e4m3 + ", "e4m3"),
            Data::Rows8 { float8: None, .. } => ("cuda-quantize-int8 + ", "int8"),
            Data::Rows8 { .. } => ("cuda-quantize-e4m3 + ", "e4m3"),
            _ => ("", "bf16"),
        };
        match (&self.data, self.path(m)) {
            (_, Path::One) => format!("cuda-{w}x{x}-stream"),
            (_, Path::Few) => format!("{quantize}cuda-{w}x{x}-mma"),
            (_, Path::Wgmma) => format!("{quantize}cuda-{w}x{x}-wgmma"),
            (Data::Bf16 { .. }, Path::Library) => "cublaslt-bf16".to_owned(),
            (Data::Rows8 { .. }, Path::Library) => {
                "cuda-quantize-int8 + cublaslt-int8 + scale".to_owned()
            }
            (_, Path::Library | Path::Sparse) => {
                format!("{quantize}cuda-{w}-to-bf16 + cublaslt-bf16")
            }
        }
    }

    /// The shape of a product with `m` tokens.
    fn at(&self, m: usize) -> Shape {
        Shape { m, n: self.n, k: self.k_padded }
    }
}

/// Which kernel multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    One,
    Few,
    Wgmma,
    Library,
    Sparse,
}

#[cfg(test)]
pub(super) fn padded_for_tests(rows: &[u16], k: usize, k_padded: usize) -> Vec<u16> {
    upload::padded(rows, k, k_padded)
}
