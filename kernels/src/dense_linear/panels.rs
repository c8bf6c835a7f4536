//! The panel GEMM: many tokens times a weight of any format.
//!
//! `y[m, n] = Σ_k x[m, k] · w[n, k]`
//! x (M, K) f32 · w (N, K), given block by block by the caller → y (M, N) f32.
//! x is packed once: panels of some 16 to 32 tokens, in which one k's numbers lie side by side. A
//! weight block (up to [`PANEL_ROWS`] rows by [`PANEL_K`] columns, row-major) is written once by
//! the caller's `fill`, stays in the second-level cache, and is multiplied with every panel. A tile
//! broadcasts a weight and multiplies it with a vector of tokens, so that weights need no
//! transposition.
//! Error: |y − f64 result| ≤ 2⁻²² · K · Σ|x·w|. Source: Goto and van de Geijn 2008.
//!
//! A quantized format prefills at GEMM speed by dequantizing in `fill`: each weight is dequantized
//! once for up to [`CHUNK_M`] tokens, into cache.

use std::ops::Range;
use std::sync::Mutex;

use half::bf16;

#[cfg(target_arch = "aarch64")]
use super::aarch64;

#[cfg(target_arch = "x86_64")]
use super::round_to_bf16;
use super::{bf16_to_f32, scalar};
#[cfg(target_arch = "x86_64")]
use super::{x86_avx2, x86_avx512, x86_bf16};
use crate::parallel::Tile;
use crate::{Cpu, Isa, Shape};

/// Columns of a panel. A tile's panel of x (256 × 16 f32 = 16 KiB) and its rows of the weight (6 ×
/// 1 KiB) fit a first-level cache of 32 KiB.
pub const PANEL_K: usize = 256;

/// Most rows of a panel: two of 96 × 1 KiB take two fifths of a second-level cache of 512 KiB.
pub const PANEL_ROWS: usize = 96;

/// Tokens that share one filled panel; their results (96 × 512 f32) take 192 KiB.
pub const CHUNK_M: usize = 512;

/// Which part of the weight a panel holds.
///
/// `k.start` is a multiple of [`PANEL_K`] and `k` is [`PANEL_K`] long unless it ends at K, so a
/// group size that divides 256 never straddles two panels. `n.start` is a multiple of 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rows of the weight, at most [`PANEL_ROWS`].
    pub n: Range<usize>,
    /// Columns of the weight, at most [`PANEL_K`].
    pub k: Range<usize>,
}

/// `y = x · Wᵀ`, computed in f32, where `fill(block, panel)` writes the weight's numbers:
/// `panel[i][j] = w[block.n.start + i, block.k.start + j]`.
///
/// `panel` has `block.n.len()` rows; of each the first `block.k.len()` numbers are used. What it
/// holds before is arbitrary. `fill` runs on several threads at once.
pub fn gemm_with_panels(
    cpu: &Cpu,
    shape: Shape,
    x: &[f32],
    y: &mut [f32],
    fill: impl Fn(Block, &mut [[f32; PANEL_K]]) + Sync,
) {
    gemm_f32(cpu, shape, x, y, &Source { fill: &fill, ahead: &|_| () });
}

/// As [`gemm_with_panels`] with x rounded to bf16 and a weight of bf16, summed in f32.
///
/// With AVX-512 BF16 this is twice as fast; elsewhere the rounded numbers are multiplied as f32.
pub fn gemm_with_bf16_panels(
    cpu: &Cpu,
    shape: Shape,
    x: &[f32],
    y: &mut [f32],
    fill: impl Fn(Block, &mut [[bf16; PANEL_K]]) + Sync,
) {
    gemm_bf16(cpu, shape, x, y, &Source { fill: &fill, ahead: &|_| () });
}

/// Where panels come from.
pub(super) struct Source<'a, P> {
    /// See [`gemm_with_panels`].
    pub(super) fill: &'a (dyn Fn(Block, &mut [[P; PANEL_K]]) + Sync),
    /// Asks for a block that will be filled soon to be brought near.
    pub(super) ahead: &'a (dyn Fn(Block) + Sync),
}

