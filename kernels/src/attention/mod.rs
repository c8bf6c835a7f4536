//! `out[i, h] = Σ_j softmax_j(scale · q[i, h] · k[h / G, j]) · v[h / G, j]`, over the keys j that query i may see:
//! `past + i − window < j ≤ past + i`, and G = heads / kv_heads query heads share a key and value head.
//! q (M, heads, head_dim) f32 · k, v caches (kv_heads, capacity, head_dim) f32, f16 or bf16 → out (M, heads, head_dim) f32.
//! All row-major; the caches already hold past + M entries, query i's own at past + i.
//! Error: |out − f64 result| ≤ (K + 8 · head_dim + 64) · 2⁻²⁴ · max |v| · (1 + max |score|), K the keys seen.
//! Source: Ainslie et al. 2023 (arXiv 2305.13245), grouped queries; Dao 2023 (arXiv 2307.08691), online softmax.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod decode;
#[cfg(target_arch = "x86_64")]
mod decode_avx2;
mod element;
#[cfg(target_arch = "x86_64")]
mod prefill;

pub use element::CacheElement;

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

    fn check(&self, q: usize, k: usize, v: usize, out: usize) {
        let AttentionShape { m, heads, kv_heads, head_dim, past, capacity, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "attention: {heads} heads cannot share {kv_heads} key heads evenly"
        );
        assert!(past + m <= capacity, "attention: {past} + {m} tokens, room for {capacity}");
        assert!(self.window != Some(0), "attention: a window of 0 shows nothing");
        assert_eq!(q, m * heads * head_dim, "attention: q must be (M, heads, head_dim)");
        assert_eq!(out, q, "attention: out must be as long as q");
        assert_eq!(k, kv_heads * capacity * head_dim, "attention: k must fill its cache");
        assert_eq!(v, k, "attention: v must be as long as k");
    }
}

/// Attention of `m` queries over the caches; see the head of this file.
pub fn attention<T: CacheElement>(
    cpu: &Cpu,
    q: &[f32],
    k_cache: &[T],
    v_cache: &[T],
    shape: &AttentionShape,
    out: &mut [f32],
) {
    shape.check(q.len(), k_cache.len(), v_cache.len(), out.len());
    if out.is_empty() {
        return;
    }
    let caches = [k_cache, v_cache];
    match cpu.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => tiled(Simd::Avx2(avx2), cpu, q, caches, shape, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => tiled(Simd::Avx512(avx512), cpu, q, caches, shape, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => tiled(Simd::Avx512(vnni.avx512()), cpu, q, caches, shape, out),
        _ => attention_scalar(cpu, q, caches, shape, out),
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
fn tiled<T: CacheElement>(
    simd: Simd,
    cpu: &Cpu,
    q: &[f32],
    caches: [&[T]; 2],
    shape: &AttentionShape,
    out: &mut [f32],
) {
    if shape.m * shape.group() < PREFILL_FROM || shape.m == 1 {
        decode::decode(simd.avx2(), cpu, q, caches, shape, out);
    } else {
        prefill::prefill(simd, cpu, q, caches, shape, out);
    }
}

/// What one call moves and computes: the visible cache read once, q read, out written; an exp counts as one.
pub fn cost(shape: &AttentionShape, element_nbytes: usize) -> Cost {
    let AttentionShape { m, heads, kv_heads, head_dim, .. } = *shape;
    let seen: usize = (0..m).map(|i| shape.visible(i).len()).sum();
    let read = if m == 0 { 0 } else { shape.visible(m - 1).end - shape.visible(0).start };
    Cost {
        bytes: (8 * m * heads * head_dim + 2 * read * kv_heads * head_dim * element_nbytes) as u64,
        flops: (seen * heads * (4 * head_dim + 4)) as u64,
    }
}

/// The kernel that runs on `isa` for this shape.
pub fn kernel_name(isa: Isa, shape: &AttentionShape) -> &'static str {
    let few = shape.m * shape.group() < PREFILL_FROM || shape.m == 1;
    match isa {
        Isa::Scalar | Isa::Neon(_) => "scalar-attention-f32",
        Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_) if few => {
            "x86-decode-attention-f32-avx2"
        }
        Isa::Avx2(_) => "x86-prefill-attention-f32-avx2",
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-prefill-attention-f32-avx512",
    }
}

fn attention_scalar<T: CacheElement>(
    cpu: &Cpu,
    q: &[f32],
    [k_cache, v_cache]: [&[T]; 2],
    shape: &AttentionShape,
    out: &mut [f32],
) {
    let AttentionShape { heads, head_dim, capacity, .. } = *shape;
    cpu.threads().chunks_mut(out, heads * head_dim, |i, out| {
        let visible = shape.visible(i);
        for (h, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let first = h / shape.group() * capacity;
            let keys = (first + visible.start) * head_dim..(first + visible.end) * head_dim;
            let q = &q[(i * heads + h) * head_dim..][..head_dim];
            one_query(q, &k_cache[keys.clone()], &v_cache[keys], shape.scale, out);
        }
    });
}

/// One query over its visible keys and values, in f64.
#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn one_query<T: CacheElement>(q: &[f32], k: &[T], v: &[T], scale: f32, out: &mut [f32]) {
    let head_dim = q.len();
    let dot = |k: &[T]| -> f64 {
        q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k.widen())).sum()
    };
    let mut scores: Vec<f64> =
        k.chunks_exact(head_dim).map(|k| dot(k) * f64::from(scale)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|score| *score = (*score - max).exp());
    let sum: f64 = scores.iter().sum();
    let mut sums = vec![0.0f64; head_dim];
    for (score, v) in scores.iter().zip(v.chunks_exact(head_dim)) {
        for (sum, v) in sums.iter_mut().zip(v) {
            *sum += score * f64::from(v.widen());
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
