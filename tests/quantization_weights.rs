//! What every workflow's weight must do: stay within its rounding error, survive edge rows, multiply as it
//! dequantizes on every instruction set, reach torchao's SQNR gates, and come back from a file bit for bit.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use aolab::kernels::{Cpu, Isa};
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::int4_weight_only::Int4PackingFormat;
use aolab::quantization::primitives::compute_error;
use aolab::quantization::{
    Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, MappingType,
    Recipe, read_weight,
};
use aolab::rng::Rng;
use aolab::{DType, Tensor};
use serde_json::{Value as Json, json};

fn int4(group_size: usize, int4_packing_format: Int4PackingFormat) -> Box<dyn Recipe> {
    Box::new(Int4WeightOnlyConfig { group_size, int4_packing_format, ..Default::default() })
}

fn int8(granularity: &str) -> Box<dyn Recipe> {
    let granularity = granularity.parse().expect(granularity);
    Box::new(Int8WeightOnlyConfig { granularity, ..Default::default() })
}

fn int8_dynamic(granularity: &str, mapping: MappingType, reduce_range: bool) -> Box<dyn Recipe> {
    Box::new(Int8DynamicActivationInt8WeightConfig {
        granularity: granularity.parse().expect(granularity),
        act_mapping_type: mapping,
        reduce_range,
        ..Default::default()
    })
}

/// Every workflow with the options that change its numbers; all fit K = 64, 128, 320.
fn recipes() -> Vec<Box<dyn Recipe>> {
    let (plain, tiles) = (Int4PackingFormat::Plain, Int4PackingFormat::TilePackedTo4d);
    let (sym, asym) = (MappingType::Symmetric, MappingType::Asymmetric);
    vec![
        int8("per-row"),
        int8("per-tensor"),
        int8("per-group:32"),
        int8_dynamic("per-row", sym, false),
        int8_dynamic("per-row", asym, false),
        int8_dynamic("per-row", asym, true),
        int8_dynamic("per-tensor,per-row", asym, false),
        int8_dynamic("per-tensor", sym, true),
        int4(32, plain),
        int4(64, plain),
        int4(32, tiles),
    ]
}

fn normal(rng: &mut Rng, len: usize, scale: f32) -> Vec<f32> {
    (0..len).map(|_| scale * rng.normal()).collect()
}

fn dense(values: Vec<f32>, n: usize, dtype: DType) -> DenseWeight {
    let k = values.len() / n;
    let tensor = Tensor::new(values, &[n, k]).and_then(|tensor| tensor.to_dtype(dtype));
    DenseWeight::new(tensor.expect("a float matrix")).expect("a float matrix")
}

fn quantized(recipe: &dyn Recipe, weight: &DenseWeight) -> Arc<dyn Weight> {
    let made = recipe.quantize(&Cpu::new(Some(2)), weight).expect("fits");
    assert_eq!(made.shape(), weight.shape());
    assert_eq!(made.dtype(), weight.dtype());
    made
}

fn values(weight: &dyn Weight) -> Vec<f32> {
    weight.dequantize().expect("dequantizes").to_f32_vec()
}

/// The scale of element `at` of a weight.
fn scale_at(weight: &dyn Weight, at: usize) -> f32 {
    let tensors = weight.tensors();
    let scale = &tensors.iter().find(|(name, _)| name == "scale").expect("a scale").1;
    let (rows, groups) = scale.dims2().expect("a matrix");
    let (_, k) = weight.shape();
    let row = if rows == 1 { 0 } else { at / k };
    scale.to_f32_vec()[row * groups + at % k / (k / groups)]
}

#[test]
fn every_weight_is_within_half_a_step_of_its_value() {
    let mut rng = Rng::new(11);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        // Scales and zeros are rounded to the dtype, and tinygemm rounds each operation to bf16, up to 16 steps
        // from where it counts.
        for (n, k) in [(1, 64), (7, 128), (33, 320)] {
            let weight = dense(normal(&mut rng, n * k, 0.1), n, dtype);
            let wanted = values(&weight);
            for recipe in recipes() {
                let made = quantized(recipe.as_ref(), &weight);
                check_half_a_step(recipe.as_ref(), made.as_ref(), dtype, &wanted);
            }
        }
    }
}

