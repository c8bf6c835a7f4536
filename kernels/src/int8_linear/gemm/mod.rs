//! The integer GEMM behind the int8 linear layers, for more tokens than a GEMV takes.
//!
//! `c[n, m] = Σ_blocks (Σ_k q[n, k] · a[m, k]) · s_w[n, b] · s_x[m, b] + zero[n, b] · Σ_k x[m, k]`, or exact 32-bit sums.
//! Activations (M, K) i16 or i8, weights (N, K) i16 or u8 written block by block by the caller's `fill`.
//! Activations are packed once: panels of 8 to 32 tokens, in which the tokens' pairs (i16) or fours (i8) of k lie side by
//! side. A block of weights (48 rows × 32 to 256 columns, row-major) stays in the first-level cache while every panel
//! passes. A tile broadcasts a weight's pair or four and multiplies it with a vector of tokens.
//! Error: sums within a block are exact; blocks are added in f32, or in i32 exactly.
//! Source: the tiling of `dense_linear::panels`, with integer products.

pub(crate) mod avx2;
pub(crate) mod avx512vnni;

use std::ops::Range;

use crate::block_int16::BlockInt16;
use crate::dense_linear::fetch;
use crate::{Cpu, Shape};

/// Rows of weights a unit multiplies: 48 × 128 × 2 bytes are 12 KiB, a multiple of every tile's rows.
const UNIT_ROWS: usize = 48;

/// Tokens of a unit: their sums for 48 rows take 96 KiB of the second-level cache.
const UNIT_TOKENS: usize = 512;

/// Tokens that leave a unit together: of every width of a panel (8, 16, 32) a divisor.
const OUT_TOKENS: usize = 8;

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

/// Columns that are packed at a time: their cache lines stay in the first level while one token after the other
/// goes in.
const PACK_COLUMNS: usize = 256;

impl<T: Copy + Default + Send + Sync> Packed<T> {
    /// Packs rows of `k` (of which the last block may lack some) in groups of G.
    pub(crate) fn new<const G: usize>(
        cpu: &Cpu,
        rows: &[T],
        k: usize,
        block: usize,
        width: usize,
    ) -> Packed<T> {
        let (m, blocks) = (rows.len() / k.max(1), k.div_ceil(block));
        let padded_k = blocks * block;
        let mut q = vec![T::default(); m.next_multiple_of(width) * padded_k];
        cpu.threads().chunks_mut(&mut q, width * padded_k, |p, panel| {
            let rows = &rows[p * width * k..];
            for (part, to) in panel.chunks_mut(PACK_COLUMNS * width).enumerate() {
                let to = to.as_chunks_mut::<G>().0;
                for (lane, row) in rows.chunks_exact(k).take(width).enumerate() {
                    pack_row(&row[part * PACK_COLUMNS..], lane, width, to);
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
        let mut packed = Packed::new::<2>(cpu, &from.q, from.padded_k, from.block, width);
        packed.scale = packed.lanes(m, |m, b| from.row_scale(m)[b]);
        if let Some((x, k)) = x {
            packed.sum = packed.lanes(m, |m, b| {
                let row = &x[m * k..][..k];
                sum(&row[b * from.block..k.min((b + 1) * from.block)])
            });
        }
        packed
    }
}

/// In eight sums, so that one addition need not wait for another.
fn sum(x: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    let (body, tail) = x.as_chunks::<8>();
    for x in body {
        sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x);
    }
    sums.iter().chain(tail).sum()
}

/// Groups of G of one token's row, into their lane.
#[inline]
fn pack_row<T: Copy, const G: usize>(row: &[T], lane: usize, width: usize, to: &mut [[T; G]]) {
    let (whole, tail) = row.as_chunks::<G>();
    let mut places = to.chunks_exact_mut(width);
    for (from, to) in whole.iter().zip(places.by_ref()) {
        to[lane] = *from;
    }
    if let Some(to) = places.next() {
        to[lane][..tail.len()].copy_from_slice(tail);
    }
}

/// A block of some rows of weights, row-major, with the rows' scales and zeros in that block.
#[derive(Debug)]
pub(crate) struct WeightBlock<T> {
    pub(crate) q: Vec<T>,
    pub(crate) scale: Vec<f32>,
    pub(crate) zero: Vec<f32>,
}

/// The rows of a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileRows<'a, T> {
    pub(crate) q: &'a [T],
    pub(crate) scale: &'a [f32],
    pub(crate) zero: &'a [f32],
}

impl<T: Copy + Default> WeightBlock<T> {
    fn tile(&self, tile: usize, rows: usize) -> TileRows<'_, T> {
        let block = self.q.len() / self.scale.len();
        let (start, end) = (tile * rows, (tile + 1) * rows);
        TileRows {
            q: &self.q[start * block..end * block],
            scale: &self.scale[start..end],
            zero: &self.zero[start..end],
        }
    }

    pub(crate) fn new(rows: usize, block: usize) -> WeightBlock<T> {
        let zeros = vec![0.0; rows];
        WeightBlock { q: vec![T::default(); rows * block], scale: zeros.clone(), zero: zeros }
    }
}

/// Where weights come from: `fill(rows, b, block)` writes block b of some rows, `ahead(row, b)` asks for a row's block to
/// be brought near.
pub(crate) struct Source<F, A> {
    pub(crate) fill: F,
    pub(crate) ahead: A,
}

/// All of K, block by block: `multiply(w, x, sums)` adds the products of a tile's rows with a panel's block to
/// `sums[row][token]`; then `finish(m, n, sums, y)` turns the sums of token m and rows n.. into results.
///
/// The next block of weights is asked for a little at every tile: all at once, the requests would wait for each other.
pub(crate) fn by_blocks<W, T, C>(
    cpu: &Cpu,
    x: &Packed<T>,
    (y, shape): (&mut [f32], Shape),
    weights: &Source<
        impl Fn(Range<usize>, usize, &mut WeightBlock<W>) + Sync,
        impl Fn(usize, usize) + Sync,
    >,
    (tile_rows, multiply): (usize, impl Fn(TileRows<'_, W>, PanelBlock<'_, T>, &mut [C]) + Sync),
    finish: impl Fn(usize, usize, &[C], &mut [f32]) + Sync,
) where
    W: Copy + Default,
    T: Copy + Default + Send + Sync,
    C: Copy + Default,
{
    let tiling = Tiling { width: x.width, rows: tile_rows };
    let unit = |rows: Range<usize>, panels: Range<usize>, sums: &mut [C], y: &mut Asked<'_>| {
        let padded = rows.len().next_multiple_of(tile_rows);
        let parts = (padded / tile_rows) * panels.len();
        let share = rows.len().div_ceil(parts);
        let tokens_share = (panels.len() * x.width).div_ceil(parts);
        let mut w = WeightBlock::new(padded, x.block);
        for b in 0..x.blocks {
            (weights.fill)(rows.clone(), b, &mut w);
            let mut next = rows.clone().filter(|_| b + 1 < x.blocks);
            let asked = if b + 1 < x.blocks { 0 } else { tokens_share };
            for (p, sums) in panels.clone().zip(sums.chunks_exact_mut(padded * x.width)) {
                let tiles = sums.chunks_exact_mut(tile_rows * x.width);
                for (tile, sums) in tiles.enumerate() {
                    next.by_ref().take(share).for_each(|row| (weights.ahead)(row, b + 1));
                    y(asked);
                    multiply(w.tile(tile, tile_rows), x.block(p, b), sums);
                }
            }
        }
    };
    run(cpu, shape, y, tiling, unit, finish);
}

