//! The loop of SparseGPT.

use super::SparseGptSparsifier;
use crate::error::{Error, Result};
use crate::kernels::{Cpu, Shape, dense_linear};
use crate::model::{Mask, Pattern};
use crate::quantization::primitives::inverse_cholesky_upper;
use crate::sparsity::scores::{count_down, lowest};
use crate::tensor::Tensor;

/// Prunes `w (N, K)` so that `‖X · (W − P)ᵀ‖` is small, `h (K, K)` being X's second moments: the pruned weight and its mask.
#[expect(clippy::cast_precision_loss, reason = "layers have fewer than 2⁵³ inputs")]
pub fn sparse_gpt(
    cpu: &Cpu,
    h: &[f32],
    w: &Tensor,
    config: &SparseGptSparsifier,
) -> Result<(Tensor, Mask)> {
    config.check_options()?;
    let (n, k) = w.dims2()?;
    config.pattern.check((n, k))?;
    if h.len() != k * k {
        let got = h.len();
        return Err(Error::invalid(format!(
            "the Hessian of {k} inputs has {k} × {k} values; got {got}"
        )));
    }
    let mut h: Vec<f64> = h.iter().map(|value| f64::from(*value)).collect();
    let mut w = w.to_f32_vec();
    for j in 0..k {
        // An input that never fired says nothing; its weights may as well be 0.
        if h[j * k + j] == 0.0 {
            h[j * k + j] = 1.0;
            w.iter_mut().skip(j).step_by(k).for_each(|w| *w = 0.0);
        }
    }
    let mean = (0..k).map(|j| h[j * k + j]).sum::<f64>() / k as f64;
    (0..k).for_each(|j| h[j * k + j] += config.percdamp * mean);
    let u = inverse_cholesky_upper(cpu, &h, k)?;
    drop(h);
    let mut work = Work { cpu, u, w, keep: vec![true; n * k], n, k };
    for start in (0..k).step_by(config.blocksize) {
        let end = k.min(start + config.blocksize);
        if config.pattern == Pattern::Unstructured {
            work.choose(start, end, config.sparsity_level);
        }
        let errors = work.prune(start, end, config.pattern);
        work.make_up(&errors, start, end);
    }
    // What was pruned after its turn was 0 already; what −0 stays would be kept by a mask of zeros.
    let mask = Mask::of(&work.keep, (n, k))?;
    mask.apply_rows(0, &mut work.w);
    Ok((Tensor::new(work.w, &[n, k])?, mask))
}

struct Work<'a> {
    cpu: &'a Cpu,
    /// `(K, K)`, upper triangular.
    u: Vec<f32>,
    /// `(N, K)`
    w: Vec<f32>,
    keep: Vec<bool>,
    n: usize,
    k: usize,
}

