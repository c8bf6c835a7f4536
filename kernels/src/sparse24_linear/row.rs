//! A row of an integer weight, in chunks of 512 columns.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use super::masks::{CHUNK_K, CODE_BYTES};
use super::{Rows, Values, int4_bytes};

/// See the head of this file; L lines of 32 bytes are a chunk's numbers: 8 of int8, 4 of int4.
#[derive(Clone, Copy)]
pub(super) struct Row<'a, const L: usize> {
    /// And two bytes more.
    codes: &'a [u8],
    q: &'a [u8],
    /// What the row's sum is multiplied with.
    pub(super) factor: f32,
    k: usize,
}

/// What a chunk is made of.
#[derive(Clone, Copy)]
pub(super) struct Part<'a, const L: usize> {
    pub(super) codes: &'a [u8; CODE_BYTES],
    pub(super) q: &'a [[u8; 32]; L],
}

/// A chunk that ends before its 512 columns do, with zeros behind.
pub(super) struct Spare<const L: usize> {
    codes: [u8; CODE_BYTES],
    q: [[u8; 32]; L],
}

impl<'a, const L: usize> Row<'a, L> {
    /// Row `n`; of a weight that is not of integers, an empty one.
    #[inline]
    pub(super) fn of(w: Rows<'a>, n: usize) -> Row<'a, L> {
        let k = w.shape.k;
        let codes = w.codes(n);
        match w.w.values {
            Values::Int8 { q, scale } => {
                let q = bytes(&q[n * k / 2..][..k / 2]);
                Row { codes, q, factor: scale[n], k }
            }
            Values::Int4 { q, .. } => {
                let q = &q[n * int4_bytes(k)..][..int4_bytes(k)];
                Row { codes, q, factor: 1.0, k }
            }
            Values::F32(_) | Values::Bf16(_) => Row { codes, q: &[], factor: 1.0, k },
        }
    }

    /// How many chunks have all their columns.
    #[inline]
    pub(super) fn whole(&self) -> usize {
        self.k / CHUNK_K
    }

    /// Chunk `c`, one that has all its columns.
    #[inline]
    pub(super) fn part(&self, c: usize) -> Part<'a, L> {
        let codes = self.codes[c * CODE_BYTES..].first_chunk();
        Part {
            codes: codes.expect("a whole chunk has all its codes"),
            q: &self.q.as_chunks::<32>().0.as_chunks::<L>().0[c],
        }
    }

    /// The chunk that has not.
    pub(super) fn rest(&self) -> Spare<L> {
        let mut spare = Spare { codes: [0; CODE_BYTES], q: [[0; 32]; L] };
        // The two bytes behind a row's codes are the next row's.
        let codes = &self.codes[self.whole() * CODE_BYTES..self.codes.len() - 2];
        spare.codes[..codes.len()].copy_from_slice(codes);
        let q = &self.q[self.whole() * L * 32..];
        spare.q.as_flattened_mut()[..q.len()].copy_from_slice(q);
        spare
    }

    /// Asks for what lies R rows behind chunk `c`, where the rows are that come next, to come to the second level.
    #[inline(always)]
    pub(super) fn fetch_ahead(&self, c: usize, rows: usize) {
        let q = self.q.as_ptr().wrapping_add(c * L * 32 + rows * self.q.len());
        for line in 0..L / 2 {
            prefetch(q.wrapping_add(64 * line));
        }
        let stride = self.codes.len() - 2;
        prefetch(self.codes.as_ptr().wrapping_add(c * CODE_BYTES + rows * stride));
    }
}

impl<const L: usize> Spare<L> {
    pub(super) fn part(&self) -> Part<'_, L> {
        Part { codes: &self.codes, q: &self.q }
    }
}

#[inline(always)]
pub(super) fn prefetch(line: *const u8) {
    // SAFETY: a prefetch reads nothing into the program and never faults, wherever it points.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
}

/// The same bytes without a sign.
#[inline]
fn bytes(q: &[i8]) -> &[u8] {
    // SAFETY: i8 and u8 have the same size and alignment, and every byte is a valid u8; the result borrows `q`.
    unsafe { std::slice::from_raw_parts(q.as_ptr().cast(), q.len()) }
}
