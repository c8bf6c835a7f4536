//! Lookup tables of int8 values and 8-bit activations: torchao's `Int8LutTensor` (P13), weights of 1 to 4 bits.
//!
//! The weight is an int8-dynamic-activation-intx weight (Q14) read another way: code i of a table `qmin ..= qmax` stands for
//! `table[i] · scale`, scales are f32, and products with int8 activations are exact in integers. "Stretched" weights, as PARQ trains
//! them with the zero point −0.5, have the table `2q + 1` and half the scale; they come from training, not from here.
//!
//! torchao makes this tensor while it converts a model for ARM and has no configuration for it; `Int8LutConfig` is our own name.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::Recipe;
use super::code_type::CodeType;
use super::config::{Typed, to_dict};
use super::intx_options::group_size;
use super::packed::{Activations, Codec, Kind, PackedWeight, Zeros, quantize_rows};
use super::primitives::{Granularity, IntxRows, MappingType, intx_quantize};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::packed_linear::Tokens;
use crate::model::Weight;
use crate::tensor::DType;

/// Weights of 1 to 4 bits as tables of int8 values, activations rounded to 8 bits at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Int8LutConfig {
    /// The codes: int1 to int4
    #[arg(long, default_value = "int4", value_name = "INTX")]
    pub weight_dtype: CodeType,
    /// Which weights share a scale: per-axis:0 (a row) or per-group:SIZE
    #[arg(long, default_value = "per-group:32", value_name = "INTX_GRANULARITY")]
    pub weight_granularity: Granularity,
}

impl Default for Int8LutConfig {
    fn default() -> Int8LutConfig {
        Int8LutConfig {
            weight_dtype: CodeType::int(4),
            weight_granularity: Granularity::PerGroup { group_size: 32 },
        }
    }
}

const TYPE: &str = "Int8LutConfig";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "int8-lut",
    ids: &["P13"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-axis:0, per-group:SIZE; activations per token",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

const KIND: Kind = Kind {
    workflow: "int8-lut",
    weight_type: "Int8LutWeight",
    activations: Activations::Tokens(Tokens {
        qmin: -128,
        qmax: 127,
        asymmetric: true,
        eps: f32::MIN_POSITIVE,
    }),
};

/// What files keep of the configuration.
#[derive(Serialize, Deserialize)]
struct Fields {
    weight_dtype: CodeType,
    group_size: usize,
}

impl Fields {
    /// The table `qmin ..= qmax` is what the codes are above their bias.
    fn codec(&self) -> Codec {
        let (bits, bias) = (self.weight_dtype.bits(), self.weight_dtype.bias());
        Codec { bits, bias, group_size: self.group_size, zeros: Zeros::None }
    }

    fn details(&self) -> String {
        format!(
            "a table of {} values, group_size {}",
            1 << self.weight_dtype.bits(),
            self.group_size
        )
    }
}

fn check_codes(code_type: CodeType) -> Result<()> {
    code_type.check_signed("weight_dtype", true)?;
    if code_type.bits() <= 4 {
        return Ok(());
    }
    Err(Error::invalid(format!("weight_dtype is {code_type}; tables have int1 to int4")))
}

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Int8LutConfig = typed.read(VERSION)?;
    config.check_options()?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    let read = |fields: &Map<String, Json>, _: (usize, usize)| {
        let fields: Fields = serde_json::from_value(Json::Object(fields.clone()))
            .map_err(|error| Error::invalid(format!("{}: {error}", KIND.weight_type)))?;
        check_codes(fields.weight_dtype)?;
        Ok((fields.codec(), fields.details()))
    };
    let names = ["weight_dtype", "group_size"];
    Ok(Arc::new(PackedWeight::read(typed, stored, KIND, &names, read)?))
}

impl Int8LutConfig {
    fn check_options(&self) -> Result<()> {
        check_codes(self.weight_dtype)?;
        group_size(&self.weight_granularity, "weight_granularity", 1).map(|_| ())
    }
}

impl Recipe for Int8LutConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        self.weight_granularity.block_size(&[n, k]).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let group_size = group_size(&self.weight_granularity, "weight_granularity", k)?;
        let fields = Fields { weight_dtype: self.weight_dtype, group_size };
        let (codec, range) = (fields.codec(), self.weight_dtype.range()?);
        let parts = quantize_rows(cpu, weight, (codec.bias, false), |rows| {
            let made = intx_quantize(rows, group_size, MappingType::Symmetric, range, None)?;
            Ok(IntxRows { scale: made.scale.to_dtype(DType::F32)?, ..made })
        })?;
        let data = match serde_json::to_value(&fields) {
            Ok(Json::Object(map)) => map,
            _ => Map::new(), // Fields are words and numbers, which always become an object.
        };
        let about = (data, fields.details());
        let dtype = weight.dtype();
        Ok(Arc::new(PackedWeight::new(cpu, KIND, ((n, k), codec), &parts, dtype, about)?))
    }
}
