//! Activations as the VNNI kernel reads them: 16-bit integers, every fourth k together.

use super::planes::GroupSums;
use crate::Isa;
use crate::block_int16::BlockInt16;
use crate::isa::Avx512Vnni;

/// 128 activations, in the order in which 64 bytes of codes meet them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// `quads[i][l]` is the activation of k = 4l + i: nibble i of word l.
    pub(super) quads: [[i16; 32]; 4],
    /// The scales of the sixteen sums, which eight neighbouring activations share.
    pub(super) scale: [f32; 16],
}

/// All activations of a call.
#[derive(Debug)]
pub(super) struct Quads {
    steps: Vec<Step>,
    sums: GroupSums,
    rows: usize,
    piece: usize,
}

/// One row of activations.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenRow<'a> {
    pub(super) steps: &'a [Step],
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
        // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
        let steps = unsafe { steps(&integers, rows) };
        let sums = GroupSums::new(x, &integers, (k, g));
        Some(Quads { steps, sums, rows, piece: g.min(block) })
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
        let (minus_eight, sum) = self.sums.row(m);
        TokenRow { steps: &self.steps[m * length..][..length], minus_eight, sum }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn steps(integers: &BlockInt16, rows: usize) -> Vec<Step> {
    let length = integers.padded_k.div_ceil(128);
    let empty = Step { quads: [[0; 32]; 4], scale: [0.0; 16] };
    let mut steps = vec![empty; rows * length];
    for (m, steps) in steps.chunks_exact_mut(length.max(1)).enumerate() {
        let scales = integers.row_scale(m);
        for (b, (step, q)) in steps.iter_mut().zip(integers.row(m).chunks(128)).enumerate() {
            for (l, four) in q.as_chunks::<4>().0.iter().enumerate() {
                for (quad, &q) in step.quads.iter_mut().zip(four) {
                    quad[l] = q;
                }
            }
            for (lane, scale) in step.scale.iter_mut().enumerate() {
                let k = 128 * b + 8 * lane;
                *scale = scales.get(k / integers.block).copied().unwrap_or(0.0);
            }
        }
    }
    steps
}
