//! NF4 with double quantization, the format of QLoRA: torchao's `NF4WeightOnlyConfig` and `NF4Tensor` (Q15, L04).
//!
//! The weight is read as one list of blocks of 64. Each becomes codes of a table of sixteen quantiles of the normal distribution
//! and `absmax`, which is itself quantized: `q8 = round((absmax − mean) · f)` with a factor f for every 256 blocks, and
//! `w = table[code] · (q8 / f + mean)`. Table, scales and results are of the weight's dtype, each operation rounded to it.
//!
//! Codes lie two a byte in files, the first in the high nibble. In memory they lie in the kernels' panels, where the
//! table stays in a register; blocks that straddle rows (K not a multiple of 64) are dequantized for each product.

mod weight;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::weight::Nf4Weight;
use super::Recipe;
use super::config::{Typed, to_dict};
use super::primitives::{nf4_check, nf4_codes, nf4_double_quantize_scalers};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::Result;
use crate::kernels::Cpu;
use crate::model::Weight;

/// 4-bit codes of a table of normal quantiles, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct NF4WeightOnlyConfig {
    /// How many neighbours share a scale
    #[arg(long, default_value_t = 64, value_name = "SIZE")]
    pub block_size: usize,
    /// How many scales share a factor; the weight must hold whole groups of them
    #[arg(long, default_value_t = 256, value_name = "SIZE")]
    pub scaler_block_size: usize,
}

impl Default for NF4WeightOnlyConfig {
    fn default() -> NF4WeightOnlyConfig {
        NF4WeightOnlyConfig { block_size: 64, scaler_block_size: 256 }
    }
}

const TYPE: &str = "NF4WeightOnlyConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "nf4-weight-only",
    ids: &["Q15", "L04"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-group:SIZE",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: NF4WeightOnlyConfig = typed.read(VERSION)?;
    // What cuts nothing evenly is refused at once, whatever the weight.
    nf4_check(0, config.block_size, config.scaler_block_size)?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(Nf4Weight::read(typed, stored)?))
}

impl Recipe for NF4WeightOnlyConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        nf4_check(n * k, self.block_size, self.scaler_block_size)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let shape = weight.shape();
        self.check(shape)?;
        let dtype = weight.dtype();
        // The mean of all scales is needed before any of them is rounded: the whole weight is expanded once.
        let values = weight.dequantize()?;
        let (block, scaler_block) = (self.block_size, self.scaler_block_size);
        let scalers = nf4_double_quantize_scalers(&values.to_dtype(dtype)?, block, scaler_block)?;
        let values = values.as_slice::<f32>()?;
        let mut codes = vec![0; values.len()];
        let share = cpu.threads().share(values.len() / block, 1) * block;
        cpu.threads().chunks_mut(&mut codes, share, |i, codes| {
            let values = &values[i * share..][..codes.len()];
            codes.copy_from_slice(&nf4_codes(values, block, dtype));
        });
        Ok(Arc::new(Nf4Weight::new(cpu, shape, &codes, scalers, block)?))
    }
}
