//! What pruning does to a weight: torchao's proximal maps and constraints.

use serde::{Deserialize, Serialize};

use super::group::{Grouper, Groups};
use crate::error::{Error, Result};
use crate::quantization::primitives::symmetric_eigen;

/// How groups are pruned. Thresholds are `reg_lambda · tau · gamma`, gamma the sum of the learning rates so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prox {
    /// `ProxLasso`: each number nearer to 0 by the threshold.
    Lasso,
    /// `ProxGroupLasso`: each group shorter by the threshold, tau = √(its numbers).
    GroupLasso,
    /// `ProxNuclearNorm`: singular values smaller by the threshold.
    NuclearNorm,
    /// `MinSparsityConstraint`: at least this share of the groups is 0, the shortest ones.
    MinSparsity(f64),
    /// `GlobalMinSparsityConstraint`: the same among the groups of all layers together.
    GlobalMinSparsity(f64, Score),
    /// `MinRankConstraint`: at least this share of the singular values is 0.
    MinRank(f64),
    /// `NMSparseConstraint`: so many numbers of each group stay, the largest.
    NMSparse(usize),
}

/// How groups of different sizes are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Length by the root of the size.
    #[default]
    Rms,
    /// Length.
    L2,
    /// Length by the size.
    ParamCost,
}

impl Prox {
    /// Whether it counts, and does not shrink.
    pub(super) fn is_constraint(&self) -> bool {
        !matches!(self, Prox::Lasso | Prox::GroupLasso | Prox::NuclearNorm)
    }

    /// The share that is pruned at the end, where there is one.
    pub(super) fn target(&self) -> Option<f64> {
        match self {
            Prox::MinSparsity(share) | Prox::GlobalMinSparsity(share, _) | Prox::MinRank(share) => {
                Some(*share)
            }
            _ => None,
        }
    }

    /// The same with another share.
    pub(super) fn at(self, share: f64) -> Prox {
        match self {
            Prox::MinSparsity(_) => Prox::MinSparsity(share),
            Prox::GlobalMinSparsity(_, score) => Prox::GlobalMinSparsity(share, score),
            Prox::MinRank(_) => Prox::MinRank(share),
            other => other,
        }
    }

    pub(super) fn check(&self, grouper: Grouper) -> Result<()> {
        if let Some(share) = self.target().filter(|share| !(0.0..=1.0).contains(share)) {
            return Err(Error::invalid(format!("min_sparsity is {share}; wanted 0 to 1")));
        }
        let of_values = matches!(self, Prox::NuclearNorm | Prox::MinRank(_));
        if of_values != (grouper == Grouper::Svd) {
            return Err(Error::invalid(
                "nuclear-norm and min-rank prune singular values: they go with the grouper svd, and nothing else does",
            ));
        }
        match (self, grouper) {
            (Prox::NMSparse(n), Grouper::KElement(k)) if *n <= k => Ok(()),
            (Prox::NMSparse(n), _) => Err(Error::invalid(format!(
                "{n} numbers stay of each group: that wants groups of neighbours, k-element:{n} or more"
            ))),
            _ => Ok(()),
        }
    }

    /// The pruned weight `(N, K)`, all but [`Prox::GlobalMinSparsity`]; `threshold` is `reg_lambda · gamma`.
    pub fn apply(
        &self,
        grouper: Grouper,
        values: &mut [f32],
        (n, k): (usize, usize),
        threshold: f64,
    ) -> Result<()> {
        let groups = grouper.of((n, k))?;
        match self {
            Prox::Lasso => shrink_numbers(values, threshold),
            Prox::GroupLasso => shrink_groups(&groups, values, threshold),
            Prox::NuclearNorm => {
                return with_singular_values(values, (n, k), |s| {
                    s.iter_mut().for_each(|s| *s = (*s - threshold).max(0.0));
                });
            }
            Prox::MinRank(share) => {
                return with_singular_values(values, (n, k), |s| {
                    // They are in order: the last ones go.
                    let kept = s.len() - share_of(*share, s.len());
                    s[kept..].fill(0.0);
                });
            }
            Prox::MinSparsity(share) => {
                let norms = groups.norms(values);
                let pruned = smallest(&norms, share_of(*share, norms.len()));
                drop_groups(&groups, values, &pruned);
            }
            Prox::NMSparse(kept) => keep_largest(&groups, values, *kept),
            Prox::GlobalMinSparsity(..) => {
                return Err(Error::invalid("a budget of all layers is no map of one"));
            }
        }
        Ok(())
    }
}

