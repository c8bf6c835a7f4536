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
use serde_json::Value as Json;

use super::Recipe;
use super::code_type::CodeType;
use super::config::to_dict;
use super::intx_fields::IntxFields;
use super::intx_options::IntxChooseQParamsAlgorithm;
use super::packed::{Activations, Kind};
use super::primitives::{Granularity, MappingType};
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
    read_weight: |typed, stored| IntxFields::read(typed, stored, KIND),
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
    read_weight: |typed, stored| IntxFields::read(typed, stored, TIED_KIND),
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

impl EmbeddingQuantizer {
    fn check_options(&self) -> Result<()> {
        self.weight_dtype.check_signed("weight_dtype", true)?;
        self.fields(1).map(|_| ())
    }

    fn fields(&self, k: usize) -> Result<IntxFields> {
        let granularity = (&self.granularity, "granularity");
        IntxFields::new(self.weight_dtype, granularity, self.mapping_type, k)
    }

    fn quantize_as(&self, cpu: &Cpu, weight: &dyn Weight, kind: Kind) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        let choose = (IntxChooseQParamsAlgorithm::Affine, None);
        self.fields(weight.shape().1)?.quantize(cpu, weight, kind, choose)
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
