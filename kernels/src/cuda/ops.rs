//! The operations between linear layers, on the GPU.
//!
//! Formulas, layouts and errors are those of the CPU folders of the same names; sums are in f32, and what is stored in bf16 is
//! rounded once more: 2⁻⁹ relative.

use super::launch::int;
use super::sources::{DECODE, PREFILL, QUANTIZE, SMALL};
use super::{Buffer, CudaError, CudaResult, Device, Grid};

/// `x (M, K) = table (V, K)[tokens]`; a token outside the vocabulary gives NaN.
pub fn embedding(
    device: &Device,
    tokens: &Buffer<i32>,
    table: &Buffer<u16>,
    (vocab, k): (usize, usize),
    x: &Buffer<f32>,
) -> CudaResult<()> {
    assert!(table.len() == vocab * k, "a table of {vocab} × {k} was expected");
    assert!(x.len() == tokens.len() * k, "x must have a row for each token");
    let kernel = device.kernel(&SMALL, &[], "embedding")?;
    let arguments = [tokens.into(), table.into(), x.into(), int(vocab), int(k)];
    kernel.launch(Grid::line(tokens.len(), 256), &arguments)
}

/// `y (M, K) bf16 = x (M, K) · weight / √(mean x² + eps)`.
pub fn rms_norm(
    device: &Device,
    x: &Buffer<f32>,
    weight: &Buffer<f32>,
    eps: f32,
    y: &Buffer<u16>,
) -> CudaResult<()> {
    let k = weight.len();
    assert!(k > 0 && x.len().is_multiple_of(k), "x must hold whole rows of {k}");
    let m = x.len() / k;
    assert!(m == 0 || y.len().is_multiple_of(m) && y.len() / m >= k, "y must hold {m} rows of {k}");
    let ldy = y.len() / m.max(1);
    let kernel = device.kernel(&SMALL, &[], "rms_norm")?;
    let arguments = [x.into(), weight.into(), y.into(), int(k), int(ldy), eps.into()];
    let threads = (k / 4).next_multiple_of(32).clamp(32, 1024);
    kernel.launch(Grid::line(m, threads), &arguments)
}

/// `y = softmax(x)`, row by row of `n`.
pub fn softmax(device: &Device, x: &Buffer<f32>, n: usize, y: &Buffer<f32>) -> CudaResult<()> {
    assert!(n > 0 && x.len().is_multiple_of(n) && x.len() == y.len(), "whole rows of {n}");
    let kernel = device.kernel(&SMALL, &[], "softmax")?;
    kernel.launch(Grid::line(x.len() / n, 256), &[x.into(), y.into(), int(n)])
}

/// Blocks that look for the largest of a row together.
const ARGMAX_PARTS: usize = 64;

/// Where decoding is, in device memory, so that a graph can move it on.
#[derive(Clone, Debug)]
pub struct Position {
    /// One number: positions in the cache.
    pub length: Buffer<i32>,
    /// The token at each position that was chosen here.
    pub history: Buffer<i32>,
}

/// The place of the largest of each row of x (M, N), the first of equals, NaN above all; with `position` the sequence moves
/// one on.
pub fn argmax(
    device: &Device,
    x: &Buffer<f32>,
    n: usize,
    keys: &Buffer<u64>,
    tokens: &Buffer<i32>,
    position: Option<&Position>,
) -> CudaResult<()> {
    let m = tokens.len();
    assert!(x.len() == m * n && n > 0, "x must be {m} rows of {n}");
    assert!(keys.len() >= argmax_keys(m), "argmax wants {} keys", argmax_keys(m));
    let kernel = device.kernel(&SMALL, &[], "argmax_part")?;
    let grid = Grid { blocks: (ARGMAX_PARTS, m, 1), threads: 256, shared: 0 };
    kernel.launch(grid, &[x.into(), keys.into(), int(n)])?;
    let kernel = device.kernel(&SMALL, &[], "argmax_end")?;
    let (length, history) = (position.map(|p| &p.length), position.map(|p| &p.history));
    let arguments = [keys.into(), tokens.into(), int(ARGMAX_PARTS), length.into(), history.into()];
    kernel.launch(Grid::line(m, ARGMAX_PARTS), &arguments)
}

