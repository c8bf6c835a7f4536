//! Layers by Hopper's warpgroup products: any number of tokens, W read once for every 256 of them and decoded in registers.

use super::{Data, Float8Scales, Linear, Output, Rows};
use crate::cuda::launch::int;
use crate::cuda::sources::WGMMA;
use crate::cuda::tensor_map::TensorMap;
use crate::cuda::{Arg, Buffer, CudaResult, Device, Grid};

/// The specialisation of `wgmma.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopperTiling {
    /// Tokens of a tile: 8, 16, 32, 64, 128 or 256.
    pub tokens: usize,
    /// Warpgroups that multiply, 64 rows each.
    pub warpgroups: usize,
    /// Loads under way, the one in use included.
    pub stages: usize,
    /// Pieces of 64 columns of a load, where x is bf16.
    pub chunks: usize,
    /// Blocks that share the tokens they read.
    pub share: usize,
    /// Blocks that share the columns of a tile.
    pub split: usize,
    /// Blocks that fit a multiprocessor.
    pub blocks: usize,
}

/// What x is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activations {
    /// (M, K padded): bf16, or codes of 8 bits.
    pub(super) x: u64,
    /// Of each token, 0 where there are none.
    pub(super) scale: u64,
}

/// How a weight's bytes are laid out in a stage of shared memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    kind: &'static str,
    /// Columns that share parameters, and the bytes of a pair of them; 0 where a row has one scale.
    group: usize,
    pair: usize,
    /// Whether both factors are 8 bits and come from shared memory.
    both8: bool,
    /// Bytes of 64 rows by 64 columns.
    chunk: usize,
}

impl HopperTiling {
    /// Columns of a stage.
    fn stage_k(self, both8: bool) -> usize {
        if both8 { 128 } else { 64 * self.chunks }
    }

    fn rows(self) -> usize {
        64 * self.warpgroups
    }

    /// Groups that a stage has parameters of, where there are groups.
    fn groups(self, layout: Layout) -> Option<usize> {
        let stage = self.stage_k(layout.both8);
        match layout.group {
            0 => Some(1),
            group if group.is_multiple_of(stage) => Some(1),
            group if stage.is_multiple_of(group) => Some(stage / group),
            _ => None,
        }
    }

    /// Bytes of shared memory of a block.
    fn shared(self, layout: Layout) -> usize {
        let stage_k = self.stage_k(layout.both8);
        let x = self.tokens * 128 * if layout.both8 { 1 } else { self.chunks };
        let w = self.warpgroups * stage_k / 64 * layout.chunk;
        let params = self.warpgroups * self.groups(layout).unwrap_or(1) * 64 * layout.pair;
        let stage = (x + w + params).next_multiple_of(1024);
        // 64 rows of up to 64 tokens on their way out, and the tokens' factors.
        let out = self.warpgroups * (self.tokens.min(64) * 144 + self.tokens * 4);
        let tail = if self.split > 1 { 0 } else { out };
        1024 + self.stages * stage + tail + 16 * self.stages
    }

    fn defines(self, layout: Layout) -> Option<Vec<String>> {
        let mut defines = vec![
            format!("AO_KIND={}", layout.kind),
            format!("AO_TN={}", self.tokens),
            format!("AO_WG={}", self.warpgroups),
            format!("AO_STAGES={}", self.stages),
            format!("AO_CHUNKS={}", self.chunks),
            format!("AO_GPS={}", self.groups(layout)?),
            format!("AO_SHARE={}", self.share),
            format!("AO_SPLIT={}", self.split),
            format!("AO_BLOCKS={}", self.blocks),
        ];
        if layout.pair == 8 {
            defines.push("AO_F32_SCALE".to_owned());
        }
        Some(defines)
    }

