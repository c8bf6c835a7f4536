//! Our GPU's linear layers against ATen's on the same GPU: what `verify torch --device cuda` prints.

use std::sync::Arc;

use aolab_kernels::cuda::Device;
use aolab_kernels::cuda::linear::Output;
use half::bf16;
use tch::{Kind, Tensor as Torch};

use super::super::{TorchGpu, from_torch, to_torch, wrong};
use super::quantized::part;
use super::{Check, Progress, numbers, told};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::{DenseWeight, Weight, to_device};
use crate::quantization::{
    Float8DynamicActivationFloat8WeightConfig, Float8Granularities, Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, Recipe,
};
use crate::rng::Rng;
use crate::table::Table;
use crate::tensor::{DType, Tensor};

/// Results are bf16, and 4-bit and 8-bit weights become bf16 before they are multiplied.
const BF16: f64 = 8e-3;
/// A code of x at a tie may fall to the other side.
const DYNAMIC: f64 = 1.2e-2;

/// (m, n, k): few rows, many, and none of them round.
const SHAPES: [(usize, usize, usize); 5] =
    [(1, 256, 512), (5, 384, 640), (17, 512, 1024), (96, 512, 2048), (300, 1024, 512)];

/// What ATen computes of a weight and x, both on the GPU.
type Reference = fn(&dyn Weight, &Torch, tch::Device) -> Result<Torch>;

struct Format {
    ours: &'static str,
    aten: &'static str,
    allowed: f64,
    /// None is bf16.
    recipe: Option<Box<dyn Recipe>>,
    reference: Reference,
}

fn formats() -> Vec<Format> {
    let by_value = |ours, recipe: Option<Box<dyn Recipe>>| Format {
        ours,
        aten: "linear, f32",
        allowed: BF16,
        recipe,
        reference: product,
    };
    let dynamic = |ours, aten, recipe, reference| Format {
        ours,
        aten,
        allowed: DYNAMIC,
        recipe: Some(recipe),
        reference,
    };
    let int4 = Int4WeightOnlyConfig { group_size: 64, ..Int4WeightOnlyConfig::default() };
    let int8_dynamic = Box::new(Int8DynamicActivationInt8WeightConfig::default());
    let float8 = |granularity| {
        Box::new(Float8DynamicActivationFloat8WeightConfig {
            granularity,
            ..Float8DynamicActivationFloat8WeightConfig::default()
        })
    };
    let (of_all, of_rows) =
        (float8(Float8Granularities::PerTensor), float8(Float8Granularities::PerRow));
    vec![
        by_value("bf16 linear", None),
        by_value("int8-weight-only linear", Some(Box::new(Int8WeightOnlyConfig::default()))),
        by_value("int4-weight-only linear", Some(Box::new(int4))),
        dynamic("int8-dynamic linear", "_int_mm and scales", int8_dynamic, integers),
        dynamic("float8-dynamic linear, per tensor", "_scaled_mm, tensor-wise", of_all, scaled_all),
        dynamic("float8-dynamic linear, per row", "_scaled_mm, row-wise", of_rows, scaled_rows),
    ]
}

/// Every format that ATen multiplies on a GPU. `strict` makes a difference beyond what is allowed an error.
pub fn verify_gpu(
    cpu: &Cpu,
    device: &Device,
    ordinal: usize,
    (seed, strict): (u64, bool),
    progress: &mut Progress<'_>,
) -> Result<Table> {
    let gpu = TorchGpu::open(cpu, ordinal)?;
    let mut rng = Rng::new(seed);
    let formats = formats();
    let mut checks = Vec::new();
    for (done, format) in formats.iter().enumerate() {
        let mut check = Check::new(format.ours, format.aten, format.allowed);
        for shape in SHAPES {
            if !progress(done, formats.len()) {
                return Err(Error::Cancelled);
            }
            for kind in ["normal", "zeros", "ties"] {
                let (weight, x) = layer(cpu, &mut rng, kind, shape, format.recipe.as_deref())?;
                let found = on_gpu(device, &weight, &x)?;
                let torch = to_torch(&x)?.to_device(gpu.device());
                let theirs = (format.reference)(&*weight, &torch, gpu.device())?;
                let theirs = from_torch(theirs.to_kind(Kind::Float))?;
                check.compare(&format!("{kind}, {shape:?}"), &found, theirs.as_slice()?);
            }
        }
        checks.push(check);
    }
    let mut table = told(&checks, seed, strict)?;
    table.note(format!("on {}; libtorch's Cuda::is_available() is true", device.name()));
    Ok(table)
}

