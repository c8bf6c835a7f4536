//! The integer GEMM behind the int8 linear layers, for more tokens than a GEMV takes.
//!
//! `c[n, m] = Σ_blocks (Σ_k q[n, k] · a[m, k]) · s_w[n, b] · s_x[m, b] + zero[n, b] · Σ_k x[m, k]`, or exact 32-bit sums.
//! Activations (M, K) i16, weights (N, K) i16 written block by block by the caller's `fill`.
//! Activations are packed once: panels of 8 or 16 tokens, in which the tokens' pairs of k lie side by side. A block of
//! weights (48 rows × 32 to 128 columns, row-major) stays in the first-level cache while every panel passes. A tile
//! broadcasts a weight's pair and multiplies it with a vector of tokens.
//! Error: sums within a block are exact; blocks are added in f32, or in i32 exactly.
//! Source: the tiling of `dense_linear::panels`, with integer products.

pub(crate) mod avx2;

use std::ops::Range;

use crate::block_int16::BlockInt16;
use crate::{Cpu, Shape};

/// Rows of weights a unit multiplies: 48 × 128 × 2 bytes are 12 KiB, a multiple of every tile's rows.
const UNIT_ROWS: usize = 48;

/// Tokens of a unit: their sums for 48 rows take 96 KiB of the second-level cache.
const UNIT_TOKENS: usize = 512;

/// Tokens in a panel, rows in a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiling {
    pub(crate) width: usize,
    pub(crate) rows: usize,
}

/// Activations packed for tiles: `q[panel][k / G][token][k % G]`, `scale` and `sum` `[panel][block][token]`.
#[derive(Debug)]
pub(crate) struct Packed<T> {
    pub(crate) q: Vec<T>,
    pub(crate) scale: Vec<f32>,
    pub(crate) sum: Vec<f32>,
    pub(crate) width: usize,
    pub(crate) block: usize,
    pub(crate) blocks: usize,
}

/// One panel's block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PanelBlock<'a, T> {
    pub(crate) q: &'a [T],
    pub(crate) scale: &'a [f32],
    /// Empty when no weight has a zero.
    pub(crate) sum: &'a [f32],
}

impl<T: Copy + Default + Send + Sync> Packed<T> {
    /// Packs rows of `k` (of which the last block may lack some) in groups of `group`.
    pub(crate) fn new(
        cpu: &Cpu,
        rows: &[T],
        k: usize,
        (block, group): (usize, usize),
        width: usize,
    ) -> Packed<T> {
        let (m, blocks) = (rows.len() / k.max(1), k.div_ceil(block));
        let padded_k = blocks * block;
        let mut q = vec![T::default(); m.next_multiple_of(width) * padded_k];
        cpu.threads().chunks_mut(&mut q, width * padded_k, |p, panel| {
            let rows = &rows[p * width * k..];
            for (lane, row) in rows.chunks_exact(k).take(width).enumerate() {
                for (to, from) in panel.chunks_exact_mut(width * group).zip(row.chunks(group)) {
                    to[lane * group..][..from.len()].copy_from_slice(from);
                }
            }
        });
        Packed { q, scale: Vec::new(), sum: Vec::new(), width, block, blocks }
    }

    pub(crate) fn block(&self, panel: usize, b: usize) -> PanelBlock<'_, T> {
        let i = panel * self.blocks + b;
        let length = self.block * self.width;
        let lanes = i * self.width..(i + 1) * self.width;
        PanelBlock {
            q: &self.q[i * length..][..length],
            scale: self.scale.get(lanes.clone()).unwrap_or(&[]),
            sum: self.sum.get(lanes).unwrap_or(&[]),
        }
    }

    fn lanes(&self, m: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        let mut lanes = vec![0.0; m.next_multiple_of(self.width) * self.blocks];
        for m in 0..m {
            let (panel, lane) = (m / self.width, m % self.width);
            for b in 0..self.blocks {
                lanes[(panel * self.blocks + b) * self.width + lane] = value(m, b);
            }
        }
        lanes
    }
}

impl Packed<i16> {
    /// Packs blocks of 16-bit integers in pairs; with `x` (rows of `k`), the sums of its blocks too.
    pub(crate) fn from_blocks(
        cpu: &Cpu,
        from: &BlockInt16,
        x: Option<(&[f32], usize)>,
        width: usize,
    ) -> Packed<i16> {
        let m = from.q.len() / from.padded_k;
        let mut packed = Packed::new(cpu, &from.q, from.padded_k, (from.block, 2), width);
        packed.scale = packed.lanes(m, |m, b| from.row_scale(m)[b]);
        if let Some((x, k)) = x {
            packed.sum = packed.lanes(m, |m, b| {
                let row = &x[m * k..][..k];
                row[b * from.block..k.min((b + 1) * from.block)].iter().sum()
            });
        }
        packed
    }
}

/// A block of some rows of weights, row-major, with the rows' scales and zeros in that block.
#[derive(Debug)]
pub(crate) struct WeightBlock<T> {
    pub(crate) q: Vec<T>,
    pub(crate) scale: Vec<f32>,
    pub(crate) zero: Vec<f32>,
}

impl<T: Copy + Default> WeightBlock<T> {
    pub(crate) fn new(rows: usize, block: usize) -> WeightBlock<T> {
        let zeros = vec![0.0; rows];
        WeightBlock { q: vec![T::default(); rows * block], scale: zeros.clone(), zero: zeros }
    }
}

/// Cuts the work into units and calls `unit(rows, panels, sums)` for each, which adds to `sums[panel][row][token]`; then
/// `y[m, n] = finish(m, n, sum)`.
pub(crate) fn run<C: Copy + Default>(
    cpu: &Cpu,
    Shape { m, n, .. }: Shape,
    y: &mut [f32],
    tiling: Tiling,
    unit: impl Fn(Range<usize>, Range<usize>, &mut [C]) + Sync,
    finish: impl Fn(usize, usize, C) -> f32 + Sync,
) {
    let Tiling { width, rows: tile_rows } = tiling;
    let threads = cpu.threads();
    // Three shares of the rows a thread, so that none waits long for the last.
    let rows = threads.share(n.div_ceil(3), tile_rows).min(UNIT_ROWS);
    let few = n.div_ceil(rows) < threads.count();
    let tokens = if few { threads.share(m, width) } else { m.next_multiple_of(width) };
    threads.tiles_mut(y, n, (tokens.min(UNIT_TOKENS), rows), |_, mut tile| {
        let panels = tile.rows().start / width..tile.rows().end.div_ceil(width);
        let padded = tile.cols().len().next_multiple_of(tile_rows);
        let mut sums = vec![C::default(); panels.len() * padded * width];
        unit(tile.cols(), panels, &mut sums);
        let first_n = tile.cols().start;
        for (t, m) in tile.rows().enumerate() {
            let from = &sums[t / width * padded * width..][t % width..];
            for (i, y) in tile.row(t).iter_mut().enumerate() {
                *y = finish(m, first_n + i, from[i * width]);
            }
        }
    });
}
