//! What is fake-quantized, and how: torchao's `XxxFakeQuantizeConfig`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{affine, float8, int4_weight};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::quantization::MappingType;
use crate::quantization::primitives::{
    Float8, IntType, MxElement, ScaleCalculationMode, ZeroPointDomain,
};
use crate::tensor::{DType, Tensor};

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntxGranularity {
    /// A row of activations; always asymmetric (T03).
    PerToken,
    /// A row of a weight.
    PerChannel,
    /// So many numbers of a row.
    PerGroup(usize),
}

/// Integers of 1 to 8 bits (T03).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntxFakeQuantizeConfig {
    /// `int4`, `uint4` …
    pub dtype: IntType,
    /// What shares a scale.
    pub granularity: IntxGranularity,
    /// Symmetric by default.
    pub mapping_type: MappingType,
    /// What scales are rounded to.
    pub scale_precision: DType,
    /// What zero points are rounded to: i32 or f32.
    pub zero_point_precision: DType,
    /// Whether a zero point is a code or a value.
    pub zero_point_domain: ZeroPointDomain,
    /// The least scale; `None` is torchao's default for the granularity.
    pub eps: Option<f32>,
}

impl IntxFakeQuantizeConfig {
    /// Symmetric, with f32 scales and i32 zero points.
    pub fn new(dtype: IntType, granularity: IntxGranularity) -> IntxFakeQuantizeConfig {
        IntxFakeQuantizeConfig {
            dtype,
            granularity,
            mapping_type: MappingType::Symmetric,
            scale_precision: DType::F32,
            zero_point_precision: DType::I32,
            zero_point_domain: ZeroPointDomain::Int,
            eps: None,
        }
    }

    /// int8 a token, asymmetric: what `int8-dynamic-activation-…` does to activations.
    pub fn int8_activation() -> IntxFakeQuantizeConfig {
        IntxFakeQuantizeConfig {
            mapping_type: MappingType::Asymmetric,
            ..IntxFakeQuantizeConfig::new(IntType::Int(8), IntxGranularity::PerToken)
        }
    }

    /// The scale and the zero point of each group of `x (…, K)`, in their precisions: `(rows, K / group)`.
    pub fn qparams(&self, cpu: &Cpu, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.check()?;
        let k = x.shape().last().copied().unwrap_or(0);
        let groups = k.checked_div(self.group(k)?).unwrap_or(0);
        let found = affine::choose(cpu, self, x)?;
        let shape = [found.scale.len().checked_div(groups).unwrap_or(0), groups];
        let scale = Tensor::new(found.scale, &shape)?.to_dtype(self.scale_precision)?;
        let zero = match self.zero_point_precision {
            #[expect(clippy::cast_possible_truncation, reason = "zero points are whole codes")]
            DType::I32 => {
                let zeros = found.zero.into_iter().map(|zero| zero as i32);
                Tensor::new(zeros.collect::<Vec<i32>>(), &shape)?
            }
            float => Tensor::new(found.zero, &shape)?.to_dtype(float)?,
        };
        Ok((scale, zero))
    }

    /// Numbers that share a scale, in rows of `k`.
    pub(super) fn group(&self, k: usize) -> Result<usize> {
        match self.granularity {
            IntxGranularity::PerToken | IntxGranularity::PerChannel => Ok(k),
            IntxGranularity::PerGroup(group) if group > 1 && k.is_multiple_of(group) => Ok(group),
            IntxGranularity::PerGroup(group) => Err(Error::invalid(format!(
                "K = {k} is not a multiple of group_size {group}; wanted a divisor above 1"
            ))),
        }
    }

    fn is_asymmetric(&self) -> bool {
        self.mapping_type == MappingType::Asymmetric
    }

    /// Refuses what torchao refuses.
    pub(super) fn check(&self) -> Result<()> {
        self.dtype.bounds()?;
        if self.granularity == IntxGranularity::PerToken && !self.is_asymmetric() {
            return Err(Error::invalid("per-token fake quantization is asymmetric in torchao"));
        }
        if self.mapping_type == MappingType::SymmetricNoClippingErr {
            return Err(Error::invalid("fake quantization is symmetric or asymmetric"));
        }
        Ok(())
    }
}