/// How many keys [`argmax`] of `m` rows wants.
pub fn argmax_keys(m: usize) -> usize {
    m * ARGMAX_PARTS
}

/// What attention needs to know of a model and a cache.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Positions that the cache has room for.
    pub capacity: usize,
    /// Only this many positions are seen; 0 sees all.
    pub window: usize,
    /// Of the norms of queries and keys, where there are any.
    pub eps: f32,
}

impl Heads {
    fn check(&self) -> CudaResult<()> {
        let Heads { heads, kv_heads, head_dim, .. } = *self;
        let whole = kv_heads > 0 && heads.is_multiple_of(kv_heads) && heads / kv_heads <= 8;
        if whole && [32, 64, 128, 256].contains(&head_dim) {
            return Ok(());
        }
        Err(CudaError::new(format!(
            "{heads} heads over {kv_heads} of {head_dim} numbers have no attention kernel; wanted up to 8 heads for each \
             key head, of 32, 64, 128 or 256 numbers"
        )))
    }

    #[expect(clippy::cast_precision_loss, reason = "head dimensions are far below 2²⁴")]
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Numbers of a token's queries, keys and values.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn cached(&self) -> usize {
        self.kv_heads * self.capacity * self.head_dim
    }
}

/// What attention reads and writes besides queries.
#[derive(Clone, Debug)]
pub struct Cache {
    /// (kv_heads, capacity, head_dim) bf16, turned.
    pub keys: Buffer<u16>,
    /// The same, as they come.
    pub values: Buffer<u16>,
}

/// Constants of a model's attention.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// (capacity, head_dim / 2).
    pub cos: Buffer<f32>,
    /// (capacity, head_dim / 2).
    pub sin: Buffer<f32>,
}

/// The weights (head_dim) of the norms of queries and keys, where a model has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadNorms<'a> {
    /// Of queries.
    pub q: Option<&'a Buffer<f32>>,
    /// Of keys.
    pub k: Option<&'a Buffer<f32>>,
}

/// Scratch space of [`attention_decode`].
#[derive(Debug)]
pub struct DecodeScratch {
    parts: Buffer<f32>,
    tickets: Buffer<i32>,
    splits: usize,
    /// Query heads of a block.
    group: usize,
    /// Whether neighbours want shared memory rather than cache.
    streams: bool,
}

impl DecodeScratch {
    /// For models like `heads`.
    pub fn new(device: &Device, heads: &Heads) -> CudaResult<DecodeScratch> {
        heads.check()?;
        // Heads that share keys are done apart where the cache is short: then starting and ending is what takes time.
        let group = if heads.capacity <= 2048 { 1 } else { heads.heads / heads.kv_heads };
        let rows = heads.heads / group;
        // Two blocks a multiprocessor at most, and no more than parts of 256 positions.
        let most = (2 * device.multiprocessors()).div_ceil(rows);
        let splits = heads.capacity.div_ceil(256).clamp(1, most);
        let parts = device.uninit(heads.heads * splits * (heads.head_dim + 2))?;
        Ok(DecodeScratch { parts, tickets: device.zeros(rows)?, splits, group, streams: false })
    }

    /// The same between layers that stream their weights through shared memory.
    #[must_use]
    pub fn between_streams(self, streams: bool) -> DecodeScratch {
        DecodeScratch { streams, ..self }
    }
}

