//! 2:4 semi-structured weights (A06, X03): torchao's `SemiSparseWeightConfig`, which compresses and does not prune.
//!
//! torch gives a weight that is not 2:4 wrong numbers without a word; here it is an error that says how to prune first.

mod cutlass;
pub(super) mod weight;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use self::cutlass::{Cutlass24, pack_cutlass, unpack_cutlass};
pub(super) use self::cutlass::{index_bits, kept};
use super::sparse_weight;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{Mask, Pattern, Weight};
use crate::quantization::Recipe;
use crate::quantization::config::{Typed, to_dict};

/// Compress a weight that is 2:4 already
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default)]
pub struct SemiSparseWeightConfig {}

pub(super) const TYPE: &str = "SemiSparseWeightConfig";

pub(super) fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: SemiSparseWeightConfig = typed.read(1)?;
    Ok(Arc::new(config))
}

impl Recipe for SemiSparseWeightConfig {
    fn name(&self) -> &'static str {
        "semi-sparse-weight"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, 1, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        Pattern::TWO_OF_FOUR.check(shape)
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
        if !mask.holds(Pattern::TWO_OF_FOUR) {
            return Err(Error::invalid(
                "the weight is not 2:4: some four neighbours have more than two numbers; \
                 prune first: `sparsify magnitude --pattern 2:4`, wanda or sparse-gpt",
            ));
        }
        sparse_weight(Arc::clone(weight), mask, Pattern::TWO_OF_FOUR)
    }
}
