//! Training in low precision: float8_training, quantized_training, lowbit_optim, lowbit_adam.

use super::checks::{Allowed, Checks, of_each, unknown};
use super::qat::taken;
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::adam::{Codec, decode, dynamic_map, encode, linear_map};
use crate::kernels::dtypes::{e4m3fn_encode_saturating, e5m2_encode_saturating};
use crate::kernels::matmul::Matrix;
use crate::quantization::primitives::pack_i2_in_i8;
use crate::tensor::{DType, Tensor};
use crate::training::float8::{Axis, Cast, Format, Recipe, cast_to_float8, float8_linear};
use crate::training::int8::{
    Int8MixedPrecisionTrainingConfig, bitnet_linear, int8_weight_only_linear,
    quantize_bitnet_weight, quantize_int8_rowwise,
};
use crate::training::optim::{AdamConfig, Optimizer, OptimizerConfig, StateBits, Update};

/// y, gx and gw of a layer.
fn layer(
    checks: &Checks,
    [x, w, g]: [&Tensor; 3],
    f: impl Fn(&Tape, &Var, &Var) -> Result<Var>,
) -> Result<[Tensor; 3]> {
    let tape = Tape::new(&checks.cpu);
    let (x, w) = (tape.leaf(x.clone()), tape.leaf(w.clone()));
    let y = f(&tape, &x, &w)?;
    let mut gradients = tape.backward_from(&y, g.clone())?;
    let gx = taken(&mut gradients, &x)?;
    Ok([y.value().clone(), gx, taken(&mut gradients, &w)?])
}

/// `scale.e4m3fn.axis0.p21`, `q.…`; `rowwise.bf16.y`
pub(super) fn float8(checks: &mut Checks) -> Result<()> {
    let x = checks.input("x")?;
    for name in checks.names_with("scale.") {
        scale_and_codes(checks, &x, &name["scale.".len()..])?;
    }
    let w = checks.input("lin.w")?;
    let (n, k) = w.dims2()?;
    let (x, g) = (checks.matrix_of("lin.x", k)?, checks.matrix_of("lin.gy", n)?);
    let bias = checks.matrix_of("lin.b", n)?.to_f32_vec();
    for (word, recipe) in [
        ("tensorwise", Recipe::Tensorwise),
        ("rowwise", Recipe::Rowwise),
        ("rowwise_with_gw_hp", Recipe::RowwiseWithGwHp),
    ] {
        // torch rounds results to bf16; in f32 its order of additions differs.
        for (dtype, of_dtype, ulp) in [(DType::F32, "f32", -20), (DType::BF16, "bf16", -7)] {
            let rounded = |t: &Tensor| t.to_dtype(dtype)?.to_dtype(DType::F32);
            let (x, w, g) = (rounded(&x)?, rounded(&w)?, rounded(&g)?);
            let run = |tape: &Tape, x: &Var, w: &Var| float8_linear(tape, recipe, x, w);
            let [y, gx, gw] = layer(checks, [&x, &w, &g], run)?;
            let biased = y.to_f32_vec().into_iter().enumerate().map(|(i, y)| y + bias[i % n]);
            let y = Tensor::new(biased.collect::<Vec<f32>>(), y.shape())?;
            for (part, got) in [("y", y), ("gx", gx), ("gw", gw)] {
                let name = format!("{word}.{of_dtype}.{part}");
                if checks.contains(&name) {
                    let near = of_each(&checks.golden(&name)?, 2.0_f64.powi(ulp), 4.0);
                    checks.near(name, &got.to_dtype(dtype)?, &near)?;
                }
            }
        }
    }
    Ok(())
}

