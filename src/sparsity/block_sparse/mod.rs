//! Block-sparse weights (X04): torchao's `BlockSparseWeightConfig`, which drops blocks of zeros and does not prune.

pub(super) mod weight;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::sparse_weight;
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::{Mask, Pattern, Weight};
use crate::quantization::Recipe;
use crate::quantization::config::{Typed, to_dict};

/// Keep only the blocks that are not zero
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct BlockSparseWeightConfig {
    /// Rows and columns of a block
    #[arg(long, default_value_t = 64, value_name = "SIZE")]
    pub blocksize: usize,
}

impl Default for BlockSparseWeightConfig {
    fn default() -> BlockSparseWeightConfig {
        BlockSparseWeightConfig { blocksize: 64 }
    }
}

pub(super) const TYPE: &str = "BlockSparseWeightConfig";

pub(super) fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: BlockSparseWeightConfig = typed.read(1)?;
    Ok(Arc::new(config))
}

impl Recipe for BlockSparseWeightConfig {
    fn name(&self) -> &'static str {
        "block-sparse-weight"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, 1, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        Pattern::Block { size: self.blocksize }.check(shape)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        super::of_dense(self, cpu, weight)
    }

    fn quantize_shared(&self, _cpu: &Cpu, weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let mask = match weight.as_sparse() {
            Some(sparse) => sparse.mask()?,
            None => Mask::of_nonzero(&weight.dequantize()?.to_f32_vec(), weight.shape())?,
        };
        sparse_weight(Arc::clone(weight), mask, Pattern::Block { size: self.blocksize })
    }
}
