//! From scores to masks: which numbers, neighbours or blocks have the lowest.
//!
//! Among equal scores the first goes first, as a stable ascending sort has it (torch's own is not stable, so that ties may
//! differ from one of its versions to the next). NaN counts as the highest.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{Mask, Pattern};

/// Orders as numbers do, NaN of either sign on top.
fn key(score: f32) -> u32 {
    if score.is_nan() {
        return u32::MAX;
    }
    // −0 and 0 are one number.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Marks the `count` lowest of `scores`.
pub fn lowest(scores: &[f32], count: usize) -> Vec<bool> {
    let mut marked = vec![false; scores.len()];
    let count = count.min(scores.len());
    if count == 0 {
        return marked;
    }
    let mut order: Vec<(u32, usize)> =
        scores.iter().enumerate().map(|(at, score)| (key(*score), at)).collect();
    if count < order.len() {
        order.select_nth_unstable(count - 1);
    }
    order[..count].iter().for_each(|(_, at)| marked[*at] = true);
    marked
}

/// Of each `m` neighbours of a row of scores, those that the `n` highest do not leave out are kept.
pub fn n_of_m(cpu: &Cpu, scores: &[f32], k: usize, (n, m): (usize, usize)) -> Vec<bool> {
    let mut keep = vec![true; scores.len()];
    let rows = cpu.threads().share(scores.len() / k.max(1), 1);
    cpu.threads().chunks_mut(&mut keep, rows * k.max(1), |part, keep| {
        let scores = &scores[part * rows * k..][..keep.len()];
        let mut order: Vec<(u32, usize)> = Vec::with_capacity(m);
        for (keep, scores) in keep.chunks_exact_mut(m).zip(scores.chunks_exact(m)) {
            order.clear();
            order.extend(scores.iter().enumerate().map(|(at, score)| (key(*score), at)));
            order.sort_unstable();
            order[..m - n].iter().for_each(|(_, at)| keep[*at] = false);
        }
    });
    keep
}

/// How many of `all` are pruned at `level`, rounded down, as torchao's Wanda does.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "level is 0 to 1")]
pub fn count_down(all: usize, level: f64) -> usize {
    (all as f64 * level) as usize
}

/// The same rounded to the nearest, ties to even, as torch.ao's sparsifiers do.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "level is 0 to 1")]
pub fn count_nearest(all: usize, level: f64) -> usize {
    ((all as f64 * level).round_ties_even() as usize).min(all)
}

/// Refuses a level that is no share.
pub fn check_level(level: f64) -> Result<()> {
    if (0.0..=1.0).contains(&level) {
        return Ok(());
    }
    Err(Error::invalid(format!("sparsity_level is {level}; wanted a share from 0 to 1")))
}

/// The mean of `scores (N, K)` over each `height × width` block, row-major; blocks at the edges may be smaller.
#[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
#[expect(clippy::cast_precision_loss, reason = "blocks are small")]
pub fn block_means(
    scores: &[f32],
    (n, k): (usize, usize),
    (height, width): (usize, usize),
) -> Vec<f32> {
    let blocks = each_block((n, k), (height, width));
    let mean = |(rows, columns): (Range<usize>, Range<usize>)| {
        let count = rows.len() * columns.len();
        let sum: f64 = rows
            .flat_map(|row| &scores[row * k..][columns.clone()])
            .map(|score| f64::from(*score))
            .sum();
        (sum / count as f64) as f32
    };
    blocks.map(mean).collect()
}

/// Rows and columns of each block.
pub fn each_block(
    (n, k): (usize, usize),
    (height, width): (usize, usize),
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    (0..n).step_by(height).flat_map(move |top| {
        let rows = top..n.min(top + height);
        (0..k).step_by(width).map(move |left| (rows.clone(), left..k.min(left + width)))
    })
}

/// The mask of `pattern` that keeps the highest scores `(N, K)`; `level` is the share that goes, which N:M says itself.
pub fn mask_of(
    cpu: &Cpu,
    scores: &[f32],
    shape: (usize, usize),
    pattern: Pattern,
    level: f64,
) -> Result<Mask> {
    pattern.check(shape)?;
    let keep = match pattern {
        Pattern::Unstructured => {
            let gone = lowest(scores, count_down(scores.len(), level));
            gone.into_iter().map(|gone| !gone).collect()
        }
        Pattern::NOfM { n, m } => n_of_m(cpu, scores, shape.1, (n, m)),
        Pattern::Block { size } => {
            let means = block_means(scores, shape, (size, size));
            let gone = lowest(&means, count_down(means.len(), level));
            let mut keep = vec![true; scores.len()];
            for ((rows, columns), _) in
                each_block(shape, (size, size)).zip(gone).filter(|(_, gone)| *gone)
            {
                rows.for_each(|row| keep[row * shape.1..][columns.clone()].fill(false));
            }
            keep
        }
    };
    Mask::of(&keep, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_go_and_the_first_of_equals() {
        let scores = [3.0, 1.0, f32::NAN, 1.0, -0.0, 0.0];
        let at = |count| {
            let marked = lowest(&scores, count);
            (0..6).filter(|i| marked[*i]).collect::<Vec<_>>()
        };
        assert_eq!(at(0), Vec::<usize>::new());
        assert_eq!(at(1), [4]);
        assert_eq!(at(3), [1, 4, 5]);
        assert_eq!(at(5), [0, 1, 3, 4, 5]);
        assert_eq!(at(9), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn neighbours_and_blocks() {
        let cpu = Cpu::new(Some(2));
        let keep = n_of_m(&cpu, &[4.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0], 4, (2, 4));
        assert_eq!(keep, [true, false, false, true, false, false, true, true]);
        let scores: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let mask = mask_of(&cpu, &scores, (4, 4), Pattern::Block { size: 2 }, 0.5).expect("fits");
        assert_eq!(mask.kept(), 8);
        assert!(!mask.keeps(1, 3) && mask.keeps(2, 0));
        assert_eq!(mask.empty_blocks(2), (2, 4));
        assert!(mask_of(&cpu, &scores, (4, 4), Pattern::NOfM { n: 1, m: 3 }, 0.5).is_err());
    }
}
