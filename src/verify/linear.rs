//! Layers as `quantize_` makes them: linear_inference, int8_dynamic_act.

use std::sync::Arc;

use super::checks::{Allowed, Checks, unknown};
use crate::error::{Error, Result};
use crate::kernels::int8_activation::{self, Range};
use crate::kernels::{Shape, int8_linear};
use crate::model::{DenseWeight, Weight};
use crate::quantization::primitives::{
    CodeRange, HqqOptions, IntType, QParamsOptions, choose_qparams_affine,
    choose_qparams_affine_tinygemm, choose_qparams_and_quantize_affine_hqq,
    dynamically_quantize_per_channel, pack_int4_for_avx512, pack_tinygemm_scales_and_zeros,
    per_token_dynamic_quant, quantize_activation_per_token_absmax, quantize_affine,
    quantize_affine_tinygemm, read_stream,
};
use crate::quantization::{
    CodeType, Float8DynamicActivationFloat8WeightConfig, Float8WeightOnlyConfig, Granularity,
    Int8DynamicActivationInt8WeightConfig, Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig, IntxChooseQParamsAlgorithm, IntxWeightOnlyConfig, MappingType, Recipe,
};
use crate::tensor::{DType, Tensor};

pub(super) fn transposed(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    let values = matrix.as_slice::<f32>()?;
    let order = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
    Tensor::new(order.map(|at| values[at]).collect::<Vec<f32>>(), &[columns, rows])
}

/// `x · wᵀ + bias` against `name`: each result within `part` of Σ|x·w| + |bias|.
pub(super) fn output(
    checks: &mut Checks,
    name: &str,
    weight: &dyn Weight,
    x: &Tensor,
    bias: Option<&[f32]>,
    part: f64,
) -> Result<()> {
    let golden = checks.golden(name)?;
    let (got, amounts) = product(checks, weight, x, bias)?;
    let got = Tensor::new(got, golden.shape())?.to_dtype(golden.dtype())?;
    let bounds = amounts.into_iter().map(|amount| part * amount + 1e-9).collect();
    checks.near(name, &got, &Allowed::Each(bounds))
}

/// The results, and Σ|x·w| + |bias| of each.
fn product(
    checks: &Checks,
    weight: &dyn Weight,
    x: &Tensor,
    bias: Option<&[f32]>,
) -> Result<(Vec<f32>, Vec<f64>)> {
    let (n, k) = weight.shape();
    let x = x.to_f32_vec();
    if k == 0 || !x.len().is_multiple_of(k) || bias.is_some_and(|bias| bias.len() != n) {
        return Err(Error::invalid(format!(
            "the input or the bias does not fit a weight {n} × {k}"
        )));
    }
    let m = x.len() / k;
    let dense = weight.dequantize()?.to_f32_vec();
    let mut y = vec![f32::NAN; m * n];
    weight.linear(&checks.cpu, &x, m, &mut y)?;
    let bias = |at: usize| bias.map_or(0.0, |bias| bias[at % n]);
    let amount = |at: usize| {
        let products = x[at / n * k..][..k].iter().zip(&dense[at % n * k..][..k]);
        let sum: f64 = products.map(|(x, w)| (f64::from(*x) * f64::from(*w)).abs()).sum();
        sum + f64::from(bias(at)).abs()
    };
    let amounts = (0..m * n).map(amount).collect();
    y.iter_mut().enumerate().for_each(|(at, y)| *y += bias(at));
    Ok((y, amounts))
}

