//! Running a 2:4 layer.

use super::{Data, Kind, ROW_GRAIN, Sparse24Linear, Sparse24Tiling, quantize};
use crate::cuda::launch::int;
use crate::cuda::linear::Output;
use crate::cuda::memory::Scratch;
use crate::cuda::sources::{FEW24, PACK24, SPARSE24};
use crate::cuda::{Buffer, CudaError, CudaResult, Grid};

/// Bytes of x that a block of every GPU may have in shared memory, and one of Hopper.
const X_BYTES: [usize; 2] = [96 * 1024, 192 * 1024];

/// The specialisation of `few24.cu`.
#[derive(Clone, Copy, Debug)]
struct FewTiling {
    /// Tiles of eight tokens.
    tokens: usize,
    /// Tiles of 16 rows.
    rows: usize,
    /// Warps of a tile.
    warps: usize,
    depth: usize,
    blocks: usize,
}

impl FewTiling {
    /// For `m` tokens and `tiles` tiles of rows; as measured on an H100, see LOG.md.
    fn choose(m: usize, tiles: usize, processors: usize) -> FewTiling {
        let tokens = m.div_ceil(8).next_power_of_two();
        let each = tiles.div_ceil(processors);
        match tokens {
            1 => FewTiling { tokens, rows: each.clamp(1, 7), warps: 4, depth: 2, blocks: 1 },
            2 => FewTiling { tokens, rows: each.clamp(1, 7), warps: 2, depth: 4, blocks: 1 },
            _ => FewTiling { tokens, rows: each.clamp(1, 4), warps: 2, depth: 2, blocks: 1 },
        }
    }

    fn defines(self) -> Vec<String> {
        vec![
            format!("AO_NT={}", self.tokens),
            format!("AO_RW={}", self.rows),
            format!("AO_KW={}", self.warps),
            format!("AO_DEPTH={}", self.depth),
            format!("AO_MIN_BLOCKS={}", self.blocks),
        ]
    }
}

/// More tokens than this read int4 as bf16 once, where the tensor cores of Hopper multiply it: `few24.cu` would read it several times.
const FEW: usize = 32;

/// A weight in the order of `sparse24.cu`.
struct Wide<'a> {
    kind: Kind,
    packed: &'a Buffer<u8>,
    scale: Option<&'a Buffer<f32>>,
    pieces: usize,
    /// Made by the kernel before, which must have ended.
    fresh: bool,
}

impl Sparse24Linear {
    /// `y = x · Wᵀ (+ bias)`; x is (M, K) bf16.
    pub fn run(&self, x: &Buffer<u16>, m: usize, y: &Output<'_>) -> CudaResult<()> {
        self.run_as(Sparse24Tiling::choose(m), x, m, y)
    }

    /// The same cut as `tiling` says, for benches that look for the best.
    pub fn run_as(
        &self,
        tiling: Sparse24Tiling,
        x: &Buffer<u16>,
        m: usize,
        y: &Output<'_>,
    ) -> CudaResult<()> {
        // Held until the product is in the stream, so that no other layer's activations come between.
        let mut scratch = self.device.scratch();
        self.run_in(&mut scratch, tiling, (x, m), y)
    }

    /// The same for a caller that holds the scratch memory; takes its slots 0 and 1.
    pub(in crate::cuda) fn run_in(
        &self,
        scratch: &mut Scratch,
        tiling: Sparse24Tiling,
        (x, m): (&Buffer<u16>, usize),
        y: &Output<'_>,
    ) -> CudaResult<()> {
        let wanted = (m * self.k, m * self.n);
        assert!((x.len(), y.len()) == wanted, "{} and {} are not {wanted:?}", x.len(), y.len());
        if m == 0 {
            return Ok(());
        }
        match &self.data {
            Data::Wide { kind: kind @ Kind::Bf16, packed, pieces, .. } => {
                let weight =
                    Wide { kind: *kind, packed, scale: None, pieces: *pieces, fresh: false };
                self.wide(&weight, tiling, (x.address(), 0), m, y)
            }
            Data::Wide { kind, packed, scale: row_scale, pieces } => {
                let scale: Buffer<f32> = scratch.take(&self.device, 0, m)?;
                let q: Buffer<u8> = scratch.take(&self.device, 1, m * self.k)?;
                quantize(&self.device, *kind, x, self.k, (&q, &scale))?;
                let weight = Wide {
                    kind: *kind,
                    packed,
                    scale: row_scale.as_ref(),
                    pieces: *pieces,
                    fresh: false,
                };
                self.wide(&weight, tiling, (q.address(), scale.address()), m, y)
            }
            Data::Int4 { .. } if self.widens(m) => {
                let pieces = self.k.div_ceil(128) * 2;
                let tiles = self.n.next_multiple_of(ROW_GRAIN) / 64;
                let len = tiles * pieces * Kind::Bf16.piece();
                let packed: Buffer<u8> = scratch.take(&self.device, 1, len)?;
                self.unpack(&packed, (tiles, pieces))?;
                let weight =
                    Wide { kind: Kind::Bf16, packed: &packed, scale: None, pieces, fresh: true };
                self.wide(&weight, tiling, (x.address(), 0), m, y)
            }
            Data::Int4 { .. } => self.few(x, m, y),
        }
    }