/// Attention of one new token behind `length` cached ones; stores its key and value in the cache.
pub fn attention_decode(
    device: &Device,
    heads: &Heads,
    qkv: &Buffer<u16>,
    (cache, rotary, norms): (&Cache, &Rotary, HeadNorms<'_>),
    (length, scratch): (&Buffer<i32>, &DecodeScratch),
    out: &Buffer<u16>,
) -> CudaResult<()> {
    heads.check()?;
    let wanted = (heads.qkv(), heads.cached(), heads.heads * heads.head_dim);
    let got = (qkv.len(), cache.keys.len(), out.len());
    assert!(got == wanted && cache.values.len() == wanted.1, "{got:?} numbers for {heads:?}");
    let defines = [
        format!("AO_HEAD_DIM={}", heads.head_dim),
        format!("AO_GROUP={}", scratch.group),
        format!("AO_SHARE={}", heads.heads / heads.kv_heads),
    ];
    let kernel = device.kernel(&DECODE, &defines, "attention_decode")?;
    let threads = if scratch.group > 4 { 128 } else { 256 };
    let blocks = (heads.heads / scratch.group, scratch.splits, 1);
    let grid = Grid { blocks, threads, shared: 0 };
    kernel.prefer_shared(scratch.streams)?.launch(
        grid,
        &[
            qkv.into(),
            (&cache.keys).into(),
            (&cache.values).into(),
            (&rotary.cos).into(),
            (&rotary.sin).into(),
            norms.q.into(),
            norms.k.into(),
            out.into(),
            (&scratch.parts).into(),
            (&scratch.tickets).into(),
            length.into(),
            int(heads.heads),
            int(heads.kv_heads),
            int(heads.capacity),
            int(heads.window),
            heads.scale().into(),
            heads.eps.into(),
        ],
    )
}

/// Attention of `m` tokens behind `past` cached ones; stores their keys and values in the cache. `q` (M, heads · head_dim) is scratch.
pub fn attention_prefill(
    device: &Device,
    heads: &Heads,
    (qkv, q): (&Buffer<u16>, &Buffer<u16>),
    (cache, rotary, norms): (&Cache, &Rotary, HeadNorms<'_>),
    (m, past): (usize, usize),
    out: &Buffer<u16>,
) -> CudaResult<()> {
    heads.check()?;
    let wide = m * heads.heads * heads.head_dim;
    let got = (qkv.len(), q.len(), out.len(), cache.keys.len(), cache.values.len());
    let wanted = (m * heads.qkv(), wide, wide, heads.cached(), heads.cached());
    assert!(got == wanted, "{got:?} numbers for {m} tokens of {heads:?}");
    assert!(past + m <= heads.capacity, "{past} + {m} positions for {}", heads.capacity);
    let defines = [format!("AO_HEAD_DIM={}", heads.head_dim)];
    let kernel = device.kernel(&PREFILL, &defines, "rope_store")?;
    let rows = heads.heads + 2 * heads.kv_heads;
    kernel.launch(
        Grid { blocks: (m, rows, 1), threads: 32, shared: 0 },
        &[
            qkv.into(),
            q.into(),
            (&cache.keys).into(),
            (&cache.values).into(),
            (&rotary.cos).into(),
            (&rotary.sin).into(),
            norms.q.into(),
            norms.k.into(),
            int(heads.heads),
            int(heads.kv_heads),
            int(heads.capacity),
            int(past),
            heads.eps.into(),
        ],
    )?;
    let kernel = device.kernel(&PREFILL, &defines, "attention_prefill")?;
    // Two blocks of 64 keys and of 64 values, 16 bytes of padding a row.
    let shared = 4 * 64 * (2 * heads.head_dim + 16);
    kernel.launch(
        Grid { blocks: (m.div_ceil(64), heads.heads, 1), threads: 128, shared },
        &[
            q.into(),
            (&cache.keys).into(),
            (&cache.values).into(),
            out.into(),
            int(m),
            int(heads.heads),
            int(heads.kv_heads),
            int(heads.capacity),
            int(past),
            int(heads.window),
            heads.scale().into(),
        ],
    )
}

/// Reads `from` once and gives nothing; for measuring.
pub fn read_memory(device: &Device, from: &Buffer<u8>, out: &Buffer<u32>) -> CudaResult<()> {
    assert!(from.len().is_multiple_of(16) && !out.is_empty(), "whole pieces of 16 bytes");
    let kernel = device.kernel(&SMALL, &[], "read_memory")?;
    let arguments = [from.into(), out.into(), (from.len() as u64 / 16).into()];
    kernel.launch(Grid::line(4 * device.multiprocessors(), 512), &arguments)
}

/// Copies `from` to `to`; for measuring.
pub fn copy_memory(device: &Device, from: &Buffer<u8>, to: &Buffer<u8>) -> CudaResult<()> {
    assert!(from.len() == to.len() && from.len().is_multiple_of(16), "equal and whole pieces");
    let kernel = device.kernel(&SMALL, &[], "copy_memory")?;
    let pieces = from.len() / 16;
    let arguments = [from.into(), to.into(), (pieces as u64).into()];
    kernel.launch(Grid::line(pieces.div_ceil(1024), 256), &arguments)
}

/// Rows (M, K) of bf16 to e4m3, one scale a row: `quantize` to float8 as torchao does it. K is a multiple of 8.
pub fn quantize_float8_rows(
    device: &Device,
    x: &Buffer<u16>,
    m: usize,
    k: usize,
) -> CudaResult<(Buffer<u8>, Buffer<f32>)> {
    let (q, scale) = (device.uninit(m * k)?, device.uninit(m)?);
    quantize_float8_rows_into(device, x, k, (&q, &scale))?;
    Ok((q, scale))
}

/// The same into buffers that are there.
pub fn quantize_float8_rows_into(
    device: &Device,
    x: &Buffer<u16>,
    k: usize,
    into: (&Buffer<u8>, &Buffer<f32>),
) -> CudaResult<()> {
    super::linear::quantize_rows_into(device, "quantize_e4m3_rows", x, k, into)
}

/// Rows (M, K) of bf16 to int8, one scale a row, symmetric. K is a multiple of 8.
pub fn quantize_int8_rows(
    device: &Device,
    x: &Buffer<u16>,
    m: usize,
    k: usize,
) -> CudaResult<(Buffer<u8>, Buffer<f32>)> {
    let (q, scale) = (device.uninit(m * k)?, device.uninit(m)?);
    quantize_int8_rows_into(device, x, k, (&q, &scale))?;
    Ok((q, scale))
}

/// The same into buffers that are there.
pub fn quantize_int8_rows_into(
    device: &Device,
    x: &Buffer<u16>,
    k: usize,
    into: (&Buffer<u8>, &Buffer<f32>),
) -> CudaResult<()> {
    super::linear::quantize_rows_into(device, "quantize_int8_rows", x, k, into)
}

/// How the power of two of a block of MX is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MxRounding {
    /// `floor(log2 amax) − 8`: the largest values may saturate.
    Floor,
    /// `ceil(log2(amax / 448))`.
    Rceil,
}

/// Threads of a block, and pieces of eight numbers that each reads, of the kernels that quantize in blocks of columns.
const BLOCKWISE: (usize, usize) = (256, 4);

/// x (M, K) of bf16 to MX's e4m3 in blocks of 32 columns: codes (M, K) and e8m0 scales (M, K / 32), as torchao 0.18 has them.
pub fn quantize_mxfp8_into(
    device: &Device,
    x: &Buffer<u16>,
    rounding: MxRounding,
    (q, scales): (&Buffer<u8>, &Buffer<u8>),
) -> CudaResult<()> {
    let len = x.len();
    assert!(len.is_multiple_of(32) && q.len() == len && scales.len() == len / 32, "whole blocks");
    let name = match rounding {
        MxRounding::Floor => "quantize_mxfp8_floor",
        MxRounding::Rceil => "quantize_mxfp8_rceil",
    };
    let (threads, at_once) = BLOCKWISE;
    let arguments = [x.into(), q.into(), scales.into(), (len as u64 / 8).into()];
    let grid = Grid::line((len / 8).div_ceil(threads * at_once), threads);
    device.kernel(&QUANTIZE, &[], name)?.launch(grid, &arguments)
}

/// x (M, K) of bf16 to NVFP4: codes (M, K / 2), the even column in the low nibble, and e4m3 scales (M, K / 16), under `above` if there
/// is such a scale.
pub fn quantize_nvfp4_into(
    device: &Device,
    x: &Buffer<u16>,
    above: Option<f32>,
    (q, scales): (&Buffer<u8>, &Buffer<u8>),
) -> CudaResult<()> {
    let len = x.len();
    assert!(len.is_multiple_of(16) && q.len() == len / 2 && scales.len() == len / 16, "blocks");
    let (threads, at_once) = BLOCKWISE;
    let has_above = int(usize::from(above.is_some()));
    let pieces = (len as u64 / 8).into();
    let arguments =
        [x.into(), q.into(), scales.into(), pieces, above.unwrap_or(1.0).into(), has_above];
    let grid = Grid::line((len / 8).div_ceil(threads * at_once), threads);
    device.kernel(&QUANTIZE, &[], "quantize_nvfp4")?.launch(grid, &arguments)
}