/// The recipe that a name of linear_inference stands for, but for ATen's int4 of CPUs.
fn recipe(name: &str) -> Result<Arc<dyn Recipe>> {
    let group = |name: &str| match name.rsplit_once("_g").map(|(_, size)| size.parse()) {
        Some(Ok(group_size)) => Granularity::PerGroup { group_size },
        _ => Granularity::PerAxis { axis: 0 },
    };
    let mapping = |name: &str| match name.contains("_asym") {
        true => MappingType::Asymmetric,
        false => MappingType::Symmetric,
    };
    let bits = |rest: &str, end: char| {
        let digits = rest.split(end).next().unwrap_or_default();
        digits.parse().map_err(|_| unknown(name))
    };
    let row: Granularity = "per-row".parse()?;
    let tensor: Granularity = "per-tensor".parse()?;
    if let Some(rest) = name.strip_prefix("intxwo_int") {
        return Ok(Arc::new(IntxWeightOnlyConfig {
            weight_dtype: CodeType::int(bits(rest, '_')?),
            granularity: group(name),
            mapping_type: mapping(name),
            ..IntxWeightOnlyConfig::default()
        }));
    }
    if let Some(rest) = name.strip_prefix("8da") {
        let mut config = Int8DynamicActivationIntxWeightConfig {
            weight_dtype: CodeType::int(bits(rest, 'w')?),
            weight_granularity: group(name),
            weight_mapping_type: mapping(name),
            ..Int8DynamicActivationIntxWeightConfig::default()
        };
        if name.contains("_hqq") {
            config.intx_choose_qparams_algorithm = IntxChooseQParamsAlgorithm::HqqScaleOnly;
        }
        return Ok(Arc::new(config));
    }
    Ok(match name {
        "int8wo" => Arc::new(Int8WeightOnlyConfig::default()),
        "int8wo_tensor" => {
            Arc::new(Int8WeightOnlyConfig { granularity: tensor, ..Default::default() })
        }
        "int8dq" | "int8dq_asym" => Arc::new(Int8DynamicActivationInt8WeightConfig {
            act_mapping_type: mapping(name),
            ..Default::default()
        }),
        "float8wo" => Arc::new(Float8WeightOnlyConfig { granularity: row, ..Default::default() }),
        "float8dq_row" | "float8dq_tensor" => {
            let word = if name.ends_with("row") { "per-row" } else { "per-tensor" };
            let granularity = word.parse()?;
            Arc::new(Float8DynamicActivationFloat8WeightConfig {
                granularity,
                ..Default::default()
            })
        }
        _ => return Err(unknown(name)),
    })
}

/// `8da4w_g32.bf16`: what `quantize_` makes of a linear layer, and its results.
pub(super) fn linear_inference(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?;
    let (_, k) = w.dims2()?;
    let (x, bias) = (checks.matrix_of("x", k)?, checks.floats("b")?);
    for prefix in checks.prefixes(".y") {
        let Some((name, dtype)) = prefix.rsplit_once('.') else { return Err(unknown(&prefix)) };
        let dtype = if dtype == "bf16" { DType::BF16 } else { DType::F32 };
        let (w, x) = (w.to_dtype(dtype)?, x.to_dtype(dtype)?);
        if name.starts_with("int4wo_cpu") {
            opaque_int4(checks, &prefix, &w, (&x, &bias))?;
            continue;
        }
        let weight = recipe(name)?.quantize(&checks.cpu, &DenseWeight::new(w)?)?;
        stored(checks, &prefix, weight.as_ref())?;
        let y = format!("{prefix}.y");
        if dtype == DType::BF16 && name.contains("dq") {
            // torchao gives bf16 activations a scale in bf16, whose 8 bits move codes: the map's gate for 8 bits.
            let (got, _) = product(checks, weight.as_ref(), &x, Some(&bias))?;
            let got = Tensor::new(got, checks.golden(&y)?.shape())?.to_dtype(dtype)?;
            checks.near(y, &got, &Allowed::SqnrDb(30.0))?;
            continue;
        }
        // torch's order of additions differs; in bf16 it also rounds activations, weights and results.
        let part = if dtype == DType::BF16 { -6 } else { -14 };
        output(checks, &y, weight.as_ref(), &x, Some(&bias), 2.0_f64.powi(part))?;
    }
    Ok(())
}

/// Codes, scale and zero point of a weight.
fn stored(checks: &mut Checks, prefix: &str, weight: &dyn Weight) -> Result<()> {
    let (n, k) = weight.shape();
    let tensors = weight.tensors();
    let find = |name: &str| tensors.iter().find(|(known, _)| known == name).map(|(_, t)| t);
    let Some((qdata, scale)) = find("qdata").zip(find("scale")) else { return Ok(()) };
    let name = format!("{prefix}.qdata");
    if checks.contains(&name) {
        let golden = checks.golden(&name)?;
        let signed = golden.dtype() == DType::I8 && qdata.dtype() == DType::U8;
        let codes = if signed { signed_codes(qdata, (n, k))? } else { qdata.clone() };
        checks.exact(name, &codes)?;
    }
    checks.exact(format!("{prefix}.scale"), scale)?;
    let zeros = Tensor::zeros(DType::I8, scale.shape())?;
    checks.exact(format!("{prefix}.zero_point"), find("zero_point").unwrap_or(&zeros))
}

