//! Blocks of the lowest norm (X08): torch.ao's `WeightNormSparsifier`.
//!
//! Each `height × width` block is scored by the mean of `w²` (norm 2) or `|w|` (norm 1) of what of it lies in the weight.
//! The `round(level · blocks)` lowest blocks are pruned, and of each only its `zeros_per_block` smallest numbers. With level 1,
//! blocks 1,4 and 2 zeros this is 2:4 by magnitude, torchao's `apply_fake_sparsity` (X03).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::scores::{block_means, check_level, count_nearest, each_block, lowest};
use super::sparse_weight;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{Mask, Pattern, Weight};
use crate::quantization::Recipe;
use crate::quantization::config::{Typed, to_dict};
use crate::tensor::Tensor;

/// Prune blocks of the lowest norm
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct WeightNormSparsifier {
    /// The share of blocks that is pruned
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    pub sparsity_level: f64,
    /// Rows and columns of a block
    #[arg(long, num_args = 2, value_delimiter = ',', default_values_t = [1, 4], value_name = "ROWS,COLUMNS")]
    pub sparse_block_shape: Vec<usize>,
    /// How many numbers of a pruned block are zeroed [default: all]
    #[arg(long, value_name = "COUNT")]
    pub zeros_per_block: Option<usize>,
    /// 1 scores by |w|, 2 by w²
    #[arg(long, default_value_t = 2)]
    pub norm: u8,
}

impl Default for WeightNormSparsifier {
    fn default() -> WeightNormSparsifier {
        WeightNormSparsifier {
            sparsity_level: 0.5,
            sparse_block_shape: vec![1, 4],
            zeros_per_block: None,
            norm: 2,
        }
    }
}

pub(super) const TYPE: &str = "WeightNormSparsifier";

pub(super) fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: WeightNormSparsifier = typed.read(1)?;
    config.block()?;
    Ok(Arc::new(config))
}

impl WeightNormSparsifier {
    /// Rows, columns, and zeros of a block, checked.
    fn block(&self) -> Result<(usize, usize, usize)> {
        check_level(self.sparsity_level)?;
        let [height, width] = self.sparse_block_shape[..] else {
            let got = &self.sparse_block_shape;
            return Err(Error::invalid(format!("sparse_block_shape is {got:?}; wanted 2 numbers")));
        };
        let values = height.checked_mul(width).filter(|values| (1..=1 << 24).contains(values));
        let values = values.ok_or_else(|| {
            Error::invalid(format!(
                "sparse_block_shape is {height},{width}; wanted 1 to 2²⁴ numbers"
            ))
        })?;
        let zeros = self.zeros_per_block.unwrap_or(values);
        if zeros > values {
            return Err(Error::invalid(format!(
                "zeros_per_block is {zeros}; a block of {height} × {width} has {values}"
            )));
        }
        if ![1, 2].contains(&self.norm) {
            return Err(Error::invalid(format!("norm is {}; wanted 1 or 2", self.norm)));
        }
        Ok((height, width, zeros))
    }

    /// Which numbers of `w (N, K)` stay.
    pub fn mask(&self, w: &Tensor) -> Result<Mask> {
        let (height, width, zeros) = self.block()?;
        let shape = w.dims2()?;
        let mut scores = w.to_f32_vec();
        for score in &mut scores {
            *score = if self.norm == 2 { *score * *score } else { score.abs() };
        }
        let means = block_means(&scores, shape, (height, width));
        let count = match self.sparsity_level {
            level if level >= 1.0 => means.len(),
            // At least one block stays, as in torch.
            level => count_nearest(means.len(), level).min(means.len().saturating_sub(1)),
        };
        let pruned = lowest(&means, count);
        let mut keep = vec![true; scores.len()];
        let blocks = each_block(shape, (height, width)).zip(pruned).filter(|(_, pruned)| *pruned);
        for ((rows, columns), _) in blocks {
            let places: Vec<usize> =
                rows.flat_map(|row| columns.clone().map(move |k| row * shape.1 + k)).collect();
            let values: Vec<f32> = places.iter().map(|at| scores[*at]).collect();
            for (at, gone) in places.iter().zip(lowest(&values, zeros)) {
                keep[*at] = !gone;
            }
        }
        Mask::of(&keep, shape)
    }

    /// The pattern that the mask has for certain.
    fn pattern(&self) -> Pattern {
        match self.block() {
            Ok((1, m, zeros)) if self.sparsity_level >= 1.0 && zeros < m => {
                Pattern::NOfM { n: m - zeros, m }
            }
            Ok((height, width, zeros)) if height == width && zeros == height * width => {
                Pattern::Block { size: height }
            }
            _ => Pattern::Unstructured,
        }
    }
}

impl Recipe for WeightNormSparsifier {
    fn name(&self) -> &'static str {
        "weight-norm"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, 1, self)
    }

    fn check(&self, _shape: (usize, usize)) -> Result<()> {
        self.block().map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        super::of_dense(self, cpu, weight)
    }

    fn quantize_shared(&self, _cpu: &Cpu, weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        let mask = self.mask(&weight.dequantize()?)?;
        // Blocks at the edges may be smaller than those of a pattern.
        let pattern = match self.pattern() {
            pattern if pattern.check(weight.shape()).is_ok() => pattern,
            _ => Pattern::Unstructured,
        };
        sparse_weight(Arc::clone(weight), mask, pattern)
    }
}
