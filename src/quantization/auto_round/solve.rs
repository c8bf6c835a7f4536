//! The loop of signed steps.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kernels::{Cpu, Shape, dense_linear};
use crate::model::Weight;
use crate::quantization::Columns;
use crate::tensor::Tensor;

/// How long [`auto_round`] learns, and by which first step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    /// Signed steps; 0 is rounding to nearest.
    pub iters: usize,
    /// The length of the first; the last one's is `lr / iters`.
    pub lr: f32,
}

/// No range is clipped to less than half.
const LEAST_SHARE: f32 = 0.5;

/// What is learned: an offset a weight, two shares a group.
#[derive(Clone)]
struct Learned {
    /// In steps of the weight's group, −½ ..= ½.
    v: Vec<f32>,
    /// Of the largest value of a row's group.
    alpha: Vec<f32>,
    /// Of the smallest.
    beta: Vec<f32>,
}

impl Learned {
    fn take_row(&mut self, from: &Learned, row: usize, (k, groups): (usize, usize)) {
        let (weights, shares) = (row * k..(row + 1) * k, row * groups..(row + 1) * groups);
        self.v[weights.clone()].copy_from_slice(&from.v[weights]);
        self.alpha[shares.clone()].copy_from_slice(&from.alpha[shares.clone()]);
        self.beta[shares.clone()].copy_from_slice(&from.beta[shares]);
    }
}

struct Work<'a> {
    cpu: &'a Cpu,
    h: &'a [f32],
    w: Vec<f32>,
    n: usize,
    k: usize,
    groups: usize,
    size: usize,
}

/// Quantizes `w (N, K)` so that `‖X · (W − Q)ᵀ‖` is small, `h (K, K)` being X's second moments.
pub fn auto_round(
    cpu: &Cpu,
    h: &[f32],
    w: &Tensor,
    columns: &mut dyn Columns,
    rounding: Rounding,
) -> Result<Arc<dyn Weight>> {
    let (n, k) = w.dims2()?;
    let size = columns.group_size();
    if h.len() != k * k || size == 0 || !k.is_multiple_of(size) {
        let got = h.len();
        return Err(Error::invalid(format!(
            "auto-round wants {k} × {k} second moments and groups that divide K; got {got} and groups of {size}"
        )));
    }
    let groups = k / size;
    let work = Work { cpu, h, w: w.to_f32_vec(), n, k, groups, size };
    let shares = vec![1.0; n * groups];
    let mut now = Learned { v: vec![0.0; n * k], alpha: shares.clone(), beta: shares };
    // Rows share no loss: each keeps what was best for it.
    let mut best = (vec![f64::INFINITY; n], now.clone());
    for iter in 0..=rounding.iters {
        let (shifted, rounded) = work.round(columns, &now)?;
        let (losses, gradient) = work.loss(&rounded);
        for (row, (least, loss)) in best.0.iter_mut().zip(losses).enumerate() {
            if loss < *least {
                *least = loss;
                best.1.take_row(&now, row, (k, groups));
            }
        }
        if iter < rounding.iters {
            #[expect(clippy::cast_precision_loss, reason = "steps are few")]
            let lr = rounding.lr * (1.0 - iter as f32 / rounding.iters as f32);
            work.step(columns, &mut now, (&shifted, &rounded, &gradient), lr);
        }
    }
    let (shifted, _) = work.round(columns, &best.1)?;
    columns.finish(&Tensor::new(shifted, &[n, k])?)
}