/// The codes of a stream of bits, −2ᵇ⁻¹ at 0.
fn signed_codes(stream: &Tensor, (n, k): (usize, usize)) -> Result<Tensor> {
    let bytes = stream.as_slice::<u8>()?;
    let row_nbytes = bytes.len() / n.max(1);
    let bits = u32::try_from((8 * row_nbytes).checked_div(k).unwrap_or(0)).unwrap_or(8);
    let half = 1_u8 << bits.clamp(1, 8).saturating_sub(1);
    let mut codes = vec![0; n * k];
    for (row, codes) in bytes.chunks_exact(row_nbytes.max(1)).zip(codes.chunks_exact_mut(k.max(1)))
    {
        read_stream(row, bits, codes);
    }
    let signed = codes.into_iter().map(|code| code.wrapping_sub(half).cast_signed());
    Tensor::new(signed.collect::<Vec<i8>>(), &[n, k])
}

/// `Int4OpaqueTensor`: tinygemm's numerics in the weight's dtype, ATen's layout of a CPU with AVX-512.
fn opaque_int4(
    checks: &mut Checks,
    prefix: &str,
    w: &Tensor,
    (x, bias): (&Tensor, &[f32]),
) -> Result<()> {
    let (n, k) = w.dims2()?;
    let group_size = match prefix.split("_g").nth(1).and_then(|rest| rest.split('.').next()) {
        Some(size) => size.parse().map_err(|_| unknown(prefix))?,
        None => return Err(unknown(prefix)),
    };
    let (scale, zero, q) = if prefix.contains("hqq") {
        let options = HqqOptions {
            nbits: 4,
            group_size,
            optimize: true,
            compute_dtype: w.dtype(),
            raw_output: false,
        };
        let found = choose_qparams_and_quantize_affine_hqq(&checks.cpu, w, &options)?;
        (found.scale, found.zero, found.codes)
    } else {
        let (block, range) = ([1, group_size], CodeRange::new(IntType::UInt(8), 0, 15)?);
        let options = QParamsOptions { keepdim: true, ..QParamsOptions::default() };
        let (scale, zero) = choose_qparams_affine_tinygemm(w, &block, range, options)?;
        let q = quantize_affine_tinygemm(w, &block, &scale, &zero, range)?;
        (scale, zero, q)
    };
    let shape = [n, k.checked_div(group_size).unwrap_or(0)];
    let (scale, zero) = (scale.reshape(&shape)?, zero.reshape(&shape)?);
    checks.exact(format!("{prefix}.qdata"), &pack_int4_for_avx512(&q)?)?;
    let both = pack_tinygemm_scales_and_zeros(&scale, &zero)?;
    checks.exact(format!("{prefix}.scale_and_zero"), &both)?;
    super::int4::product(checks, &format!("{prefix}.y"), &q, (&scale, &zero), (x, Some(bias)))
}

/// The ways to round activations to 8 bits, and one product with them.
pub(super) fn int8_dynamic_act(checks: &mut Checks) -> Result<()> {
    let (x, xb) = (checks.input("x")?, checks.input("xb")?);
    for (name, x) in [("absmax", &x), ("absmax.bf16", &xb)] {
        let (q, scale) = quantize_activation_per_token_absmax(x)?;
        checks.exact(format!("{name}.q"), &q)?;
        checks.exact(format!("{name}.scale"), &scale)?;
    }
    checks.exact("per_token_dynamic_quant", &per_token_dynamic_quant(&x, DType::F32)?)?;
    checks.exact("asym_per_token_qdq", &per_token_dynamic_quant(&x, DType::I8)?)?;
    let int8 = CodeRange::full(IntType::Int(8))?;
    let int8_zero =
        QParamsOptions { zero_point_dtype: Some(DType::I8), ..QParamsOptions::default() };
    let row = [1, x.dims2()?.1];
    let (scale, zero) = choose_qparams_affine(&x, MappingType::Asymmetric, &row, int8, int8_zero)?;
    checks.exact("asym.q", &quantize_affine(&x, &row, &scale, &zero, int8)?)?;
    checks.exact("asym.scale", &scale)?;
    checks.exact("asym.zp", &zero)?;
    for (name, mapping) in
        [("symmetric", MappingType::Symmetric), ("asymmetric", MappingType::Asymmetric)]
    {
        for reduce_range in [false, true] {
            let name = format!("int8tensor.{name}.rr{}", u8::from(reduce_range));
            int8_tensor(checks, &name, &x, (mapping, reduce_range))?;
        }
    }
    let w = checks.input("w")?;
    let x5 = checks.matrix_of("x5", w.dims2()?.1)?;
    let (q, scale, zero) = dynamically_quantize_per_channel(&w, int8)?;
    // Integer sums have no order, and two products in f32 follow: exact although it is a matmul.
    checks.exact("dynlin.y", &dynamic_product(checks, &x5, &q, &scale)?)?;
    checks.exact("dqpc.q", &q)?;
    checks.exact("dqpc.scale", &scale)?;
    checks.exact("dqpc.zp", &zero)
}

