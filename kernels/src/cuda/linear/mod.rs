//! Linear layers on the GPU: `y (M, N) = x (M, K) · W (N, K)ᵀ`, activations in bf16, sums in f32.
//!
//! Formats: int4 groups `(q − 8) · scale + zero`, int8 rows `q · scale`, int8 rows times activations quantized to int8 by token,
//! and bf16. Up to 64 tokens run in `few_tokens.cu`, which reads W once and decodes it in registers; more
//! tokens multiply through cuBLASLt, weight-only formats after one pass to bf16.
//! Error against the formula in f64 with x as rounded to bf16: int4 up to 16 tokens, int8 and bf16: K · 2⁻²² · Σ|x·w| and the
//! result's own rounding, 2⁻⁹ · |y| in bf16; int4 with more tokens: also 2⁻⁸ · Σ|x·w| (W is rounded to bf16).
//! Source: the order of int4 fragments follows Frantar et al. 2024 (arXiv 2408.11743); the code is our own.

mod choose;
mod run;

pub use choose::Tiling;
pub(super) use run::quantize_rows_into;

use super::launch::int;
use super::sources::PACK;
use super::{Buffer, CudaError, CudaResult, Device, Grid};
use crate::Shape;

/// Columns are padded to this, so that every format's chunks are whole.
const K_GRAIN: usize = 64;

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
    /// bf16 bits.
    Bf16(&'a [u16]),
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
    /// K rounded up to [`K_GRAIN`]; activations have this many columns.
    k_padded: usize,
    rows: Rows,
    data: Data,
    bias: Option<Buffer<f32>>,
}

#[derive(Debug)]
enum Data {
    Int4 { packed: Buffer<u32>, params: Buffer<u32>, bf16: bool, group: usize },
    Int8 { q: Buffer<u8>, scale: Buffer<f32>, dynamic: bool },
    Bf16 { w: Buffer<u16> },
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
        let k_padded = k.next_multiple_of(K_GRAIN);
        let shape = (n, k, k_padded);
        let data = match parts.first().map(|(weight, _)| *weight) {
            Some(HostWeight::Int4 { group_size, .. }) => {
                upload_int4(device, parts, shape, group_size, rows)?
            }
            Some(HostWeight::Int8 { .. } | HostWeight::Int8Dynamic { .. }) => {
                upload_int8(device, parts, shape)?
            }
            _ => upload_bf16(device, parts, shape)?,
        };
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
            Data::Int4 { packed, params, .. } => packed.nbytes() + params.nbytes(),
            Data::Int8 { q, scale, .. } => q.nbytes() + scale.nbytes(),
            Data::Bf16 { w } => w.nbytes(),
        }
    }

    /// The name of the kernel for `m` tokens.
    pub fn kernel_name(&self, m: usize) -> String {
        let few = self.runs_few(m);
        match (&self.data, few) {
            (Data::Int4 { .. }, true) => "cuda-int4xbf16-mma".to_owned(),
            (Data::Int4 { .. }, false) => "cuda-int4-to-bf16 + cublaslt-bf16".to_owned(),
            (Data::Int8 { dynamic: false, .. }, true) => "cuda-int8xbf16-mma".to_owned(),
            (Data::Int8 { dynamic: false, .. }, false) => {
                "cuda-int8-to-bf16 + cublaslt-bf16".to_owned()
            }
            (Data::Int8 { dynamic: true, .. }, true) => "cuda-int8xint8-mma".to_owned(),
            (Data::Int8 { dynamic: true, .. }, false) => {
                "cuda-quantize-int8 + cublaslt-int8 + scale".to_owned()
            }
            (Data::Bf16 { .. }, true) => "cuda-bf16xbf16-mma".to_owned(),
            (Data::Bf16 { .. }, false) => "cublaslt-bf16".to_owned(),
        }
    }

    /// The shape of a product with `m` tokens.
    pub(super) fn at(&self, m: usize) -> Shape {
        Shape { m, n: self.n, k: self.k_padded }
    }
}

fn wrong_parts(n: usize, k: usize) -> CudaError {
    CudaError::new(format!("the parts of a layer of {n} × {k} differ in format or are not whole"))
}

/// Rows of `k` bytes with zeros behind them up to `k_padded`.
fn padded<T: Copy + Default>(rows: &[T], k: usize, k_padded: usize) -> Vec<T> {
    let mut all = vec![T::default(); rows.len() / k * k_padded];
    for (to, from) in all.chunks_exact_mut(k_padded).zip(rows.chunks_exact(k)) {
        to[..k].copy_from_slice(from);
    }
    all
}

