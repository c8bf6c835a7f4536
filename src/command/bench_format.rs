//! The formats that `bench linear` times.

use std::sync::Arc;

use half::bf16;

use crate::error::{Error, Result};
use crate::kernels::float_linear::Element;
use crate::kernels::{Compute, Cpu};
use crate::model::{DenseWeight, Pattern, Weight};
use crate::quantization::primitives::{Float8, MxElement};
use crate::quantization::{
    BitNetConfig, CodeType, CodebookCoreMlWeightOnlyConfig, FPXWeightOnlyConfig,
    Float8DynamicActivationFloat8WeightConfig, Float8WeightOnlyConfig, GgufBlockConfig,
    Granularity, GroupwiseLutWeightConfig, Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig, Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig, IntxWeightOnlyConfig, MXWeightOnlyConfig, NF4WeightOnlyConfig,
    NVFP4WeightOnlyConfig, Recipe,
};
use crate::rng::Rng;
use crate::sparsity::{Int4MarlinSparseConfig, MagnitudeSparsifier};
use crate::tensor::{DType, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    F32,
    Bf16,
    /// Weights and activations in bf16, as `set compute bf16`
    Bf16Compute,
    Int8WeightOnly,
    Int8Dynamic,
    Int4WeightOnly,
    Intx1,
    Intx2,
    Intx3,
    Intx4,
    Intx5,
    Intx6,
    Intx7,
    Intx8,
    Int8DynamicIntx4,
    Nf4,
    Bitnet,
    GroupwiseLut,
    CodebookCoreml,
    Float8E4m3,
    Float8E5m2,
    Float8Dynamic,
    Mxfp8E4m3,
    Mxfp8E5m2,
    Mxint8,
    Mxfp6E3m2,
    Mxfp6E2m3,
    Mxfp4,
    Nvfp4,
    Fp6E3m2,
    Fp6E2m3,
    Fp5E2m2,
    #[value(name = "gguf-q2_k")]
    GgufQ2K,
    #[value(name = "gguf-q3_k")]
    GgufQ3K,
    #[value(name = "gguf-q4_0")]
    GgufQ40,
    #[value(name = "gguf-q4_k")]
    GgufQ4K,
    #[value(name = "gguf-q5_k")]
    GgufQ5K,
    #[value(name = "gguf-q6_k")]
    GgufQ6K,
    #[value(name = "gguf-q8_0")]
    GgufQ80,
    #[value(name = "sparse24-bf16")]
    Sparse24Bf16,
    #[value(name = "sparse24-int8-weight-only")]
    Sparse24Int8,
    #[value(name = "sparse24-int8-dynamic")]
    Sparse24Int8Dynamic,
    #[value(name = "sparse24-int4-weight-only")]
    Sparse24Int4,
    /// Symmetric, as `sparsify marlin-24` makes it
    #[value(name = "sparse24-int4-symmetric")]
    Sparse24Marlin,
    /// Blocks of 64 of which 80 % are zero
    #[value(name = "bsr64-f32")]
    Bsr64F32,
    #[value(name = "bsr64-bf16")]
    Bsr64Bf16,
    /// Weights and activations in bf16
    #[value(name = "bsr64-bf16-compute")]
    Bsr64Bf16Compute,
    #[value(name = "bsr64-int8-weight-only")]
    Bsr64Int8,
}

impl Format {
    pub(super) const ALL: &[Format] = &[
        Format::F32,
        Format::Bf16,
        Format::Bf16Compute,
        Format::Int8WeightOnly,
        Format::Int8Dynamic,
        Format::Int4WeightOnly,
        Format::Intx1,
        Format::Intx2,
        Format::Intx3,
        Format::Intx4,
        Format::Intx5,
        Format::Intx6,
        Format::Intx7,
        Format::Intx8,
        Format::Int8DynamicIntx4,
        Format::Nf4,
        Format::Bitnet,
        Format::GroupwiseLut,
        Format::CodebookCoreml,
        Format::Float8E4m3,
        Format::Float8E5m2,
        Format::Float8Dynamic,
        Format::Mxfp8E4m3,
        Format::Mxfp8E5m2,
        Format::Mxint8,
        Format::Mxfp6E3m2,
        Format::Mxfp6E2m3,
        Format::Mxfp4,
        Format::Nvfp4,
        Format::Fp6E3m2,
        Format::Fp6E2m3,
        Format::Fp5E2m2,
        Format::GgufQ2K,
        Format::GgufQ3K,
        Format::GgufQ40,
        Format::GgufQ4K,
        Format::GgufQ5K,
        Format::GgufQ6K,
        Format::GgufQ80,
        Format::Sparse24Bf16,
        Format::Sparse24Int8,
        Format::Sparse24Int8Dynamic,
        Format::Sparse24Int4,
        Format::Sparse24Marlin,
        Format::Bsr64F32,
        Format::Bsr64Bf16,
        Format::Bsr64Bf16Compute,
        Format::Bsr64Int8,
    ];

    /// What activations are rounded to.
    pub(super) fn compute(self) -> Compute {
        match self {
            Format::Bf16Compute | Format::Bsr64Bf16Compute => Compute::Bf16,
            _ => Compute::F32,
        }
    }