    /// Whether int4 is multiplied as bf16.
    pub(super) fn widens(&self, m: usize) -> bool {
        m > FEW && self.device.has_wgmma()
    }

    /// Int4 to bf16 pieces.
    fn unpack(&self, to: &Buffer<u8>, (tiles, pieces): (usize, usize)) -> CudaResult<()> {
        let Data::Int4 { packed, scale, group } = &self.data else { return Ok(()) };
        let (scale, is_f32) = scale.address();
        let kernel = self.device.kernel(&PACK24, &[], "unpack24_int4")?;
        let grid = Grid { blocks: (pieces, tiles, 1), threads: 256, shared: 0 };
        kernel.launch(
            grid,
            &[
                packed.into(),
                scale.into(),
                to.into(),
                int(self.n),
                int(self.k),
                int(pieces),
                int(group / 128),
                int(self.k / group),
                int(usize::from(is_f32)),
            ],
        )
    }

    /// x and the scales of its tokens, by their addresses.
    fn wide(
        &self,
        weight: &Wide<'_>,
        tiling: Sparse24Tiling,
        (x, token_scale): (u64, u64),
        m: usize,
        y: &Output<'_>,
    ) -> CudaResult<()> {
        let Wide { kind, packed, scale, pieces, fresh } = *weight;
        let mut defines = tiling.defines(kind);
        if fresh {
            defines.push("AO_FRESH_W".to_owned());
        }
        let device = &self.device;
        let element = if kind == Kind::Bf16 { 2 } else { 1 };
        let map = device.tensor_map(x, (m, self.k), element, tiling.tokens / tiling.share)?;
        let row_tiles = self.n.div_ceil(64 * tiling.warpgroups).div_ceil(tiling.share);
        let tiles = row_tiles * m.div_ceil(tiling.tokens);
        let most = (device.multiprocessors() * tiling.blocks / tiling.share).max(1);
        let grid = Grid::line(tiles.min(most) * tiling.share, 128 * (tiling.warpgroups + 1));
        let kernel = device.kernel(&SPARSE24, &defines, "sparse24_linear")?;
        kernel.launch(
            grid.shared(tiling.shared(kind)),
            &[
                map.into(),
                packed.into(),
                scale.into(),
                token_scale.into(),
                self.bias.as_ref().into(),
                y.address().into(),
                int(m),
                int(self.n),
                int(pieces),
                int(self.n),
                int(epilogue(y)),
            ],
        )
    }

    fn few(&self, x: &Buffer<u16>, m: usize, y: &Output<'_>) -> CudaResult<()> {
        let Data::Int4 { packed, scale, group } = &self.data else { return Ok(()) };
        let (device, steps) = (&self.device, self.k.div_ceil(128) * 4);
        let token_bytes = steps * 64;
        let room = X_BYTES[usize::from(device.has_wgmma())];
        if token_bytes > room {
            return Err(CudaError::new(format!(
                "K = {} is too long for the 2:4 int4 kernel",
                self.k
            )));
        }
        // A pass reads W once.
        let most = [64, 32, 16, 8].into_iter().find(|tokens| tokens * token_bytes <= room);
        let pass = most.unwrap_or(room / token_bytes).min(m);
        let (scale, is_f32) = scale.address();
        let size = if matches!(y, Output::Bf16(_)) { 2 } else { 4 };
        for first in (0..m).step_by(pass) {
            let tokens = pass.min(m - first);
            let tiles = self.n.div_ceil(16);
            let tiling = FewTiling::choose(tokens, tiles, device.multiprocessors());
            let mut defines = tiling.defines();
            if is_f32 {
                defines.push("AO_F32_SCALE".to_owned());
            }
            let warps = tiling.rows * tiling.warps;
            let sums = warps * tiling.tokens * 8 * 17 * 4;
            let grid = Grid::line(tiles.div_ceil(tiling.rows), 32 * warps);
            let kernel = device.kernel(&FEW24, &defines, "few24")?;
            kernel.launch(
                grid.shared((tokens * token_bytes).max(sums)),
                &[
                    packed.into(),
                    scale.into(),
                    self.bias.as_ref().into(),
                    (x.address() + (first * self.k * 2) as u64).into(),
                    (y.address() + (first * self.n * size) as u64).into(),
                    int(tokens),
                    int(self.n),
                    int(self.k),
                    int(self.k),
                    int(self.n),
                    int(group / 128),
                    int(self.k / group),
                    int(epilogue(y)),
                ],
            )?;
        }
        Ok(())
    }
}

/// The kernels' names for what becomes of a sum.
pub(super) fn epilogue(y: &Output<'_>) -> usize {
    match y {
        Output::Bf16(_) => 0,
        Output::AddF32(_) => 1,
        Output::F32(_) => 2,
    }
}