/// `e4m3fn.axis0.p21`: dtype, what shares a scale, whether it is rounded to a power of two.
fn scale_and_codes(checks: &mut Checks, x: &Tensor, key: &str) -> Result<()> {
    let words: Vec<&str> = key.split('.').collect();
    let [dtype, axis, power] = words[..] else { return Err(unknown(key)) };
    let (n, k) = x.dims2()?;
    let (axis, shape) = match axis {
        "tensor" => (Axis::All, vec![]),
        "axis0" => (Axis::Column, vec![1, k]),
        "axis1" => (Axis::Row, vec![n, 1]),
        _ => return Err(unknown(key)),
    };
    let (format, encode) = match dtype {
        "e4m3fn" => (Format::E4m3, e4m3fn_encode_saturating as fn(f32) -> u8),
        "e5m2" => (Format::E5m2, e5m2_encode_saturating as fn(f32) -> u8),
        _ => return Err(unknown(key)),
    };
    let cast = Cast { format, axis, power_of_two: power == "p21" };
    let values = x.as_slice::<f32>()?;
    let scales = cast.scales(values, k);
    let at = |i: usize| match axis {
        Axis::All => scales[0],
        Axis::Row => scales[i / k],
        Axis::Column => scales[i % k],
        // The vectors have no blocks.
        Axis::RowBlock | Axis::ColumnBlock | Axis::Square => f32::NAN,
    };
    let codes = values.iter().enumerate().map(|(i, x)| encode(x * at(i)));
    checks.exact(format!("q.{key}"), &Tensor::new(codes.collect::<Vec<u8>>(), x.shape())?)?;
    // The training's own kernel goes there and back without codes.
    let seen = cast_to_float8(&checks.cpu, values, k, cast);
    let back = values.iter().enumerate().map(|(i, x)| format.round(x * at(i)) / at(i));
    if seen.iter().zip(back).any(|(seen, back)| seen.to_bits() != back.to_bits()) {
        return Err(Error::invalid(format!(
            "{key}: the kernel rounds otherwise than its definition"
        )));
    }
    checks.exact(format!("scale.{key}"), &Tensor::new(scales, &shape)?)
}

/// `rowwise.q`, `mixed.o1gi0gw0.y`, `bitnet.gx`
pub(super) fn quantized(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?;
    let (n, k) = w.dims2()?;
    let (x, g) = (checks.matrix_of("x", k)?, checks.matrix_of("g", n)?);
    let values = w.as_slice::<f32>()?;
    let (q, scale) = quantize_int8_rowwise(Matrix::new(values, n, k), 1e-12);
    checks.exact("rowwise.q", &small(&q, &[n, k])?)?;
    checks.exact("rowwise.scale", &Tensor::new(scale, &[n])?)?;
    let (q, scale) = quantize_bitnet_weight(values);
    let q = small(&q, &[n, k])?;
    checks.exact("bitnet.q", &q)?;
    checks.exact("bitnet.packed", &pack_i2_in_i8(&q)?)?;
    // A mean of thousands of numbers in f32, in torch's own order.
    let scale = Tensor::new(vec![scale], &[])?;
    checks.near("bitnet.scale", &scale, &Allowed::OfLargest(2.0_f64.powi(-22)))?;
    for prefix in checks.prefixes(".y") {
        let all = match prefix.strip_prefix("mixed.") {
            Some(flags) => {
                let config = Int8MixedPrecisionTrainingConfig {
                    output: flags.contains("o1"),
                    grad_input: flags.contains("gi1"),
                    grad_weight: flags.contains("gw1"),
                };
                layer(checks, [&x, &w, &g], |tape, x, w| config.linear(tape, x, w))?
            }
            None if prefix == "bitnet" => layer(checks, [&x, &w, &g], bitnet_linear)?,
            None if prefix == "int8wo" => layer(checks, [&x, &w, &g], int8_weight_only_linear)?,
            None => return Err(unknown(&prefix)),
        };
        for (part, got) in ["y", "gx", "gw"].into_iter().zip(all) {
            let name = format!("{prefix}.{part}");
            let near = of_each(&checks.golden(&name)?, 2.0_f64.powi(-20), 8.0);
            checks.near(name, &got, &near)?;
        }
    }
    Ok(())
}

/// Whole numbers of few bits as i8.
#[expect(clippy::cast_possible_truncation, reason = "codes of at most 8 bits; NaN becomes 0")]
fn small(codes: &[f32], shape: &[usize]) -> Result<Tensor> {
    Tensor::new(codes.iter().map(|code| *code as i8).collect::<Vec<i8>>(), shape)
}

