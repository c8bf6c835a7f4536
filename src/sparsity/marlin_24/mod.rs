//! 2:4 weights in symmetric int4 (X10): what torchao's `MarlinSparseLayout` made of `int4_weight_only`.
//!
//! `scale = absmax / 7.5` of each group of 128 columns (or of a row), `q = clamp(round(w / scale) + 8, 0, 15)`; of a weight that is not 2:4 yet the
//! two largest of each four stay, as torchao's layout prunes. Scales are f32; torch's are f16. Its kernel's order
//! of tiles (L14) is [`pack_marlin_24`]'s; layers here keep their own.

mod layout;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use self::layout::{Marlin24, pack_marlin_24, unpack_marlin_24};
use super::semi_structured::weight::SemiStructuredWeight;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{Mask, Pattern, Weight};
use crate::quantization::Recipe;
use crate::quantization::config::{Typed, to_dict};
use crate::quantization::primitives::{
    CodeRange, IntType, MappingType, QParamsOptions, choose_qparams_affine, quantize_affine,
};
use crate::sparsity::scores::mask_of;
use crate::tensor::{DType, Tensor};

/// 2:4 in symmetric int4
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Int4MarlinSparseConfig {
    /// Columns that share a scale: 32, 64, 128, 256 …; -1 takes a whole row
    #[arg(long, default_value_t = 128, value_name = "SIZE")]
    pub group_size: i64,
}

impl Default for Int4MarlinSparseConfig {
    fn default() -> Int4MarlinSparseConfig {
        Int4MarlinSparseConfig { group_size: 128 }
    }
}

pub(super) const TYPE: &str = "Int4MarlinSparseConfig";

pub(super) fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Int4MarlinSparseConfig = typed.read(1)?;
    Ok(Arc::new(config))
}

impl Int4MarlinSparseConfig {
    fn group(&self, k: usize) -> Result<usize> {
        let group = match self.group_size {
            -1 => Some(k),
            size => usize::try_from(size).ok(),
        };
        let fits = |g: &usize| {
            (matches!(g, 32 | 64) || (*g > 0 && g.is_multiple_of(128))) && k.is_multiple_of(*g)
        };
        group.filter(fits).ok_or_else(|| {
            Error::invalid(format!(
                "group_size {} does not fit K = {k}; wanted 32, 64 or a multiple of 128 that divides it",
                self.group_size
            ))
        })
    }

    /// Codes 0 to 15 `(N, K)` and scales `(N, K / group_size)` of a pruned weight.
    pub fn codes(&self, w: &Tensor) -> Result<(Tensor, Tensor)> {
        let group = self.group(w.dims2()?.1)?;
        let range = CodeRange::full(IntType::UInt(4))?;
        let options = QParamsOptions {
            eps: Some(1e-6),
            scale_dtype: Some(DType::F32),
            zero_point_dtype: Some(DType::I32),
            keepdim: false,
        };
        let block = [1, group];
        let (scale, zero) =
            choose_qparams_affine(w, MappingType::Symmetric, &block, range, options)?;
        let q = quantize_affine(w, &block, &scale, &zero, range)?;
        Ok((q, scale))
    }
}

impl Recipe for Int4MarlinSparseConfig {
    fn name(&self) -> &'static str {
        "marlin-24"
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, 1, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        Pattern::TWO_OF_FOUR.check(shape)?;
        self.group(shape.1).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let shape = weight.shape();
        self.check(shape)?;
        let w = weight.dequantize()?;
        let kept = weight.as_sparse().map(|sparse| sparse.mask()).transpose()?;
        let mask: Mask = match kept.filter(|mask| mask.holds(Pattern::TWO_OF_FOUR)) {
            Some(mask) => mask,
            None => {
                let scores: Vec<f32> = w.to_f32_vec().iter().map(|w| w.abs()).collect();
                mask_of(cpu, &scores, shape, Pattern::TWO_OF_FOUR, 0.5)?
            }
        };
        let mut values = w.to_f32_vec();
        mask.apply_rows(0, &mut values);
        let pruned = Tensor::new(values, &[shape.0, shape.1])?.to_dtype(weight.dtype())?;
        let (q, scale) = self.codes(&pruned)?;
        let group = self.group(shape.1)?;
        let made = SemiStructuredWeight::of_int4((&q, &scale), group, &mask, weight.dtype())?;
        Ok(Arc::new(made))
    }

    fn quantize_shared(&self, cpu: &Cpu, weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
        self.quantize(cpu, weight.as_ref())
    }
}
