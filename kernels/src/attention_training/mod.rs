//! Causal attention over whole sequences, and its gradients. `P[i, j] = softmax_j(scale · q[i] · k[j])` over
//! `i − window < j ≤ i`, `out[i] = Σ_j P[i, j] · v[j]`; with dP = dout · vᵀ and D = Σ dout · out:
//! `dS = P ∘ (dP − D) · scale`, `dq = dS · k`, `dk = dSᵀ · q`, `dv = Pᵀ · dout`.
//! q, out (batch, M, heads, head_dim) · k, v (batch, M, kv_heads, head_dim) · lse (batch, heads, M); f32 or f64, row-major.
//! heads / kv_heads query heads share a key and value head. P is not kept: it is made again from lse.
//! Error: |out − f64 result| ≤ (M + 8 · head_dim + 64) · 2⁻²⁴ · max |v| · (1 + max |score|), gradients alike with
//! Σ |dout| · max |v| · max |k| · scale; the f64 instance is the scalar oracle. A batch's key head is one thread's work.
//! Source: Dao et al. 2022 (arXiv 2205.14135), algorithm 4 and appendix B.

mod backward;
#[cfg(test)]
mod tests;

pub use backward::{Forward, Gradients, backward};

use crate::matmul::{Matrix, Multiply, Precision};
use crate::real::{Real, largest_of, sum_of, wide};
use crate::{Cost, Cpu, Isa};

/// The shape of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub m: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// How many tokens back a query sees, itself counted; `None` sees all.
    pub window: Option<usize>,
    /// What scores are multiplied by, mostly 1 / √head_dim.
    pub scale: f64,
}

/// Shapes of tests and benches.
pub const SHAPES: [SequenceShape; 5] = [
    SequenceShape { batch: 1, m: 1, heads: 1, kv_heads: 1, head_dim: 2, window: None, scale: 0.7 },
    SequenceShape { batch: 2, m: 5, heads: 4, kv_heads: 2, head_dim: 8, window: None, scale: 0.3 },
    SequenceShape {
        batch: 1,
        m: 70,
        heads: 3,
        kv_heads: 1,
        head_dim: 6,
        window: Some(9),
        scale: 0.4,
    },
    SequenceShape {
        batch: 3,
        m: 130,
        heads: 2,
        kv_heads: 2,
        head_dim: 32,
        window: None,
        scale: 0.2,
    },
    SequenceShape {
        batch: 1,
        m: 64,
        heads: 8,
        kv_heads: 4,
        head_dim: 16,
        window: Some(1),
        scale: 0.25,
    },
];

/// Queries whose scores are held at once: with 2048 keys 512 KiB of f32.
const BLOCK: usize = 64;

impl SequenceShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn q_cols(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The first key that query `i` sees; its own is the last.
    fn first(&self, i: usize) -> usize {
        (i + 1).saturating_sub(self.window.unwrap_or(i + 1))
    }

    fn check(&self, q: usize, kv: [usize; 2]) {
        let SequenceShape { batch, m, heads, kv_heads, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "attention_training: {heads} heads cannot share {kv_heads} key heads evenly"
        );
        assert!(self.window != Some(0), "attention_training: a window of 0 shows nothing");
        assert_eq!(
            q,
            batch * m * self.q_cols(),
            "attention_training: q must be (batch, M, heads, head_dim)"
        );
        let wanted = batch * m * self.kv_cols();
        assert_eq!(
            kv, [wanted; 2],
            "attention_training: k and v must be (batch, M, kv_heads, head_dim)"
        );
    }
}

/// Writes `out` and, for the backward pass, `lse`.
pub fn forward<T: Multiply>(
    cpu: &Cpu,
    shape: &SequenceShape,
    [q, k, v]: [&[T]; 3],
    out: &mut [T],
    lse: &mut [T],
) {
    shape.check(q.len(), [k.len(), v.len()]);
    assert_eq!(out.len(), q.len(), "attention_training: out must be as long as q");
    let SequenceShape { batch, m, heads, kv_heads, head_dim: d, .. } = *shape;
    assert_eq!(lse.len(), batch * heads * m, "attention_training: lse must be (batch, heads, M)");
    if out.is_empty() {
        return;
    }
    let serial = cpu.alone();
    // A unit's results lie apart in `out`; it writes them here side by side, with its lse behind.
    let size = shape.group() * m * (d + 1);
    let mut units = T::room(cpu, batch * kv_heads * size);
    cpu.threads().chunks_mut(&mut units, size, |unit, results| {
        let (out, lse) = results.split_at_mut(shape.group() * m * d);
        for g in 0..shape.group() {
            let head = Head::new(shape, unit, g);
            let (out, lse) = (&mut out[g * m * d..][..m * d], &mut lse[g * m..][..m]);
            head.forward(&serial, [q, k, v], out, lse);
        }
    });
    cpu.threads().chunks_mut(out, shape.q_cols(), |row, out| {
        let (b, i) = (row / m, row % m);
        for (head, out) in out.chunks_exact_mut(d).enumerate() {
            let (h, g) = (head / shape.group(), head % shape.group());
            out.copy_from_slice(&units[(b * kv_heads + h) * size + (g * m + i) * d..][..d]);
        }
    });
    for (unit, lse) in lse.chunks_exact_mut(shape.group() * m).enumerate() {
        lse.copy_from_slice(&units[(unit + 1) * size - lse.len()..][..lse.len()]);
    }
}

