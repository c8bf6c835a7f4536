//! A tensor cut into blocks that share a scale: the one routine behind every granularity.

use std::ops::Range;

use crate::error::{Error, Result};

/// A tensor of `shape` cut into blocks of `block_size`, numbered row-major.
#[derive(Clone, Debug)]
pub struct BlockGrid {
    shape: Vec<usize>,
    block_size: Vec<usize>,
    /// How many blocks lie along each dimension.
    counts: Vec<usize>,
}

impl BlockGrid {
    /// The grid. Each size must divide its dimension; both lists have one number a dimension.
    pub fn new(shape: &[usize], block_size: &[usize]) -> Result<BlockGrid> {
        let fits = |(dim, block): (&usize, &usize)| *block > 0 && dim.is_multiple_of(*block);
        let empty = |(dim, block): (&usize, &usize)| *dim == 0 && *block == 0;
        let pairs = || shape.iter().zip(block_size);
        if shape.len() != block_size.len() || !pairs().all(|pair| fits(pair) || empty(pair)) {
            return Err(Error::invalid(format!(
                "block size {block_size:?} cannot cut the shape {shape:?}: wanted one divisor a dimension"
            )));
        }
        let counts = pairs().map(|(dim, block)| dim.checked_div(*block).unwrap_or(0)).collect();
        Ok(BlockGrid { shape: shape.to_vec(), block_size: block_size.to_vec(), counts })
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.counts.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many blocks lie along each dimension: the scales' shape with `keepdim`.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The scales' shape as torch reduces: a dimension that one block covers is gone, unless its size is 1.
    pub fn reduced_shape(&self) -> Vec<usize> {
        let dims = self.shape.iter().zip(&self.block_size).zip(&self.counts);
        dims.filter(|((dim, block), _)| *block == &1 || dim != block)
            .map(|(_, count)| *count)
            .collect()
    }

    /// Calls `f(block, elements)` for every run of neighbouring elements that lie in one block, in order.
    pub fn for_each_run(&self, mut f: impl FnMut(usize, Range<usize>)) {
        let numel: usize = self.shape.iter().product();
        if numel == 0 {
            return;
        }
        // Trailing dimensions that one block covers whole join into one run.
        let covered = self.counts.iter().rev().take_while(|count| **count == 1).count();
        let split = (self.shape.len() - covered).max(1).min(self.shape.len());
        let tail: usize = self.shape[split..].iter().product();
        let run = self.block_size[..split].last().copied().unwrap_or(1) * tail;
        // `index` counts the elements of the outer dimensions and the runs of the innermost one.
        let mut extent = self.shape[..split].to_vec();
        let mut block_size = self.block_size[..split].to_vec();
        if let (Some(last), Some(block)) = (extent.last_mut(), block_size.last_mut()) {
            *last /= *block;
            *block = 1;
        }
        let mut index = vec![0; split];
        for start in (0..numel).step_by(run) {
            let block = (0..split)
                .fold(0, |block, dim| block * self.counts[dim] + index[dim] / block_size[dim]);
            f(block, start..start + run);
            advance(&mut index, &extent);
        }
    }
}

/// The next index in row-major order.
fn advance(index: &mut [usize], extent: &[usize]) {
    for (at, end) in index.iter_mut().zip(extent).rev() {
        *at += 1;
        if *at < *end {
            return;
        }
        *at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The block of each element, from its coordinates alone.
    fn by_coordinates(shape: &[usize], block: &[usize]) -> Vec<usize> {
        let numel: usize = shape.iter().product();
        let block_of = |mut flat: usize| {
            let mut coordinates = vec![0; shape.len()];
            for dim in (0..shape.len()).rev() {
                coordinates[dim] = flat % shape[dim];
                flat /= shape[dim];
            }
            (0..shape.len())
                .fold(0, |id, dim| id * (shape[dim] / block[dim]) + coordinates[dim] / block[dim])
        };
        (0..numel).map(block_of).collect()
    }

    #[test]
    fn runs_cover_every_element_once_with_its_block() {
        for (shape, block) in [
            (vec![12, 64], vec![12, 64]),
            (vec![12, 64], vec![1, 64]),
            (vec![12, 64], vec![12, 1]),
            (vec![12, 64], vec![2, 8]),
            (vec![3, 4, 32], vec![1, 2, 16]),
            (vec![3, 4, 32], vec![3, 4, 32]),
            (vec![3, 4, 32], vec![1, 4, 32]),
            (vec![3, 4, 32], vec![3, 1, 32]),
            (vec![3, 4, 32], vec![1, 2, 32]),
            (vec![1, 7], vec![1, 1]),
            (vec![7], vec![7]),
            (vec![2, 1, 5], vec![1, 1, 5]),
            (vec![], vec![]),
            (vec![0, 4], vec![1, 4]),
        ] {
            let grid = BlockGrid::new(&shape, &block).expect("divides");
            let mut seen = Vec::new();
            grid.for_each_run(|id, range| {
                assert_eq!(range.start, seen.len(), "runs are in order");
                seen.extend(range.map(|_| id));
            });
            assert_eq!(seen, by_coordinates(&shape, &block), "{shape:?} in blocks of {block:?}");
        }
    }

    #[test]
    fn shapes_of_scales_are_torchs() {
        for (shape, block, kept, reduced) in [
            (vec![12, 64], vec![12, 64], vec![1, 1], vec![]),
            (vec![12, 64], vec![1, 64], vec![12, 1], vec![12]),
            (vec![12, 64], vec![2, 8], vec![6, 8], vec![6, 8]),
            (vec![1, 64], vec![1, 64], vec![1, 1], vec![1]),
        ] {
            let grid = BlockGrid::new(&shape, &block).expect("divides");
            assert_eq!((grid.counts(), grid.reduced_shape()), (&kept[..], reduced));
        }
        assert!(BlockGrid::new(&[4], &[3]).is_err());
        assert!(BlockGrid::new(&[4], &[0]).is_err());
        assert!(BlockGrid::new(&[4, 4], &[4]).is_err());
    }
}