/// Every dequantized value is within half a step of `wanted`, and what rounding in the dtype adds.
fn check_half_a_step(recipe: &dyn Recipe, made: &dyn Weight, dtype: DType, wanted: &[f32]) {
    let in_bf16 = dtype == DType::BF16 || made.details().contains("tile");
    let unit = match dtype {
        _ if in_bf16 => 2.0_f32.powi(-8),
        DType::F16 => 2.0_f32.powi(-11),
        _ => 2.0_f32.powi(-23),
    };
    for (at, (got, wanted)) in values(made).iter().zip(wanted).enumerate() {
        let step = scale_at(made, at);
        let top = if step.is_normal() { 128.0 * step } else { 0.0 };
        let reach = if recipe.name().starts_with("int8") { top } else { 16.0 * step };
        let allowed = 0.501 * step + 4.0 * unit * (reach + wanted.abs());
        assert!(
            (got - wanted).abs() <= allowed,
            "{recipe:?} {dtype} at {at}: {wanted} became {got}, allowed {allowed}"
        );
    }
}

#[test]
fn edge_rows_are_stored_as_well_as_they_can_be() {
    let k = 64;
    let mut rng = Rng::new(12);
    let rows: [Vec<f32>; 6] = [
        vec![0.0; k],
        normal(&mut rng, k, 1e-5),
        (0..k).map(|i| if i % 2 == 0 { 1e38 } else { -1e38 }).collect(),
        vec![0.25; k],
        vec![f32::NAN; k],
        normal(&mut rng, k, 1.0),
    ];
    for recipe in recipes() {
        let whole = recipe.config_to_dict().to_string().contains("PerTensor");
        let weight = dense(rows.concat(), rows.len(), DType::F32);
        let made = values(quantized(recipe.as_ref(), &weight).as_ref());
        let row = |i: usize| &made[i * k..][..k];
        assert!(row(4).iter().all(|value| value.is_nan()), "{recipe:?}: NaN stays NaN");
        if whole {
            continue; // One scale for all: one NaN spoils it, and that is said, not hidden.
        }
        assert!(row(0).iter().all(|value| *value == 0.0), "{recipe:?}: zeros stay zeros");
        let sqnr = |i: usize| {
            let tensor = |values: &[f32]| Tensor::new(values.to_vec(), &[k]).expect("a row");
            compute_error(&tensor(&rows[i]), &tensor(row(i))).expect("one shape")
        };
        // 15 steps over the 5 to 7 standard deviations that 64 normal draws span: 17 to 21 dB.
        let gate = if recipe.name().starts_with("int8") { 35.0 } else { 16.0 };
        for i in [1, 2, 3, 5] {
            assert!(sqnr(i) > gate, "{recipe:?}: row {i} has {} dB", sqnr(i));
        }
    }
}

#[test]
fn the_largest_numbers_do_not_panic_and_rows_do_not_disturb_each_other() {
    let k = 64;
    let mut rng = Rng::new(13);
    let quiet = normal(&mut rng, k, 1.0);
    for loud in [f32::MAX, f32::INFINITY, f32::NAN] {
        let mut noisy = quiet.clone();
        (noisy[3], noisy[4]) = (loud, -loud);
        for recipe in recipes() {
            if recipe.config_to_dict().to_string().contains("PerTensor") {
                continue;
            }
            let alone = quantized(recipe.as_ref(), &dense(quiet.clone(), 1, DType::F32));
            let both = dense([noisy.clone(), quiet.clone()].concat(), 2, DType::F32);
            let both = values(quantized(recipe.as_ref(), &both).as_ref());
            assert_eq!(both[k..], values(alone.as_ref()), "{recipe:?} beside {loud}");
        }
    }
}

#[test]
fn the_kernel_multiplies_what_dequantize_says() {
    let mut rng = Rng::new(14);
    for (n, k) in [(1, 64), (5, 128), (19, 320), (6, 1024)] {
        let weight = dense(normal(&mut rng, n * k, 0.1), n, DType::BF16);
        for recipe in recipes() {
            let made = quantized(recipe.as_ref(), &weight);
            let w = values(made.as_ref());
            for m in [1, 2, 9] {
                let x = normal(&mut rng, m * k, 1.0);
                let seen = seen_activations(recipe.as_ref(), &x, k);
                for isa in Isa::available() {
                    let cpu = Cpu::with_isa(isa, Some(2));
                    let mut y = vec![f32::NAN; m * n];
                    made.linear(&cpu, &x, m, &mut y).expect("runs");
                    let case = format!("{recipe:?} {} m {m} ({n}, {k})", isa.name());
                    check_products(&y, &seen, &w, (n, k), &case);
                    assert!(made.kernel(&cpu, m).contains("int"), "a kernel of its own");
                }
            }
        }
    }
}

