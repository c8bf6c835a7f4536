//! torchao's older QAT flows (T09–T13): names for configurations, over the same code.
//!
//! | quantizer | activations | weights | `convert` |
//! |---|---|---|---|
//! | `Int8DynActInt4WeightQATQuantizer` (T09) | int8 a token | int4 groups | `int8-dynamic-activation-intx-weight` |
//! | `Int4WeightOnlyQATQuantizer` (T10) | | uint4 groups, tinygemm's float zeros | `int4-weight-only`, tile-packed |
//! | `Int4WeightOnlyEmbeddingQATQuantizer` (T11) | | int4 groups of the embedding | `embedding` |
//! | `Float8ActInt4WeightQATQuantizer` (T12) | float8 rows | int4 groups | none, as in torchao |
//! | `ComposableQATQuantizer` (T13) | several of them, in order | | theirs |
//!
//! torchtune's words for them are understood by [`super::QatConfig::of_word`]: `8da4w-qat`, `4w-embedding-qat`, `fp8a4w-qat`.
//! T10 has no word: that it prepares what it converts to was not seen.

use serde_json::{Value as Json, json};

use super::config::{
    FakeQuantizeConfig, Float8FakeQuantizeConfig, IntxFakeQuantizeConfig, IntxGranularity,
};
use super::rule::QatConfig;
use crate::error::{Error, Result};
use crate::quantization::MappingType;
use crate::quantization::primitives::{Float8, IntType, ZeroPointDomain};
use crate::tensor::DType;

/// One of the older quantizers.
#[derive(Clone, Debug, PartialEq)]
pub enum LegacyQuantizer {
    /// T09.
    Int8DynActInt4Weight {
        /// Numbers that share a scale.
        groupsize: usize,
        /// What scales are rounded to.
        scales_precision: DType,
    },
    /// T10.
    Int4WeightOnly {
        /// Numbers that share a scale.
        groupsize: usize,
        /// What scales and zeros are rounded to.
        scales_precision: DType,
    },
    /// T11.
    Int4WeightOnlyEmbedding {
        /// Numbers that share a scale.
        group_size: usize,
        /// What scales are rounded to.
        scale_precision: DType,
        /// What zero points are rounded to.
        zero_point_precision: DType,
    },
    /// T12.
    Float8ActInt4Weight {
        /// Numbers that share a scale.
        group_size: usize,
        /// What scales are rounded to.
        scale_precision: DType,
    },
    /// T13.
    Composable(Vec<LegacyQuantizer>),
}

impl LegacyQuantizer {
    /// The quantizer that torchtune calls `word`, in torchao's defaults; several are joined by `+`.
    pub fn of_word(word: &str, group_size: Option<usize>) -> Option<LegacyQuantizer> {
        if word.contains('+') {
            let all = word.split('+').map(|word| LegacyQuantizer::of_word(word, group_size));
            return all.collect::<Option<Vec<_>>>().map(LegacyQuantizer::Composable);
        }
        let groupsize = group_size.unwrap_or(256);
        match word {
            "8da4w-qat" => Some(LegacyQuantizer::Int8DynActInt4Weight {
                groupsize,
                scales_precision: DType::F32,
            }),
            "4w-embedding-qat" => Some(LegacyQuantizer::Int4WeightOnlyEmbedding {
                group_size: groupsize,
                scale_precision: DType::F32,
                zero_point_precision: DType::I32,
            }),
            "fp8a4w-qat" => Some(LegacyQuantizer::Float8ActInt4Weight {
                group_size: group_size.unwrap_or(64),
                scale_precision: DType::BF16,
            }),
            _ => None,
        }
    }

    /// What is fake-quantized: the flow's `prepare`.
    pub fn prepare(&self) -> Result<QatConfig> {
        let config = match self {
            LegacyQuantizer::Int8DynActInt4Weight { groupsize, scales_precision } => {
                let activation = IntxFakeQuantizeConfig {
                    scale_precision: *scales_precision,
                    zero_point_precision: *scales_precision,
                    eps: Some(f32::EPSILON),
                    ..IntxFakeQuantizeConfig::int8_activation()
                };
                let weight = groups(IntType::Int(4), *groupsize, *scales_precision);
                let intx = FakeQuantizeConfig::Intx;
                QatConfig::new(Some(intx(activation)), Some(intx(weight)))
            }
            LegacyQuantizer::Int4WeightOnly { groupsize, scales_precision } => {
                let weight = IntxFakeQuantizeConfig {
                    mapping_type: MappingType::Asymmetric,
                    zero_point_domain: ZeroPointDomain::Float,
                    ..groups(IntType::UInt(4), *groupsize, *scales_precision)
                };
                QatConfig::new(None, Some(FakeQuantizeConfig::Intx(weight)))
            }
            LegacyQuantizer::Int4WeightOnlyEmbedding {
                group_size,
                scale_precision,
                zero_point_precision,
            } => {
                let table = IntxFakeQuantizeConfig {
                    zero_point_precision: *zero_point_precision,
                    ..groups(IntType::Int(4), *group_size, *scale_precision)
                };
                let embedding = Some(FakeQuantizeConfig::Intx(table));
                QatConfig { embedding, ..QatConfig::new(None, None) }
            }
            LegacyQuantizer::Float8ActInt4Weight { group_size, scale_precision } => {
                let rows = FakeQuantizeConfig::Float8(Float8FakeQuantizeConfig {
                    dtype: Float8::E4m3fn,
                    per_row: true,
                    bounds: (Some(1e-12), None),
                });
                let weight = groups(IntType::Int(4), *group_size, *scale_precision);
                QatConfig::new(Some(rows), Some(FakeQuantizeConfig::Intx(weight)))
            }
            LegacyQuantizer::Composable(all) => composed(all)?,
        };
        Ok(QatConfig { name: self.name(), ..config })
    }