/// The primitive, the kernel that rounds activations, and the workflow that rounds weights: one result.
fn int8_tensor(
    checks: &mut Checks,
    name: &str,
    x: &Tensor,
    (mapping, reduce_range): (MappingType, bool),
) -> Result<()> {
    let (m, k) = x.dims2()?;
    let (min, max) = if reduce_range { (-64, 63) } else { (-128, 127) };
    let range = CodeRange::new(IntType::Int(8), min, max)?;
    let options = QParamsOptions {
        eps: Some(f32::EPSILON),
        scale_dtype: Some(DType::F32),
        zero_point_dtype: Some(DType::I8),
        keepdim: true,
    };
    let (scale, zero) = choose_qparams_affine(x, mapping, &[1, k], range, options)?;
    checks.exact(format!("{name}.q"), &quantize_affine(x, &[1, k], &scale, &zero, range)?)?;
    checks.exact(format!("{name}.scale"), &scale)?;
    checks.exact(format!("{name}.zp"), &zero)?;
    let values = x.to_f32_vec();
    let range = if reduce_range { Range::REDUCED } else { Range::FULL };
    let (mut codes, mut scales) = (vec![99_i8; m * k], vec![f32::NAN; m]);
    if mapping == MappingType::Asymmetric {
        let mut zeros = vec![0; m];
        let cpu = &checks.cpu;
        int8_activation::asymmetric(cpu, &values, &mut codes, &mut scales, &mut zeros, range);
        let zeros = zeros.into_iter().map(|zero| i8::try_from(zero).unwrap_or(i8::MIN));
        checks.exact(format!("{name}.zp"), &Tensor::new(zeros.collect::<Vec<i8>>(), &[m, 1])?)?;
    } else {
        int8_activation::symmetric(&checks.cpu, &values, &mut codes, &mut scales, range);
        let config = Int8DynamicActivationInt8WeightConfig { reduce_range, ..Default::default() };
        let weight = config.quantize(&checks.cpu, &DenseWeight::new(x.clone())?)?;
        for (part, tensor) in weight.tensors() {
            let part = if part == "qdata" { "q".to_owned() } else { part };
            checks.exact(format!("{name}.{part}"), &tensor)?;
        }
    }
    checks.exact(format!("{name}.q"), &Tensor::new(codes, &[m, k])?)?;
    checks.exact(format!("{name}.scale"), &Tensor::new(scales, &[m, 1])?)
}

/// `_quant_int8_dynamic_per_token_linear`: absmax activations of ±127, integer products, two scales.
fn dynamic_product(checks: &Checks, x: &Tensor, q: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let (codes, act_scale) = quantize_activation_per_token_absmax(x)?;
    let ((m, k), (n, _)) = (x.dims2()?, q.dims2()?);
    let weight =
        int8_linear::Weight { qdata: q.as_slice()?, scale: scale.as_slice()?, row_sums: None };
    let activation = int8_linear::Activation {
        q: codes.as_slice()?,
        scale: act_scale.as_slice()?,
        zero_point: None,
    };
    let mut y = vec![f32::NAN; m * n];
    int8_linear::dynamic(&checks.cpu, weight, activation, &mut y, Shape { m, n, k });
    Tensor::new(y, &[m, n])
}