/// Asks for the results of so many more tokens to be brought near: written without, each line would be waited for.
type Asked<'a> = dyn FnMut(usize) + 'a;

/// Cuts the work into units and calls `unit(rows, panels, sums, y)` for each, which adds to `sums[panel][row][token]`; then
/// `y[m, n] = finish(m, n, sum)`.
fn run<C: Copy + Default>(
    cpu: &Cpu,
    Shape { m, n, .. }: Shape,
    y: &mut [f32],
    tiling: Tiling,
    unit: impl Fn(Range<usize>, Range<usize>, &mut [C], &mut Asked<'_>) + Sync,
    finish: impl Fn(usize, usize, &[C], &mut [f32]) + Sync,
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
        let (first_n, n) = (tile.cols().start, tile.cols().len());
        let mut rest = 0..tile.rows().len();
        let mut ask = |tokens: usize| {
            rest.by_ref().take(tokens).for_each(|t| fetch(tile.row(t), 0, n));
        };
        unit(first_n..first_n + n, panels, &mut sums, &mut ask);
        let mut rows = vec![[C::default(); UNIT_ROWS]; OUT_TOKENS];
        for (i, m) in tile.rows().step_by(OUT_TOKENS).enumerate() {
            let (p, lane) = (i * OUT_TOKENS / width, i * OUT_TOKENS % width);
            let panel = &sums[p * padded * width..][..padded * width];
            // A cache line of a row's tokens at a time: token by token each line would be asked for sixteen times.
            for (j, from) in panel.chunks_exact(width).take(n).enumerate() {
                for (row, from) in rows.iter_mut().zip(&from[lane..]) {
                    row[j] = *from;
                }
            }
            for (m, row) in (m..tile.rows().end).zip(&rows) {
                finish(m, first_n, &row[..n], tile.row(m - tile.rows().start));
            }
        }
    });
}
