//! 4-bit weights and float8 activations: torchao's `Float8DynamicActivationInt4WeightConfig` (Q05), groups of 128.
//!
//! Weights: `scale = max(absmax, 1e-6) / 8` of each group in f32, `q = clamp(round(w / scale), −8, 7)`, no zero; scales are rounded
//! to the weight's dtype after the codes are made (MSLK's `int4_row_quantize`). `preshuffled` then keeps, as torchao's
//! `Int4PreshuffledTensor.from_int4_tensor` does, a f32 scale a row, the largest of its groups', and group scales as
//! float8 fractions of it: `w = q · (float8 · row_scale)`. The order in which MSLK shuffles bytes changes no number.
//! Activations: every token through float8 e4m3, `scale = max(amax, 1e-12) / 448`, ties to even.
//!
//! Unlike torchao, `parameter_name` is not ignored, and a K that 128 does not divide is an error.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::Recipe;
use super::config::{Typed, enum_from_word, to_dict};
use super::packed::{Activations, Codec, Kind, PackedWeight, Zeros, quantize_rows};
use super::primitives::{Granularity, IntxRows, int4_row_quantize};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::dtypes::{e4m3fn_decode, e4m3fn_encode_saturating};
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// How group scales are kept.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Float8Int4PackingFormat {
    /// As float8 fractions of a row's largest.
    #[default]
    Preshuffled,
    /// In the weight's dtype.
    Plain,
}

const FORMATS: [(&str, Float8Int4PackingFormat); 2] = [
    ("PRESHUFFLED", Float8Int4PackingFormat::Preshuffled),
    ("PLAIN", Float8Int4PackingFormat::Plain),
];

impl std::str::FromStr for Float8Int4PackingFormat {
    type Err = Error;

    fn from_str(word: &str) -> Result<Float8Int4PackingFormat> {
        enum_from_word(word, "a packing format", &FORMATS)
    }
}

/// 4-bit weights in groups of 128, activations rounded to float8 at every call.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default)]
pub struct Float8DynamicActivationInt4WeightConfig {
    /// How group scales are kept: preshuffled (float8) or plain (in the weight's dtype)
    #[arg(
        id = "packing_format",
        long = "packing-format",
        default_value = "preshuffled",
        value_name = "FLOAT8_INT4_FORMAT"
    )]
    pub int4_packing_format: Float8Int4PackingFormat,
}

const TYPE: &str = "Float8DynamicActivationInt4WeightConfig";
const VERSION: u64 = 1;
const GROUP_SIZE: usize = 128;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "float8-dynamic-activation-int4-weight",
    ids: &["Q05"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-group:128; activations per token",
    kernel: "packed_linear",
    config_from_dict,
    read_weight,
};

const KIND: Kind = Kind {
    workflow: "float8-dynamic-activation-int4-weight",
    weight_type: "Float8DynamicInt4Weight",
    activations: Activations::Float8,
};

const CODEC: Codec = Codec { bits: 4, bias: 8, group_size: GROUP_SIZE, zeros: Zeros::None };

/// What files keep of the configuration.
#[derive(Serialize, Deserialize)]
struct Fields {
    int4_packing_format: Float8Int4PackingFormat,
}

impl Fields {
    fn details(&self) -> String {
        match self.int4_packing_format {
            Float8Int4PackingFormat::Preshuffled => {
                "float8 group scales, activations float8".into()
            }
            Float8Int4PackingFormat::Plain => "plain group scales, activations float8".into(),
        }
    }
}

fn config_from_dict(typed: &Typed<'_>) -> Result<Arc<dyn Recipe>> {
    let config: Float8DynamicActivationInt4WeightConfig = typed.read(VERSION)?;
    Ok(Arc::new(config))
}

fn read_weight(typed: &Typed<'_>, stored: Stored) -> Result<Arc<dyn Weight>> {
    let read = |fields: &Map<String, Json>, _: (usize, usize)| {
        let fields: Fields = serde_json::from_value(Json::Object(fields.clone()))
            .map_err(|error| Error::invalid(format!("{}: {error}", KIND.weight_type)))?;
        Ok((CODEC, fields.details()))
    };
    Ok(Arc::new(PackedWeight::read(typed, stored, KIND, &["int4_packing_format"], read)?))
}

impl Recipe for Float8DynamicActivationInt4WeightConfig {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        Granularity::PerGroup { group_size: GROUP_SIZE }.block_size(&[n, k]).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let fields = Fields { int4_packing_format: self.int4_packing_format };
        let preshuffled = self.int4_packing_format == Float8Int4PackingFormat::Preshuffled;
        let parts = quantize_rows(cpu, weight, (8, false), |rows| {
            let quantized = int4_row_quantize(rows, GROUP_SIZE)?;
            let scale =
                if preshuffled { float8_scales(&quantized.scale)? } else { quantized.scale };
            let zero_point = Tensor::zeros(DType::I8, scale.shape())?;
            Ok(IntxRows { codes: quantized.codes, scale, zero_point })
        })?;
        let data = match serde_json::to_value(&fields) {
            Ok(Json::Object(map)) => map,
            _ => Map::new(), // Fields are words, which always become an object.
        };
        let about = (data, fields.details());
        let dtype = weight.dtype();
        Ok(Arc::new(PackedWeight::new(cpu, KIND, ((n, k), CODEC), &parts, dtype, about)?))
    }
}

/// Group scales `(N, K/g)` as float8 fractions of the largest of their row, multiplied out in f32.
fn float8_scales(scale: &Tensor) -> Result<Tensor> {
    let (n, groups) = scale.dims2()?;
    let dtype = scale.dtype();
    let mut values = scale.to_f32_vec();
    for row in values.chunks_mut(groups.max(1)) {
        let largest =
            row.iter().fold(0.0_f32, |most, s| if s.is_nan() { *s } else { most.max(s.abs()) });
        // torch divides a tensor of the weight's dtype by a f32 one: in f32.
        row.iter_mut()
            .for_each(|s| *s = e4m3fn_decode(e4m3fn_encode_saturating(*s / largest)) * largest);
    }
    debug_assert!(dtype.is_float(), "scales are floats");
    Tensor::new(values, &[n, groups])
}
