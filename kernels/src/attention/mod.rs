//! `out[i, h] = Σ_j softmax_j(scale · q[i, h] · k[h / G, j]) · v[h / G, j]`, over the keys j that query i may see:
//! `past + i − window < j ≤ past + i`, and G = heads / kv_heads query heads share a key and value head.
//! q (M, heads, head_dim) f32 · k, v of a [`KvCache`] (kv_heads, capacity, head_dim) in its format → out (M, heads, head_dim) f32.
//! All row-major; the cache holds past + M entries, query i's own at past + i, or past ones while the M new come in f32 beside it.
//! Error against the dequantized cache: |out − f64 result| ≤ (K + 8 · head_dim + 64) · 2⁻²⁴ · max |v| · (1 + max |score|), K the keys seen.
//! Source: Ainslie et al. 2023 (arXiv 2305.13245), grouped queries; Dao 2023 (arXiv 2307.08691), online softmax; torchao for the new
//! keys that stay unquantized (X27), and for masks that are never built but follow from past, M and the window (its linear causal mask).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod decode;
#[cfg(target_arch = "x86_64")]
mod decode_avx2;
#[cfg(target_arch = "x86_64")]
mod decode_avx512;
#[cfg(target_arch = "x86_64")]
mod prefill;

use crate::kv_cache::{CacheFormat, KvCache, Rows};
use crate::{Cost, Cpu, Isa};
use std::ops::Range;

/// The shape of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Queries: tokens of this call.
    pub m: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Tokens in the cache before this call's.
    pub past: usize,
    /// Tokens the cache has room for.
    pub capacity: usize,
    /// How many tokens back a query sees, itself counted; `None` sees all.
    pub window: Option<usize>,
    /// What scores are multiplied by, mostly 1 / √head_dim.
    pub scale: f32,
}

impl AttentionShape {
    /// Query heads of one key and value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The keys that query `i` sees.
    pub fn visible(&self, i: usize) -> Range<usize> {
        let end = self.past + i + 1;
        let window = self.window.unwrap_or(end);
        end.saturating_sub(window)..end
    }

    fn check(&self, q: &[f32], keys: &Keys<'_>, out: &[f32]) {
        let AttentionShape { m, heads, kv_heads, head_dim, past, capacity, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "attention: {heads} heads cannot share {kv_heads} key heads evenly"
        );
        assert!(past + m <= capacity, "attention: {past} + {m} tokens, room for {capacity}");
        assert!(self.window != Some(0), "attention: a window of 0 shows nothing");
        assert_eq!(q.len(), m * heads * head_dim, "attention: q must be (M, heads, head_dim)");
        assert_eq!(out.len(), q.len(), "attention: out must be as long as q");
        let wanted = [kv_heads, capacity, head_dim];
        assert_eq!(keys.cache.shape(), wanted, "attention: the cache must have the call's shape");
        if let Some([k, v]) = keys.new {
            assert_eq!(k.len(), m * kv_heads * head_dim, "attention: new keys for M tokens");
            assert_eq!(v.len(), k.len(), "attention: v must be as long as k");
        }
    }
}

/// The keys and values of a call.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// Those of the tokens before, and of this call's where `new` is `None`.
    pub cache: &'a KvCache,
    /// The layer of the cache.
    pub layer: usize,
    /// Keys and values `(M, kv_heads, head_dim)` of this call's tokens, which then are not looked up in the cache.
    pub new: Option<[&'a [f32]; 2]>,
}

/// Keys of one head that lie side by side: `k` and `v` hold key `first_key` in row `first_row`.
#[derive(Clone, Copy, Debug)]
struct Run<'a> {
    k: Rows<'a>,
    v: Rows<'a>,
    first_key: usize,
    first_row: usize,
}

impl Run<'_> {
    fn rows(&self, keys: &Range<usize>) -> Range<usize> {
        let row = |key: usize| key - self.first_key + self.first_row;
        row(keys.start)..row(keys.end)
    }
}

