//! Embeddings of 1 to 8 bits: torchao's `EmbeddingQuantizer` and `TiedEmbeddingQuantizer` (P15).
//!
//! Rows are quantized as intx weights (Q13), asymmetric by default, and gathered row by row: `(q − zero_point) · scale` in f32.
//!
//! - `embedding` replaces the embedding. Where the output layer was tied to it, that keeps the old weight and is tied no more:
//!   torchao replaces the embedding's module only.
//! - `tied-embedding` needs a tied output layer, or one with the same numbers. Both then read one buffer; as an output layer it
//!   multiplies int8 activations (Q14), as torchao's shared kernel does.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::Recipe;
use super::code_type::CodeType;
use super::config::{Typed, to_dict};
use super::intx_options::group_size;
use super::packed::{Activations, Codec, Kind, PackedWeight, quantize_rows};
use super::primitives::{Granularity, MappingType, intx_quantize};
use super::stored::Stored;
use super::workflows::Workflow;
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::kernels::packed_linear::Tokens;
use crate::model::{Linear, Model, Weight};

/// The embedding in 1 to 8 bits.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct EmbeddingQuantizer {
    /// The codes: int1 to int8
    #[arg(long, default_value = "int4", value_name = "INTX")]
    pub weight_dtype: CodeType,
    /// Which numbers share a scale: per-axis:0 (a row) or per-group:SIZE
    #[arg(long, default_value = "per-axis:0", value_name = "INTX_GRANULARITY")]
    pub granularity: Granularity,
    /// How a group's range is mapped onto codes: asymmetric, symmetric or symmetric-no-clipping-err
    #[arg(long, default_value = "asymmetric", value_name = "WEIGHT_MAPPING")]
    pub mapping_type: MappingType,
}

impl Default for EmbeddingQuantizer {
    fn default() -> EmbeddingQuantizer {
        EmbeddingQuantizer {
            weight_dtype: CodeType::int(4),
            granularity: Granularity::PerAxis { axis: 0 },
            mapping_type: MappingType::Asymmetric,
        }
    }
}

/// The embedding and the output layer, one buffer, in 1 to 8 bits.
#[derive(clap::Args, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(transparent)]
pub struct TiedEmbeddingQuantizer {
    /// How rows are quantized.
    #[command(flatten)]
    pub rows: EmbeddingQuantizer,
}

const TYPE: &str = "EmbeddingQuantizer";
const TIED_TYPE: &str = "TiedEmbeddingQuantizer";
const VERSION: u64 = 1;

pub(super) const WORKFLOW: Workflow = Workflow {
    name: "embedding",
    ids: &["P15"],
    config_type: TYPE,
    weight_type: KIND.weight_type,
    granularity: "per-axis:0, per-group:SIZE",
    kernel: "packed_linear",
    config_from_dict: |typed| {
        let config: EmbeddingQuantizer = typed.read(VERSION)?;
        config.check_options()?;
        Ok(Arc::new(config))
    },
    read_weight: |typed, stored| read_weight(typed, stored, KIND),
};

pub(super) const TIED_WORKFLOW: Workflow = Workflow {
    name: "tied-embedding",
    ids: &["P15"],
    config_type: TIED_TYPE,
    weight_type: TIED_KIND.weight_type,
    granularity: "per-axis:0, per-group:SIZE; activations per token",
    kernel: "packed_linear",
    config_from_dict: |typed| {
        let config: TiedEmbeddingQuantizer = typed.read(VERSION)?;
        config.rows.check_options()?;
        Ok(Arc::new(config))
    },
    read_weight: |typed, stored| read_weight(typed, stored, TIED_KIND),
};

const KIND: Kind = Kind {
    workflow: "embedding",
    weight_type: "QuantizedEmbedding",
    activations: Activations::AsTheyAre,
};

const TIED_KIND: Kind = Kind {
    workflow: "tied-embedding",
    weight_type: "QuantizedTiedEmbedding",
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
    mapping_type: MappingType,
}

impl Fields {
    fn codec(&self) -> Codec {
        Codec {
            bits: self.weight_dtype.bits(),
            bias: self.weight_dtype.bias(),
            group_size: self.group_size,
            zeros: self.mapping_type == MappingType::Asymmetric,
        }
    }

    fn details(&self, k: usize) -> String {
        let Fields { weight_dtype, group_size, mapping_type } = self;
        match *group_size == k {
            true => format!("{weight_dtype}, a scale a row, {mapping_type}"),
            false => format!("{weight_dtype}, group_size {group_size}, {mapping_type}"),
        }
    }
}

