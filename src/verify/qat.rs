//! Quantization-aware training: qat, qat_linear.

use super::checks::{Allowed, Checks, of_each, unknown};
use crate::autograd::{Gradients, Tape, Var};
use crate::error::{Error, Result};
use crate::quantization::primitives::{Float8, IntType, ZeroPointDomain};
use crate::quantization::{Int4WeightOnlyConfig, MappingType};
use crate::tensor::{DType, Tensor};
use crate::training::qat::{
    FakeQuantizeConfig, Float8FakeQuantizeConfig, Int4Activation, Int4WeightFakeQuantizeConfig,
    IntxFakeQuantizeConfig, IntxGranularity, LearnedRange, QatConfig, QatRule, initial_range,
};
use crate::training::{LinearRule as _, Vars};

/// Within so many units in the last place of the larger of the golden number and `size`.
fn ulps(golden: &Tensor, steps: f64, size: f64) -> Allowed {
    of_each(golden, steps * 2.0_f64.powi(-23), size)
}

fn symmetric(bits: u32, granularity: IntxGranularity) -> IntxFakeQuantizeConfig {
    IntxFakeQuantizeConfig::new(IntType::Int(bits), granularity)
}

/// The integer fake quantizer that a name stands for, if it is one.
fn integer(name: &str) -> Option<IntxFakeQuantizeConfig> {
    let group = IntxGranularity::PerGroup(32);
    let uint4 = IntxFakeQuantizeConfig {
        mapping_type: MappingType::Asymmetric,
        ..IntxFakeQuantizeConfig::new(IntType::UInt(4), group)
    };
    Some(match name {
        "token_asym_int8" => IntxFakeQuantizeConfig::int8_activation(),
        "g32_sym_int4" => symmetric(4, group),
        "g32_sym_int2" => symmetric(2, group),
        "chan_sym_int8" => symmetric(8, IntxGranularity::PerChannel),
        "g32_asym_uint4" => uint4,
        "g32_asym_uint4_float" => IntxFakeQuantizeConfig {
            zero_point_domain: ZeroPointDomain::Float,
            zero_point_precision: DType::F32,
            ..uint4
        },
        "g32_sym_int4_bf16s" => {
            IntxFakeQuantizeConfig { scale_precision: DType::BF16, ..symmetric(4, group) }
        }
        _ => return None,
    })
}

fn float(name: &str) -> Result<FakeQuantizeConfig> {
    let float8 = |per_row| {
        let dtype = Float8::E4m3fn;
        FakeQuantizeConfig::Float8(Float8FakeQuantizeConfig {
            dtype,
            per_row,
            bounds: (None, None),
        })
    };
    let int4 = |activation| {
        FakeQuantizeConfig::Int4Weight(Int4WeightFakeQuantizeConfig { group_size: 32, activation })
    };
    Ok(match name {
        "float8_row" => float8(true),
        "float8_tensor" => float8(false),
        "int4w_bf16act_g32" => int4(Int4Activation::Bf16),
        "int4w_fp8act_g32" => int4(Int4Activation::Fp8),
        _ => return Err(unknown(name)),
    })
}

/// `y` and the gradient for `x` where the upstream gradient is `g`.
fn run(
    checks: &Checks,
    x: &Tensor,
    g: &Tensor,
    f: impl Fn(&Tape, &Var) -> Result<Var>,
) -> Result<[Tensor; 2]> {
    let tape = Tape::new(&checks.cpu);
    let x = tape.leaf(x.clone());
    let y = f(&tape, &x)?;
    let mut gradients = tape.backward_from(&y, g.clone())?;
    Ok([y.value().clone(), taken(&mut gradients, &x)?])
}

/// The gradient of `var`.
pub(super) fn taken(gradients: &mut Gradients, var: &Var) -> Result<Tensor> {
    gradients.take(var).ok_or_else(|| Error::invalid("the result does not depend on an input"))
}