impl<'a> Keys<'a> {
    /// The keys of a head that are in the cache.
    fn cached(&self, shape: &AttentionShape, kv_head: usize) -> Run<'a> {
        let (k, v) = (self.cache.keys(self.layer), self.cache.values(self.layer));
        Run { k, v, first_key: 0, first_row: kv_head * shape.capacity }
    }

    /// How many keys of each head the cache is asked for.
    fn cached_end(&self, shape: &AttentionShape) -> usize {
        if self.new.is_some() { shape.past } else { shape.past + shape.m }
    }

    /// The new keys and values of a head, row after row, in `room`.
    fn gather_new(&self, shape: &AttentionShape, kv_head: usize, room: &mut [Vec<f32>; 2]) {
        let Some(new) = self.new else { return };
        for (room, new) in room.iter_mut().zip(new) {
            room.clear();
            for token in new.chunks_exact(shape.kv_heads * shape.head_dim) {
                room.extend_from_slice(&token[kv_head * shape.head_dim..][..shape.head_dim]);
            }
        }
    }
}

/// New keys that [`Keys::gather_new`] put side by side.
fn run_of_new<'a>(shape: &AttentionShape, [k, v]: &'a [Vec<f32>; 2]) -> Run<'a> {
    let rows = |numbers| Rows::f32(numbers, shape.head_dim);
    Run { k: rows(k), v: rows(v), first_key: shape.past, first_row: 0 }
}