    /// A random weight of this format.
    #[expect(clippy::too_many_lines, reason = "a line a format")]
    pub(super) fn weight(
        self,
        cpu: &Cpu,
        n: usize,
        k: usize,
        group_size: usize,
    ) -> Result<Arc<dyn Weight>> {
        let mut rng = Rng::new(3);
        let mut values = Vec::with_capacity(n * k);
        for _ in 0..n {
            if cpu.stopped() {
                return Err(Error::Cancelled);
            }
            values.extend((0..k).map(|_| bf16::from_f32(0.02 * rng.normal())));
        }
        let dense = Tensor::new::<bf16>(values, &[n, k])?;
        let quantize = |recipe: &dyn Recipe| {
            recipe.check((n, k))?;
            recipe.quantize(cpu, &DenseWeight::new(dense.clone())?)
        };
        let intx = |bits| {
            quantize(&IntxWeightOnlyConfig {
                weight_dtype: CodeType::int(bits),
                granularity: Granularity::PerGroup { group_size },
                ..Default::default()
            })
        };
        let pruned = |pattern: Pattern, dtype: DType| {
            let dense = DenseWeight::shared(dense.to_dtype(dtype)?)?;
            let config = MagnitudeSparsifier { pattern, sparsity_level: 0.8 };
            config.check((n, k))?;
            config.quantize_shared(cpu, &dense)
        };
        let (of_four, blocks) = (Pattern::TWO_OF_FOUR, Pattern::Block { size: 64 });
        let then = |pattern, recipe: &dyn Recipe| {
            recipe.check((n, k))?;
            recipe.quantize_shared(cpu, &pruned(pattern, DType::BF16)?)
        };
        match self {
            Format::Sparse24Bf16 => pruned(of_four, DType::BF16),
            Format::Sparse24Int8 => then(of_four, &Int8WeightOnlyConfig::default()),
            Format::Sparse24Int8Dynamic => {
                then(of_four, &Int8DynamicActivationInt8WeightConfig::default())
            }
            Format::Sparse24Int4 => {
                then(of_four, &Int4WeightOnlyConfig { group_size, ..Default::default() })
            }
            Format::Sparse24Marlin => {
                let group_size = i64::try_from(group_size).unwrap_or(-1);
                then(of_four, &Int4MarlinSparseConfig { group_size })
            }
            Format::Bsr64F32 => pruned(blocks, DType::F32),
            Format::Bsr64Bf16 | Format::Bsr64Bf16Compute => pruned(blocks, DType::BF16),
            Format::Bsr64Int8 => then(blocks, &Int8WeightOnlyConfig::default()),
            Format::Intx1 => intx(1),
            Format::Intx2 => intx(2),
            Format::Intx3 => intx(3),
            Format::Intx4 => intx(4),
            Format::Intx5 => intx(5),
            Format::Intx6 => intx(6),
            Format::Intx7 => intx(7),
            Format::Intx8 => intx(8),
            Format::Int8DynamicIntx4 => quantize(&Int8DynamicActivationIntxWeightConfig {
                weight_dtype: CodeType::int(4),
                weight_granularity: Granularity::PerGroup { group_size },
                ..Default::default()
            }),
            Format::Nf4 => quantize(&NF4WeightOnlyConfig::default()),
            Format::Bitnet => quantize(&BitNetConfig::default()),
            Format::GroupwiseLut => quantize(&GroupwiseLutWeightConfig::default()),
            Format::CodebookCoreml => quantize(&CodebookCoreMlWeightOnlyConfig {
                block_size: [-1, 128],
                ..Default::default()
            }),
            Format::F32 => DenseWeight::shared(dense.to_dtype(DType::F32)?),
            Format::Bf16 | Format::Bf16Compute => DenseWeight::shared(dense),
            Format::Int8WeightOnly => quantize(&Int8WeightOnlyConfig::default()),
            Format::Int8Dynamic => quantize(&Int8DynamicActivationInt8WeightConfig::default()),
            Format::Int4WeightOnly => {
                quantize(&Int4WeightOnlyConfig { group_size, ..Default::default() })
            }
            Format::Float8E4m3 => quantize(&Float8WeightOnlyConfig::default()),
            Format::Float8Dynamic => {
                quantize(&Float8DynamicActivationFloat8WeightConfig::default())
            }
            Format::Float8E5m2 => {
                let weight_dtype = Float8::E5m2;
                quantize(&Float8WeightOnlyConfig { weight_dtype, ..Default::default() })
            }
            Format::Nvfp4 => quantize(&NVFP4WeightOnlyConfig::default()),
            Format::Fp6E3m2 => quantize(&fpx(3, 2)),
            Format::Fp6E2m3 => quantize(&fpx(2, 3)),
            Format::Fp5E2m2 => quantize(&fpx(2, 2)),
            Format::Mxfp8E4m3 => quantize(&mx(Element::E4m3)),
            Format::Mxfp8E5m2 => quantize(&mx(Element::E5m2)),
            Format::Mxint8 => quantize(&mx(Element::Int8)),
            Format::Mxfp6E3m2 => quantize(&mx(Element::E3m2)),
            Format::Mxfp6E2m3 => quantize(&mx(Element::E2m3)),
            Format::Mxfp4 => quantize(&mx(Element::E2m1)),
            Format::GgufQ2K => quantize(&gguf("Q2_K")?),
            Format::GgufQ3K => quantize(&gguf("Q3_K")?),
            Format::GgufQ40 => quantize(&gguf("Q4_0")?),
            Format::GgufQ4K => quantize(&gguf("Q4_K")?),
            Format::GgufQ5K => quantize(&gguf("Q5_K")?),
            Format::GgufQ6K => quantize(&gguf("Q6_K")?),
            Format::GgufQ80 => quantize(&gguf("Q8_0")?),
        }
    }
}

fn mx(element: Element) -> MXWeightOnlyConfig {
    MXWeightOnlyConfig { weight_dtype: MxElement(element), ..Default::default() }
}

fn fpx(ebits: u32, mbits: u32) -> FPXWeightOnlyConfig {
    FPXWeightOnlyConfig { ebits, mbits, ..Default::default() }
}

fn gguf(block_type: &str) -> Result<GgufBlockConfig> {
    Ok(GgufBlockConfig { block_type: block_type.parse()?, ..Default::default() })
}
