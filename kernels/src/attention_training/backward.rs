//! The gradients, block of queries by block of queries.

use super::{Head, SequenceShape};
use crate::Cpu;
use crate::matmul::{Matrix, Multiply, Precision};
use crate::real::{Real, sum_of, wide};

/// What the forward pass took and gave.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "named as at the head of this folder")]
pub struct Forward<'a, T> {
    pub q: &'a [T],
    pub k: &'a [T],
    pub v: &'a [T],
    pub out: &'a [T],
    pub lse: &'a [T],
}

/// Where the gradients go.
#[derive(Debug)]
#[expect(missing_docs, reason = "named as at the head of this folder")]
pub struct Gradients<'a, T> {
    pub dq: &'a mut [T],
    pub dk: &'a mut [T],
    pub dv: &'a mut [T],
}

/// The gradients for the upstream gradient `dout`.
pub fn backward<T: Multiply>(
    cpu: &Cpu,
    shape: &SequenceShape,
    of: &Forward<'_, T>,
    dout: &[T],
    to: &mut Gradients<'_, T>,
) {
    shape.check(of.q.len(), [of.k.len(), of.v.len()]);
    shape.check(to.dq.len(), [to.dk.len(), to.dv.len()]);
    let SequenceShape { batch, m, heads, kv_heads, head_dim: d, .. } = *shape;
    assert!(
        of.lse.len() == batch * heads * m && of.out.len() == of.q.len() && dout.len() == of.q.len(),
        "attention_training: out and dout must be as long as q, lse (batch, heads, M)"
    );
    if of.q.is_empty() {
        return;
    }
    let serial = cpu.alone();
    // A unit's gradients lie side by side: dq of its heads, dk, dv.
    let group = shape.group();
    let size = (group + 2) * m * d;
    let mut units = T::room(cpu, batch * kv_heads * size);
    cpu.threads().chunks_mut(&mut units, size, |unit, gradients| {
        let (dq, dkv) = gradients.split_at_mut(group * m * d);
        dkv.fill(T::default());
        let (dk, dv) = dkv.split_at_mut(m * d);
        for g in 0..group {
            let head = Head::new(shape, unit, g);
            let mut to = Gradients { dq: &mut dq[g * m * d..][..m * d], dk, dv };
            let lse = &of.lse[(unit * group + g) * m..][..m];
            head.backward(&serial, &Forward { lse, ..*of }, dout, &mut to);
        }
    });
    let gather = |to: &mut [T], parts: usize, first: usize| {
        cpu.threads().chunks_mut(to, kv_heads * parts * d, |row, to| {
            let (b, i) = (row / m, row % m);
            for (head, to) in to.chunks_exact_mut(d).enumerate() {
                let (h, part) = (head / parts, first + head % parts);
                to.copy_from_slice(&units[(b * kv_heads + h) * size + (part * m + i) * d..][..d]);
            }
        });
    };
    gather(to.dq, group, 0);
    gather(to.dk, 1, group);
    gather(to.dv, 1, group + 1);
}

impl Head<'_> {
    /// Adds to dk and dv; dq is this head's alone.
    fn backward<T: Multiply>(
        &self,
        cpu: &Cpu,
        of: &Forward<'_, T>,
        dout: &[T],
        to: &mut Gradients<'_, T>,
    ) {
        let d = self.shape.head_dim;
        let f32 = Precision::F32;
        for (rows, keys) in self.blocks() {
            let size = rows.len() * keys.len();
            let (mut p, mut ds) = (T::room(cpu, size), T::room(cpu, size));
            let (q, k) = (self.queries(of.q, &rows), self.keys(of.k, &keys));
            let (dout_rows, v) = (self.queries(dout, &rows), self.keys(of.v, &keys));
            T::multiply(cpu, f32, q, k.transposed(), &mut p);
            T::multiply(cpu, f32, dout_rows, v.transposed(), &mut ds);
            wide(cpu.isa(), || {
                let pairs = p.chunks_exact_mut(keys.len()).zip(ds.chunks_exact_mut(keys.len()));
                for (i, (p, ds)) in rows.clone().zip(pairs) {
                    let at = self.q_start + i * self.shape.q_cols();
                    let (out, dout) = (&of.out[at..][..d], &dout[at..][..d]);
                    let row = Row { lse: of.lse[i], along: sum_of(d, |j| out[j] * dout[j]) };
                    let seen = self.shape.first(i) - keys.start..i + 1 - keys.start;
                    row.scores(p, ds, seen, T::of(self.shape.scale));
                }
            });
            let (p, ds) =
                (Matrix::new(&p, rows.len(), keys.len()), Matrix::new(&ds, rows.len(), keys.len()));
            let (own, shared) = (rows.start * d..rows.end * d, keys.start * d..keys.end * d);
            T::multiply(cpu, f32, ds, k, &mut to.dq[own]);
            T::multiply_add(cpu, f32, ds.transposed(), q, &mut to.dk[shared.clone()]);
            T::multiply_add(cpu, f32, p.transposed(), dout_rows, &mut to.dv[shared]);
        }
    }
}

struct Row<T> {
    lse: T,
    /// D = Σ dout · out.
    along: T,
}

impl<T: Real> Row<T> {
    /// Turns scores into P and dP into dS; 0 where nothing is seen.
    #[inline(always)]
    fn scores(&self, p: &mut [T], ds: &mut [T], seen: std::ops::Range<usize>, scale: T) {
        for unseen in [0..seen.start, seen.end..p.len()] {
            p[unseen.clone()].fill(T::default());
            ds[unseen].fill(T::default());
        }
        for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen]) {
            *p = (*p * scale - self.lse).exp();
            *ds = *p * (*ds - self.along) * scale;
        }
    }
}
