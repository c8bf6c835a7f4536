//! Layers of 4-bit codes with one token: W streamed through every multiprocessor, with the norm or the rounding of x in the same kernel.

use super::run::epilogue;
use super::{Data, Linear, Output, Rows};
use crate::cuda::launch::int;
use crate::cuda::sources::ONE_TOKEN;
use crate::cuda::{Buffer, CudaResult, Grid};

/// The specialisation of `one_token.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// Warps of a block.
    pub warps: usize,
    /// Copies under way of a warp, the one in use included.
    pub stages: usize,
    /// Blocks that a multiprocessor must have room for, as the compiler is told: the next kernel's are among them.
    pub room: usize,
    /// Blocks of a multiprocessor.
    pub blocks: usize,
    /// Lets the next kernel in at once, instead of when the last of W was asked for.
    pub early: bool,
}

/// What a layer with one token reads.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// (K padded).
    Bf16(&'a Buffer<u16>),
    /// (K): the residual stream, to be normed.
    Normed(Norm<'a>),
}

/// `x · weight / √(mean x² + eps)`.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// (K).
    pub x: &'a Buffer<f32>,
    /// (K).
    pub weight: &'a Buffer<f32>,
    /// Added to the mean.
    pub eps: f32,
}

impl Norm<'_> {
    /// The arguments that kernels take after x's address: the weight and eps.
    pub(super) fn of(input: &Input<'_>) -> (u64, u64, f32) {
        match input {
            Input::Bf16(x) => (x.address(), 0, 0.0),
            Input::Normed(norm) => (norm.x.address(), norm.weight.address(), norm.eps),
        }
    }
}

/// Tiles whose sums are added up at once.
const BATCH: usize = 8;

/// Dynamic shared memory that a block may have: an A100's 163 KiB, or Hopper's 227.
fn most_shared(has_wgmma: bool) -> usize {
    if has_wgmma { 227 << 10 } else { 163 << 10 }
}

impl Streaming {
    /// The tiling. Measured on an H100: see LOG.md.
    pub fn choose() -> Streaming {
        Streaming { warps: 16, stages: 2, room: 2, blocks: 1, early: true }
    }

    /// Bytes of shared memory, as the kernel lays them out.
    fn shared(self, k: usize, codes: &Codes<'_>) -> usize {
        // A stage and warp takes four chunks of 64 columns.
        let (chunks, units) = (k / 64, 16 / codes.flush());
        let stages = chunks.div_ceil(self.warps * 4);
        let pairs = if codes.table.is_some() { 32 << 10 } else { 0 };
        let params = units * if codes.bf16 { 80 } else { 144 };
        let x = 144 * chunks + 160 + 4 * stages * self.warps * units;
        let sums = 64 + 2 * BATCH * self.warps * 64;
        pairs + x + sums + self.warps * self.stages * (2048 + params)
    }
}

/// What a layer's 4-bit codes are, for the kernel.
struct Codes<'a> {
    packed: &'a Buffer<u32>,
    params: &'a Buffer<u32>,
    bf16: bool,
    group: usize,
    table: Option<[u32; 8]>,
    float8: bool,
}

impl Codes<'_> {
    /// Steps of 16 columns that share a scale, up to the eight of two chunks.
    fn flush(&self) -> usize {
        match self.group % 128 {
            0 => 8,
            64 => 4,
            32 | 96 => 2,
            _ => 1,
        }
    }

    fn defines(&self, tiling: Streaming, normed: bool) -> Vec<String> {
        let mut defines = vec![
            format!("AO_FLUSH={}", self.flush()),
            format!("AO_KW={}", tiling.warps),
            format!("AO_STAGES={}", tiling.stages),
            format!("AO_MIN_BLOCKS={}", tiling.room),
        ];
        let words = [
            (!self.bf16, "AO_F32_SCALE"),
            (self.table.is_some(), "AO_TABLE"),
            (tiling.early, "AO_EARLY"),
            (normed, "AO_X=1"),
            (self.float8 && !normed, "AO_X=2"),
        ];
        let said = words.into_iter().filter(|(is, _)| *is);
        defines.extend(said.map(|(_, word)| word.to_owned()));
        defines
    }
}

impl Linear {
    fn codes(&self) -> Option<Codes<'_>> {
        match &self.data {
            Data::Codes4 { packed, params, bf16, group, table, float8 } => Some(Codes {
                packed,
                params,
                bf16: *bf16,
                group: *group,
                table: *table,
                float8: *float8,
            }),
            _ => None,
        }
    }

    /// Whether one token runs in `one_token.cu`.
    pub fn streams(&self) -> bool {
        let most = most_shared(self.device.has_wgmma());
        let tiling = Streaming::choose();
        self.codes().is_some_and(|codes| tiling.shared(self.k_padded, &codes) <= most)
    }

    /// Whether the norm of x can be taken in the same kernel.
    pub(super) fn streams_normed(&self) -> bool {
        self.streams() && self.k == self.k_padded && self.codes().is_some_and(|codes| !codes.float8)
    }

    /// One token.
    pub(super) fn run_one(&self, input: &Input<'_>, y: &Output<'_>) -> CudaResult<()> {
        self.run_streaming(input, y, Streaming::choose())
    }

    /// The same cut as `tiling` says, for benches that look for the best.
    pub fn run_streaming(
        &self,
        input: &Input<'_>,
        y: &Output<'_>,
        tiling: Streaming,
    ) -> CudaResult<()> {
        let device = &self.device;
        let Some(codes) = self.codes() else { return Err(super::no_kernel(self.n, self.k)) };
        let tiles = match self.rows {
            Rows::Plain => self.n.div_ceil(16),
            Rows::GatePairs => (self.n / 2).div_ceil(8),
        };
        let blocks = tiles.min(device.multiprocessors() * tiling.blocks);
        let stages = self.k_padded.div_ceil(256 * tiling.warps);
        let mut shared = tiling.shared(self.k_padded, &codes);
        // Blocks that ask for all of their weight at once never take turns: two of them must not share a multiprocessor while
        // another has none, as they would where few other blocks, such as attention's, are in their way.
        if tiles.div_ceil(blocks) * stages <= tiling.stages {
            shared = shared.max(most_shared(device.has_wgmma()) / 2 + (4 << 10));
        }
        let grid = Grid::line(blocks, 32 * tiling.warps);
        let (x, norm, eps) = Norm::of(input);
        let defines = codes.defines(tiling, matches!(input, Input::Normed(_)));
        device.kernel(&ONE_TOKEN, &defines, "one_token")?.prefer_shared(true)?.launch(
            grid.shared(shared),
            &[
                codes.packed.into(),
                codes.params.into(),
                self.bias.as_ref().into(),
                x.into(),
                norm.into(),
                y.address().into(),
                int(self.n),
                int(self.k_padded),
                int(codes.group),
                int(epilogue(y, self.rows)),
                eps.into(),
                codes.table.unwrap_or_default().into(),
            ],
        )
    }
}