/// `s8.codes`, `s8.scale`, `s8.dq`; the tables; a packed state.
pub(super) fn lowbit_optim(checks: &mut Checks) -> Result<()> {
    let x = checks.input("x")?;
    let signed = x.to_f32_vec();
    let unsigned: Vec<f32> = signed.iter().map(|x| x.abs()).collect();
    for (name, table) in [
        ("map8_signed", dynamic_map(true, 7, 8)),
        ("map8_unsigned", dynamic_map(false, 7, 8)),
        ("map4_signed", dynamic_map(true, 3, 4)),
        ("map4_unsigned", linear_map()),
    ] {
        let shape = [table.len()];
        checks.exact(name, &Tensor::new(table, &shape)?)?;
    }
    for (name, codec, block, values) in [
        ("s8", Codec::table(8, true), 256, &signed),
        ("u8", Codec::table(8, false), 256, &unsigned),
        ("s4", Codec::table(4, true), 128, &signed),
        ("u4", Codec::table(4, false), 128, &unsigned),
        ("s8b64", Codec::table(8, true), 64, &signed),
        ("fp8", Codec::Float8, 256, &signed),
    ] {
        if !values.len().is_multiple_of(block) {
            let got = values.len();
            return Err(Error::invalid(format!("x has {got} numbers; wanted blocks of {block}")));
        }
        state(checks, (name, &codec, block), (values, x.shape()))?;
    }
    Ok(())
}

/// One state, block by block.
fn state(
    checks: &mut Checks,
    (name, codec, block): (&str, &Codec, usize),
    (values, shape): (&[f32], &[usize]),
) -> Result<()> {
    let bytes = block / codec.per_byte();
    let mut codes = vec![0; values.len() / codec.per_byte()];
    let mut back = vec![f32::NAN; values.len()];
    let mut scales = Vec::new();
    for ((x, codes), back) in
        values.chunks(block).zip(codes.chunks_mut(bytes)).zip(back.chunks_mut(block))
    {
        let scale = encode(codec, x, codes);
        decode(codec, codes, scale, back);
        scales.push(scale);
    }
    let (nbytes, count) = ([codes.len()], [scales.len()]);
    let scales = Tensor::new(scales, &count)?;
    if name == "s4" {
        checks.exact("state4.codes", &Tensor::new(codes.clone(), &nbytes)?)?;
        checks.exact("state4.scale", &scales)?;
    }
    // torchao's codes before they are packed.
    let apart = match codec.per_byte() {
        2 => codes.iter().flat_map(|c| [c >> 4, c & 15]).collect(),
        _ => codes,
    };
    checks.exact(format!("{name}.codes"), &Tensor::new(apart, shape)?)?;
    checks.exact(format!("{name}.scale"), &scales)?;
    checks.exact(format!("{name}.dq"), &Tensor::new(back, shape)?)
}

/// `adamw8bit.p3`, `adamw8bit.exp_avg.codes`
pub(super) fn lowbit_adam(checks: &mut Checks) -> Result<()> {
    let start = checks.input("p0")?.to_dtype(DType::F32)?;
    let mut gradients = Vec::new();
    for name in ["g0", "g1", "g2"] {
        gradients.push(checks.input(name)?.to_dtype(DType::F32)?);
    }
    let adamw = AdamConfig { weight_decay: 0.1, ..AdamConfig::default() };
    let cases = [
        ("adamw8bit", AdamConfig { state: StateBits::Int8, ..adamw.clone() }),
        ("adamw4bit", AdamConfig { state: StateBits::Int4, ..adamw.clone() }),
        ("adamwfp8", AdamConfig { state: StateBits::Fp8, ..adamw.clone() }),
        (
            "adam8bit",
            AdamConfig { state: StateBits::Int8, decoupled: false, weight_decay: 0.05, ..adamw },
        ),
    ];
    for (name, config) in cases {
        let mut optimizer = Optimizer::new(OptimizerConfig::Adam(config), 0)?;
        let mut p = start.clone();
        for (i, gradient) in gradients.iter().enumerate() {
            let update = Update { name: "p", gradient, lr: 1e-2, decays: true };
            p = optimizer.step(&checks.cpu, p, &update)?;
            let name = format!("{name}.p{}", i + 1);
            if checks.contains(&name) {
                // PyTorch takes roots from MKL, whose last bit is not always the nearest: a unit in the last place a step.
                let steps = f64::from(u8::try_from(i + 1).unwrap_or(u8::MAX));
                let near = of_each(&checks.golden(&name)?, steps * 2.0_f64.powi(-22), 1e-2);
                checks.near(name, &p, &near)?;
            }
        }
        for (part, state) in optimizer.tensors()? {
            let name = format!("{name}.{}", part.strip_prefix("p.").unwrap_or(&part));
            if checks.contains(&name) {
                let shape = checks.golden(&name)?.shape().to_vec();
                checks.exact(name, &state.reshape(&shape)?)?;
            }
        }
    }
    Ok(())
}