/// What a forward call moves and computes; a backward call computes two and a half times as much.
pub fn cost(shape: &SequenceShape) -> Cost {
    let SequenceShape { batch, m, heads, head_dim, .. } = *shape;
    let seen: usize = (0..m).map(|i| i + 1 - shape.first(i)).sum();
    let bytes = 4 * batch * m * (2 * shape.q_cols() + 2 * shape.kv_cols());
    Cost { bytes: bytes as u64, flops: (batch * heads * seen * (4 * head_dim + 5)) as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> String {
    format!("any-attention-training-f32-{}", isa.name())
}

/// One query head of one sequence.
struct Head<'a> {
    shape: &'a SequenceShape,
    /// Where its numbers begin in q and in k.
    q_start: usize,
    kv_start: usize,
}

impl<'a> Head<'a> {
    /// Query head `g` of those that share the key head of `unit`.
    fn new(shape: &'a SequenceShape, unit: usize, g: usize) -> Head<'a> {
        let (b, h) = (unit / shape.kv_heads, unit % shape.kv_heads);
        let q_start = b * shape.m * shape.q_cols() + (h * shape.group() + g) * shape.head_dim;
        Head { shape, q_start, kv_start: b * shape.m * shape.kv_cols() + h * shape.head_dim }
    }

    /// Queries `rows` of the head.
    fn queries<'t, T>(&self, q: &'t [T], rows: &std::ops::Range<usize>) -> Matrix<'t, T> {
        let (cols, d) = (self.shape.q_cols(), self.shape.head_dim);
        Matrix::strided(&q[self.q_start + rows.start * cols..], rows.len(), d, cols)
    }

    /// Keys or values `rows` of the head.
    fn keys<'t, T>(&self, k: &'t [T], rows: &std::ops::Range<usize>) -> Matrix<'t, T> {
        let (cols, d) = (self.shape.kv_cols(), self.shape.head_dim);
        Matrix::strided(&k[self.kv_start + rows.start * cols..], rows.len(), d, cols)
    }

    /// The blocks of queries, each with the keys that some of its queries see.
    fn blocks(&self) -> impl Iterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)> {
        let m = self.shape.m;
        (0..m).step_by(BLOCK).map(move |start| {
            let rows = start..m.min(start + BLOCK);
            let keys = self.shape.first(start)..rows.end;
            (rows, keys)
        })
    }

    fn forward<T: Multiply>(&self, cpu: &Cpu, [q, k, v]: [&[T]; 3], out: &mut [T], lse: &mut [T]) {
        let d = self.shape.head_dim;
        for (rows, keys) in self.blocks() {
            let mut scores = T::room(cpu, rows.len() * keys.len());
            let (queries, turned) = (self.queries(q, &rows), self.keys(k, &keys).transposed());
            T::multiply(cpu, Precision::F32, queries, turned, &mut scores);
            wide(cpu.isa(), || {
                for (i, scores) in rows.clone().zip(scores.chunks_exact_mut(keys.len())) {
                    let seen = self.shape.first(i) - keys.start..i + 1 - keys.start;
                    lse[i] = softmax(scores, seen, T::of(self.shape.scale));
                }
            });
            let weights = Matrix::new(&scores, rows.len(), keys.len());
            let out = &mut out[rows.start * d..rows.end * d];
            T::multiply(cpu, Precision::F32, weights, self.keys(v, &keys), out);
        }
    }
}

/// The softmax of `scale` times the scores that are seen, 0 for the others; gives the logarithm of the sum.
#[inline(always)]
fn softmax<T: Real>(scores: &mut [T], seen: std::ops::Range<usize>, scale: T) -> T {
    scores[..seen.start].fill(T::default());
    scores[seen.end..].fill(T::default());
    let scores = &mut scores[seen];
    let max = largest_of(scores.len(), |i| scores[i] * scale);
    for x in scores.iter_mut() {
        *x = (*x * scale - max).exp();
    }
    let sum = sum_of(scores.len(), |i| scores[i]);
    let inverse = T::of(1.0) / sum;
    scores.iter_mut().for_each(|x| *x = *x * inverse);
    max + sum.ln()
}
