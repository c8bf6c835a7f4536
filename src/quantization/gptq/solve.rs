//! GPTQ's loop: columns rounded one after another, each error made up for by the columns to come.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kernels::{Cpu, Shape, dense_linear};
use crate::model::Weight;
use crate::quantization::Columns;
use crate::quantization::primitives::inverse_cholesky_upper;
use crate::tensor::Tensor;

/// How [`gptq_quantize`] works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Solver {
    /// How much of the mean of H's diagonal is added to it.
    pub percdamp: f64,
    /// Columns whose errors stay among themselves before they are passed on.
    pub block_size: usize,
    /// Choose a group's parameters from all of its columns. torchao takes those in the first block only, so that rows
    /// with one scale and more columns than a block are clipped; that is for comparing with it.
    pub whole_groups: bool,
}

/// Columns that are worked on before the rest is updated by a matrix product. It changes no number but by rounding.
const LAZY: usize = 64;

/// Quantizes `w (N, K)` so that `‖X · (W − Q)ᵀ‖` is small, `h (K, K)` being X's second moments.
#[expect(clippy::cast_precision_loss, reason = "layers have fewer than 2⁵³ inputs")]
pub fn gptq_quantize(
    cpu: &Cpu,
    h: &[f32],
    w: &Tensor,
    columns: &mut dyn Columns,
    solver: &Solver,
) -> Result<Arc<dyn Weight>> {
    let (n, k) = w.dims2()?;
    if h.len() != k * k {
        let got = h.len();
        return Err(Error::invalid(format!(
            "the Hessian of {k} inputs has {k} × {k} values; got {got}"
        )));
    }
    if solver.block_size == 0 || columns.group_size() == 0 {
        return Err(Error::invalid(
            "gptq_quantize_block_size is 0; wanted 1 or more, usual is 256",
        ));
    }
    let mut h: Vec<f64> = h.iter().map(|value| f64::from(*value)).collect();
    let mut w = transposed(&w.to_f32_vec(), n, k);
    for j in 0..k {
        // An input that never fired says nothing; its weights may as well be 0.
        if h[j * k + j] == 0.0 {
            h[j * k + j] = 1.0;
            w[j * n..][..n].fill(0.0);
        }
    }
    let mean = (0..k).map(|j| h[j * k + j]).sum::<f64>() / k as f64;
    (0..k).for_each(|j| h[j * k + j] += solver.percdamp * mean);
    let mut work = Work { cpu, u: inverse_cholesky_upper(cpu, &h, k)?, w, n, k };
    drop(h);
    let group_size = columns.group_size();
    let mut start = 0;
    while start < k {
        let block_end = k.min((start / solver.block_size + 1) * solver.block_size);
        let group = start / group_size;
        let group_end = k.min((group + 1) * group_size);
        if start == group * group_size {
            let end = if solver.whole_groups { group_end } else { group_end.min(block_end) };
            columns.start_group(group, &work.rows(start, end)?)?;
        }
        let end = group_end.min(block_end).min(start + LAZY);
        let errors = work.round(columns, group, start, end);
        work.make_up(&errors, start, end);
        start = end;
    }
    columns.finish(&work.rows(0, k)?)
}

struct Work<'a> {
    cpu: &'a Cpu,
    /// `(K, K)`, upper triangular.
    u: Vec<f32>,
    /// `(K, N)`: a column of the weight lies in one piece.
    w: Vec<f32>,
    n: usize,
    k: usize,
}

impl Work<'_> {
    /// Columns `start..end` as rows: `(N, end − start)`.
    fn rows(&self, start: usize, end: usize) -> Result<Tensor> {
        let columns = &self.w[start * self.n..end * self.n];
        Tensor::new(transposed(columns, end - start, self.n), &[self.n, end - start])
    }

    /// Rounds columns `start..end` and gives their errors `(end − start, N)`, each divided by U's diagonal.
    fn round(&mut self, columns: &dyn Columns, group: usize, start: usize, end: usize) -> Vec<f32> {
        let (n, k, wide) = (self.n, self.k, end - start);
        let mut both = self.w[start * n..end * n].to_vec();
        both.resize(2 * wide * n, 0.0);
        let share = self.cpu.threads().share(n, 16);
        let u = &self.u;
        self.cpu.threads().tiles_mut(&mut both, n, (2 * wide, share), |_, mut tile| {
            let rows = tile.cols();
            let mut rounded = vec![0.0; rows.len()];
            for j in 0..wide {
                let u = &u[(start + j) * k + start..][..wide];
                let mut error = tile.row(j).to_vec();
                columns.round(group, rows.clone(), &error, &mut rounded);
                error.iter_mut().zip(&rounded).for_each(|(w, rounded)| *w = (*w - rounded) / u[j]);
                for (l, u) in u.iter().enumerate().skip(j) {
                    tile.row(l).iter_mut().zip(&error).for_each(|(w, error)| *w -= error * u);
                }
                tile.row(wide + j).copy_from_slice(&error);
            }
        });
        let errors = both.split_off(wide * n);
        self.w[start * n..end * n].copy_from_slice(&both);
        errors
    }

    /// Changes the columns behind `end` so that they make up for the errors of `start..end`.
    fn make_up(&mut self, errors: &[f32], start: usize, end: usize) {
        let (n, k, wide) = (self.n, self.k, end - start);
        let rest = k - end;
        if rest == 0 {
            return;
        }
        // (rest, wide) · (wide, N): both with the summed dimension last.
        let u: Vec<f32> = (end..k)
            .flat_map(|j| (start..end).map(move |i| i * k + j))
            .map(|at| self.u[at])
            .collect();
        let errors = transposed(errors, wide, n);
        let mut change = vec![0.0; rest * n];
        dense_linear::f32(self.cpu, &errors, &u, &mut change, Shape { m: rest, n, k: wide });
        self.w[end * n..].iter_mut().zip(change).for_each(|(w, change)| *w -= change);
    }
}

/// `(rows, columns)` as `(columns, rows)`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut turned = vec![0.0; values.len()];
    for (i, row) in values.chunks_exact(columns.max(1)).enumerate() {
        row.iter().enumerate().for_each(|(j, value)| turned[j * rows + i] = *value);
    }
    turned
}