/// Attention of `m` queries over keys and values; see the head of this file.
pub fn attention(cpu: &Cpu, q: &[f32], keys: Keys<'_>, shape: &AttentionShape, out: &mut [f32]) {
    shape.check(q, &keys, out);
    if out.is_empty() {
        return;
    }
    match cpu.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => tiled(Simd::Avx2(avx2), cpu, q, keys, shape, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => tiled(Simd::Avx512(avx512), cpu, q, keys, shape, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => tiled(Simd::Avx512(vnni.avx512()), cpu, q, keys, shape, out),
        _ => attention_scalar(cpu, q, keys, shape, out),
    }
}

/// From this many rows (queries times heads that share their keys) on, rows fill the lanes of `prefill`
/// well enough to beat `decode`, which reads a tile of keys once for every four rows.
const PREFILL_FROM: usize = 16;

/// The instruction sets that the tiles are written for.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
enum Simd {
    Avx2(crate::isa::Avx2),
    Avx512(crate::isa::Avx512),
}

#[cfg(target_arch = "x86_64")]
impl Simd {
    fn avx2(self) -> crate::isa::Avx2 {
        match self {
            Simd::Avx2(avx2) => avx2,
            Simd::Avx512(avx512) => avx512.avx2(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn tiled(
    simd: Simd,
    cpu: &Cpu,
    q: &[f32],
    keys: Keys<'_>,
    shape: &AttentionShape,
    out: &mut [f32],
) {
    if shape.m * shape.group() < PREFILL_FROM || shape.m == 1 {
        decode::decode(simd, cpu, q, keys, shape, out);
    } else {
        prefill::prefill(simd, cpu, q, keys, shape, out);
    }
}

/// What one call moves and computes: the visible cache read once, q read, out written; an exp counts as one.
pub fn cost(shape: &AttentionShape, format: CacheFormat) -> Cost {
    let AttentionShape { m, heads, kv_heads, head_dim, .. } = *shape;
    let seen: usize = (0..m).map(|i| shape.visible(i).len()).sum();
    let read = if m == 0 { 0 } else { shape.visible(m - 1).end - shape.visible(0).start };
    Cost {
        bytes: (8 * m * heads * head_dim + 2 * read * kv_heads * format.row_nbytes(head_dim))
            as u64,
        flops: (seen * heads * (4 * head_dim + 4)) as u64,
    }
}

/// The kernel that runs on `isa` for this shape and format, such as `x86-decode-attention-int8-avx512`.
pub fn kernel_name(isa: Isa, shape: &AttentionShape, format: CacheFormat) -> String {
    let few = shape.m * shape.group() < PREFILL_FROM || shape.m == 1;
    let kind = if few { "decode" } else { "prefill" };
    let isa = match isa {
        Isa::Scalar | Isa::Neon(_) => return format!("scalar-attention-{}", format.name()),
        Isa::Avx2(_) => "avx2",
        // Heads of other lengths than decode_avx512 takes.
        _ if few && !shape.head_dim.is_multiple_of(WHOLE) => "avx2",
        _ => "avx512",
    };
    format!("x86-{kind}-attention-{}-{isa}", format.name())
}

/// Numbers that the AVX-512 decode kernel takes at a time: what shares 16 bytes of nibbles.
const WHOLE: usize = 32;

fn attention_scalar(cpu: &Cpu, q: &[f32], keys: Keys<'_>, shape: &AttentionShape, out: &mut [f32]) {
    let AttentionShape { heads, head_dim, .. } = *shape;
    cpu.threads().chunks_mut(out, heads * head_dim, |i, out| {
        let visible = shape.visible(i);
        let [mut k, mut v] = [const { Vec::new() }; 2];
        for (h, out) in out.chunks_exact_mut(head_dim).enumerate() {
            if h % shape.group() == 0 {
                (k, v) = all_rows(keys, shape, h / shape.group(), &visible);
            }
            one_query(&q[(i * heads + h) * head_dim..][..head_dim], &k, &v, shape.scale, out);
        }
    });
}

/// The keys and values of one head that are visible, as f32.
fn all_rows(
    keys: Keys<'_>,
    shape: &AttentionShape,
    kv_head: usize,
    visible: &Range<usize>,
) -> (Vec<f32>, Vec<f32>) {
    let mut room = [const { Vec::new() }; 2];
    keys.gather_new(shape, kv_head, &mut room);
    let end = keys.cached_end(shape);
    let cached = visible.start.min(end)..visible.end.min(end);
    let new = visible.start.max(end)..visible.end.max(end);
    let mut all = [const { Vec::new() }; 2];
    for (run, keys) in [(keys.cached(shape, kv_head), cached), (run_of_new(shape, &room), new)] {
        for (all, rows) in all.iter_mut().zip([run.k, run.v]) {
            if !keys.is_empty() {
                let start = all.len();
                all.resize(start + keys.len() * shape.head_dim, 0.0);
                rows.dequantize(run.rows(&keys), &mut all[start..]);
            }
        }
    }
    let [k, v] = all;
    (k, v)
}

/// One query over its visible keys and values, in f64.
#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn one_query(q: &[f32], k: &[f32], v: &[f32], scale: f32, out: &mut [f32]) {
    let head_dim = q.len();
    let dot =
        |k: &[f32]| -> f64 { q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum() };
    let mut scores: Vec<f64> =
        k.chunks_exact(head_dim).map(|k| dot(k) * f64::from(scale)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|score| *score = (*score - max).exp());
    let sum: f64 = scores.iter().sum();
    let mut sums = vec![0.0f64; head_dim];
    for (score, v) in scores.iter().zip(v.chunks_exact(head_dim)) {
        for (sum, v) in sums.iter_mut().zip(v) {
            *sum += score * f64::from(*v);
        }
    }
    for (out, weighted) in out.iter_mut().zip(sums) {
        *out = (weighted / sum) as f32;
    }
}

const fn shape(
    [m, heads, kv_heads, head_dim]: [usize; 4],
    past: usize,
    window: Option<usize>,
) -> AttentionShape {
    let capacity = past + m + 3;
    AttentionShape { m, heads, kv_heads, head_dim, past, capacity, window, scale: 0.3 }
}

/// Shapes of tests and benches: prefill, decode, one token at a time and a few, odd heads, windows.
pub const SHAPES: &[AttentionShape] = &[
    shape([1, 1, 1, 1], 0, None),
    shape([3, 2, 1, 5], 2, None),
    shape([7, 6, 2, 20], 61, Some(9)),
    shape([1, 9, 3, 64], 0, None),
    shape([1, 9, 3, 64], 700, None),
    shape([1, 8, 4, 32], 130, Some(40)),
    shape([1, 14, 2, 64], 300, None),
    shape([5, 9, 3, 64], 200, None),
    shape([33, 8, 4, 32], 0, None),
    shape([130, 9, 3, 64], 0, None),
    shape([100, 9, 3, 64], 77, Some(50)),
    shape([50, 4, 4, 80], 3, None),
    shape([40, 7, 1, 128], 30, Some(1)),
];

#[cfg(test)]
mod tests;
