//! Sparsity: which weights are zero, how that is chosen, and the formats that make use of it (A06).
//!
//! A sparsifier is a [`Recipe`], as a quantizer is one: `sparsify_` in torchao's words is [`quantize_`](crate::quantization::quantize_) with one of
//! these configurations. What comes out is a weight that knows its zeros ([`Sparse`](crate::model::Sparse)), so that quantizing it later keeps
//! them, and so does training. `quantize … | sparsify …` takes the scores from the quantized values and keeps the codes of what stays;
//! `sparsify … | quantize …` chooses scales from the pruned values. Both end in the same format.
//!
//! Nobody is faster for zeros alone: [`gain`] says beforehand what a format can gain where it reads fewer bytes or skips products.

pub mod activation_24;
pub mod block_sparse;
pub mod fake;
pub mod gain;
pub mod magnitude;
pub mod marlin_24;
pub mod masked;
pub mod nearly_diagonal;
pub mod schedule;
pub mod scores;
pub mod semi_structured;
pub mod sparse_gpt;
pub mod structured;
pub mod wanda;
pub mod weight_norm;
mod workflows;

use std::any::Any;
use std::sync::Arc;

pub use block_sparse::BlockSparseWeightConfig;
pub use fake::FakeSparsity;
pub use magnitude::MagnitudeSparsifier;
pub use marlin_24::Int4MarlinSparseConfig;
pub use masked::MaskedWeight;
pub use nearly_diagonal::NearlyDiagonalSparsifier;
pub use schedule::{CubicSchedule, LambdaSchedule};
pub use semi_structured::SemiSparseWeightConfig;
pub use sparse_gpt::SparseGptSparsifier;
pub use structured::{FpgmPruner, SaliencyPruner};
pub use wanda::WandaSparsifier;
pub use weight_norm::WeightNormSparsifier;
pub(crate) use workflows::FORMATS;
pub use workflows::{SPARSIFIERS, Sparsifier};

use self::block_sparse::weight::BlockSparseWeight;
use self::semi_structured::weight::SemiStructuredWeight;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{DenseWeight, Mask, Pattern, Weight};
use crate::quantization::Recipe;

/// `weight` with the zeros of `mask`, in the most compact format that there is for the pattern.
pub fn sparse_weight(
    weight: Arc<dyn Weight>,
    mask: Mask,
    pattern: Pattern,
) -> Result<Arc<dyn Weight>> {
    let weight = plain(weight)?;
    let packed: Option<Arc<dyn Weight>> = match pattern {
        Pattern::TWO_OF_FOUR => SemiStructuredWeight::of(weight.as_ref(), &mask)?.map(shared),
        Pattern::Block { size } => BlockSparseWeight::of(weight.as_ref(), &mask, size)?.map(shared),
        _ => None,
    };
    match packed {
        Some(packed) => Ok(packed),
        None => Ok(Arc::new(MaskedWeight::new(weight, mask, pattern)?)),
    }
}

fn shared(weight: impl Weight) -> Arc<dyn Weight> {
    Arc::new(weight)
}

/// What is behind a sparse weight's zeros, so that a mask put on twice is one mask. Packed codes stay packed, behind the mask.
fn plain(weight: Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
    let any: &dyn Any = weight.as_ref();
    if let Some(masked) = any.downcast_ref::<MaskedWeight>() {
        return Ok(Arc::clone(masked.inner()));
    }
    let semi = any.downcast_ref::<SemiStructuredWeight>();
    let block = any.downcast_ref::<BlockSparseWeight>();
    if semi.is_some_and(|weight| weight.is_dense()) || block.is_some_and(|weight| weight.is_dense())
    {
        return DenseWeight::shared(weight.dequantize()?.to_dtype(weight.dtype())?);
    }
    Ok(weight)
}

/// A recipe's result for a weight that nobody shares: only a dense one can be copied.
fn of_dense(recipe: &dyn Recipe, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
    if !weight.meta().is_null() {
        return Err(Error::invalid(format!(
            "{} keeps a quantized weight's codes and wants it shared; call quantize_shared",
            recipe.name()
        )));
    }
    let dense = DenseWeight::shared(weight.dequantize()?.to_dtype(weight.dtype())?)?;
    recipe.quantize_shared(cpu, &dense)
}