pub(super) fn gemm_f32(
    cpu: &Cpu,
    shape: Shape,
    x: &[f32],
    y: &mut [f32],
    source: &Source<'_, f32>,
) {
    match cpu.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => gemm(cpu, &x86_avx2::engine(&isa), shape, x, y, source),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => gemm(cpu, &x86_avx512::engine(&isa), shape, x, y, source),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(isa) => {
            gemm(cpu, &x86_avx512::engine(&isa.avx512()), shape, x, y, source);
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(isa) => gemm(cpu, &aarch64::engine(&isa), shape, x, y, source),
        _ => gemm(cpu, &scalar::engine(), shape, x, y, source),
    }
}

pub(super) fn gemm_bf16(
    cpu: &Cpu,
    shape: Shape,
    x: &[f32],
    y: &mut [f32],
    source: &Source<'_, bf16>,
) {
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512Vnni(isa) = cpu.isa() {
        return gemm(cpu, &x86_bf16::engine(&isa), shape, x, y, source);
    }
    let x = scalar::round_through_bf16(x);
    let fill = |block: Block, panel: &mut [[f32; PANEL_K]]| {
        let mut narrow = vec![[bf16::ZERO; PANEL_K]; panel.len()];
        (source.fill)(block, &mut narrow);
        for (wide, narrow) in panel.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
            *wide = bf16_to_f32(*narrow);
        }
    };
    gemm_f32(cpu, shape, &x, y, &Source { fill: &fill, ahead: source.ahead });
}

/// `multiply(w, x, y, width)` adds to `y (rows, width)` the product of a filled panel and a packed
/// one. `w` has a multiple of `Engine::rows` rows; `x` holds `width` tokens.
pub(super) type Multiply<'a, P> = dyn Fn(&[[P; PANEL_K]], &[P], &mut [f32], usize) + Sync + 'a;

/// How an instruction set multiplies panels of `P`.
pub(super) struct Engine<'a, P> {
    /// Panels have a multiple of so many rows.
    pub(super) rows: usize,
    /// Tokens in a panel of x.
    pub(super) width: usize,
    /// Tokens in the last panel, where that is enough.
    pub(super) narrow: usize,
    /// `pack(x, k, panel, width)` packs the rows of `x`, at most `width`, into a panel of zeros in which
    /// `pair` numbers of one token lie side by side.
    pub(super) pair: usize,
    pub(super) pack: fn(&[f32], usize, &mut [P], usize),
    pub(super) multiply: &'a Multiply<'a, P>,
}

/// x, packed panel by panel: panel p holds tokens `p * width..`, for each k (or pair of k) side by
/// side.
struct Packed<P> {
    data: Vec<P>,
    k: usize,
    width: usize,
    pair: usize,
}

/// What a thread works in: a panel to multiply, one to fill, and the results of one unit.
struct Workspace<P> {
    w: [Vec<[P; PANEL_K]>; 2],
    y: Vec<f32>,
}