/// Zeros the lowest groups of all weights together.
pub fn prune_globally(
    grouper: Grouper,
    (share, score): (f64, Score),
    weights: &mut [(Vec<f32>, (usize, usize))],
) -> Result<()> {
    let groups = weights.iter().map(|(_, shape)| grouper.of(*shape)).collect::<Result<Vec<_>>>()?;
    let mut scores = Vec::new();
    for (groups, (values, (_, k))) in groups.iter().zip(weights.iter()) {
        if matches!(grouper, Grouper::KElement(size) if !k.is_multiple_of(size)) {
            return Err(Error::invalid(format!(
                "K = {k} has no whole {grouper}: a budget of all layers wants groups of one size"
            )));
        }
        #[expect(clippy::cast_possible_truncation, reason = "torch divides by it in f32")]
        let by = match score {
            Score::Rms => groups.size().sqrt() as f32,
            Score::L2 => 1.0,
            Score::ParamCost => groups.size() as f32,
        };
        scores.extend(groups.norms(values).into_iter().map(|norm| norm / by));
    }
    let pruned = smallest(&scores, share_of(share, scores.len()));
    let mut rest = &pruned[..];
    for (groups, (values, _)) in groups.iter().zip(weights.iter_mut()) {
        let (own, others) = rest.split_at(groups.count());
        drop_groups(groups, values, own);
        rest = others;
    }
    Ok(())
}

/// `⌈share · count⌉`
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to count")]
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
fn share_of(share: f64, count: usize) -> usize {
    ((share * count as f64).ceil() as usize).min(count)
}

/// Which are the `count` smallest; of equal ones the first.
fn smallest(scores: &[f32], count: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let mut pruned = vec![false; scores.len()];
    order.iter().take(count).for_each(|at| pruned[*at] = true);
    pruned
}

fn drop_groups(groups: &Groups, values: &mut [f32], pruned: &[bool]) {
    for (at, x) in values.iter_mut().enumerate() {
        if pruned[groups.of(at)] {
            *x = 0.0;
        }
    }
}

/// What remains of a length: `max(1 − threshold / norm, 0)`. torchao's 0 / 0 of an all-zero group is 0 here.
fn remains(norm: f32, threshold: f32) -> f32 {
    let share = 1.0 - threshold / norm;
    if norm == 0.0 || share < 0.0 { 0.0 } else { share }
}

#[expect(clippy::cast_possible_truncation, reason = "torch rounds the threshold to f32")]
fn shrink_numbers(values: &mut [f32], threshold: f64) {
    values.iter_mut().for_each(|x| *x *= remains(x.abs(), threshold as f32));
}

#[expect(clippy::cast_possible_truncation, reason = "torch rounds the threshold to f32")]
fn shrink_groups(groups: &Groups, values: &mut [f32], threshold: f64) {
    let threshold = (threshold * groups.size().sqrt()) as f32;
    let shares: Vec<f32> =
        groups.norms(values).into_iter().map(|norm| remains(norm, threshold)).collect();
    values.iter_mut().enumerate().for_each(|(at, x)| *x *= shares[groups.of(at)]);
}

fn keep_largest(groups: &Groups, values: &mut [f32], kept: usize) {
    let mut members = vec![Vec::new(); groups.count()];
    (0..values.len()).for_each(|at| members[groups.of(at)].push(at));
    for mut group in members {
        group.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
        group.iter().skip(kept).for_each(|at| values[*at] = 0.0);
    }
}

/// Changes the singular values of a matrix, which `f` gets largest first.
#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn with_singular_values(
    values: &mut [f32],
    (n, k): (usize, usize),
    f: impl FnOnce(&mut [f64]),
) -> Result<()> {
    // The shorter side's vectors, in rows of `size`; the matrix seen from that side has `long` rows.
    let (size, long) = (n.min(k), n.max(k));
    let at = |i: usize, j: usize| if k <= n { i * k + j } else { j * k + i };
    let mut gram = vec![0.0; size * size];
    for i in 0..long {
        let row: Vec<f64> = (0..size).map(|j| f64::from(values[at(i, j)])).collect();
        for (sums, x) in gram.chunks_exact_mut(size).zip(&row) {
            sums.iter_mut().zip(&row).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let found = symmetric_eigen(&gram, size)?;
    let before: Vec<f64> = found.values.iter().map(|value| value.max(0.0).sqrt()).collect();
    let mut after = before.clone();
    f(&mut after);
    let share = |(after, before): (&f64, &f64)| if *before > 0.0 { after / before } else { 0.0 };
    let shares: Vec<f64> = after.iter().zip(&before).map(share).collect();
    // A · V · diag(shares) · Vᵀ, row by row.
    for i in 0..long {
        let row: Vec<f64> = (0..size).map(|j| f64::from(values[at(i, j)])).collect();
        let mut new = vec![0.0; size];
        for (vector, share) in found.vectors.chunks_exact(size).zip(&shares) {
            let along = share * vector.iter().zip(&row).map(|(v, x)| v * x).sum::<f64>();
            new.iter_mut().zip(vector).for_each(|(new, v)| *new += along * v);
        }
        (0..size).for_each(|j| values[at(i, j)] = new[j] as f32);
    }
    Ok(())
}
