//! Quantized arithmetic: fake quantization, integer products, packed 4-bit and 8-bit layers, scaled float8 products.

use tch::{Kind, Tensor as Torch};

use super::super::network::int;
use super::super::{from_torch, to_torch, wrong};
use super::operations::{Sides, both_ways};
use super::{Check, EXACT, KINDS, numbers};
use crate::error::{Error, Result};
use crate::kernels::{Cpu, dtypes, int8_activation};
use crate::model::{DenseWeight, Weight};
use crate::quantization::primitives::{
    CodeRange, IntType, QParamsOptions, choose_qparams_affine, dequantize_affine,
    get_group_qparams_symmetric, quantize_affine,
};
use crate::quantization::{
    Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig, MappingType, Recipe,
};
use crate::rng::Rng;
use crate::tensor::{DType, Tensor};
use crate::training::qat::{FakeQuantizeConfig, IntxFakeQuantizeConfig, IntxGranularity};

/// Integer products are exact; three roundings of f32 follow, in another order.
const DYNAMIC: f64 = 4e-7;
/// Our weight-only kernels round x to 16-bit integers, a block of 128 at a time (see the kernels' error).
const ROUNDED_X: f64 = 2e-4;
/// ATen's row-wise product gives bf16.
const BF16: f64 = 4e-3;
/// A straight-through gradient is multiplied by the scale and its reciprocal, as torchao's.
const THROUGH: f64 = 3e-7;

/// Shapes (m, n, k) of layers; ATen's packed layers want n in multiples of 16 and k of 64.
const SHAPES: [(usize, usize, usize); 4] =
    [(1, 32, 64), (3, 48, 256), (7, 64, 128), (17, 128, 512)];

pub(super) fn verify(cpu: &Cpu, rng: &mut Rng) -> Result<Vec<Check>> {
    let mut checks = vec![
        per_channel(rng)?,
        per_tensor(rng)?,
        straight_through(cpu, rng)?,
        int_mm(cpu, rng)?,
        int8pack(cpu, rng)?,
        int4pack(cpu, rng)?,
    ];
    // On the CPU 2.11 scales by whole tensors only.
    if !crate::kernels::libtorch::built_for().starts_with("2.11") {
        checks.push(scaled_mm(cpu, rng)?);
    }
    Ok(checks)
}

/// Ranges that fake quantization is asked about: their types and bounds.
const RANGES: [(IntType, i32, i32); 4] = [
    (IntType::Int(8), -128, 127),
    (IntType::UInt(8), 0, 255),
    (IntType::Int(8), -8, 7),
    (IntType::UInt(8), 0, 15),
];

fn per_channel(rng: &mut Rng) -> Result<Check> {
    let mut check =
        Check::new("quantize_affine, dequantize_affine", "fake_quantize_per_channel_affine", EXACT);
    for kind in KINDS {
        for (target, min, max) in RANGES {
            let (rows, k) = (9, 67);
            let x = Tensor::new(numbers(rng, kind, rows * k), &[rows, k])?;
            let range = CodeRange::new(target, min, max)?;
            let options =
                QParamsOptions { zero_point_dtype: Some(DType::I32), ..QParamsOptions::default() };
            let block = [1, k];
            let mapping = MappingType::Asymmetric;
            let (scale, zero) = choose_qparams_affine(&x, mapping, &block, range, options)?;
            let codes = quantize_affine(&x, &block, &scale, &zero, range)?;
            let ours = dequantize_affine(&codes, &block, &scale, &zero, DType::F32)?;
            let (scale, zero) = (to_torch(&scale)?.view([-1]), to_torch(&zero)?.view([-1]));
            let theirs = to_torch(&x)?.f_fake_quantize_per_channel_affine(
                &scale,
                &zero,
                0,
                i64::from(min),
                i64::from(max),
            );
            let theirs = from_torch(theirs.map_err(wrong)?)?;
            check.compare(&format!("{kind}, {min}..{max}"), ours.as_slice()?, theirs.as_slice()?);
        }
    }
    Ok(check)
}

