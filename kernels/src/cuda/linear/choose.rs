//! How `few_tokens.cu` is cut for a format, a number of tokens and a shape. Measured on an H100: see LOG.md.

/// The specialisation of `few_tokens.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Eights of tokens.
    pub token_tiles: usize,
    /// Tiles of 16 rows that a warp takes.
    pub row_tiles: usize,
    /// Warps of a block that take different rows.
    pub row_warps: usize,
    /// Warps of a block that take different columns.
    pub k_warps: usize,
    /// Chunks that a warp loads at once.
    pub unroll: usize,
    /// Loads under way, the one in use included.
    pub stages: usize,
    /// Blocks that fit a multiprocessor at least, as the compiler is told.
    pub blocks: usize,
    /// Bytes of scales and zeros of a chunk of int4: 64 for each flush, twice that in f32.
    pub params: usize,
}

/// Shared memory of a block on an A100 is at most 163 KiB, on an H100 227; some is the system's.
pub(super) const SHARED: usize = 160 << 10;

impl Tiling {
    /// The tiling for weights of `bits`, `m` tokens, `n` rows and `k` columns.
    pub fn choose(bits: usize, m: usize, n: usize, k: usize) -> Tiling {
        let wide = n >= 8192;
        let plain = Tiling {
            token_tiles: m.div_ceil(8).next_power_of_two(),
            row_tiles: 1,
            row_warps: 1,
            k_warps: 8,
            unroll: 4,
            stages: 3,
            blocks: 1,
            params: 64,
        };
        let tiling = match bits {
            4 if k >= 8192 => Tiling { row_tiles: 2, ..plain },
            4 if n >= 5120 => Tiling { row_tiles: 2, stages: 2, ..plain },
            4 => Tiling { row_tiles: 2, k_warps: 16, unroll: 2, stages: 2, ..plain },
            8 if n >= 5120 => Tiling { k_warps: 4, blocks: 3, ..plain },
            _ => Tiling { blocks: 2, ..plain },
        };
        // In wide int4 layers blocks that share x in stages are faster even for one token.
        let whole = bits != 4 || !wide;
        if m <= 4 && whole && tiling.shared(bits, m, k) <= SHARED {
            return tiling;
        }
        // More tokens, or too long a row to keep whole: x comes in stages and several row warps share it.
        let shared = Tiling { row_warps: 2, k_warps: 4, ..plain };
        match m {
            ..=8 if bits == 4 && wide && k <= 4096 => Tiling { row_tiles: 2, stages: 2, ..shared },
            ..=16 if bits == 4 && wide => {
                let k_warps = if k > 4096 { 8 } else { 4 };
                Tiling { row_tiles: 2, k_warps, unroll: 2, ..shared }
            }
            ..=16 if bits == 4 => shared,
            ..=32 => Tiling { unroll: 2, ..shared },
            _ if n >= 12288 => Tiling { row_warps: 8, k_warps: 2, unroll: 2, ..shared },
            _ if wide => Tiling { row_warps: 4, k_warps: 2, unroll: 2, ..shared },
            _ => Tiling { unroll: 1, ..shared },
        }
    }

    /// Threads of a block.
    pub(super) fn threads(self) -> usize {
        32 * self.row_warps * self.k_warps
    }

    /// Rows of a block.
    pub(super) fn rows(self) -> usize {
        16 * self.row_tiles * self.row_warps
    }

    /// Bytes of shared memory of a block: x and each warp's ring, then the sums of the column
    /// warps in their place.
    pub(super) fn shared(self, bits: usize, m: usize, k: usize) -> usize {
        let tokens = 8 * self.token_tiles;
        let padding = if bits == 4 { 32 } else { 16 };
        let x = if self.row_warps == 1 {
            let rows = if self.token_tiles == 1 { m } else { tokens };
            // int4 also keeps sums of x, a float for each flush.
            rows * (2 * k + padding + if bits == 4 { k / 4 } else { 0 })
        } else {
            let columns = self.k_warps * self.unroll * if bits == 16 { 32 } else { 64 };
            self.stages * tokens * (2 * columns + padding)
        };
        let sums = 4 * self.k_warps * tokens * (self.rows() + 4);
        // 512 bytes of codes, and up to as many of scales and zeros for groups of 16 in f32.
        let ring = self.stages * self.unroll * self.row_tiles * (512 + self.params);
        let ring = if bits == 4 { ring * self.row_warps * self.k_warps } else { 0 };
        sums.max(x + ring)
    }

    /// The macros that say so.
    pub(super) fn defines(self, bits: usize) -> Vec<String> {
        vec![
            format!("AO_BITS={bits}"),
            format!("AO_NT={}", self.token_tiles),
            format!("AO_RT={}", self.row_tiles),
            format!("AO_RW={}", self.row_warps),
            format!("AO_KW={}", self.k_warps),
            format!("AO_U={}", self.unroll),
            format!("AO_STAGES={}", self.stages),
            format!("AO_MIN_BLOCKS={}", self.blocks),
        ]
    }
}
