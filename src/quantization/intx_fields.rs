//! What intx weights of every workflow have in common (Q13): the fields that files keep, and how codes are made.
//!
//! Weight-only, with 8-bit activations, and as an embedding: the numbers are the same, only what happens to activations differs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::code_type::CodeType;
use super::config::Typed;
use super::intx_options::{IntxChooseQParamsAlgorithm, group_size};
use super::packed::{
    Activations, Codec, Kind, PackedWeight, Parts, Zeros, quantize_rows, unsigned_parts,
};
use super::primitives::{
    Granularity, IntxRows, MappingType, choose_qparams_and_quantize_scale_only_hqq, intx_quantize,
    quantize_affine,
};
use super::stored::Stored;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::{DType, Tensor};

/// What files keep of an intx configuration.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct IntxFields {
    weight_dtype: CodeType,
    group_size: usize,
    mapping_type: MappingType,
}

/// Codes of 1 to 8 bits that multiply activations as they are: intx weight-only's, and SINQ's inside its column scales.
pub(crate) const WEIGHT_ONLY: Kind = Kind {
    workflow: "intx-weight-only",
    weight_type: "IntxWeight",
    activations: Activations::AsTheyAre,
};

/// How scales are chosen, and the dtype that they are kept in if not the weight's.
pub(crate) type Choose = (IntxChooseQParamsAlgorithm, Option<DType>);

impl IntxFields {
    /// Of rows of `k`; `granularity` is called `field` where it is told about.
    pub(crate) fn new(
        weight_dtype: CodeType,
        (granularity, field): (&Granularity, &str),
        mapping_type: MappingType,
        k: usize,
    ) -> Result<IntxFields> {
        Ok(IntxFields {
            weight_dtype,
            group_size: group_size(granularity, field, k)?,
            mapping_type,
        })
    }

    /// How many neighbours of a row share a scale.
    pub(crate) fn group_size(&self) -> usize {
        self.group_size
    }

    fn codec(&self) -> Codec {
        Codec {
            bits: self.weight_dtype.bits(),
            bias: self.weight_dtype.bias(),
            group_size: self.group_size,
            zeros: match self.mapping_type {
                MappingType::Asymmetric => Zeros::Codes,
                _ => Zeros::None,
            },
        }
    }

    fn details(&self, k: usize) -> String {
        let IntxFields { weight_dtype, group_size, mapping_type } = self;
        match *group_size == k {
            true => format!("{weight_dtype}, a scale a row, {mapping_type}"),
            false => format!("{weight_dtype}, group_size {group_size}, {mapping_type}"),
        }
    }

    /// Codes, scales and zero points of rows, of groups of `group_size`.
    pub(crate) fn rows(
        &self,
        rows: &Tensor,
        group_size: usize,
        (algorithm, scale_dtype): Choose,
    ) -> Result<IntxRows> {
        let range = self.weight_dtype.range()?;
        if algorithm == IntxChooseQParamsAlgorithm::Affine {
            return intx_quantize(rows, group_size, self.mapping_type, range, scale_dtype);
        }
        let bound =
            |code: i32| i8::try_from(code).map_err(|_| Error::invalid("codes of more than 8 bits"));
        let range_of_8 = (bound(range.quant_min())?, bound(range.quant_max())?);
        let found = choose_qparams_and_quantize_scale_only_hqq(rows, group_size, range_of_8)?;
        let zero_point = Tensor::zeros(DType::I8, found.scale.shape())?;
        let Some(dtype) = scale_dtype else {
            return Ok(IntxRows { codes: found.codes, scale: found.scale, zero_point });
        };
        let scale = found.scale.to_dtype(dtype)?;
        let codes = quantize_affine(rows, &[1, group_size], &scale, &zero_point, range)?;
        Ok(IntxRows { codes, scale, zero_point })
    }

    /// Quantizes `weight`, a few rows at a time; the iterations of HQQ end by the error of the whole weight.
    pub(crate) fn quantize(
        &self,
        cpu: &Cpu,
        weight: &dyn Weight,
        kind: Kind,
        choose: Choose,
    ) -> Result<Arc<dyn Weight>> {
        let codec = self.codec();
        let parts = match choose.0 {
            IntxChooseQParamsAlgorithm::Affine => {
                let work = |rows: &Tensor| self.rows(rows, self.group_size, choose);
                quantize_rows(cpu, weight, (codec.bias, codec.zeros != Zeros::None), work)?
            }
            IntxChooseQParamsAlgorithm::HqqScaleOnly => {
                let w = weight.dequantize()?.to_dtype(weight.dtype())?;
                unsigned_parts(&self.rows(&w, self.group_size, choose)?, codec.bias)?
            }
        };
        self.assemble(cpu, (weight.shape(), weight.dtype()), kind, parts)
    }

    /// The weight of parts whose zero points are dropped where the mapping has none.
    pub(crate) fn assemble(
        &self,
        cpu: &Cpu,
        (shape, dtype): ((usize, usize), DType),
        kind: Kind,
        mut parts: Parts,
    ) -> Result<Arc<dyn Weight>> {
        let codec = self.codec();
        if codec.zeros == Zeros::None {
            parts.zero_point = None;
        }
        let about = (self.to_map(), self.details(shape.1));
        Ok(Arc::new(PackedWeight::new(cpu, kind, (shape, codec), &parts, dtype, about)?))
    }

    fn to_map(&self) -> Map<String, Json> {
        match serde_json::to_value(self) {
            Ok(Json::Object(map)) => map,
            _ => Map::new(), // Fields are words and numbers, which always become an object.
        }
    }

    /// The weight that a file holds.
    pub(crate) fn read(typed: &Typed<'_>, stored: Stored, kind: Kind) -> Result<Arc<dyn Weight>> {
        let names = ["weight_dtype", "group_size", "mapping_type"];
        let read = |fields: &Map<String, Json>, (_, k): (usize, usize)| {
            let fields: IntxFields = serde_json::from_value(Json::Object(fields.clone()))
                .map_err(|error| Error::invalid(format!("{}: {error}", kind.weight_type)))?;
            fields.weight_dtype.check_signed("weight_dtype", true)?;
            Ok((fields.codec(), fields.details(k)))
        };
        Ok(Arc::new(PackedWeight::read(typed, stored, kind, &names, read)?))
    }
}