impl Work<'_> {
    /// The lowest scores of columns `start..end` go, all rows compared.
    fn choose(&mut self, start: usize, end: usize, level: f64) {
        let (k, wide) = (self.k, end - start);
        let mut scores = Vec::with_capacity(self.n * wide);
        for row in self.w.chunks_exact(k) {
            let columns = row[start..end].iter().enumerate();
            scores.extend(columns.map(|(i, w)| score(*w, self.u[(start + i) * (k + 1)])));
        }
        let gone = lowest(&scores, count_down(scores.len(), level));
        for (keep, gone) in self.keep.chunks_exact_mut(k).zip(gone.chunks_exact(wide)) {
            keep[start..end].iter_mut().zip(gone).for_each(|(keep, gone)| *keep = !gone);
        }
    }

    /// Zeros what goes of columns `start..end`; gives the errors `(N, end − start)`, each divided by U's diagonal.
    fn prune(&mut self, start: usize, end: usize, pattern: Pattern) -> Vec<f32> {
        let (k, wide, u) = (self.k, end - start, &self.u);
        // A row's columns, its keeps (1 or 0) and its errors side by side, so that threads share rows.
        let mut rows = vec![0.0; self.n * 3 * wide];
        for (row, (w, keep)) in rows
            .chunks_exact_mut(3 * wide)
            .zip(self.w.chunks_exact(k).zip(self.keep.chunks_exact(k)))
        {
            row[..wide].copy_from_slice(&w[start..end]);
            let keep = keep[start..end].iter().map(|keep| f32::from(u8::from(*keep)));
            row[wide..2 * wide].iter_mut().zip(keep).for_each(|(to, keep)| *to = keep);
        }
        let share = self.cpu.threads().share(self.n, 1);
        self.cpu.threads().chunks_mut(&mut rows, share * 3 * wide, |_, rows| {
            for row in rows.chunks_exact_mut(3 * wide) {
                let (w, rest) = row.split_at_mut(wide);
                let (keep, errors) = rest.split_at_mut(wide);
                for j in 0..wide {
                    decide(pattern, j, w, keep, |j| u[(start + j) * (k + 1)]);
                    let u = &u[(start + j) * k + start..][..wide];
                    let stays = kept(w[j], keep[j]);
                    let error = (w[j] - stays) / u[j];
                    w[j] = stays;
                    errors[j] = error;
                    spread(error, &mut w[j + 1..], &u[j + 1..]);
                }
            }
        });
        let mut errors = Vec::with_capacity(self.n * wide);
        let targets = self.w.chunks_exact_mut(k).zip(self.keep.chunks_exact_mut(k));
        for (row, (w, keep)) in rows.chunks_exact(3 * wide).zip(targets) {
            w[start..end].copy_from_slice(&row[..wide]);
            let kept = row[wide..2 * wide].iter().map(|keep| *keep != 0.0);
            keep[start..end].iter_mut().zip(kept).for_each(|(to, keep)| *to = keep);
            errors.extend_from_slice(&row[2 * wide..]);
        }
        errors
    }

    /// Changes the columns behind `end` so that they make up for the errors of `start..end`.
    fn make_up(&mut self, errors: &[f32], start: usize, end: usize) {
        let (k, wide) = (self.k, end - start);
        let rest = k - end;
        if rest == 0 {
            return;
        }
        let turned: Vec<f32> = (end..k)
            .flat_map(|j| (start..end).map(move |i| i * k + j))
            .map(|at| self.u[at])
            .collect();
        // (N, wide) · (wide, rest)
        let mut change = vec![0.0; self.n * rest];
        let shape = Shape { m: self.n, n: rest, k: wide };
        dense_linear::f32(self.cpu, &turned, errors, &mut change, shape);
        for (w, change) in self.w.chunks_exact_mut(k).zip(change.chunks_exact(rest)) {
            w[end..].iter_mut().zip(change).for_each(|(w, change)| *w -= change);
        }
    }
}

fn score(w: f32, u: f32) -> f32 {
    (w / u) * (w / u)
}

/// Where column `j` begins M columns of an N:M pattern, chooses those that stay: 1 in `keep`, the others 0.
fn decide(
    pattern: Pattern,
    j: usize,
    w: &[f32],
    keep: &mut [f32],
    diagonal: impl Fn(usize) -> f32,
) {
    let Pattern::NOfM { n, m } = pattern else { return };
    if j.is_multiple_of(m) {
        let scores: Vec<f32> = (j..j + m).map(|j| score(w[j], diagonal(j))).collect();
        for (keep, gone) in keep[j..].iter_mut().zip(lowest(&scores, m - n)) {
            *keep = f32::from(u8::from(!gone));
        }
    }
}

/// `w`, or 0 where the mask is 0.
fn kept(w: f32, keep: f32) -> f32 {
    if keep == 0.0 { 0.0 } else { w }
}

/// Takes an error out of the columns behind it.
fn spread(error: f32, behind: &mut [f32], u: &[f32]) {
    if error != 0.0 {
        behind.iter_mut().zip(u).for_each(|(w, u)| *w -= error * u);
    }
}
