//! One query or a few: the cache is read once, front to back, for all rows that share a key and value head.
//!
//! The keys of all heads, end to end, are cut into one equal share per thread, so that a thread's share may
//! end within a head. What a share gives for a head is partial; the parts are merged at the end by
//! their maxima, as the online softmax merges tiles.

use super::{AttentionShape, Keys, Run, Simd, WHOLE, decode_avx2, decode_avx512, run_of_new};
use crate::Cpu;
use std::ops::Range;

/// Keys of a tile: the scores of a tile are 64 numbers a row.
pub(super) const TILE: usize = 64;

/// From this many multiply-adds on (some 4 µs of one thread), a second thread saves more than the
/// microsecond that a loop costs to start.
const PARALLEL_FROM: usize = 1 << 16;

/// Keys of one head: some of those in the cache, or the new ones.
struct Segment {
    kv_head: usize,
    keys: Range<usize>,
    new: bool,
}

/// What the online softmax keeps of the rows of one head: `max` and `sum` (rows), `o` (rows, head_dim).
pub(super) struct Rows<'a> {
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) o: &'a mut [f32],
}

impl<'a> Rows<'a> {
    fn of(partial: &'a mut [f32], rows: usize) -> Rows<'a> {
        let (max, rest) = partial.split_at_mut(rows);
        let (sum, o) = rest.split_at_mut(rows);
        Rows { max, sum, o }
    }
}

pub(super) fn decode(
    simd: Simd,
    cpu: &Cpu,
    q: &[f32],
    keys: Keys<'_>,
    shape: &AttentionShape,
    out: &mut [f32],
) {
    let AttentionShape { m, heads, kv_heads, head_dim, .. } = *shape;
    let rows = m * shape.group();
    let seen = shape.visible(0).start..shape.visible(m - 1).end;
    let end = keys.cached_end(shape);
    let cached = seen.start.min(end)..seen.end.min(end);
    let work = 2 * m * heads * head_dim * seen.len();
    let shares = if work < PARALLEL_FROM { 1 } else { cpu.threads().count() };
    let mut shares: Vec<Vec<Segment>> =
        (0..shares).map(|i| share(i, shares, kv_heads, &cached)).collect();
    if keys.new.is_some() {
        let new = seen.start.max(end)..seen.end;
        let segment = |kv_head| Segment { kv_head, keys: new.clone(), new: true };
        let count = shares.len();
        (0..kv_heads).for_each(|kv_head| shares[kv_head % count].push(segment(kv_head)));
    }
    let per_head = rows * (head_dim + 2);
    let most = shares.iter().map(Vec::len).max().unwrap_or(0);
    let mut partial = vec![0.0; shares.len() * most * per_head];
    cpu.threads().chunks_mut(&mut partial, most * per_head, |i, partial| {
        for (segment, partial) in shares[i].iter().zip(partial.chunks_exact_mut(per_head)) {
            one_segment(simd, q, keys, shape, segment, Rows::of(partial, rows));
        }
    });
    for kv_head in 0..kv_heads {
        let of_head: Vec<&[f32]> = partial
            .chunks_exact(most * per_head)
            .zip(&shares)
            .flat_map(|(partial, share)| partial.chunks_exact(per_head).zip(share))
            .filter(|(_, segment)| segment.kv_head == kv_head)
            .map(|(partial, _)| partial)
            .collect();
        merge(&of_head, shape, kv_head, out);
    }
}

/// Share number `i` of `shares` of all keys of all heads.
fn share(i: usize, shares: usize, kv_heads: usize, seen: &Range<usize>) -> Vec<Segment> {
    let keys = seen.len();
    let (start, end) = (i * kv_heads * keys / shares, (i + 1) * kv_heads * keys / shares);
    let segment = |kv_head: usize| {
        let first = kv_head * keys;
        let from = start.clamp(first, first + keys) - first;
        let to = end.clamp(first, first + keys) - first;
        Segment { kv_head, keys: seen.start + from..seen.start + to, new: false }
    };
    (0..kv_heads).map(segment).filter(|segment| !segment.keys.is_empty()).collect()
}

fn one_segment(
    simd: Simd,
    q: &[f32],
    keys: Keys<'_>,
    shape: &AttentionShape,
    segment: &Segment,
    mut state: Rows<'_>,
) {
    let AttentionShape { m, heads, head_dim, .. } = *shape;
    let group = shape.group();
    let rows = m * group;
    // The rows of this head side by side, scaled: (M · group, head_dim).
    let mut scaled = Vec::with_capacity(rows * head_dim);
    for token in q.chunks_exact(heads * head_dim) {
        let q = &token[segment.kv_head * group * head_dim..][..group * head_dim];
        scaled.extend(q.iter().map(|q| q * shape.scale));
    }
    let mut room = [const { Vec::new() }; 2];
    let run = if segment.new {
        keys.gather_new(shape, segment.kv_head, &mut room);
        run_of_new(shape, &room)
    } else {
        keys.cached(shape, segment.kv_head)
    };
    state.max.fill(f32::NEG_INFINITY);
    let mut tiles = Tiles { simd, run, head_dim, wide: Vec::new() };
    let mut s = vec![0.0; rows * TILE];
    for start in segment.keys.clone().step_by(TILE) {
        let keys = start..segment.keys.end.min(start + TILE);
        tiles.scores(&scaled, &keys, &mut s);
        for (row, s) in s.chunks_exact_mut(TILE).enumerate() {
            mask(&shape.visible(row / group), &keys, s);
        }
        // The next tile's keys are fetched while this one's values are summed.
        let next = keys.end..segment.keys.end.min(keys.end + TILE);
        tiles.take(&mut s, &keys, &next, &mut state);
    }
}

/// Where the tiles of a segment come from, and which kernels take them.
struct Tiles<'a> {
    simd: Simd,
    run: Run<'a>,
    head_dim: usize,
    /// A tile as f32, where the kernel wants it so.
    wide: Vec<f32>,
}