fn per_tensor(rng: &mut Rng) -> Result<Check> {
    let mut check =
        Check::new("quantize_affine, dequantize_affine", "fake_quantize_per_tensor_affine", EXACT);
    for kind in KINDS {
        for (target, min, max) in RANGES {
            let x = Tensor::new(numbers(rng, kind, 257), &[257])?;
            let range = CodeRange::new(target, min, max)?;
            // A scale that is the same in f32 and f64, and a zero point inside the range.
            let (scale, zero) = (0.031_25_f32, min + 3);
            let scales = Tensor::new(vec![scale], &[1])?;
            let zeros = Tensor::new(vec![zero], &[1])?;
            let codes = quantize_affine(&x, &[257], &scales, &zeros, range)?;
            let ours = dequantize_affine(&codes, &[257], &scales, &zeros, DType::F32)?;
            let theirs = to_torch(&x)?.f_fake_quantize_per_tensor_affine(
                f64::from(scale),
                i64::from(zero),
                i64::from(min),
                i64::from(max),
            );
            let theirs = from_torch(theirs.map_err(wrong)?)?;
            check.compare(&format!("{kind}, {min}..{max}"), ours.as_slice()?, theirs.as_slice()?);
        }
    }
    Ok(check)
}

/// Fake quantization on our tape and its gradient, against ATen's with the same scales.
fn straight_through(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check =
        Check::new("QAT int4 and int8 weights", "fake_quantize_per_channel_affine", THROUGH);
    for kind in ["normal", "large", "ties", "mixed"] {
        for (bits, group) in [(4, 32), (8, 32), (3, 64), (8, 64)] {
            let (n, k) = (6, 64);
            let x = Tensor::new(numbers(rng, kind, n * k), &[n, k])?;
            let granularity = IntxGranularity::PerGroup(group);
            let config = IntxFakeQuantizeConfig::new(IntType::Int(bits), granularity);
            let config = FakeQuantizeConfig::Intx(config);
            let symmetric = MappingType::Symmetric;
            let (scale, _) = get_group_qparams_symmetric(&x, bits, group, DType::F32, symmetric)?;
            let scale = to_torch(&scale)?.view([-1]);
            let zero = scale.zeros_like().to_kind(Kind::Int);
            let half = 1_i64 << (bits - 1);
            let sides = Sides {
                ours: &|tape, x| config.fake_quantize(tape, &x[0]),
                theirs: &|x| {
                    let groups = x[0].reshape([-1, int(group)]);
                    let y = groups.f_fake_quantize_per_channel_affine(
                        &scale,
                        &zero,
                        0,
                        -half,
                        half - 1,
                    );
                    Ok(y.map_err(wrong)?.reshape([int(n), int(k)]))
                },
            };
            let case = format!("{kind}, int{bits} in groups of {group}");
            both_ways(cpu, rng, (&mut check, &case), std::slice::from_ref(&x), &sides)?;
        }
    }
    Ok(check)
}

/// A random layer's weight and activation.
fn layer(
    rng: &mut Rng,
    kind: &str,
    (m, n, k): (usize, usize, usize),
) -> Result<(DenseWeight, Tensor)> {
    let w = Tensor::new(numbers(rng, "normal", n * k), &[n, k])?;
    Ok((DenseWeight::new(w)?, Tensor::new(numbers(rng, kind, m * k), &[m, k])?))
}

/// What our kernel gives.
fn ours(cpu: &Cpu, weight: &dyn Weight, x: &Tensor) -> Result<Vec<f32>> {
    let (m, n) = (x.shape()[0], weight.shape().0);
    let mut y = vec![f32::NAN; m * n];
    weight.linear(cpu, x.as_slice()?, m, &mut y)?;
    Ok(y)
}

/// One of the tensors that a weight consists of.
pub(super) fn part(weight: &dyn Weight, name: &str) -> Result<Tensor> {
    let found = weight.tensors().into_iter().find(|(key, _)| key == name);
    found.map(|(_, tensor)| tensor).ok_or_else(|| Error::invalid(format!("no {name} in a weight")))
}

fn int_mm(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("int8-dynamic linear", "_int_mm and scales", DYNAMIC);
    for kind in ["normal", "large", "ties", "mixed"] {
        for shape in SHAPES {
            let (m, _, k) = shape;
            let (dense, x) = layer(rng, kind, shape)?;
            let weight = Int8DynamicActivationInt8WeightConfig::default().quantize(cpu, &dense)?;
            let (mut codes, mut scales) = (vec![0_i8; m * k], vec![0.0_f32; m]);
            let range = int8_activation::Range::FULL;
            int8_activation::symmetric(cpu, x.as_slice()?, &mut codes, &mut scales, range);
            let a = to_torch(&Tensor::new(codes, &[m, k])?)?;
            let b = to_torch(&part(&*weight, "qdata")?)?;
            let product = a.f_internal_int_mm(&b.transpose(0, 1)).map_err(wrong)?;
            let sx = to_torch(&Tensor::new(scales, &[m, 1])?)?;
            let sw = to_torch(&part(&*weight, "scale")?)?.view([1, -1]);
            let theirs = from_torch(product.to_kind(Kind::Float) * sx * sw)?;
            let case = format!("{kind}, {shape:?}");
            check.compare(&case, &ours(cpu, &*weight, &x)?, theirs.as_slice()?);
        }
    }
    Ok(check)
}