fn upload_int4(
    device: &Device,
    parts: &[(HostWeight<'_>, usize)],
    (n, k, k_padded): (usize, usize, usize),
    group: usize,
    rows: Rows,
) -> CudaResult<Data> {
    if group == 0 || !group.is_multiple_of(16) || !k.is_multiple_of(group) || k % 4 != 0 {
        return Err(CudaError::new(format!(
            "groups of {group} over K = {k} have no int4 kernel; wanted a multiple of 16 that divides K"
        )));
    }
    let (groups, padded_groups) = (k / group, k_padded.div_ceil(group));
    let raw = device.uninit::<u8>(n * k / 2)?;
    let (mut scales, mut zeros, mut all_bf16, mut start) = (Vec::new(), Vec::new(), true, 0);
    for (part, part_n) in parts {
        let HostWeight::Int4 { q, scale, zero, group_size, bf16 } = part else {
            return Err(wrong_parts(n, k));
        };
        let lens = (q.len(), scale.len(), zero.len(), *group_size);
        if lens != (part_n * k / 2, part_n * groups, part_n * groups, group) {
            return Err(wrong_parts(n, k));
        }
        raw.part(start..start + q.len()).write(q)?;
        start += q.len();
        all_bf16 &= bf16;
        scales.extend(padded(scale, groups, padded_groups));
        zeros.extend(padded(zero, groups, padded_groups));
    }
    let tiles = n.div_ceil(16);
    let packed = device.uninit::<u32>(tiles * k_padded * 2)?;
    let pairs = int(usize::from(rows == Rows::GatePairs));
    let kernel = device.kernel(&PACK, &[], "pack_int4")?;
    let arguments = [(&raw).into(), (&packed).into(), int(n), int(k), int(k_padded), pairs];
    kernel.launch(Grid::line(packed.len().div_ceil(256), 256), &arguments)?;
    let (scales, zeros) = (device.upload(&scales)?, device.upload(&zeros)?);
    let pair_count = tiles * padded_groups * 16;
    let params = device.uninit::<u32>(pair_count * if all_bf16 { 1 } else { 2 })?;
    let kernel = device.kernel(&PACK, &[], "pack_params")?;
    let as_f32 = int(usize::from(!all_bf16));
    let arguments = [
        (&scales).into(),
        (&zeros).into(),
        (&params).into(),
        int(n),
        int(padded_groups),
        as_f32,
        pairs,
    ];
    kernel.launch(Grid::line(pair_count.div_ceil(256), 256), &arguments)?;
    device.synchronize()?;
    Ok(Data::Int4 { packed, params, bf16: all_bf16, group })
}

fn upload_int8(
    device: &Device,
    parts: &[(HostWeight<'_>, usize)],
    (n, k, k_padded): (usize, usize, usize),
) -> CudaResult<Data> {
    let all = device.uninit::<u8>(n * k_padded)?;
    let (mut scales, mut start, mut kinds) = (Vec::new(), 0, [false; 2]);
    for (part, part_n) in parts {
        let (q, scale, dynamic) = match part {
            HostWeight::Int8 { q, scale } => (q, scale, false),
            HostWeight::Int8Dynamic { q, scale } => (q, scale, true),
            _ => return Err(wrong_parts(n, k)),
        };
        if (q.len(), scale.len()) != (part_n * k, *part_n) {
            return Err(wrong_parts(n, k));
        }
        kinds[usize::from(dynamic)] = true;
        let bytes: Vec<u8> = q.iter().map(|q| q.cast_unsigned()).collect();
        let bytes = padded(&bytes, k, k_padded);
        all.part(start..start + bytes.len()).write(&bytes)?;
        start += bytes.len();
        scales.extend_from_slice(scale);
    }
    if kinds == [true; 2] {
        return Err(wrong_parts(n, k));
    }
    device.synchronize()?;
    Ok(Data::Int8 { q: all, scale: device.upload(&scales)?, dynamic: kinds[1] })
}

fn upload_bf16(
    device: &Device,
    parts: &[(HostWeight<'_>, usize)],
    (n, k, k_padded): (usize, usize, usize),
) -> CudaResult<Data> {
    let all = device.uninit::<u16>(n * k_padded)?;
    let mut start = 0;
    for (part, part_n) in parts {
        let HostWeight::Bf16(w) = part else { return Err(wrong_parts(n, k)) };
        if w.len() != part_n * k {
            return Err(wrong_parts(n, k));
        }
        let part = all.part(start..start + part_n * k_padded);
        if k == k_padded {
            part.write(w)?;
        } else {
            part.write(&padded(w, k, k_padded))?;
        }
        start += part_n * k_padded;
    }
    device.synchronize()?;
    Ok(Data::Bf16 { w: all })
}

#[cfg(test)]
pub(super) fn padded_for_tests(rows: &[u16], k: usize, k_padded: usize) -> Vec<u16> {
    padded(rows, k, k_padded)
}