impl Tiles<'_> {
    fn scores(&mut self, q: &[f32], keys: &Range<usize>, s: &mut [f32]) {
        let (d, rows) = (self.head_dim, self.run.rows(keys));
        match self.simd {
            Simd::Avx512(avx512) if d.is_multiple_of(WHOLE) => {
                decode_avx512::scores(avx512, q, [self.run.k, self.run.v], rows, d, s);
            }
            simd => {
                let k = self.run.k.widen(simd.avx2(), rows, &mut self.wide);
                decode_avx2::scores(simd.avx2(), q, k, d, s);
            }
        }
    }

    fn take(
        &mut self,
        s: &mut [f32],
        keys: &Range<usize>,
        next: &Range<usize>,
        state: &mut Rows<'_>,
    ) {
        let (d, rows) = (self.head_dim, self.run.rows(keys));
        let avx2 = self.simd.avx2();
        match self.simd {
            Simd::Avx512(avx512) if d.is_multiple_of(WHOLE) => {
                let next = self.run.rows(next);
                decode_avx2::take(avx2, s, d, state, |s, alpha, o| {
                    let sides = [self.run.v, self.run.k];
                    decode_avx512::values(avx512, s, sides, [&rows, &next], alpha, o);
                });
            }
            _ => {
                let v = self.run.v.widen(avx2, rows, &mut self.wide);
                decode_avx2::take(avx2, s, d, state, |s, alpha, o| {
                    decode_avx2::values(avx2, s, v, d, alpha, o);
                });
            }
        }
    }
}

/// Scores of keys that are not `visible`, or beyond the tile, become −inf.
fn mask(visible: &Range<usize>, keys: &Range<usize>, s: &mut [f32]) {
    let start = visible.start.clamp(keys.start, keys.end) - keys.start;
    let end = visible.end.clamp(keys.start, keys.end) - keys.start;
    s[..start].fill(f32::NEG_INFINITY);
    s[end..].fill(f32::NEG_INFINITY);
}

/// out = Σ_parts o · exp(max − largest) / Σ_parts sum · exp(max − largest), for the rows of one head.
fn merge(partials: &[&[f32]], shape: &AttentionShape, kv_head: usize, out: &mut [f32]) {
    let AttentionShape { m, heads, head_dim, .. } = *shape;
    let group = shape.group();
    let rows = m * group;
    for row in 0..rows {
        let head = row / group * heads + kv_head * group + row % group;
        let out = &mut out[head * head_dim..][..head_dim];
        let largest = partials.iter().map(|part| part[row]).fold(f32::NEG_INFINITY, f32::max);
        // A part in which the row sees nothing has the maximum −inf and the weight 0.
        let weight = |part: &[f32]| (part[row] - largest).exp();
        let sum: f32 = partials.iter().map(|part| part[rows + row] * weight(part)).sum();
        out.fill(0.0);
        for part in partials {
            let scale = weight(part) / sum;
            let o = &part[2 * rows + row * head_dim..][..head_dim];
            out.iter_mut().zip(o).for_each(|(out, o)| *out += o * scale);
        }
    }
}