/// The activations that a workflow multiplies: as they are, or through int8 and back, by formula in f64.
fn seen_activations(recipe: &dyn Recipe, x: &[f32], k: usize) -> Vec<f64> {
    let config = recipe.config_to_dict();
    if !recipe.name().starts_with("int8-dynamic") {
        return x.iter().map(|x| f64::from(*x)).collect();
    }
    let data = &config["_data"];
    let (low, high) = if data["reduce_range"] == true { (-64.0, 63.0) } else { (-128.0, 127.0) };
    let granularity = data["granularity"].to_string();
    let whole = granularity.starts_with("[{\"_type\":\"PerTensor")
        || granularity.starts_with("{\"_type\":\"PerTensor");
    let asymmetric = data["act_mapping_type"]["_data"] == "ASYMMETRIC";
    let block = if whole { x.len() } else { k };
    let through = |block: &[f32]| {
        let min = block.iter().fold(0.0_f32, |min, x| min.min(*x));
        let max = block.iter().fold(0.0_f32, |max, x| max.max(*x));
        let (scale, zero) = if asymmetric {
            let scale = (max - min) / (high - low);
            (scale, low - (min / scale).round_ties_even())
        } else {
            (max.max(-min) / ((high - low) / 2.0), 0.0)
        };
        let code = |x: &f32| ((x * (1.0 / scale)).round_ties_even() + zero).clamp(low, high);
        block.iter().map(|x| f64::from(code(x) - zero) * f64::from(scale)).collect::<Vec<f64>>()
    };
    x.chunks(block).flat_map(through).collect()
}

/// `y` is `seen (M, K) · w (N, K)ᵀ` but for activations rounded to 16 bits and f32 sums; see the kernels' heads.
fn check_products(y: &[f32], seen: &[f64], w: &[f32], (n, k): (usize, usize), case: &str) {
    for (at, y) in y.iter().enumerate() {
        let (x, w) = (&seen[at / n * k..][..k], &w[at % n * k..][..k]);
        let products = || x.iter().zip(w).map(|(x, w)| f64::from(*w) * x);
        let wanted: f64 = products().sum();
        let amax = x.iter().fold(0.0_f64, |amax, x| amax.max(x.abs()));
        let sum_w: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
        let allowed = 2.0_f64.powi(-14) * amax * sum_w
            + 2.0_f64.powi(-18) * products().map(f64::abs).sum::<f64>();
        let off = (f64::from(*y) - wanted).abs();
        assert!(off <= allowed, "{case}: {y}, wanted {wanted} ± {allowed}");
    }
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "weights are rounded to f32 on purpose")]
fn sqnr_reaches_torchaos_gates() {
    // torch.nn.Linear's initial weights, as torchao's tests have them: uniform in ±1/√K.
    let (n, k, m) = (256, 512, 32);
    let mut rng = Rng::new(15);
    let bound = 1.0 / 512.0_f64.sqrt();
    let uniform = |rng: &mut Rng| ((2.0 * rng.uniform() - 1.0) * bound) as f32;
    let weight = dense((0..n * k).map(|_| uniform(&mut rng)).collect(), n, DType::BF16);
    let x = normal(&mut rng, m * k, 1.0);
    let cpu = Cpu::new(Some(2));
    let run = |weight: &dyn Weight| {
        let mut y = vec![f32::NAN; m * n];
        weight.linear(&cpu, &x, m, &mut y).expect("runs");
        Tensor::new(y, &[m, n]).expect("its shape")
    };
    let reference = run(&weight);
    let (plain, tiles) = (Int4PackingFormat::Plain, Int4PackingFormat::TilePackedTo4d);
    let (sym, asym) = (MappingType::Symmetric, MappingType::Asymmetric);
    for (recipe, weight_gate, linear_gate) in [
        (int8("per-row"), 40.0, 40.0),
        (int8("per-tensor"), 40.0, 40.0),
        (int8("per-group:32"), 40.0, 40.0),
        (int8_dynamic("per-row", sym, false), 40.0, 35.0),
        (int8_dynamic("per-row", asym, false), 40.0, 35.0),
        (int8_dynamic("per-tensor", sym, true), 20.0, 20.0),
        (int4(128, plain), 18.0, 18.0),
        (int4(32, plain), 20.0, 20.0),
        (int4(128, tiles), 20.0, 20.0),
    ] {
        let made = quantized(recipe.as_ref(), &weight);
        let of_weight = compute_error(
            &weight.dequantize().expect("dense"),
            &made.dequantize().expect("dequantizes"),
        )
        .expect("one shape");
        let of_linear = compute_error(&reference, &run(made.as_ref())).expect("one shape");
        assert!(of_weight > weight_gate, "{recipe:?}: weight {of_weight:.1} dB");
        assert!(of_linear > linear_gate, "{recipe:?}: linear {of_linear:.1} dB");
    }
}

