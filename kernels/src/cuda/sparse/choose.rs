//! How `sparse24.cu` is specialised.

use super::Kind;

/// The specialisation of `sparse24.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparse24Tiling {
    /// Tokens of a tile: 16, 32, 64, 128 or 256.
    pub tokens: usize,
    /// Warpgroups that multiply, 64 rows each: 1 or 2.
    pub warpgroups: usize,
    /// Loads under way, the one in use included.
    pub stages: usize,
    /// Pieces of a load: 1 or 2.
    pub chunks: usize,
    /// Blocks that share the tokens they read: 1, 2 or 4.
    pub share: usize,
    /// Blocks that fit a multiprocessor.
    pub blocks: usize,
}

impl Sparse24Tiling {
    /// For `m` tokens, as measured on an H100; see LOG.md.
    pub(in crate::cuda) fn choose(m: usize) -> Sparse24Tiling {
        let plain = Sparse24Tiling {
            tokens: m.next_power_of_two().clamp(16, 256),
            warpgroups: 2,
            stages: 5,
            chunks: 1,
            share: 1,
            blocks: 1,
        };
        match m {
            ..=16 => Sparse24Tiling { stages: 8, chunks: 2, ..plain },
            17..=32 => Sparse24Tiling { warpgroups: 1, stages: 10, blocks: 2, ..plain },
            33..=64 => Sparse24Tiling { stages: 8, ..plain },
            65..=128 => Sparse24Tiling { stages: 6, ..plain },
            129..=256 => plain,
            _ => Sparse24Tiling { share: 2, ..plain },
        }
    }

    /// Bytes of shared memory of a block.
    pub(super) fn shared(self, kind: Kind) -> usize {
        let x = self.chunks * self.tokens * 128;
        let w = self.warpgroups * self.chunks * kind.piece();
        let stage = (x + w).next_multiple_of(1024);
        // 64 rows of some tokens on their way out, and the tokens' factors.
        let out_tokens = if self.tokens == 256 { 32 } else { self.tokens.min(64) };
        let out = self.warpgroups * (out_tokens * 144 + self.tokens * 4);
        1024 + self.stages * stage + out + 16 * self.stages
    }

    pub(super) fn defines(self, kind: Kind) -> Vec<String> {
        let kind = match kind {
            Kind::Bf16 => "BF16",
            Kind::Int8 => "INT8",
            Kind::Float8 => "FLOAT8",
        };
        vec![
            format!("AO_KIND={kind}"),
            format!("AO_TN={}", self.tokens),
            format!("AO_WG={}", self.warpgroups),
            format!("AO_STAGES={}", self.stages),
            format!("AO_CHUNKS={}", self.chunks),
            format!("AO_SHARE={}", self.share),
            format!("AO_BLOCKS={}", self.blocks),
        ]
    }
}