    /// The tiling for `m` tokens, `n` packed rows and `k` columns. Measured on an H100 with 132 multiprocessors: see LOG.md.
    fn choose(layout: Layout, (m, n, k): (usize, usize, usize), processors: usize) -> HopperTiling {
        let plain = HopperTiling {
            tokens: m.next_power_of_two().clamp(16, 256),
            warpgroups: 2,
            stages: if layout.both8 { 8 } else { 6 },
            chunks: 2,
            share: 1,
            split: 1,
            blocks: 1,
        };
        let row_tiles = n.div_ceil(128);
        // Where half of the multiprocessors have nothing to do, two blocks share the columns of a tile.
        let split = if 2 * row_tiles <= processors && k >= 256 { 2 } else { 1 };
        let tiling = match m {
            ..=32 if !layout.both8 && layout.chunk == 2048 && split == 1 => {
                let stages = if m <= 16 { 6 } else { 7 };
                HopperTiling { warpgroups: 1, stages, blocks: 2, ..plain }
            }
            _ if m <= 64 => HopperTiling { split, ..plain },
            _ if m <= 128 => {
                let stages = if layout.both8 { 6 } else { 4 };
                HopperTiling { split, stages, ..plain }
            }
            _ => {
                let tiles = row_tiles * m.div_ceil(256);
                let stages = if layout.both8 { 4 } else { 5 };
                let wide = HopperTiling { stages, chunks: 1, ..plain };
                match processors / tiles.max(1) {
                    0 if tiles >= 2 * processors && !layout.both8 => {
                        HopperTiling { share: 2, ..wide }
                    }
                    0 | 1 => wide,
                    2 => HopperTiling { split, ..wide },
                    _ => HopperTiling { tokens: 64, ..plain },
                }
            }
        };
        // Rows of an odd number of chunks, and groups that do not fit two, take one at a time.
        let one = HopperTiling { chunks: 1, ..tiling };
        let whole = layout.both8 || k.is_multiple_of(64 * tiling.chunks);
        if whole && tiling.groups(layout).is_some() { tiling } else { one }
    }
}

impl Linear {
    fn layout(&self) -> Option<Layout> {
        let both8 = Layout { kind: "INT8_BOTH", group: 0, pair: 0, both8: true, chunk: 4096 };
        Some(match &self.data {
            Data::Codes4 { bf16, group, table, .. } => Layout {
                kind: if table.is_some() { "TABLE4" } else { "INT4" },
                group: *group,
                pair: if *bf16 { 4 } else { 8 },
                both8: false,
                chunk: 2048,
            },
            Data::Codes8 { float8, .. } => {
                Layout { kind: if *float8 { "FLOAT8" } else { "INT8" }, both8: false, ..both8 }
            }
            Data::Rows8 { float8: None, .. } => both8,
            Data::Rows8 { .. } => Layout { kind: "FLOAT8_BOTH", ..both8 },
            Data::Bf16 { .. } | Data::TwoOfFour(_) | Data::Blocks(_) => return None,
        })
    }

    /// Whether this layer can be multiplied so on its GPU.
    pub(super) fn has_wgmma(&self) -> bool {
        let one = HopperTiling {
            tokens: 64,
            warpgroups: 2,
            stages: 4,
            chunks: 1,
            share: 1,
            split: 1,
            blocks: 1,
        };
        self.device.has_wgmma() && self.layout().is_some_and(|l| one.groups(l).is_some())
    }

    /// `y = x · Wᵀ (+ bias)` as its tiling is chosen.
    pub(super) fn run_wgmma(
        &self,
        activations: Activations,
        m: usize,
        y: &Output<'_>,
    ) -> CudaResult<()> {
        let Some(layout) = self.layout() else { return Err(super::no_kernel(self.n, self.k)) };
        let shape = (m, self.packed_rows(), self.k_padded);
        let tiling = HopperTiling::choose(layout, shape, self.device.multiprocessors());
        self.run_wgmma_as(tiling, activations, m, y)
    }

