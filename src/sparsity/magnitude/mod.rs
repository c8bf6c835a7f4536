//! Magnitude pruning (A06, X03): the smallest weights go, of a whole layer, of each N:M neighbours, or block by block.
//!
//! N:M is torchao's `mask_creator` (keep the N largest `|w|` of each M), which is also what its `apply_fake_sparsity` makes for
//! 2:4. Blocks are ranked by the mean of `w²`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::scores::{check_level, mask_of};
use super::sparse_weight;
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::{Mask, Pattern, Weight};
use crate::quantization::Recipe;
use crate::quantization::config::{Typed, to_dict};
use crate::tensor::Tensor;

/// Prune the smallest weights
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct MagnitudeSparsifier {
    /// Where zeros may be: unstructured, N:M such as 2:4, block:SIZE
    #[arg(long, default_value = "unstructured", value_name = "PATTERN")]
    pub pattern: Pattern,
    /// The share of weights, or of blocks, that goes; N:M says it itself
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    pub sparsity_level: f64,
}

impl Default for MagnitudeSparsifier {
    fn default() -> MagnitudeSparsifier {
        MagnitudeSparsifier { pattern: Pattern::Unstructured, sparsity_level: 0.5 }
    }
}

pub(super) const TYPE: &str = "MagnitudeSparsifier";

pub(super) fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: MagnitudeSparsifier = typed.read(1)?;
    check_level(config.sparsity_level)?;
    Ok(Arc::new(config))
}

impl MagnitudeSparsifier {
    /// Which numbers of `w (N, K)` stay.
    pub fn mask(&self, cpu: &Cpu, w: &Tensor) -> Result<Mask> {
        check_level(self.sparsity_level)?;
        let mut scores = w.to_f32_vec();
        let squared = matches!(self.pattern, Pattern::Block { .. });
        for score in &mut scores {
            *score = if squared { *score * *score } else { score.abs() };
        }
        mask_of(cpu, &scores, w.dims2()?, self.pattern, self.sparsity_level)
    }
}

impl Recipe for MagnitudeSparsifier {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, 1, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        check_level(self.sparsity_level)?;
        self.pattern.check(shape)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        super::of_dense(self, cpu, weight)
    }

    fn quantize_shared(&self, cpu: &Cpu, weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let mask = self.mask(cpu, &weight.dequantize()?)?;
        sparse_weight(Arc::clone(weight), mask, self.pattern)
    }
}
