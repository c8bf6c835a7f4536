//! Activations as the VNNI kernel reads them: 16-bit integers as two int8 planes, even k apart from odd k.

use super::planes::GroupSums;
use crate::Isa;
use crate::block_int16::BlockInt16;
use crate::isa::Avx512Vnni;

/// Activations of a step, which meet 64 bytes of codes.
const STEP: usize = 128;

/// 128 activations `q = 256 · high + low`: those of even k meet low nibbles, those of odd k high ones.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Step {
    pub(super) even_high: [i8; 64],
    pub(super) odd_high: [i8; 64],
    pub(super) even_low: [i8; 64],
    pub(super) odd_low: [i8; 64],
}

/// All activations of a call.
#[derive(Debug)]
pub(super) struct Quads {
    steps: Vec<Step>,
    /// One for each piece of each step.
    scale: Vec<f32>,
    sums: GroupSums,
    rows: usize,
    piece: usize,
}

/// One row of activations.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenRow<'a> {
    pub(super) steps: &'a [Step],
    pub(super) scale: &'a [f32],
    pub(super) minus_eight: &'a [f32],
    pub(super) sum: &'a [f32],
}

impl Quads {
    /// `x` (rows of K, groups of G) in blocks; `None` as [`BlockInt16::new`].
    pub(super) fn new(
        isa: Avx512Vnni,
        x: &[f32],
        (k, g): (usize, usize),
        block: usize,
    ) -> Option<Quads> {
        let integers = BlockInt16::new(Isa::Avx512Vnni(isa), x, k, block)?;
        let rows = x.len() / k.max(1);
        let piece = g.min(block);
        // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
        let steps = unsafe { steps(&integers, rows) };
        let pieces = integers.padded_k.div_ceil(STEP) * STEP / piece;
        let mut scale = Vec::with_capacity(rows * pieces);
        for m in 0..rows {
            let blocks = integers.row_scale(m);
            let of_piece = |p: usize| blocks.get(p * piece / block).copied().unwrap_or(0.0);
            scale.extend((0..pieces).map(of_piece));
        }
        let sums = GroupSums::new(x, &integers, (k, g));
        Some(Quads { steps, scale, sums, rows, piece })
    }

    /// The longest run of codes that surely shares a scale.
    pub(super) fn piece(&self) -> usize {
        self.piece
    }

    /// M.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn row(&self, m: usize) -> TokenRow<'_> {
        let length = self.steps.len() / self.rows;
        let pieces = self.scale.len() / self.rows;
        let (minus_eight, sum) = self.sums.row(m);
        TokenRow {
            steps: &self.steps[m * length..][..length],
            scale: &self.scale[m * pieces..][..pieces],
            minus_eight,
            sum,
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn steps(integers: &BlockInt16, rows: usize) -> Vec<Step> {
    let length = integers.padded_k.div_ceil(STEP);
    let zeros = [0; 64];
    let empty = Step { even_high: zeros, odd_high: zeros, even_low: zeros, odd_low: zeros };
    let mut steps = vec![empty; rows * length];
    for (m, steps) in steps.chunks_exact_mut(length.max(1)).enumerate() {
        let (whole, tail) = integers.row(m).as_chunks::<STEP>();
        for (step, q) in steps.iter_mut().zip(whole) {
            step.put(q);
        }
        if let (false, Some(step)) = (tail.is_empty(), steps.last_mut()) {
            let mut q = [0; STEP];
            q[..tail.len()].copy_from_slice(tail);
            step.put(&q);
        }
    }
    steps
}

impl Step {
    /// 128 is added before a high byte is taken, so that what the signed low byte lacks is carried.
    #[inline(always)]
    fn put(&mut self, q: &[i16; STEP]) {
        let byte = |q: i16| q.to_le_bytes()[0].cast_signed();
        for (i, &[even, odd]) in q.as_chunks::<2>().0.iter().enumerate() {
            self.even_high[i] = byte((even + 128) >> 8);
            self.odd_high[i] = byte((odd + 128) >> 8);
            self.even_low[i] = byte(even);
            self.odd_low[i] = byte(odd);
        }
    }
}