impl Work<'_> {
    /// The weights with their offsets, and what they round to, with the parameters that `learned` chooses.
    fn round(&self, columns: &mut dyn Columns, learned: &Learned) -> Result<(Vec<f32>, Vec<f32>)> {
        let Work { n, k, groups, size, .. } = *self;
        let mut shifted = self.w.clone();
        let mut rounded = vec![0.0; n * k];
        let (mut column, mut out) = (vec![0.0; n], vec![0.0; n]);
        for group in 0..groups {
            let mut clipped = Vec::with_capacity(n * size);
            for row in 0..n {
                let w = &self.w[row * k + group * size..][..size];
                let max = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let min = w.iter().copied().fold(f32::INFINITY, f32::min);
                let at = row * groups + group;
                // Shares of a range around 0: a side that does not reach 0 keeps its edge.
                let (high, low) = (shrunk(max, learned.alpha[at]), -shrunk(-min, learned.beta[at]));
                clipped.extend(w.iter().map(|w| w.max(low).min(high)));
            }
            columns.start_group(group, &Tensor::new(clipped, &[n, size])?)?;
            for j in group * size..(group + 1) * size {
                for (row, value) in column.iter_mut().enumerate() {
                    let step = columns.step(group, row).unwrap_or(0.0);
                    shifted[row * k + j] += step * learned.v[row * k + j];
                    *value = shifted[row * k + j];
                }
                columns.round(group, 0..n, &column, &mut out);
                out.iter().enumerate().for_each(|(row, value)| rounded[row * k + j] = *value);
            }
        }
        Ok((shifted, rounded))
    }

    /// `(Q − W) · H · (Q − W)ᵀ` of each row, and half its gradient for Q: `(Q − W) · H`.
    fn loss(&self, rounded: &[f32]) -> (Vec<f64>, Vec<f32>) {
        let Work { n, k, .. } = *self;
        let errors: Vec<f32> = rounded.iter().zip(&self.w).map(|(q, w)| q - w).collect();
        let mut gradient = vec![0.0; n * k];
        // H is symmetric: its rows are its columns.
        dense_linear::f32(self.cpu, self.h, &errors, &mut gradient, Shape { m: n, n: k, k });
        let rows = errors.chunks_exact(k).zip(gradient.chunks_exact(k));
        let dot = |(e, g): (&[f32], &[f32])| {
            e.iter().zip(g).map(|(e, g)| f64::from(*e) * f64::from(*g)).sum::<f64>()
        };
        (rows.map(dot).collect(), gradient)
    }

    /// The largest magnitude of a row's group.
    fn edge(&self, row: usize, group: usize) -> f32 {
        let w = &self.w[row * self.k + group * self.size..][..self.size];
        w.iter().fold(0.0, |most: f32, w| most.max(w.abs()))
    }

    /// One signed step. A value that was rounded by more than a step was clipped: its offset has no gradient, its group's
    /// share has.
    fn step(
        &self,
        columns: &dyn Columns,
        learned: &mut Learned,
        (shifted, rounded, gradient): (&[f32], &[f32], &[f32]),
        lr: f32,
    ) {
        let Work { n, k, groups, size, .. } = *self;
        for row in 0..n {
            for group in 0..groups {
                let step = columns.step(group, row).unwrap_or(0.0);
                let lr_of_shares = lr * share_of_a_step(self.edge(row, group), step);
                let (mut of_alpha, mut of_beta) = (0.0_f32, 0.0_f32);
                for at in row * k + group * size..row * k + (group + 1) * size {
                    let over = shifted[at] - rounded[at];
                    // What was cut off does not move.
                    let inside = f32::from(u8::from(over.abs() <= step));
                    let v = learned.v[at] - inside * lr * sign(gradient[at]);
                    learned.v[at] = v.clamp(-0.5, 0.5);
                    let (alpha, beta) = shares(over, step);
                    of_alpha += gradient[at] * alpha;
                    of_beta += gradient[at] * beta;
                }
                let at = row * groups + group;
                let moved =
                    |share: f32, by: f32| (share - lr_of_shares * sign(by)).clamp(LEAST_SHARE, 1.0);
                learned.alpha[at] = moved(learned.alpha[at], of_alpha);
                learned.beta[at] = moved(learned.beta[at], of_beta);
            }
        }
    }
}

/// Edges of 4 bits lie 8 steps from zero, so that a share that moves by lr moves them by 8 · lr steps. Edges of more bits move by
/// as many: with lr itself one step of an edge of 8 bits would be more than half a code, and cut off what learning gains.
fn share_of_a_step(edge: f32, step: f32) -> f32 {
    const STEPS_OF_4_BITS: f32 = 8.0;
    if edge > STEPS_OF_4_BITS * step { STEPS_OF_4_BITS * step / edge } else { 1.0 }
}

/// A share of what is above 0; an edge that is not stays.
fn shrunk(edge: f32, share: f32) -> f32 {
    if edge > 0.0 { edge * share } else { edge }
}

/// −1, 0 or 1; 0 for NaN.
fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        0.0
    }
}

/// How a value moves with the upper and with the lower share of its range, where it lies `over` above its grid point. A wider
/// step moves a rounded value by what it was rounded up, in steps; one that was cut off moves with its own end.
fn shares(over: f32, step: f32) -> (f32, f32) {
    if over.abs() <= step {
        let widened = if step > 0.0 { -over / step } else { 0.0 };
        return (widened, widened);
    }
    if over > 0.0 { (1.0, 0.0) } else { (0.0, -1.0) }
}
