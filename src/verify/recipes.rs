//! Recipes that other families leave out: module-swap ranges (P16), int4's integer zero points (Q03), UIntx weights (P06).

use std::sync::Arc;

use super::checks::{Allowed, Checks, number_behind, unknown};
use crate::error::{Error, Result};
use crate::model::{DenseWeight, Weight};
use crate::quantization::primitives::{
    HqqOptions, choose_qparams_and_quantize_affine_hqq, read_stream,
};
use crate::quantization::{
    Int4WeightOnlyConfig, QuantizationRecipe, Recipe, UIntxWeightOnlyConfig,
};
use crate::tensor::{DType, Tensor};

/// `ms.sym.b4.g32.mse.dq`, `pi32.bf16.g32.q`, `ub4.f16.g64.zero`, `ub8.bf16.row.scale`
pub(super) fn recipes(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?;
    let (_, k) = w.dims2()?;
    let x = checks.matrix_of("x", k)?.to_f32_vec();
    for prefix in checks.prefixes(".scale") {
        let words: Vec<&str> = prefix.split('.').collect();
        match words[..] {
            ["ms", mode, bits, group, how] => {
                module_swap(checks, (&w, &x), [mode, bits, group, how])?;
            }
            ["pi32", dtype, group] => plain_int32(checks, &as_named(&w, dtype)?, dtype, group)?,
            ["ub4", dtype, group] => four_bits(checks, &as_named(&w, dtype)?, dtype, group)?,
            ["ub8", dtype, "row"] => eight_bits(checks, &as_named(&w, dtype)?, dtype)?,
            _ => return Err(unknown(&prefix)),
        }
    }
    Ok(())
}

fn as_named(w: &Tensor, dtype: &str) -> Result<Tensor> {
    w.to_dtype(match dtype {
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        _ => return Err(unknown(dtype)),
    })
}

/// The tensor of a weight that files call `name`.
fn part(weight: &dyn Weight, name: &str) -> Result<Tensor> {
    let found = weight.tensors().into_iter().find(|(known, _)| known == name);
    found.map(|(_, tensor)| tensor).ok_or_else(|| Error::invalid(format!("there is no {name}")))
}

fn module_swap(
    checks: &mut Checks,
    (w, x): (&Tensor, &[f32]),
    [mode, bits, group, how]: [&str; 4],
) -> Result<()> {
    let prefix = format!("ms.{mode}.{bits}.{group}.{how}");
    let config = QuantizationRecipe {
        weight_bits: u32::try_from(number_behind(bits, "b")?).map_err(|_| unknown(&prefix))?,
        weight_group_size: match group {
            "row" => None,
            group => Some(number_behind(group, "g")?),
        },
        weight_quantization_mode: format!("{mode}metric").parse()?,
        range_setting: how.parse()?,
        ..QuantizationRecipe::default()
    };
    let weight = DenseWeight::shared(w.clone())?;
    let made: Arc<dyn Weight> = match config.calibrated() {
        None => config.quantize(&checks.cpu, weight.as_ref())?,
        Some(calibrated) => {
            let mut observer = calibrated.prepare("layer", &weight)?;
            observer.observe(&checks.cpu, x)?;
            observer.convert(&checks.cpu)?
        }
    };
    // Torch adds a row's losses in f32: two factors may be as good as that, and a row then takes the other.
    let allowed = if how == "min-max" { Allowed::Nothing } else { Allowed::But(0.1) };
    let name = format!("{prefix}.scale");
    let (scale, golden) = (part(made.as_ref(), "scale")?, checks.golden(&name)?.to_f32_vec());
    checks.near(name, &scale, &allowed)?;
    // Numbers on the same scale are equal; a zero has no sign here.
    let pairs = golden.iter().zip(scale.to_f32_vec());
    let bounds: Vec<f64> = pairs
        .map(|(golden, got)| match golden.to_bits() == got.to_bits() {
            true => 0.0,
            false => f64::INFINITY,
        })
        .collect();
    let size = w.numel().checked_div(bounds.len()).unwrap_or(0).max(1);
    let each = (0..w.numel()).map(|at| bounds.get(at / size).copied().unwrap_or(0.0));
    checks.near(format!("{prefix}.dq"), &made.dequantize()?, &Allowed::Each(each.collect()))
}

