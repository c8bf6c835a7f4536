//! The scales and zeros of an int4 row as a GEMV takes them.

use super::masks::CHUNK_K;
use super::{Rows, Values};

/// Scales and zeros of an int4 row, one for each group of a block; zeros are those of code 0.
#[derive(Clone, Default)]
pub(super) struct Params {
    pub(super) scale: Vec<f32>,
    pub(super) zero: Vec<f32>,
}

impl Params {
    /// Of `chunks` chunks, each with `pieces`.
    pub(super) fn read(&mut self, w: Rows<'_>, n: usize, chunks: usize, pieces: usize) {
        let Values::Int4 { scale, zero, group_size, .. } = w.w.values else { return };
        let groups = w.shape.k / group_size;
        let scale = &scale[n * groups..][..groups];
        self.scale.resize(chunks * pieces, 0.0);
        let per_group = group_size / (CHUNK_K / pieces);
        spread_to(&mut self.scale, per_group, scale.iter().copied());
        if let Some(zero) = zero {
            let zero = zero[n * groups..][..groups].iter();
            self.zero.resize(chunks * pieces, 0.0);
            let of_code_0 = zero.zip(scale).map(|(zero, scale)| zero - 8.0 * scale);
            spread_to(&mut self.zero, per_group, of_code_0);
        }
    }
}

fn spread_to(to: &mut [f32], each: usize, from: impl Iterator<Item = f32>) {
    if each == 1 {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from);
        return;
    }
    to.chunks_mut(each).zip(from).for_each(|(to, from)| to.fill(from));
}
