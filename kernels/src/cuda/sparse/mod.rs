//! Linear layers whose weight is 2:4, by sparse tensor cores, or in blocks of 64 by 64 (`bsr.cu`, bf16, Hopper): `y (M, N) = x (M, K) · W (N, K)ᵀ`, x in bf16, sums in f32 (int8: exact).
//!
//! bf16, int8 and e4m3 run on Hopper (`sparse24.cu`), activations as they are or quantized to the weight's type by token; int4, `(q − 8) · scale`, runs
//! everywhere (`few24.cu`), up to 64 tokens at a time; on Hopper more than 32 tokens read it as bf16, after one pass.
//! A weight comes as [`crate::sparse24_linear`] keeps it, stored numbers and codes of three bits, and is packed on the GPU (`pack24.cu`): a
//! stored zero stays stored.
//! Error against the formula in f64 with x as rounded to bf16 or to its codes: as [`super::linear`]: K · 2⁻²² · Σ|x·w| and the result's own rounding;
//! e4m3 by e4m3: 2⁻¹⁰ · Σ|x·w|; int4 read as bf16: 2⁻⁹ · Σ|x·w| (W is rounded once).
//! Source: PTX's `wgmma.mma_async.sp` and `mma.sp`; the order of the places is theirs, the code our own.

mod bsr;
mod choose;
mod run;

pub use bsr::{BlockSparseLinear, StoredBlocks};
pub use choose::Sparse24Tiling;

use super::launch::int;
use super::linear::quantize_rows_into;
use super::sources::PACK24;
use super::{Buffer, CudaError, CudaResult, Device, Grid};
use crate::sparse24_linear::{code_bytes, int4_bytes};

/// Rows are padded to this: whole clusters of whatever tiling.
const ROW_GRAIN: usize = 512;

/// The stored numbers of a 2:4 weight (N, K).
#[derive(Clone, Copy, Debug)]
pub enum Stored24<'a> {
    /// bf16 bits, (N, K / 2); activations as they are.
    Bf16(&'a [u16]),
    /// `q · scale`, activations quantized to int8 by token, symmetrically.
    Int8Dynamic {
        /// (N, K / 2)
        q: &'a [i8],
        /// (N)
        scale: &'a [f32],
    },
    /// e4m3 codes times scale, activations quantized to e4m3 by token.
    Float8Dynamic {
        /// (N, K / 2)
        q: &'a [u8],
        /// (N)
        scale: &'a [f32],
    },
    /// `(q − 8) · scale`, activations as they are.
    Int4 {
        /// In the order of [`crate::sparse24_linear::pack_int4`].
        q: &'a [u8],
        /// (N, K / group_size)
        scale: &'a [f32],
        /// A multiple of 128.
        group_size: usize,
    },
}

/// A 2:4 weight on the GPU.
#[derive(Debug)]
pub struct Sparse24Linear {
    device: Device,
    n: usize,
    k: usize,
    data: Data,
    bias: Option<Buffer<f32>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bf16,
    Int8,
    Float8,
}

#[derive(Debug)]
enum Data {
    /// Pieces of 64 rows by 64 stored bytes with their places.
    Wide { kind: Kind, packed: Buffer<u8>, scale: Option<Buffer<f32>>, pieces: usize },
    /// 16 rows by 128 columns with their places; scales by tile, group and row.
    Int4 { packed: Buffer<u8>, scale: Scales, group: usize },
}

#[derive(Debug)]
enum Scales {
    Bf16(Buffer<u16>),
    F32(Buffer<f32>),
}

impl Scales {
    /// Where they lie, and whether they are f32.
    fn address(&self) -> (u64, bool) {
        match self {
            Scales::Bf16(scale) => (scale.address(), false),
            Scales::F32(scale) => (scale.address(), true),
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            Scales::Bf16(scale) => scale.nbytes(),
            Scales::F32(scale) => scale.nbytes(),
        }
    }
}

impl Sparse24Linear {
    /// Copies a weight to the GPU and packs it there; `codes` as [`crate::sparse24_linear::codes_of`] makes them.
    pub fn new(
        device: &Device,
        (stored, codes): (Stored24<'_>, &[u8]),
        (n, k): (usize, usize),
        bias: Option<&[f32]>,
    ) -> CudaResult<Sparse24Linear> {
        let fits = k > 0 && k.is_multiple_of(16) && n > 0 && n.max(k) <= i32::MAX as usize / 64;
        if !fits || codes.len() != n * code_bytes(k) + 2 {
            return Err(CudaError::new(format!(
                "a 2:4 weight of {n} × {k} with {} bytes of codes has no kernel; K must be a multiple of 16",
                codes.len()
            )));
        }
        if bias.is_some_and(|bias| bias.len() != n) {
            return Err(CudaError::new(format!("a bias for {n} rows was expected")));
        }
        let codes = device.upload(codes)?;
        let data = match stored {
            Stored24::Bf16(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                wide(device, Kind::Bf16, (&bytes, &codes), None, (n, k))?
            }
            Stored24::Int8Dynamic { q, scale } => {
                let bytes: Vec<u8> = q.iter().map(|q| q.cast_unsigned()).collect();
                wide(device, Kind::Int8, (&bytes, &codes), Some(scale), (n, k))?
            }
            Stored24::Float8Dynamic { q, scale } => {
                wide(device, Kind::Float8, (q, &codes), Some(scale), (n, k))?
            }
            Stored24::Int4 { q, scale, group_size } => {
                int4(device, (q, &codes), (scale, group_size), (n, k))?
            }
        };
        let bias = bias.map(|bias| device.upload(bias)).transpose()?;
        Ok(Sparse24Linear { device: device.clone(), n, k, data, bias })
    }

    /// (N, K)
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// Bytes in device memory: what one token reads.
    pub fn nbytes(&self) -> usize {
        match &self.data {
            Data::Wide { packed, scale, .. } => {
                packed.nbytes() + scale.as_ref().map_or(0, Buffer::nbytes)
            }
            Data::Int4 { packed, scale, .. } => packed.nbytes() + scale.nbytes(),
        }
    }

    /// The name of the kernel for `m` tokens.
    pub fn kernel_name(&self, m: usize) -> &'static str {
        match &self.data {
            Data::Wide { kind: Kind::Bf16, .. } => "cuda-24-bf16xbf16-wgmma",
            Data::Wide { kind: Kind::Int8, .. } => "cuda-quantize-int8 + cuda-24-int8xint8-wgmma",
            Data::Wide { .. } => "cuda-quantize-e4m3 + cuda-24-e4m3xe4m3-wgmma",
            Data::Int4 { .. } if self.widens(m) => "cuda-24-int4-to-bf16 + cuda-24-bf16xbf16-wgmma",
            Data::Int4 { .. } => "cuda-24-int4xbf16-mma",
        }
    }
}