/// `g32_sym_int4.y`, `.gx`, `.scale`, `.zp`
pub(super) fn fake_quantizers(checks: &mut Checks) -> Result<()> {
    let (x, g) = (checks.input("x")?, checks.input("g")?);
    let (_, k) = x.dims2()?;
    // Floats are quantized from the fifth row on: those before hold what float8 cannot be differentiated at.
    let tail = |t: &Tensor| {
        let values = t.to_f32_vec().get(4 * k..).unwrap_or_default().to_vec();
        let rows = values.len() / k.max(1);
        Tensor::new(values, &[rows, k])
    };
    let (late_x, late_g) = (tail(&x)?, tail(&g)?);
    for prefix in checks.prefixes(".y") {
        let (y, gx) = (format!("{prefix}.y"), format!("{prefix}.gx"));
        if let Some(config) = integer(&prefix) {
            let fake = FakeQuantizeConfig::Intx(config);
            let [got, gradient] = run(checks, &x, &g, |tape, x| fake.fake_quantize(tape, x))?;
            checks.exact(y, &got)?;
            checks.exact(gx, &gradient)?;
            parameters(checks, &prefix, &config, &x)?;
            continue;
        }
        let fake = float(&prefix)?;
        let [got, gradient] = run(checks, &late_x, &late_g, |tape, x| fake.fake_quantize(tape, x))?;
        // Equal, but that a zero may have the other sign.
        let same = of_each(&checks.golden(&y)?, 0.0, 0.0);
        checks.near(y, &got, &same)?;
        // A scale's gradient is a sum over its block, whose order is PyTorch's: its terms are code · g or x / s · g.
        let size = if prefix == "float8_tensor" { 200.0 } else { 60.0 };
        let near = ulps(&checks.golden(&gx)?, 16.0, size);
        checks.near(gx, &gradient, &near)?;
    }
    Ok(())
}

/// Scale and zero point of a fake quantizer.
fn parameters(
    checks: &mut Checks,
    prefix: &str,
    config: &IntxFakeQuantizeConfig,
    x: &Tensor,
) -> Result<()> {
    let (scale, zero) = config.qparams(&checks.cpu, x)?;
    for (part, got) in [("scale", scale), ("zp", zero)] {
        let name = format!("{prefix}.{part}");
        if checks.contains(&name) {
            let shape = checks.golden(&name)?.shape().to_vec();
            checks.exact(name, &got.reshape(&shape)?)?;
        }
    }
    Ok(())
}

fn rule(name: &str) -> Result<QatRule> {
    let config = match name {
        "8da4w" => QatConfig::of_word("8da4w", Some(32))?,
        "int4wo_intx" => QatConfig::of_word("int4", Some(32))?,
        "int4wo_g32" => QatConfig::of_base(&Int4WeightOnlyConfig {
            group_size: 32,
            ..Int4WeightOnlyConfig::default()
        })?,
        _ => return Err(unknown(name)),
    };
    QatRule::new(config)
}

/// `8da4w.y`, `.gx`, `.gw`, `.converted.y`
pub(super) fn layers(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?;
    let (n, k) = w.dims2()?;
    let (x, g) = (checks.matrix_of("x", k)?, checks.matrix_of("g", n)?);
    checks.input("b")?;
    for name in ["8da4w", "int4wo_intx", "int4wo_g32"] {
        let rule = rule(name)?;
        let tape = Tape::new(&checks.cpu);
        let (x, w) = (tape.leaf(x.clone()), tape.leaf(w.clone()));
        let y = rule.linear(&tape, "layer", &x, &w, &Vars::default())?;
        let mut gradients = tape.backward_from(&y, g.clone())?;
        let (gx, gw) = (taken(&mut gradients, &x)?, taken(&mut gradients, &w)?);
        // Sums over 64, 16 and 6 products, each in another order than PyTorch's. torchao's converted layer gives what its
        // prepared one gave; ours sees the same numbers.
        let size = if name == "int4wo_g32" { 40.0 } else { 4.0 };
        for (part, got, size) in [
            ("y", y.value(), 4.0),
            ("converted.y", y.value(), 4.0),
            ("gx", &gx, 2.0),
            ("gw", &gw, size),
        ] {
            let name = format!("{name}.{part}");
            if checks.contains(&name) {
                let near = ulps(&checks.golden(&name)?, 16.0, size);
                checks.near(name, got, &near)?;
            }
        }
    }
    blocks(checks, [&x, &w, &g])?;
    let learned = |config: IntxFakeQuantizeConfig| IntxFakeQuantizeConfig {
        zero_point_precision: DType::F32,
        ..config
    };
    let group = learned(symmetric(4, IntxGranularity::PerGroup(32)));
    learned_range(checks, "rl_sym_int4", &w, &group)?;
    let token = learned(IntxFakeQuantizeConfig::int8_activation());
    learned_range(checks, "rl_asym_int8_token", &x, &token)
}