/// A layer and its input, both in bf16.
fn layer(
    cpu: &Cpu,
    rng: &mut Rng,
    kind: &str,
    (m, n, k): (usize, usize, usize),
    recipe: Option<&dyn Recipe>,
) -> Result<(Arc<dyn Weight>, Tensor)> {
    let w = Tensor::new(numbers(rng, "normal", n * k), &[n, k])?.to_dtype(DType::BF16)?;
    let x = Tensor::new(numbers(rng, kind, m * k), &[m, k])?.to_dtype(DType::BF16)?;
    let dense = DenseWeight::new(w)?;
    let weight = match recipe {
        Some(recipe) => recipe.quantize(cpu, &dense)?,
        None => Arc::new(dense),
    };
    Ok((weight, x.to_dtype(DType::F32)?))
}

fn on_gpu(device: &Device, weight: &Arc<dyn Weight>, x: &Tensor) -> Result<Vec<f32>> {
    let (linear, _) = to_device(device, weight)?;
    let (m, k) = x.dims2()?;
    let padded = linear.k_padded();
    let mut rows = vec![0_u16; m * padded];
    for (row, x) in rows.chunks_exact_mut(padded).zip(x.as_slice::<f32>()?.chunks_exact(k)) {
        row.iter_mut().zip(x).for_each(|(to, x)| *to = bf16::from_f32(*x).to_bits());
    }
    let rows = device.upload(&rows)?;
    let y = device.upload(&vec![u16::MAX; m * linear.outputs()])?;
    linear.run(&rows, m, &Output::Bf16(&y))?;
    Ok(y.read()?.into_iter().map(|y| bf16::from_bits(y).to_f32()).collect())
}

/// `x · Wᵀ` of what the codes stand for.
fn product(weight: &dyn Weight, x: &Torch, device: tch::Device) -> Result<Torch> {
    let w = to_torch(&weight.dequantize()?.to_dtype(DType::F32)?)?.to_device(device);
    x.f_linear::<&Torch>(&w, None).map_err(wrong)
}

/// `x / by`, rounded once: by a number, ATen multiplies on a GPU with the reciprocal, which is not what its CPU gives.
fn over(x: &Torch, by: f64) -> Torch {
    x / x.full_like(by)
}

/// Rows of x in int8, rounded as torchao rounds them, integers multiplied, both scales.
fn integers(weight: &dyn Weight, x: &Torch, device: tch::Device) -> Result<Torch> {
    let (m, on) = (x.size()[0], |name: &str| -> Result<Torch> {
        Ok(to_torch(&part(weight, name)?)?.to_device(device))
    });
    let sx = over(&x.abs().amax([1_i64].as_slice(), true), 127.5);
    let sx = sx.clamp_min(f64::from(f32::EPSILON));
    let codes = (x * sx.reciprocal()).round().clamp(-128.0, 127.0).to_kind(Kind::Int8);
    // cuBLAS wants more than 16 rows.
    let rows = codes.constant_pad_nd([0, 0, 0, (17 - m).max(0)]);
    let product = rows.f_internal_int_mm(&on("qdata")?.transpose(0, 1)).map_err(wrong)?;
    let product = product.narrow(0, 0, m).to_kind(Kind::Float);
    Ok(product * sx * on("scale")?.to_kind(Kind::Float).view([1, -1]))
}

/// Rows of x in e4m3, with scales in x's bf16 as torchao has them (of a row of zeros it makes NaN), multiplied with both.
fn scaled_rows(weight: &dyn Weight, x: &Torch, device: tch::Device) -> Result<Torch> {
    let largest = x.abs().amax([1_i64].as_slice(), true);
    let sw = to_torch(&part(weight, "scale")?)?.to_device(device).to_kind(Kind::Float);
    scaled(weight, (x, &largest), &sw.view([1, -1]), device)
}

/// The same with one scale for all of x and one for all of W.
fn scaled_all(weight: &dyn Weight, x: &Torch, device: tch::Device) -> Result<Torch> {
    let largest = x.abs().amax([0_i64, 1].as_slice(), false);
    let sw = to_torch(&part(weight, "scale")?)?.to_device(device).to_kind(Kind::Float);
    scaled(weight, (x, &largest), &sw.view([0_i64; 0].as_slice()), device)
}

fn scaled(
    weight: &dyn Weight,
    (x, largest): (&Torch, &Torch),
    sw: &Torch,
    device: tch::Device,
) -> Result<Torch> {
    let sx = over(largest, 448.0).to_kind(Kind::BFloat16).to_kind(Kind::Float);
    let a = (x / &sx).clamp(-448.0, 448.0).to_kind(Kind::Float8e4m3fn);
    let codes = to_torch(&part(weight, "qdata")?)?.to_device(device);
    let b = codes.f_view_dtype(Kind::Float8e4m3fn).map_err(wrong)?.transpose(0, 1);
    let none = None::<&Torch>;
    a.f_internal_scaled_mm(&b, &sx.contiguous(), sw, none, none, Kind::BFloat16, false)
        .map_err(wrong)
}
