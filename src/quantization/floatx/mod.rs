//! Small floats with a scale a row: `FPXWeightOnlyConfig` of torchao until 0.13 (X17), fp6 (e3m2, e2m3), fp5 (e2m2, e3m1)
//! and fp4 (e2m1).
//!
//! `scale = max(amax, 1e-12) / max_normal` of a row, rounded to the weight's dtype, and codes by N25. torchao's kernel wanted
//! K % 64 = 0 and N % 256 = 0, which is nothing that a CPU needs: every shape is taken here. Files hold a row as a stream of
//! bits, the first code in the lowest bits; torchao's layout (L15) was of one GPU kernel.

mod weight;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::weight::FloatxWeight;
use super::Recipe;
use super::config::{Typed, to_dict};
use super::primitives::{choose_qparams_affine_floatx, quantize_affine_floatx};
use super::rows::for_row_blocks;
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::float_linear::{Element, Panels, Scales};
use crate::model::Weight;
use crate::tensor::Tensor;

/// Small floats with a scale a row, activations as they are.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct FPXWeightOnlyConfig {
    /// Bits of the exponent
    #[arg(long, default_value_t = 3, value_name = "BITS")]
    pub ebits: u32,
    /// Bits of the mantissa: with the exponent's 3 2, 2 3, 2 2, 3 1 or 2 1
    #[arg(long, default_value_t = 2, value_name = "BITS")]
    pub mbits: u32,
    /// Kept for torchao, where it tunes a compiler; it does nothing here.
    #[arg(skip = true)]
    pub set_inductor_config: bool,
}

impl Default for FPXWeightOnlyConfig {
    fn default() -> FPXWeightOnlyConfig {
        FPXWeightOnlyConfig { ebits: 3, mbits: 2, set_inductor_config: true }
    }
}

const TYPE: &str = "FPXWeightOnlyConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "fpx-weight-only",
    ids: &["X17", "N25"],
    config_type: TYPE,
    weight_type: weight::TYPE,
    granularity: "per-row",
    kernel: "float_linear",
    config_from_dict,
    read_weight,
};

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: FPXWeightOnlyConfig = typed.read(VERSION)?;
    element(config.ebits, config.mbits)?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    Ok(Arc::new(FloatxWeight::read(typed, stored)?))
}

/// The floats that have a kernel.
const FLOATS: [(u32, u32, Element); 5] = [
    (3, 2, Element::E3m2),
    (2, 3, Element::E2m3),
    (2, 2, Element::E2m2),
    (3, 1, Element::E3m1),
    (2, 1, Element::E2m1),
];

fn element(ebits: u32, mbits: u32) -> Result<Element> {
    let found = FLOATS.iter().find(|(e, m, _)| (*e, *m) == (ebits, mbits));
    found.map(|(.., element)| *element).ok_or_else(|| {
        Error::invalid(format!(
            "ebits {ebits} and mbits {mbits}; wanted 3 2 or 2 3 (fp6), 2 2 or 3 1 (fp5), 2 1 (fp4)"
        ))
    })
}

impl Recipe for FPXWeightOnlyConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, _shape: (usize, usize)) -> Result<()> {
        element(self.ebits, self.mbits).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        let element = element(self.ebits, self.mbits)?;
        let mut codes = Vec::with_capacity(n * k);
        let mut values = Vec::with_capacity(n);
        let work = |rows: &Tensor| {
            let scale = choose_qparams_affine_floatx(rows, self.ebits, self.mbits)?;
            Ok((quantize_affine_floatx(rows, &scale, self.ebits, self.mbits)?, scale))
        };
        for_row_blocks(cpu, weight, work, |(block, scale): (Tensor, Tensor)| {
            codes.extend_from_slice(block.as_slice::<u8>()?);
            values.extend(scale.to_f32_vec());
            Ok(())
        })?;
        let row = |i: usize, to: &mut [u8]| to.copy_from_slice(&codes[i * k..][..k]);
        let scales = Scales::Groups { values, group_size: k };
        let panels = Panels::pack(cpu, element, (n, k), scales, row);
        Ok(Arc::new(FloatxWeight::new(panels, weight.dtype())))
    }
}