    /// The same cut as `tiling` says, for benches that look for the best.
    pub(super) fn run_wgmma_as(
        &self,
        tiling: HopperTiling,
        activations: Activations,
        m: usize,
        y: &Output<'_>,
    ) -> CudaResult<()> {
        let device = &self.device;
        let (Some(layout), k) = (self.layout(), self.k_padded) else {
            return Err(super::no_kernel(self.n, self.k));
        };
        let Some(defines) = tiling.defines(layout) else {
            return Err(super::no_kernel(self.n, self.k));
        };
        let (w, params, row_scale, group, table) = self.wgmma_operands();
        let element = if layout.both8 { 1 } else { 2 };
        let x_map =
            device.tensor_map(activations.x, (m, k), element, tiling.tokens / tiling.share)?;
        let w_map = if layout.both8 {
            device.tensor_map(w, (self.packed_rows(), k), 1, tiling.rows())?
        } else {
            TensorMap::NONE
        };
        let row_tiles = self.packed_rows().div_ceil(tiling.rows()).div_ceil(tiling.share);
        let tiles = row_tiles * m.div_ceil(tiling.tokens);
        let cluster = tiling.share * tiling.split;
        // Where blocks split columns each cluster takes one tile, else blocks stay and take tile after tile.
        let most = (device.multiprocessors() * tiling.blocks / cluster).max(1);
        let clusters = if tiling.split > 1 { tiles } else { tiles.min(most) };
        let grid = Grid::line(clusters * cluster, 128 * (tiling.warpgroups + 1));
        device.kernel(&WGMMA, &defines, "wgmma_linear")?.launch(
            grid.shared(tiling.shared(layout)),
            &[
                x_map.into(),
                w_map.into(),
                table,
                w.into(),
                params.into(),
                row_scale.into(),
                activations.scale.into(),
                self.bias.as_ref().into(),
                y.address().into(),
                int(m),
                int(self.n),
                int(k),
                int(self.outputs()),
                int(group),
                int(super::run::epilogue(y, self.rows)),
            ],
        )
    }

    /// W, its parameters, its rows' scales, columns of a group, the table.
    fn wgmma_operands(&self) -> (u64, u64, u64, usize, Arg) {
        let none = [0_u32; 8];
        match &self.data {
            Data::Codes4 { packed, params, group, table, .. } => {
                (packed.address(), params.address(), 0, *group, table.unwrap_or(none).into())
            }
            Data::Codes8 { packed, scale, .. } => {
                (packed.address(), 0, scale.address(), 64, none.into())
            }
            Data::Rows8 { q, scale, .. } => (q.address(), 0, scale.address(), 64, none.into()),
            Data::Bf16 { w } => (w.address(), 0, 0, 64, none.into()),
            // Has no layout of these, so that nothing asks.
            Data::TwoOfFour(_) | Data::Blocks(_) => (0, 0, 0, 64, none.into()),
        }
    }

    /// Rows of the packed weight: with gate pairs, tiles of 8 gates and their partners.
    pub(super) fn packed_rows(&self) -> usize {
        super::packed_rows(self.n, self.rows)
    }
}

/// `y = (x · scale) · (W · scale)ᵀ` of 8-bit codes that are on the GPU, x (M, K) and W (N, K), a scale a row; K is a multiple of 16.
pub(in crate::cuda) fn rows8_product(
    device: &Device,
    float8: bool,
    (m, n, k): (usize, usize, usize),
    [x, w]: [(&Buffer<u8>, &Buffer<f32>); 2],
    y: &Output<'_>,
) -> CudaResult<()> {
    let data = Data::Rows8 {
        q: w.0.clone(),
        scale: w.1.clone(),
        float8: float8.then_some(Float8Scales::Rows),
    };
    let device = device.clone();
    let layer = Linear { device, n, k, k_padded: k, rows: Rows::Plain, data, bias: None };
    if !layer.has_wgmma() {
        return Err(super::no_kernel(n, k));
    }
    layer.run_wgmma(Activations { x: x.0.address(), scale: x.1.address() }, m, y)
}