    /// The configurations of `quantize` that keep what was trained, in torchao's JSON: the flow's `convert`.
    pub fn convert(&self) -> Result<Vec<Json>> {
        let per_group = |size: usize| json!({"_type": "PerGroup", "_version": 1, "_data": {"group_size": size}});
        let int4 = json!({"_type": "torch.dtype", "_data": "int4"});
        match self {
            LegacyQuantizer::Int8DynActInt4Weight { groupsize, .. } => Ok(vec![json!({
                "_type": "Int8DynamicActivationIntxWeightConfig", "_version": 2,
                "_data": {"weight_dtype": int4, "weight_granularity": per_group(*groupsize)},
            })]),
            LegacyQuantizer::Int4WeightOnly { groupsize, .. } => Ok(vec![json!({
                "_type": "Int4WeightOnlyConfig", "_version": 2,
                "_data": {
                    "group_size": groupsize,
                    "int4_packing_format":
                        {"_type": "Int4PackingFormat", "_data": "TILE_PACKED_TO_4D"},
                },
            })]),
            LegacyQuantizer::Int4WeightOnlyEmbedding { group_size, .. } => Ok(vec![json!({
                "_type": "EmbeddingQuantizer", "_version": 1,
                "_data": {
                    "weight_dtype": int4,
                    "granularity": per_group(*group_size),
                    "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
                },
            })]),
            LegacyQuantizer::Float8ActInt4Weight { .. } => Err(Error::invalid(
                "Float8ActInt4WeightQATQuantizer converts to nothing in torchao; quantize with \
                 float8-dynamic-activation-int4-weight, whose groups have 128 numbers",
            )),
            LegacyQuantizer::Composable(all) => {
                let each = all.iter().map(LegacyQuantizer::convert).collect::<Result<Vec<_>>>()?;
                Ok(each.into_iter().flatten().collect())
            }
        }
    }

    fn name(&self) -> String {
        match self {
            LegacyQuantizer::Int8DynActInt4Weight { groupsize, .. } => {
                format!("Int8DynActInt4WeightQATQuantizer({groupsize})")
            }
            LegacyQuantizer::Int4WeightOnly { groupsize, .. } => {
                format!("Int4WeightOnlyQATQuantizer({groupsize})")
            }
            LegacyQuantizer::Int4WeightOnlyEmbedding { group_size, .. } => {
                format!("Int4WeightOnlyEmbeddingQATQuantizer({group_size})")
            }
            LegacyQuantizer::Float8ActInt4Weight { group_size, .. } => {
                format!("Float8ActInt4WeightQATQuantizer({group_size})")
            }
            LegacyQuantizer::Composable(all) => {
                all.iter().map(LegacyQuantizer::name).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

/// Symmetric groups with zero points in the precision of the scales.
fn groups(dtype: IntType, size: usize, precision: DType) -> IntxFakeQuantizeConfig {
    IntxFakeQuantizeConfig {
        scale_precision: precision,
        zero_point_precision: precision,
        ..IntxFakeQuantizeConfig::new(dtype, IntxGranularity::PerGroup(size))
    }
}

/// Each in turn, which finds what it looks for: linear layers, or the embedding. A second one for the same is refused.
fn composed(all: &[LegacyQuantizer]) -> Result<QatConfig> {
    let mut whole = QatConfig::new(None, None);
    for quantizer in all {
        let QatConfig { activation, weight, embedding, .. } = quantizer.prepare()?;
        let twice = (weight.is_some() && whole.weight.is_some())
            || (embedding.is_some() && whole.embedding.is_some());
        if twice {
            return Err(Error::invalid(format!(
                "{}: the layers that it looks for are fake-quantized already",
                quantizer.name()
            )));
        }
        whole = QatConfig {
            activation: activation.or(whole.activation),
            weight: weight.or(whole.weight),
            embedding: embedding.or(whole.embedding),
            ..whole
        };
    }
    Ok(whole)
}
