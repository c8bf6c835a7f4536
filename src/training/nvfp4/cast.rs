//! Factors as NVFP4 holds them.

use crate::kernels::dtypes::e4m3fn_decode;
use crate::kernels::{Cpu, float4_round, stochastic_round};
use crate::quantization::primitives::{NVFP4_BLOCK, nvfp4_scale, per_tensor_amax_to_scale};

/// How a scaled number becomes an fp4.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rounding {
    /// To the nearest.
    Nearest,
    /// At random, from a seed and the place.
    AtRandom(u64),
}

impl Rounding {
    /// The fp4 of a scaled number.
    fn code(self, x: f32, place: u64) -> f32 {
        match self {
            Rounding::Nearest => float4_round::e2m1(x),
            Rounding::AtRandom(seed) => {
                float4_round::e2m1_at_random(x, stochastic_round::uniform(seed, place))
            }
        }
    }
}

/// `values · above`: codes times their block's scale, and the scale of all.
#[derive(Debug)]
pub(super) struct Fp4 {
    pub(super) values: Vec<f32>,
    pub(super) above: f32,
}

impl Fp4 {
    /// Rows whose blocks are 16 numbers side by side; the length of a row is a multiple of 16.
    pub(super) fn rows(cpu: &Cpu, x: &[f32], rounding: Rounding) -> Fp4 {
        let above = above(x);
        let mut values = x.to_vec();
        let share = cpu.threads().share(x.len(), NVFP4_BLOCK);
        cpu.threads().chunks_mut(&mut values, share, |part, values| {
            for (i, block) in values.chunks_mut(NVFP4_BLOCK).enumerate() {
                let (scale, factor) = scale(largest(block), above);
                let place = (part * share + i * NVFP4_BLOCK) as u64;
                for (j, x) in block.iter_mut().enumerate() {
                    *x = rounding.code(*x * factor, place + j as u64) * scale;
                }
            }
        });
        Fp4 { values, above }
    }

    /// A matrix with rows of `k` in tiles of 16 × 16: its transposed has the same codes.
    pub(super) fn tiles(cpu: &Cpu, x: &[f32], k: usize) -> Fp4 {
        let above = above(x);
        let mut values = x.to_vec();
        cpu.threads().chunks_mut(&mut values, NVFP4_BLOCK * k.max(1), |_, band| {
            (0..k).step_by(NVFP4_BLOCK).for_each(|first| tile(band, k, first, above));
        });
        Fp4 { values, above }
    }
}

/// Rounds the tile of a band whose first column it is.
fn tile(band: &mut [f32], k: usize, first: usize, above: f32) {
    let columns = first..first + NVFP4_BLOCK;
    let amaxes = band.chunks_exact(k).map(|row| largest(&row[columns.clone()]));
    let (scale, factor) = scale(amaxes.fold(0.0, larger), above);
    for row in band.chunks_exact_mut(k) {
        row[columns.clone()].iter_mut().for_each(|x| *x = float4_round::e2m1(*x * factor) * scale);
    }
}

/// The scale of all; 1 where all are zero.
fn above(x: &[f32]) -> f32 {
    let amax = largest(x);
    if amax == 0.0 { 1.0 } else { per_tensor_amax_to_scale(amax) }
}

/// A block's scale, and what its numbers are multiplied by before.
fn scale(amax: f32, above: f32) -> (f32, f32) {
    let (code, factor) = nvfp4_scale(amax, Some(above));
    (e4m3fn_decode(code), factor)
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most, x| larger(most, x.abs()))
}

/// NaN where one is.
fn larger(most: f32, x: f32) -> f32 {
    if x > most || x.is_nan() { x } else { most }
}

/// The columns of `x` (rows of `k`) as rows.
pub(super) fn transposed(cpu: &Cpu, x: &[f32], k: usize) -> Vec<f32> {
    let m = x.len().checked_div(k).unwrap_or(0);
    let mut y = vec![0.0; x.len()];
    cpu.threads().chunks_mut(&mut y, NVFP4_BLOCK * m.max(1), |part, y| {
        let first = part * NVFP4_BLOCK;
        for (row, x) in x.chunks_exact(k).enumerate() {
            for (column, x) in x[first..].iter().take(y.len() / m).enumerate() {
                y[column * m + row] = *x;
            }
        }
    });
    y
}