fn wrong(what: &str, got: usize, wanted: usize) -> CudaError {
    CudaError::new(format!("{got} {what} of a 2:4 weight; wanted {wanted}"))
}

fn wide(
    device: &Device,
    kind: Kind,
    (bytes, codes): (&[u8], &Buffer<u8>),
    scale: Option<&[f32]>,
    (n, k): (usize, usize),
) -> CudaResult<Data> {
    if !device.has_wgmma() {
        return Err(CudaError::new(
            "2:4 in bf16, int8 and e4m3 needs a Hopper GPU; int4 runs on all",
        ));
    }
    let element = if kind == Kind::Bf16 { 2 } else { 1 };
    if bytes.len() != n * k / 2 * element {
        return Err(wrong("bytes", bytes.len(), n * k / 2 * element));
    }
    if let Some(scale) = scale.filter(|scale| scale.len() != n) {
        return Err(wrong("scales", scale.len(), n));
    }
    let values = device.upload(bytes)?;
    // Two pieces may make a stage.
    let pieces = (k / 2 * element).div_ceil(64).next_multiple_of(2);
    let tiles = n.next_multiple_of(ROW_GRAIN) / 64;
    let packed = device.uninit::<u8>(tiles * pieces * kind.piece())?;
    let kernel = device.kernel(&PACK24, &[], "pack24_wide")?;
    let first = [(&values).into(), codes.into(), (&packed).into(), int(n), int(k)];
    let grid = Grid { blocks: (pieces, tiles, 1), threads: 64, shared: 0 };
    kernel.launch(grid, &[&first[..], &[int(element), int(pieces)]].concat())?;
    let scale = scale.map(|scale| device.upload(scale)).transpose()?;
    Ok(Data::Wide { kind, packed, scale, pieces })
}

fn int4(
    device: &Device,
    (q, codes): (&[u8], &Buffer<u8>),
    (scale, group): (&[f32], usize),
    (n, k): (usize, usize),
) -> CudaResult<Data> {
    if group == 0 || !group.is_multiple_of(128) || !k.is_multiple_of(group) {
        return Err(CudaError::new(format!(
            "groups of {group} over K = {k} have no 2:4 kernel; wanted a multiple of 128 that divides K"
        )));
    }
    if q.len() != n * int4_bytes(k) {
        return Err(wrong("bytes", q.len(), n * int4_bytes(k)));
    }
    let groups = k / group;
    if scale.len() != n * groups {
        return Err(wrong("scales", scale.len(), n * groups));
    }
    let (tiles, chunks) = (n.div_ceil(16), k.div_ceil(128));
    let q = device.upload(q)?;
    let packed = device.uninit::<u8>(tiles * chunks * 768)?;
    let kernel = device.kernel(&PACK24, &[], "pack24_int4")?;
    let arguments = [(&q).into(), codes.into(), (&packed).into(), int(n), int(k)];
    let grid = Grid { blocks: (chunks, tiles, 1), threads: 32, shared: 0 };
    kernel.launch(grid, &arguments)?;
    // (tile, group, row)
    let mut ordered = vec![0.0; tiles * groups * 16];
    for (row, scale) in scale.chunks_exact(groups).enumerate() {
        for (at, scale) in scale.iter().enumerate() {
            ordered[(row / 16 * groups + at) * 16 + row % 16] = *scale;
        }
    }
    let bf16: Vec<half::bf16> = ordered.iter().map(|v| half::bf16::from_f32(*v)).collect();
    let same = |(short, v): (&half::bf16, &f32)| short.to_f32().to_bits() == v.to_bits();
    let exact = bf16.iter().zip(&ordered).all(same);
    let scale = if exact {
        let bits: Vec<u16> = bf16.iter().map(|v| v.to_bits()).collect();
        Scales::Bf16(device.upload(&bits)?)
    } else {
        Scales::F32(device.upload(&ordered)?)
    };
    Ok(Data::Int4 { packed, scale, group })
}

impl Kind {
    /// Bytes of a piece: 64 rows of 64 bytes and their places.
    fn piece(self) -> usize {
        4096 + if self == Kind::Bf16 { 512 } else { 1024 }
    }
}

/// Rows of x by token to the weight's type.
fn quantize(
    device: &Device,
    kind: Kind,
    x: &Buffer<u16>,
    k: usize,
    into: (&Buffer<u8>, &Buffer<f32>),
) -> CudaResult<()> {
    let name = if kind == Kind::Int8 { "quantize_int8_rows" } else { "quantize_e4m3_rows" };
    quantize_rows_into(device, name, x, k, into)
}