fn gemm<P: Copy + Default + Send + Sync>(
    cpu: &Cpu,
    engine: &Engine<'_, P>,
    shape: Shape,
    x: &[f32],
    y: &mut [f32],
    source: &Source<'_, P>,
) {
    let Shape { m, n, k } = shape;
    assert!(
        x.len() == m * k && y.len() == m * n,
        "{shape:?} wants x of m · k and y of m · n numbers, got {} and {}",
        x.len(),
        y.len()
    );
    if m == 0 || n == 0 || k == 0 {
        return y.fill(0.0);
    }
    let threads = cpu.threads();
    // Three shares of the rows a thread, so that none waits long for the last.
    let rows = threads.share(n.div_ceil(3), engine.rows).min(PANEL_ROWS);
    let spaces = Mutex::new(Vec::new());
    for (x, y) in x.chunks(CHUNK_M * k).zip(y.chunks_mut(CHUNK_M * n)) {
        let packed = pack(cpu, engine, x, k);
        let m = y.len() / n;
        let few_rows = n.div_ceil(rows) < threads.count();
        let tokens = if few_rows { threads.share(m, engine.width) } else { m };
        threads.tiles_mut(y, n, (tokens, rows), |_, tile| {
            let space = lock(&spaces).pop();
            let mut space = space.unwrap_or_else(|| Workspace {
                w: [vec![[P::default(); PANEL_K]; rows], vec![[P::default(); PANEL_K]; rows]],
                y: Vec::new(),
            });
            multiply_tile(engine, &packed, tile, &mut space, source);
            lock(&spaces).push(space);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// One unit: some rows of the weight, all of K, some tokens.
fn multiply_tile<P: Copy + Default>(
    engine: &Engine<'_, P>,
    x: &Packed<P>,
    mut tile: Tile<'_, f32>,
    space: &mut Workspace<P>,
    source: &Source<'_, P>,
) {
    let (n, k) = (tile.cols(), x.k);
    let panels = x.panels(tile.rows());
    let padded_rows = n.len().next_multiple_of(engine.rows);
    space.y.clear();
    space.y.resize(padded_rows * x.tokens(panels.clone()), 0.0);
    let pieces = padded_rows / engine.rows;
    let filler = Filler { source, n, k, rows: engine.rows, pair: engine.pair };
    let [current, next] = &mut space.w;
    let (mut current, mut next) = (&mut current[..padded_rows], &mut next[..padded_rows]);
    (0..pieces).for_each(|piece| filler.fill(current, 0, piece));
    for start in (0..k).step_by(PANEL_K) {
        // Every so many calls of `multiply` one piece of the next panel is filled: memory and
        // arithmetic work at once.
        let (every, mut call) = (panels.len(), 0);
        // Before they are written the results are asked for, a share at each call of `multiply`, too.
        let mut rest = 0..if start + PANEL_K < k { 0 } else { tile.rows().len() };
        let share = rest.len().div_ceil(pieces * every);
        let between = || {
            if call % every == 0 {
                filler.fill(next, start + PANEL_K, call / every);
            }
            rest.by_ref().take(share).for_each(|token| fetch(tile.row(token), 0, usize::MAX));
            call += 1;
        };
        let part = (panels.clone(), start..k.min(start + PANEL_K));
        multiply_block(engine, x, part, (current, &mut space.y), between);
        std::mem::swap(&mut current, &mut next);
    }
    write_out(x, panels, padded_rows, &space.y, &mut tile);
}

/// Fills panels piece by piece.
struct Filler<'a, P> {
    source: &'a Source<'a, P>,
    n: Range<usize>,
    k: usize,
    /// Rows of a piece.
    rows: usize,
    pair: usize,
}

impl<P: Copy + Default> Filler<'_, P> {
    /// Fills a piece of the panel of columns from `start`, if there are any, and asks for the piece
    /// after it: one piece ahead, memory has time to answer and the cache's ways hold what comes,
    /// even where rows lie a power of two apart.
    fn fill(&self, panel: &mut [[P; PANEL_K]], start: usize, piece: usize) {
        if start >= self.k {
            return;
        }
        let block = self.block(start, piece);
        let (first, rows) = (piece * self.rows, block.n.len());
        let columns = block.k.len();
        let panel = &mut panel[first..first + rows];
        (self.source.fill)(block, panel);
        if !columns.is_multiple_of(self.pair) {
            // The partner of the last k is zero in x; here it must not be infinite or NaN.
            panel.iter_mut().for_each(|row| row[columns] = P::default());
        }
        let after = self.block(start, piece + 1);
        let after = if after.n.is_empty() { self.block(start + PANEL_K, 0) } else { after };
        (self.source.ahead)(after);
    }

    /// A piece's block, empty beyond the end.
    fn block(&self, start: usize, piece: usize) -> Block {
        let row = |piece: usize| self.n.end.min(self.n.start + piece * self.rows);
        let column = |start: usize| self.k.min(start);
        Block { n: row(piece)..row(piece + 1), k: column(start)..column(start + PANEL_K) }
    }
}

/// A filled panel times every packed panel: `y (panel, n, token) += w (n, k) · x (panel, k, token)`.
fn multiply_block<P: Copy>(
    engine: &Engine<'_, P>,
    x: &Packed<P>,
    (panels, k): (Range<usize>, Range<usize>),
    (w, mut y): (&[[P; PANEL_K]], &mut [f32]),
    mut between: impl FnMut(),
) {
    for p in panels.clone() {
        let (tokens, width) = x.panel(p, &k);
        let next = if p + 1 < panels.end { x.panel(p + 1, &k).0 } else { &[] };
        let share = next.len().div_ceil(w.len() / engine.rows);
        let (first, rest) = y.split_at_mut(w.len() * width);
        y = rest;
        let groups = w.chunks_exact(engine.rows).zip(first.chunks_exact_mut(engine.rows * width));
        for (group, (w, y)) in groups.enumerate() {
            between();
            fetch(next, group * share, share);
            (engine.multiply)(w, tokens, y, width);
        }
    }
}

/// Asks for `len` numbers of `data` from `start`, those that exist, to be brought near.
///
/// The last one is asked for too: it lies on a line of its own where `start` is not on a line's start.
pub(crate) fn fetch<T>(data: &[T], start: usize, len: usize) {
    let line = 64 / size_of::<T>();
    let end = data.len().min(start.saturating_add(len));
    let numbers = &data[start.min(end)..end];
    for v in numbers.iter().step_by(line).chain(numbers.last()) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch of an address that is ours changes nothing but the caches.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(v).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = v;
    }
}

/// Turns the results (n, token) of a unit into rows of y (token, n).
fn write_out<P: Copy>(
    x: &Packed<P>,
    panels: Range<usize>,
    padded_rows: usize,
    mut from: &[f32],
    tile: &mut Tile<'_, f32>,
) {
    let mut tokens = 0..tile.rows().len();
    for p in panels {
        let width = x.width_of(p);
        let (first, rest) = from.split_at(padded_rows * width);
        from = rest;
        for (lane, token) in tokens.by_ref().take(width).enumerate() {
            for (y, row) in tile.row(token).iter_mut().zip(first.chunks_exact(width)) {
                *y = row[lane];
            }
        }
    }
}

fn pack<P: Copy + Default + Send>(
    cpu: &Cpu,
    engine: &Engine<'_, P>,
    x: &[f32],
    k: usize,
) -> Packed<P> {
    let tokens = x.len() / k;
    let (width, pair) = (engine.width, engine.pair);
    let last = if (1..=engine.narrow).contains(&(tokens % width)) { engine.narrow } else { width };
    let padded = (tokens - 1) / width * width + last;
    let k_padded = k.next_multiple_of(pair);
    let mut data = vec![P::default(); padded * k_padded];
    cpu.threads().chunks_mut(&mut data, width * k_padded, |p, panel| {
        let width = panel.len() / k_padded;
        let first = p * engine.width;
        let tokens = width.min(tokens - first);
        (engine.pack)(&x[first * k..][..tokens * k], k, panel, width);
    });
    Packed { data, k, width, pair }
}

impl<P: Copy> Packed<P> {
    fn k_padded(&self) -> usize {
        self.k.next_multiple_of(self.pair)
    }

    /// The panels of a range of tokens that starts at a panel's start.
    fn panels(&self, tokens: Range<usize>) -> Range<usize> {
        tokens.start / self.width..tokens.end.div_ceil(self.width)
    }

    fn width_of(&self, panel: usize) -> usize {
        self.width.min(self.data.len() / self.k_padded() - panel * self.width)
    }

    fn tokens(&self, panels: Range<usize>) -> usize {
        panels.map(|p| self.width_of(p)).sum()
    }

    /// The numbers of a panel for columns `k`, and how many tokens it has.
    fn panel(&self, panel: usize, k: &Range<usize>) -> (&[P], usize) {
        let width = self.width_of(panel);
        let start = panel * self.width * self.k_padded() + k.start * width;
        let len = k.len().next_multiple_of(self.pair) * width;
        (&self.data[start..start + len], width)
    }
}

/// Columns that are packed at a time: their cache lines (one each) stay in the first level while one
/// token after the other goes in.
const PACK_K: usize = 64;

/// A panel of f32: for each k the tokens side by side.
pub(super) fn pack_f32(x: &[f32], k: usize, panel: &mut [f32], width: usize) {
    for (start, part) in (0..k).step_by(PACK_K).zip(panel.chunks_mut(PACK_K * width)) {
        for (lane, row) in x.chunks_exact(k).enumerate() {
            for (to, v) in part.chunks_exact_mut(width).zip(&row[start..]) {
                to[lane] = *v;
            }
        }
    }
}

/// A panel of bf16: for each pair of k the tokens' pairs side by side; the last may lack its second.
#[cfg(target_arch = "x86_64")]
pub(super) fn pack_bf16(x: &[f32], k: usize, panel: &mut [bf16], width: usize) {
    for (start, part) in (0..k).step_by(PACK_K).zip(panel.chunks_mut(PACK_K * width)) {
        for (lane, row) in x.chunks_exact(k).enumerate() {
            let row = &row[start..k.min(start + PACK_K)];
            let mut rounded = [bf16::ZERO; PACK_K];
            round_to_bf16(row, &mut rounded[..row.len()]);
            let pairs = part.as_chunks_mut::<2>().0.chunks_exact_mut(width);
            for (to, pair) in pairs.zip(rounded.as_chunks::<2>().0) {
                to[lane] = *pair;
            }
        }
    }
}