fn read_weight(typed: &Typed<'_>, stored: Stored, kind: Kind) -> Result<Arc<dyn Weight>> {
    let names = ["weight_dtype", "group_size", "mapping_type"];
    let read = |fields: &Map<String, Json>, (_, k): (usize, usize)| {
        let fields: Fields = serde_json::from_value(Json::Object(fields.clone()))
            .map_err(|error| Error::invalid(format!("{}: {error}", kind.weight_type)))?;
        fields.weight_dtype.check_signed("weight_dtype", true)?;
        Ok((fields.codec(), fields.details(k)))
    };
    Ok(Arc::new(PackedWeight::read(typed, stored, kind, &names, read)?))
}

impl EmbeddingQuantizer {
    fn check_options(&self) -> Result<()> {
        self.weight_dtype.check_signed("weight_dtype", true)?;
        group_size(&self.granularity, "granularity", 1).map(|_| ())
    }

    fn quantize_as(&self, cpu: &Cpu, weight: &dyn Weight, kind: Kind) -> Result<Arc<dyn Weight>> {
        let (n, k) = weight.shape();
        self.check((n, k))?;
        let fields = Fields {
            weight_dtype: self.weight_dtype,
            group_size: group_size(&self.granularity, "granularity", k)?,
            mapping_type: self.mapping_type,
        };
        let codec = fields.codec();
        let range = self.weight_dtype.range()?;
        let parts = quantize_rows(cpu, weight, (codec.bias, codec.zeros), |rows| {
            intx_quantize(rows, codec.group_size, self.mapping_type, range, None)
        })?;
        let data = match serde_json::to_value(&fields) {
            Ok(Json::Object(map)) => map,
            _ => Map::new(), // Fields are words and numbers, which always become an object.
        };
        let about = (data, fields.details(k));
        let (shape, dtype) = (((n, k), codec), weight.dtype());
        Ok(Arc::new(PackedWeight::new(cpu, kind, shape, &parts, dtype, about)?))
    }

    /// Quantizes the embedding of `model`. An output layer that was tied to it keeps the old weight.
    pub fn apply(&self, cpu: &Cpu, model: &mut Model) -> Result<()> {
        let old = model.embed_tokens.clone();
        model.embed_tokens =
            self.quantize_as(cpu, old.as_ref(), KIND).within("model.embed_tokens")?;
        if model.lm_head.is_none() {
            model.lm_head = Some(Linear { weight: old, bias: None });
            tie(model, false);
        }
        Ok(())
    }
}

impl TiedEmbeddingQuantizer {
    /// Quantizes the embedding and the output layer of `model` as one.
    pub fn apply(&self, cpu: &Cpu, model: &mut Model) -> Result<()> {
        let old = model.embed_tokens.clone();
        if let Some(head) = &model.lm_head {
            let same = head.weight.shape() == old.shape()
                && head.weight.dequantize()?.bytes() == old.dequantize()?.bytes();
            if !same || head.bias.is_some() {
                return Err(Error::invalid(
                    "the output layer is not tied to the embedding; use embedding for the one, and intx-weight-only for the other",
                ));
            }
        }
        let both = self.rows.quantize_as(cpu, old.as_ref(), TIED_KIND);
        model.embed_tokens = both.within("model.embed_tokens")?;
        model.lm_head = None;
        tie(model, true);
        Ok(())
    }
}

/// Says in the model's configuration whether its output layer is its embedding.
fn tie(model: &mut Model, tied: bool) {
    let config = Arc::make_mut(&mut model.config);
    config.tie_word_embeddings = tied;
    config.json.insert("tie_word_embeddings".into(), tied.into());
}

impl Recipe for EmbeddingQuantizer {
    fn name(&self) -> &'static str {
        WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TYPE, VERSION, self)
    }

    fn check(&self, (n, k): (usize, usize)) -> Result<()> {
        self.check_options()?;
        self.granularity.block_size(&[n, k]).map(|_| ())
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.quantize_as(cpu, weight, KIND)
    }
}

impl Recipe for TiedEmbeddingQuantizer {
    fn name(&self) -> &'static str {
        TIED_WORKFLOW.name
    }

    fn config_to_dict(&self) -> Json {
        to_dict(TIED_TYPE, VERSION, self)
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.rows.check(shape)
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.rows.quantize_as(cpu, weight, TIED_KIND)
    }
}