#[test]
fn a_weight_comes_back_from_its_tensors_bit_for_bit() {
    let mut rng = Rng::new(16);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let mut numbers = normal(&mut rng, 6 * 64, 1.0);
        numbers[70] = f32::NAN;
        let weight = dense(numbers, 6, dtype);
        for recipe in recipes() {
            let made = quantized(recipe.as_ref(), &weight);
            let back = read_weight(&made.meta(), made.tensors(), made.shape()).expect("reads back");
            assert_eq!(back.meta(), made.meta());
            assert_eq!(back.details(), made.details());
            assert_eq!((back.dtype(), back.nbytes()), (made.dtype(), made.nbytes()));
            for ((name, got), (_, wanted)) in back.tensors().iter().zip(made.tensors()) {
                assert_eq!(got.bytes(), wanted.bytes(), "{recipe:?} {name}");
            }
            let bits = |w: &dyn Weight| values(w).iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
            assert_eq!(bits(back.as_ref()), bits(made.as_ref()), "{recipe:?}");
        }
    }
}

/// One way to spoil a stored weight, and a word that the error must have.
type Spoiled = (&'static str, fn(&mut Json, &mut Vec<(String, Tensor)>));

#[test]
fn damaged_weights_are_refused_in_words() {
    let spoilers: [Spoiled; 12] = [
        ("did you mean", |meta, _| meta["_type"] = json!(format!("{}s", text(&meta["_type"])))),
        ("wanted an object", |meta, _| *meta = json!(3)),
        ("version", |meta, _| meta["_version"] = json!(99)),
        ("no field", |meta, _| meta["_data"]["surprise"] = json!(1)),
        ("no field", |meta, _| meta["extra"] = json!(1)),
        ("dtype", |meta, _| meta["_data"]["dtype"]["_data"] = json!("float3")),
        ("no tensor", |_, tensors| drop(tensors.remove(0))),
        ("no tensor", |_, tensors| drop(tensors.remove(1))),
        ("belongs to nothing", |_, tensors| tensors.push(("more".into(), tensors[0].1.clone()))),
        ("wanted", |_, tensors| tensors[0].1 = retyped(&tensors[0].1)),
        ("wanted", |_, tensors| tensors[1].1 = retyped(&tensors[1].1)),
        ("wanted", |_, tensors| {
            let (rows, columns) = tensors[1].1.dims2().expect("a matrix");
            tensors[1].1 = tensors[1].1.reshape(&[columns, 1, rows]).expect("as many");
        }),
    ];
    let weight = dense(normal(&mut Rng::new(17), 6 * 64, 1.0), 6, DType::BF16);
    for recipe in recipes() {
        let made = quantized(recipe.as_ref(), &weight);
        for (word, spoil) in &spoilers {
            let (mut meta, mut tensors) = (made.meta(), made.tensors());
            spoil(&mut meta, &mut tensors);
            let error = read_weight(&meta, tensors, made.shape()).expect_err("spoiled").to_string();
            assert!(error.contains(word), "{recipe:?}: {word:?} is not in {error:?}");
        }
        for shape in [(0, 64), (6, 0), (6, 63), (7, 64), (6, usize::MAX), (usize::MAX, 64)] {
            let read = read_weight(&made.meta(), made.tensors(), shape);
            assert!(read.is_err(), "{recipe:?} as {shape:?}");
        }
    }
    let made = quantized(int4(32, Int4PackingFormat::Plain).as_ref(), &weight);
    for group in
        [json!(0), json!(-1), json!(24), json!(1e9), json!("32"), json!(u64::MAX), json!(16)]
    {
        let mut meta = made.meta();
        meta["_data"]["group_size"] = group.clone();
        assert!(read_weight(&meta, made.tensors(), (6, 64)).is_err(), "group_size {group}");
    }
    let made = quantized(int8("per-group:32").as_ref(), &weight);
    for shape in [json!([6, 0]), json!([0, 2]), json!([6, 3]), json!([-1, 2]), json!(2), json!([])]
    {
        let mut meta = made.meta();
        meta["_data"]["scale_shape"] = shape.clone();
        assert!(read_weight(&meta, made.tensors(), (6, 64)).is_err(), "scale_shape {shape}");
    }
}

fn text(json: &Json) -> &str {
    json.as_str().expect("a text")
}

/// The same shape in a dtype that no weight has.
fn retyped(tensor: &Tensor) -> Tensor {
    Tensor::zeros(DType::I64, tensor.shape()).expect("zeros")
}