/// What an int4 weight is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Int4Activation {
    /// bf16 or f32: `int4-weight-only`.
    Bf16,
    /// e4m3: the weight goes through float8 first.
    Fp8,
}

/// The int4 weights of `Int4WeightOnlyConfig` (T04).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int4WeightFakeQuantizeConfig {
    /// Numbers that share a scale.
    pub group_size: usize,
    /// What the weight is multiplied with.
    pub activation: Int4Activation,
}

/// float8 with a scale a row or for the whole tensor (T05).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Float8FakeQuantizeConfig {
    /// e4m3 by default.
    pub dtype: Float8,
    /// A scale a row, not one for the tensor.
    pub per_row: bool,
    /// Bounds of the largest number.
    pub bounds: (Option<f32>, Option<f32>),
}

/// Blocks that share a power of two (T06).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MXFakeQuantizeConfig {
    /// fp4 in torchao's default.
    pub dtype: MxElement,
    /// Numbers that share a scale: 32.
    pub block_size: usize,
    /// How the power of two is chosen.
    pub scaling_mode: ScaleCalculationMode,
}

/// fp4 in blocks of 16 with e4m3 scales (T06).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NVFP4FakeQuantizeConfig {
    /// Whether one f32 scale stands above the blocks' scales.
    pub use_per_tensor_scale: bool,
}

/// Any of them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is named after its configuration")]
pub enum FakeQuantizeConfig {
    Intx(IntxFakeQuantizeConfig),
    Int4Weight(Int4WeightFakeQuantizeConfig),
    Float8(Float8FakeQuantizeConfig),
    MX(MXFakeQuantizeConfig),
    NVFP4(NVFP4FakeQuantizeConfig),
}

impl FakeQuantizeConfig {
    /// Refuses what cannot be, for rows of `k`.
    pub fn check(&self, k: usize) -> Result<()> {
        match self {
            FakeQuantizeConfig::Intx(config) => config.check().and(config.group(k)).map(|_| ()),
            FakeQuantizeConfig::Int4Weight(config) => int4_weight::groups(config, k).map(|_| ()),
            FakeQuantizeConfig::Float8(_) => Ok(()),
            FakeQuantizeConfig::MX(config) => config.check(k),
            FakeQuantizeConfig::NVFP4(config) => config.check(k),
        }
    }

    /// The numbers of `x (…, K)` as quantizing and dequantizing leaves them, with the gradient passed through.
    pub fn fake_quantize(&self, tape: &Tape, x: &Var) -> Result<Var> {
        match self {
            FakeQuantizeConfig::Intx(config) => affine::fake_quantize(tape, config, x),
            FakeQuantizeConfig::Int4Weight(config) => int4_weight::fake_quantize(tape, config, x),
            FakeQuantizeConfig::Float8(config) => float8::fake_quantize(tape, config, x),
            FakeQuantizeConfig::MX(config) => config.fake_quantize(tape, x),
            FakeQuantizeConfig::NVFP4(config) => config.fake_quantize(tape, x),
        }
    }
}

impl fmt::Display for FakeQuantizeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FakeQuantizeConfig::Intx(config) => {
                let (sign, bits) = match config.dtype {
                    IntType::Int(bits) => ("int", bits),
                    IntType::UInt(bits) => ("uint", bits),
                };
                match config.granularity {
                    IntxGranularity::PerToken => write!(f, "{sign}{bits} per token"),
                    IntxGranularity::PerChannel => write!(f, "{sign}{bits} per channel"),
                    IntxGranularity::PerGroup(group) => {
                        write!(f, "{sign}{bits} per group of {group}")
                    }
                }
            }
            FakeQuantizeConfig::Int4Weight(config) => {
                write!(f, "int4 weight per group of {}", config.group_size)
            }
            FakeQuantizeConfig::Float8(config) => {
                f.write_str(if config.per_row { "float8 per row" } else { "float8 per tensor" })
            }
            FakeQuantizeConfig::MX(config) => {
                write!(f, "MX {} in blocks of {}", config.dtype.0.name(), config.block_size)
            }
            FakeQuantizeConfig::NVFP4(_) => f.write_str("NVFP4"),
        }
    }
}