fn int8pack(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("int8-weight-only linear", "_weight_int8pack_mm", ROUNDED_X);
    for kind in ["normal", "large", "ties", "mixed"] {
        for shape in SHAPES {
            let (dense, x) = layer(rng, kind, shape)?;
            let weight = Int8WeightOnlyConfig::default().quantize(cpu, &dense)?;
            let q = to_torch(&part(&*weight, "qdata")?)?;
            let scale = to_torch(&part(&*weight, "scale")?)?.view([-1]);
            let theirs = to_torch(&x)?.f_internal_weight_int8pack_mm(&q, &scale).map_err(wrong)?;
            let case = format!("{kind}, {shape:?}");
            check.compare(&case, &ours(cpu, &*weight, &x)?, from_torch(theirs)?.as_slice()?);
        }
    }
    Ok(check)
}

fn int4pack(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("int4-weight-only linear", "_weight_int4pack_mm_for_cpu", ROUNDED_X);
    for kind in ["normal", "ties", "mixed"] {
        for (shape, group_size) in SHAPES.into_iter().zip([32, 64, 128, 64]) {
            let (_, n, k) = shape;
            let (dense, x) = layer(rng, kind, shape)?;
            let config = Int4WeightOnlyConfig { group_size, ..Default::default() };
            let weight = config.quantize(cpu, &dense)?;
            let packed = part(&*weight, "qdata")?;
            let pairs = packed.as_slice::<u8>()?.iter();
            let codes: Vec<i32> =
                pairs.flat_map(|byte| [i32::from(byte & 15), i32::from(byte >> 4)]).collect();
            let codes = to_torch(&Tensor::new(codes, &[n, k])?)?;
            let packed = codes.f_internal_convert_weight_to_int4pack_for_cpu(1).map_err(wrong)?;
            // (K/G, N, 2): the scale and the value of code 8.
            let by_row = |name: &str| -> Result<Torch> {
                to_torch(&part(&*weight, name)?.to_dtype(DType::F32)?)
            };
            let both = Torch::stack(&[by_row("scale")?, by_row("zero_point")?], -1);
            let both = both.transpose(0, 1).contiguous();
            let theirs = to_torch(&x)?
                .f_internal_weight_int4pack_mm_for_cpu(&packed, int(group_size), &both)
                .map_err(wrong)?;
            let case = format!("{kind}, {shape:?}, groups of {group_size}");
            check.compare(&case, &ours(cpu, &*weight, &x)?, from_torch(theirs)?.as_slice()?);
        }
    }
    Ok(check)
}

fn scaled_mm(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("float8-weight-only linear", "_scaled_mm, row-wise", BF16);
    for kind in ["normal", "zeros", "ties"] {
        for shape in SHAPES {
            let (m, n, k) = shape;
            let (dense, x) = layer(rng, kind, shape)?;
            // On the grid of e4m3, so that only the products are compared.
            let grid = |x: f32| dtypes::e4m3fn_decode(dtypes::e4m3fn_encode_saturating(x));
            let x = Tensor::new(x.as_slice::<f32>()?.iter().map(|x| grid(*x)).collect(), &[m, k])?;
            let weight = Float8WeightOnlyConfig::default().quantize(cpu, &dense)?;
            let codes = to_torch(&part(&*weight, "qdata")?)?;
            let b = codes.f_view_dtype(Kind::Float8e4m3fn).map_err(wrong)?.transpose(0, 1);
            let sw = to_torch(&part(&*weight, "scale")?)?
                .expand([int(n), 1], false)
                .reshape([1, int(n)]);
            let a = to_torch(&x)?.f_to_kind(Kind::Float8e4m3fn).map_err(wrong)?;
            let ones = Torch::ones([int(m), 1], (Kind::Float, tch::Device::Cpu));
            let none = None::<&Torch>;
            let theirs = a
                .f_internal_scaled_mm(&b, &ones, &sw, none, none, Kind::BFloat16, false)
                .and_then(|y| y.f_to_kind(Kind::Float))
                .map_err(wrong)?;
            let case = format!("{kind}, {shape:?}");
            check.compare(&case, &ours(cpu, &*weight, &x)?, from_torch(theirs)?.as_slice()?);
        }
    }
    Ok(check)
}
