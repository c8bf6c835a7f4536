//! Many queries: tiles of keys against panels of query rows, with the online softmax.
//!
//! A row is one query of one head; the rows of one key and value head are put side by side, 48 to a panel,
//! as the lanes of vectors. Keys and values are then read in the order they lie in the cache, one number
//! spread over all lanes, and the softmax needs no sum across lanes.
//!
//! scores (keys, 48) = K (keys, head_dim) · Qᵀ (head_dim, 48)
//! Oᵀ (head_dim, 48) = Oᵀ · alpha + Vᵀ (head_dim, keys) · P (keys, 48)

use super::{AttentionShape, Keys, Run, Simd, avx2, avx512, run_of_new};
use crate::Cpu;
use std::ops::Range;
use std::sync::Mutex;

/// Rows of a panel: six vectors of AVX2, three of AVX-512.
pub(super) const LANES: usize = 48;
/// Keys of a tile: their scores (11 KiB) and a head of 64 (15 KiB of keys, then of values) share 32 KiB of L1;
/// whole rounds of the six rows that AVX2 takes at once.
const TILE: usize = 60;
/// Panels that share one walk over the keys: a cache of halves is widened once for all of them.
const PANELS: usize = 2;

/// A row of lanes.
pub(super) type Lanes = [f32; LANES];

/// The queries of one part of the work, and the rows of `out` that they fill.
struct Part<'a> {
    queries: Range<usize>,
    kv_head: usize,
    out: Vec<&'a mut [f32]>,
}

pub(super) fn prefill(
    simd: Simd,
    cpu: &Cpu,
    q: &[f32],
    keys: Keys<'_>,
    shape: &AttentionShape,
    out: &mut [f32],
) {
    let AttentionShape { m, kv_heads, head_dim, .. } = *shape;
    let group = shape.group();
    let queries = (PANELS * LANES / group).max(1);
    let tiles = m.div_ceil(queries);
    let part = |i: usize| Part {
        queries: i / kv_heads * queries..m.min((i / kv_heads + 1) * queries),
        kv_head: i % kv_heads,
        out: Vec::with_capacity(queries),
    };
    let mut parts: Vec<Part<'_>> = (0..tiles * kv_heads).map(part).collect();
    for (at, out) in out.chunks_exact_mut(group * head_dim).enumerate() {
        let (query, kv_head) = (at / kv_heads, at % kv_heads);
        parts[query / queries * kv_heads + kv_head].out.push(out);
    }
    // The last queries see the most keys: begun first, they do not keep one thread waiting at the end.
    let parts: Vec<Mutex<Part<'_>>> = parts.into_iter().rev().map(Mutex::new).collect();
    cpu.threads().run(parts.len(), |i| {
        let mut part = parts[i].lock().unwrap_or_else(|broken| broken.into_inner());
        one_part(simd, q, keys, shape, &mut part);
    });
}

/// Rows side by side, with what the online softmax keeps of each.
struct Panel {
    /// (head_dim, 48), scaled.
    q: Vec<Lanes>,
    /// (head_dim, 48), the weighted sum of values so far.
    o: Vec<Lanes>,
    /// The largest score so far.
    max: Lanes,
    /// Σ exp(score − max) so far.
    sum: Lanes,
    /// The first key and the one after the last that each lane sees.
    starts: [usize; LANES],
    ends: [usize; LANES],
}

impl Panel {
    /// The rows from `first_row` on; lanes beyond the last row repeat its keys with a query of zeros.
    fn new(q: &[f32], shape: &AttentionShape, part: &Part<'_>, first_row: usize) -> Panel {
        let AttentionShape { heads, head_dim, .. } = *shape;
        let group = shape.group();
        let mut panel = Panel {
            q: vec![[0.0; LANES]; head_dim],
            o: vec![[0.0; LANES]; head_dim],
            max: [f32::NEG_INFINITY; LANES],
            sum: [0.0; LANES],
            starts: [0; LANES],
            ends: [0; LANES],
        };
        let rows = part.queries.len() * group;
        for lane in 0..LANES {
            let row = first_row + lane;
            let query = part.queries.start + row.min(rows - 1) / group;
            let visible = shape.visible(query);
            (panel.starts[lane], panel.ends[lane]) = (visible.start, visible.end);
            if row < rows {
                let head = part.kv_head * group + row % group;
                let q = &q[(query * heads + head) * head_dim..][..head_dim];
                panel.q.iter_mut().zip(q).for_each(|(lanes, q)| lanes[lane] = q * shape.scale);
            }
        }
        panel
    }

