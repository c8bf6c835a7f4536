//! Plain Rust: the oracle, the path of other processors, and the portable tile of the panel GEMM.

use half::{bf16, f16};

use super::panels::{Engine, PANEL_K, pack_f32};
use super::{Shape, Weight, nearest_bf16};
use crate::parallel::Tile;

/// The formula, one number after the other, each exact product added in f64.
pub fn oracle(w: impl Fn(usize, usize) -> f64, x: &[f32], y: &mut [f64], shape: Shape) {
    for m in 0..shape.m {
        for n in 0..shape.n {
            y[m * shape.n + n] =
                (0..shape.k).map(|k| f64::from(x[m * shape.k + k]) * w(n, k)).sum();
        }
    }
}

/// Some rows of the weight with all tokens; `tile` holds their columns of y.
pub(super) fn gemv(w: Weight<'_>, x: &[f32], tile: Tile<'_, f32>, shape: Shape) {
    match w {
        Weight::F32(w) => rows(w, x, tile, shape.k, |w| w),
        Weight::Bf16(w) => rows(w, x, tile, shape.k, bf16::to_f32),
        Weight::F16(w) => rows(w, x, tile, shape.k, f16::to_f32),
    }
}

fn rows<T: Copy>(w: &[T], x: &[f32], mut tile: Tile<'_, f32>, k: usize, widen: impl Fn(T) -> f32) {
    for (m, x) in x.chunks_exact(k).enumerate() {
        for (y, w) in tile.row(m).iter_mut().zip(w.chunks_exact(k)) {
            *y = w.iter().zip(x).map(|(&w, &x)| widen(w) * x).sum();
        }
    }
}

/// Rows of W in a tile.
const ROWS: usize = 4;
/// Tokens in a full panel.
const WIDTH: usize = 8;

/// The panel GEMM's tile for every processor.
pub(super) fn engine() -> Engine<'static, f32> {
    Engine {
        rows: ROWS,
        width: WIDTH,
        narrow: WIDTH,
        pair: 1,
        pack: pack_f32,
        multiply: &|w, x, y, _| {
            let tiles = y.as_chunks_mut::<WIDTH>().0.as_chunks_mut::<ROWS>().0;
            for (w, y) in w.as_chunks::<ROWS>().0.iter().zip(tiles) {
                tile(w, x.as_chunks::<WIDTH>().0, y);
            }
        },
    }
}

fn tile(w: &[[f32; PANEL_K]; ROWS], x: &[[f32; WIDTH]], y: &mut [[f32; WIDTH]; ROWS]) {
    for (k, x) in x.iter().enumerate() {
        for (w, y) in w.iter().zip(y.iter_mut()) {
            for (y, x) in y.iter_mut().zip(x) {
                *y += w[k] * x;
            }
        }
    }
}

/// x as [`super::bf16_bf16`] sees it, still f32.
pub(super) fn round_through_bf16(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&v| nearest_bf16(v).to_f32()).collect()
}