fn plain_int32(checks: &mut Checks, w: &Tensor, dtype: &str, group: &str) -> Result<()> {
    let config = Int4WeightOnlyConfig {
        group_size: number_behind(group, "g")?,
        int4_packing_format: "plain-int32".parse()?,
        ..Int4WeightOnlyConfig::default()
    };
    let made = config.quantize(&checks.cpu, &DenseWeight::new(w.clone())?)?;
    let (scale, middle) = (part(made.as_ref(), "scale")?, part(made.as_ref(), "zero_point")?);
    // The value of code 8 is (8 − zero point) · scale.
    #[expect(clippy::cast_possible_truncation, reason = "a whole number of 0 to 15")]
    let zero = |(scale, middle): (f32, f32)| (8.0 - middle / scale).round_ties_even() as i8;
    let pairs = scale.to_f32_vec().into_iter().zip(middle.to_f32_vec());
    let zeros = Tensor::new(pairs.map(zero).collect::<Vec<i8>>(), scale.shape())?;
    let bytes = part(made.as_ref(), "qdata")?;
    let codes = bytes.as_slice::<u8>()?.iter().flat_map(|byte| [byte & 15, byte >> 4]);
    let prefix = format!("pi32.{dtype}.{group}");
    checks.exact(format!("{prefix}.q"), &Tensor::new(codes.collect::<Vec<u8>>(), w.shape())?)?;
    checks.exact(format!("{prefix}.scale"), &scale.to_dtype(w.dtype())?)?;
    checks.exact(format!("{prefix}.zp"), &zeros)?;
    checks.exact(format!("{prefix}.dq"), &made.dequantize()?)
}

fn four_bits(checks: &mut Checks, w: &Tensor, dtype: &str, group: &str) -> Result<()> {
    let group_size = number_behind(group, "g")?;
    let options = HqqOptions {
        nbits: 4,
        group_size,
        optimize: true,
        compute_dtype: DType::F16,
        raw_output: true,
    };
    let found = choose_qparams_and_quantize_affine_hqq(&checks.cpu, w, &options)?;
    let config =
        UIntxWeightOnlyConfig { group_size: Some(group_size), ..UIntxWeightOnlyConfig::default() };
    let made = config.quantize(&checks.cpu, &DenseWeight::new(w.clone())?)?;
    // The workflow keeps the same codes and scales, and −zero · scale.
    let codes = found.codes.as_slice::<u8>()?;
    let (scale, zero) = (found.scale.to_f32_vec(), found.zero.to_f32_vec());
    for (at, (value, code)) in made.dequantize()?.to_f32_vec().iter().zip(codes).enumerate() {
        let (s, z) = (f64::from(scale[at / group_size]), f64::from(zero[at / group_size]));
        let wanted = (f64::from(*code) - z) * s;
        let amount = (f64::from(*code) + z.abs()) * s.abs();
        if (f64::from(*value) - wanted).abs() > amount * f64::from(f32::EPSILON) {
            return Err(Error::invalid(format!("a weight is {value}; its codes mean {wanted}")));
        }
    }
    let prefix = format!("ub4.{dtype}.{group}");
    checks.exact(format!("{prefix}.q"), &found.codes)?;
    checks.exact(format!("{prefix}.scale"), &found.scale)?;
    checks.exact(format!("{prefix}.zero"), &found.zero)
}

fn eight_bits(checks: &mut Checks, w: &Tensor, dtype: &str) -> Result<()> {
    let (n, k) = w.dims2()?;
    let config = UIntxWeightOnlyConfig {
        group_size: None,
        bit_width: 8,
        ..UIntxWeightOnlyConfig::default()
    };
    let made = config.quantize(&checks.cpu, &DenseWeight::new(w.clone())?)?;
    let bytes = part(made.as_ref(), "qdata")?;
    let mut codes = vec![0; n * k];
    let rows = codes.chunks_exact_mut(k).zip(bytes.as_slice::<u8>()?.chunks_exact(k));
    rows.for_each(|(codes, bytes)| read_stream(bytes, 8, codes));
    let signed = codes.iter().map(|code| (code ^ 0x80).cast_signed()).collect::<Vec<i8>>();
    checks.exact(format!("ub8.{dtype}.row.q"), &Tensor::new(signed, &[n, k])?)?;
    checks.exact(format!("ub8.{dtype}.row.scale"), &part(made.as_ref(), "scale")?)
}