    /// Takes the keys and values at `keys` in; `k` and `v` hold their rows.
    fn take(&mut self, simd: Simd, keys: &Range<usize>, k: &[f32], v: &[f32], s: &mut [Lanes]) {
        let head_dim = self.q.len();
        // Queries go up along the lanes, and with them both ends of what they see.
        let start = keys.start.max(self.starts[0]);
        let end = keys.end.min(self.ends[LANES - 1]);
        if start >= end {
            return;
        }
        let rows = (start - keys.start) * head_dim..(end - keys.start) * head_dim;
        let s = &mut s[..end - start];
        match simd {
            Simd::Avx2(token) => avx2::scores(token, &k[rows.clone()], &self.q, s),
            Simd::Avx512(token) => avx512::scores(token, &k[rows.clone()], &self.q, s),
        }
        for (key, s) in (start..end).zip(s.iter_mut()) {
            if key >= self.ends[0] || key < self.starts[LANES - 1] {
                self.mask(key, s);
            }
        }
        let mut alpha = [0.0; LANES];
        match simd {
            Simd::Avx2(token) => {
                avx2::softmax_step(token, s, &mut self.max, &mut self.sum, &mut alpha);
                avx2::values(token, &v[rows], s, &alpha, &mut self.o);
            }
            Simd::Avx512(token) => {
                avx512::softmax_step(token, s, &mut self.max, &mut self.sum, &mut alpha);
                avx512::values(token, &v[rows], s, &alpha, &mut self.o);
            }
        }
    }

    /// Takes `key` from the sight of the lanes that do not see it.
    fn mask(&self, key: usize, s: &mut Lanes) {
        for ((s, &start), &end) in s.iter_mut().zip(&self.starts).zip(&self.ends) {
            if key < start || key >= end {
                *s = f32::NEG_INFINITY;
            }
        }
    }
}

fn one_part(simd: Simd, q: &[f32], keys: Keys<'_>, shape: &AttentionShape, part: &mut Part<'_>) {
    let head_dim = shape.head_dim;
    let rows = part.queries.len() * shape.group();
    let mut panels: Vec<Panel> =
        (0..rows).step_by(LANES).map(|row| Panel::new(q, shape, part, row)).collect();
    let seen = shape.visible(part.queries.start).start..shape.visible(part.queries.end - 1).end;
    let end = keys.cached_end(shape);
    let cached = seen.start.min(end)..seen.end.min(end);
    walk(simd, keys.cached(shape, part.kv_head), cached, &mut panels);
    if keys.new.is_some() {
        let mut room = [const { Vec::new() }; 2];
        keys.gather_new(shape, part.kv_head, &mut room);
        walk(simd, run_of_new(shape, &room), seen.start.max(end)..seen.end, &mut panels);
    }
    let group = shape.group();
    for (query, out) in part.out.iter_mut().enumerate() {
        for (g, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let row = query * group + g;
            let (panel, lane) = (&panels[row / LANES], row % LANES);
            let scale = 1.0 / panel.sum[lane];
            out.iter_mut().zip(&panel.o).for_each(|(out, o)| *out = o[lane] * scale);
        }
    }
}

/// Shows every panel the keys and values of `seen`, tile after tile.
fn walk(simd: Simd, run: Run<'_>, seen: Range<usize>, panels: &mut [Panel]) {
    let mut s = vec![[0.0; LANES]; TILE];
    let [mut k_wide, mut v_wide] = [const { Vec::new() }; 2];
    for first in seen.clone().step_by(TILE) {
        let keys = first..seen.end.min(first + TILE);
        let k = run.k.widen(simd.avx2(), run.rows(&keys), &mut k_wide);
        let v = run.v.widen(simd.avx2(), run.rows(&keys), &mut v_wide);
        for panel in &mut *panels {
            panel.take(simd, &keys, k, v, &mut s);
        }
    }
}
