//! A weight in blocks of 64 by 64, of which only those that are not zero are stored.

use crate::cuda::launch::int;
use crate::cuda::linear::Output;
use crate::cuda::sources::BSR;
use crate::cuda::{Buffer, CudaError, CudaResult, Device, Grid};

/// Rows and columns of a block.
const BLOCK: usize = 64;

/// A block-sparse weight on the host, as [`crate::bsr_linear`] keeps it.
#[derive(Clone, Copy, Debug)]
pub struct StoredBlocks<'a> {
    /// bf16 bits, (blocks, 64, 64): of each block a column's numbers side by side.
    pub values: &'a [u16],
    /// Where each row of blocks begins, and the number of blocks.
    pub crow: &'a [i32],
    /// The column of blocks of each.
    pub col: &'a [i32],
}

/// A block-sparse weight on the GPU, bf16 by bf16 activations; Hopper alone.
#[derive(Debug)]
pub struct BlockSparseLinear {
    device: Device,
    n: usize,
    k: usize,
    blocks: Buffer<u16>,
    crow: Buffer<i32>,
    col: Buffer<i32>,
    bias: Option<Buffer<f32>>,
}

/// The specialisation of `bsr.cu`.
#[derive(Clone, Copy, Debug)]
struct Tiling {
    /// Tokens of a warpgroup: 16, 64 or 256.
    tokens: usize,
    warpgroups: usize,
    stages: usize,
    /// Blocks of threads of a multiprocessor.
    blocks: usize,
}

impl Tiling {
    fn choose(m: usize) -> Tiling {
        match m {
            ..=16 => Tiling { tokens: 16, warpgroups: 1, stages: 8, blocks: 2 },
            17..=64 => Tiling { tokens: 64, warpgroups: 1, stages: 5, blocks: 2 },
            65..=256 => Tiling { tokens: 256, warpgroups: 1, stages: 4, blocks: 1 },
            _ => Tiling { tokens: 256, warpgroups: 2, stages: 3, blocks: 1 },
        }
    }

    /// Bytes of shared memory of a block.
    fn shared(self) -> usize {
        let stage = 8192 + self.warpgroups * self.tokens * 128;
        let out = self.warpgroups * self.tokens.min(32) * 144;
        1024 + self.stages * stage + out + 16 * self.stages
    }

    fn defines(self) -> Vec<String> {
        vec![
            format!("AO_TN={}", self.tokens),
            format!("AO_WG={}", self.warpgroups),
            format!("AO_STAGES={}", self.stages),
            format!("AO_BLOCKS={}", self.blocks),
        ]
    }
}

impl BlockSparseLinear {
    /// Copies a weight (N, K) to the GPU.
    pub fn new(
        device: &Device,
        stored: StoredBlocks<'_>,
        (n, k): (usize, usize),
        bias: Option<&[f32]>,
    ) -> CudaResult<BlockSparseLinear> {
        if !device.has_wgmma() {
            return Err(CudaError::new("block-sparse weights need a Hopper GPU"));
        }
        let StoredBlocks { values, crow, col } = stored;
        let whole = n > 0 && k > 0 && n.is_multiple_of(BLOCK) && k.is_multiple_of(BLOCK);
        let wide = i32::try_from(k / BLOCK).unwrap_or(0);
        let ends = (i32::try_from(col.len()).ok(), crow.first(), crow.last());
        let fits = whole
            && n.max(k) <= i32::MAX as usize / 64
            && crow.len() == n / BLOCK + 1
            && values.len() == col.len() * BLOCK * BLOCK
            && matches!(ends, (Some(blocks), Some(0), Some(last)) if blocks == *last)
            && crow.is_sorted()
            && col.iter().all(|col| (0..wide).contains(col))
            && bias.is_none_or(|bias| bias.len() == n);
        if !fits {
            return Err(CudaError::new(format!(
                "{} blocks are no block-sparse weight of {n} × {k} in blocks of {BLOCK}",
                col.len()
            )));
        }
        Ok(BlockSparseLinear {
            device: device.clone(),
            n,
            k,
            blocks: device.upload(&swizzled(values))?,
            crow: device.upload(crow)?,
            // A weight without blocks has an address, too.
            col: device.upload(if col.is_empty() { &[0] } else { col })?,
            bias: bias.map(|bias| device.upload(bias)).transpose()?,
        })
    }

    /// (N, K)
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// Bytes in device memory: what one token reads.
    pub fn nbytes(&self) -> usize {
        self.blocks.nbytes() + self.crow.nbytes() + self.col.nbytes()
    }

    /// Numbers that are multiplied.
    pub fn stored(&self) -> usize {
        self.blocks.len()
    }

    /// The name of the kernel.
    pub fn kernel_name(&self) -> &'static str {
        "cuda-bsr64-bf16xbf16-wgmma"
    }

    /// `y = x · Wᵀ (+ bias)`; x is (M, K) bf16.
    pub fn run(&self, x: &Buffer<u16>, m: usize, y: &Output<'_>) -> CudaResult<()> {
        let wanted = (m * self.k, m * self.n);
        assert!((x.len(), y.len()) == wanted, "{} and {} are not {wanted:?}", x.len(), y.len());
        if m == 0 {
            return Ok(());
        }
        let (device, tiling) = (&self.device, Tiling::choose(m));
        let map = device.tensor_map(x.address(), (m, self.k), 2, tiling.tokens)?;
        let tiles = self.n / BLOCK * m.div_ceil(tiling.tokens * tiling.warpgroups);
        let most = device.multiprocessors() * tiling.blocks;
        let grid = Grid::line(tiles.min(most), 128 * (tiling.warpgroups + 1));
        let kernel = device.kernel(&BSR, &tiling.defines(), "bsr_linear")?;
        kernel.launch(
            grid.shared(tiling.shared()),
            &[
                map.into(),
                (&self.blocks).into(),
                (&self.crow).into(),
                (&self.col).into(),
                self.bias.as_ref().into(),
                y.address().into(),
                int(m),
                int(self.n),
                int(self.n),
                int(super::run::epilogue(y)),
            ],
        )
    }
}

/// Blocks as the tensor cores read them: rows of 64 numbers, their sixteen-byte pieces in the swizzle of 128 bytes.
fn swizzled(values: &[u16]) -> Vec<u16> {
    let mut all = vec![0; values.len()];
    let blocks = all.chunks_exact_mut(BLOCK * BLOCK).zip(values.chunks_exact(BLOCK * BLOCK));
    for (to, from) in blocks {
        for (k, column) in from.chunks_exact(BLOCK).enumerate() {
            for (n, value) in column.iter().enumerate() {
                to[n * BLOCK + (((k / 8) ^ (n % 8)) * 8) + k % 8] = *value;
            }
        }
    }
    all
}
