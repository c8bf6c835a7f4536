//! Activations as two planes of signed bytes, `x ≈ (256 · high + low) · scale`, in steps of 64 columns.
//!
//! The byte multiplier wants weights unsigned: they come with a bias (`q + 128`, or int4's 8), and zeros are the bias itself. What that
//! adds is known from x alone: bias · Σ x of each lane's four columns, taken off in integers, so that sums are exact.

use crate::Isa;
use crate::block_int16::BlockInt16;

/// Columns of a step.
pub(super) const STEP: usize = 64;

/// See the head of this file.
pub(super) struct Planes {
    /// High and low bytes of each step.
    steps: Vec<[[i8; STEP]; 2]>,
    /// What each block's lanes have too much, negative.
    surplus: Vec<[i32; 16]>,
    scale: Vec<f32>,
    blocks: usize,
    steps_per_row: usize,
}

/// One token's.
#[derive(Clone, Copy)]
pub(super) struct TokenRow<'a> {
    pub(super) steps: &'a [[[i8; STEP]; 2]],
    pub(super) surplus: &'a [[i32; 16]],
    pub(super) scale: &'a [f32],
}

impl Planes {
    /// Blocks of `block` columns (a multiple of 64) share a scale. `None` where integers cannot stand for a number.
    pub(super) fn new(x: &[f32], k: usize, block: usize, bias: i32) -> Option<Planes> {
        let q = BlockInt16::new(Isa::best(), x, k, block)?;
        let (blocks, steps_per_row) = (q.padded_k / block, q.padded_k / STEP);
        let split = |&v: &i16| {
            let [low, _] = v.to_le_bytes();
            let low = low.cast_signed();
            // |v| ≤ 127 · 257, so that the rest is 256 times a byte.
            let [_, high] = (v - i16::from(low)).to_le_bytes();
            (high.cast_signed(), low)
        };
        let step = |q: &[i16; STEP]| {
            let mut planes = [[0; STEP]; 2];
            for (i, v) in q.iter().enumerate() {
                (planes[0][i], planes[1][i]) = split(v);
            }
            planes
        };
        let steps = q.q.as_chunks::<STEP>().0.iter().map(step).collect();
        let lanes = |q: &[i16]| {
            let mut lanes = [0; 16];
            for step in q.as_chunks::<STEP>().0 {
                for (lane, four) in lanes.iter_mut().zip(step.as_chunks::<4>().0) {
                    *lane -= bias * four.iter().map(|v| i32::from(*v)).sum::<i32>();
                }
            }
            lanes
        };
        let surplus = q.q.chunks_exact(block).map(lanes).collect();
        Some(Planes { steps, surplus, scale: q.scale, blocks, steps_per_row })
    }

    pub(super) fn row(&self, m: usize) -> TokenRow<'_> {
        TokenRow {
            steps: &self.steps[m * self.steps_per_row..][..self.steps_per_row],
            surplus: &self.surplus[m * self.blocks..][..self.blocks],
            scale: &self.scale[m * self.blocks..][..self.blocks],
        }
    }
}
