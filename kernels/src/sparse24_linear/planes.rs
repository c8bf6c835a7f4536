//! Activations as two planes of signed bytes, `x ≈ (256 · high + low) · scale`, in chunks of eight steps of 64 columns.
//!
//! The byte multiplier wants weights unsigned: they come with a bias (`q + 128`, or int4's 8), and zeros are the bias itself. What that
//! adds is known from x alone: bias · Σ x of each lane's four columns, taken off in integers, so that sums are exact.

use super::STEP;
use super::masks::{CHUNK, CHUNK_K};
use crate::Isa;
use crate::block_int16::BlockInt16;

/// See the head of this file.
pub(super) struct Planes {
    chunks: Vec<Chunk>,
    per_row: usize,
}

/// 512 activations of a token.
#[derive(Clone)]
pub(super) struct Chunk {
    /// High and low bytes of each step.
    pub(super) steps: [[[i8; STEP]; 2]; CHUNK],
    /// What each block's lanes have too much, negative.
    pub(super) surplus: [[i32; 16]; CHUNK],
    pub(super) scale: f32,
}

impl Planes {
    /// A chunk shares a scale, and `steps` (a divisor of its eight) are summed in integers, a block. `None` where integers cannot stand for numbers.
    pub(super) fn new(x: &[f32], k: usize, steps: usize, bias: i32) -> Option<Planes> {
        let q = BlockInt16::new(Isa::best(), x, k, CHUNK_K)?;
        let rows = x.len() / k.max(1);
        let per_row = k.div_ceil(CHUNK_K);
        let mut chunks = Vec::with_capacity(rows * per_row);
        for m in 0..rows {
            let columns = q.row(m).as_chunks::<CHUNK_K>().0.iter();
            let chunk = |(columns, scale): (&_, &f32)| Chunk::new(columns, *scale, steps, bias);
            chunks.extend(columns.zip(q.row_scale(m)).map(chunk));
        }
        Some(Planes { chunks, per_row })
    }

    pub(super) fn row(&self, m: usize) -> &[Chunk] {
        &self.chunks[m * self.per_row..][..self.per_row]
    }
}

impl Chunk {
    fn new(columns: &[i16; CHUNK_K], scale: f32, steps: usize, bias: i32) -> Chunk {
        let mut chunk = Chunk { steps: [[[0; STEP]; 2]; CHUNK], surplus: [[0; 16]; CHUNK], scale };
        for (step, q) in chunk.steps.iter_mut().zip(columns.as_chunks::<STEP>().0) {
            let [high, low] = step;
            for ((high, low), v) in high.iter_mut().zip(low).zip(q) {
                [*low, _] = v.to_le_bytes().map(u8::cast_signed);
                // |v| ≤ 127 · 257, so that the rest is 256 times a byte.
                [_, *high] = (v - i16::from(*low)).to_le_bytes().map(u8::cast_signed);
            }
        }
        for (surplus, q) in chunk.surplus.iter_mut().zip(columns.chunks_exact(steps * STEP)) {
            for (i, four) in q.as_chunks::<4>().0.iter().enumerate() {
                surplus[i % 16] -= bias * four.iter().map(|v| i32::from(*v)).sum::<i32>();
            }
        }
        chunk
    }
}