/// `mxfp4.y`, `.gx`, `.gw`: torchao rounds inputs, the gradient and all results to bf16.
fn blocks(checks: &mut Checks, [x, w, g]: [&Tensor; 3]) -> Result<()> {
    let bf16 = |t: &Tensor| t.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    for word in ["mxfp4", "mxfp8", "nvfp4"] {
        if !checks.contains(&format!("{word}.y")) {
            continue;
        }
        let rule = QatRule::new(QatConfig::of_word(word, None)?)?;
        let tape = Tape::new(&checks.cpu);
        let (x, w) = (tape.leaf(bf16(x)?), tape.leaf(bf16(w)?));
        let y = rule.linear(&tape, "layer", &x, &w, &Vars::default())?;
        let mut gradients = tape.backward_from(&y, bf16(g)?)?;
        let (gx, gw) = (taken(&mut gradients, &x)?, taken(&mut gradients, &w)?);
        for (part, got) in [("y", y.value()), ("gx", &gx), ("gw", &gw)] {
            let name = format!("{word}.{part}");
            // Sums of a few products in f32, then bf16: of two orders one may round up, the other down.
            let near = of_each(&checks.golden(&name)?, 2.0_f64.powi(-7), 2.0_f64.powi(-6));
            checks.near(name, &got.to_dtype(DType::BF16)?, &near)?;
        }
    }
    Ok(())
}

/// A range whose scale was shrunk to 0.7 of what training begins with.
fn learned_range(
    checks: &mut Checks,
    prefix: &str,
    x: &Tensor,
    config: &IntxFakeQuantizeConfig,
) -> Result<()> {
    let golden = |checks: &Checks, part: &str| checks.golden(&format!("{prefix}.{part}"));
    let start = initial_range(&checks.cpu, config, x)?;
    let shrunk: Vec<f32> = start.scale.to_f32_vec().iter().map(|s| s * 0.7).collect();
    let shape = golden(checks, "scale")?.shape().to_vec();
    checks.exact(format!("{prefix}.scale"), &Tensor::new(shrunk, &shape)?)?;
    let zeros = match &start.zero_point {
        Some(zero) => zero.reshape(&shape)?,
        None => Tensor::zeros(DType::F32, &shape)?,
    };
    checks.exact(format!("{prefix}.zp"), &zeros)?;
    let g = checks.input(&format!("{prefix}.g"))?;
    let tape = Tape::new(&checks.cpu);
    let var = tape.leaf(x.clone());
    let scale = golden(checks, "scale")?.reshape(start.scale.shape())?;
    let zero_point = start.zero_point.map(|zero| tape.leaf(zero));
    let range = LearnedRange { scale: tape.leaf(scale), zero_point };
    let y = config.fake_quantize_learned(&tape, &var, &range)?;
    checks.exact(format!("{prefix}.y"), y.value())?;
    let mut gradients = tape.backward_from(&y, g)?;
    checks.exact(format!("{prefix}.gx"), &taken(&mut gradients, &var)?)?;
    let gscale = taken(&mut gradients, &range.scale)?.reshape(&shape)?;
    // Sums of 32 or 64 terms of up to 128 codes.
    let near = ulps(&golden(checks, "gscale")?, 64.0, 300.0);
    checks.near(format!("{prefix}.gscale"), &gscale, &near)?;
    if let Some(zero) = &range.zero_point {
        let gzp = taken(&mut gradients, zero)?.reshape(&shape)?;
        let near = ulps(&golden(checks, "gzp")?, 64.0, 1.0);
        checks.near(format!("{prefix}.gzp"), &gzp, &near)?;
    }
    Ok(())
}
