//! Ternary weights −1, 0 and 1 with one scale, and 8-bit activations: BitNet b1.58 as torchao infers with it (R03, R04, L13).
//!
//! `scale = mean(|W|)` of the whole tensor in f32, `q = clamp(round(W / max(scale, 1e-5)), −1, 1)`. A token becomes int8 codes
//! with `scale_x = absmax / 127`, at least 1e-5 (R01's quantizer); `y = Σ_k a · q · scale_x · scale`, the sum exact in integers.
//!
//! Files hold torchao's `BitNetPacked2bitLinearWeight`: four two's-complement codes a byte, the first in the top bits. torchao
//! makes this format while it trains; `BitNetConfig`, which applies it to a trained model, is our own name.

mod weight;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::weight::BitNetWeight;
use super::Recipe;
use super::config::{Typed, to_dict};
use super::rows::for_row_blocks;
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::Tensor;

/// Ternary weights, activations rounded to 8 bits at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default)]
pub struct BitNetConfig {}

const TYPE: &str = "BitNetConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "bitnet",
    ids: &["R03", "R04", "L13"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-tensor; activations per token",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: BitNetConfig = typed.read(VERSION)?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(BitNetWeight::read(typed, stored)?))
}

impl Recipe for BitNetConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (_, k): (usize, usize)) -> Result<()> {
        if k.is_multiple_of(4) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "K = {k}: four ternary codes share a byte, wanted a multiple of 4; use intx-weight-only"
        )))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the mean, and codes of −1 to 1")]
    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let mut total = 0.0;
        let work =
            |rows: &Tensor| Ok(rows.to_f32_vec().iter().map(|w| f64::from(w.abs())).sum::<f64>());
        for_row_blocks(cpu, weight, work, |sum: f64| {
            total += sum;
            Ok(())
        })?;
        // torch adds in f32, in an order of its own; the sum in f64 is what that comes near to.
        let scale = (total / (n * k).max(1) as f64) as f32;
        let mut codes = Vec::with_capacity(n * k);
        let at_least = if scale < 1e-5 { 1e-5 } else { scale };
        let ternary = |w: &f32| (w / at_least).round_ties_even().clamp(-1.0, 1.0) as i8;
        let work = |rows: &Tensor| Ok(rows.to_f32_vec().iter().map(ternary).collect::<Vec<i8>>());
        for_row_blocks(cpu, weight, work, |rows: Vec<i8>| {
            codes.extend(rows);
            Ok(())
        })?;
        let codes = Tensor::new(codes, &[n, k])?;
        Ok(Arc::new(BitNetWeight::new(cpu, &codes, scale, weight.dtype())?))
    }
}
