//! What the low-bit workflows' weights must do: stay within their rounding error, survive hard rows, multiply as they
//! dequantize on every instruction set, reach torchao's SQNR gates, and come back from a file bit for bit.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use aolab::kernels::{Cpu, Isa};
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::primitives::compute_error;
use aolab::quantization::{Recipe, config_from_dict, read_weight};
use aolab::rng::Rng;
use aolab::{DType, Tensor};
use serde_json::{Value as Json, json};

/// A workflow under test.
struct Case {
    recipe: Arc<dyn Recipe>,
    /// The least SQNR of the weight, and of a linear layer against the unquantized one (§2.2 where torchao has a gate).
    gates: (f64, f64),
}

fn case(class: &str, version: u64, data: &Json, gates: (f64, f64)) -> Case {
    let json = json!({ "_type": class, "_version": version, "_data": data });
    Case { recipe: config_from_dict(&json).expect("a configuration"), gates }
}

fn dtype(name: &str) -> Json {
    json!({ "_type": "torch.dtype", "_data": name })
}

fn mapping(name: &str) -> Json {
    json!({ "_type": "MappingType", "_data": name })
}

fn group(group_size: usize) -> Json {
    json!({ "_type": "PerGroup", "_version": 1, "_data": { "group_size": group_size } })
}

/// Every workflow with the options that change its numbers; all fit K a multiple of 128.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for bits in 1..=8_u32 {
        // A bit less is 6 dB less, from uint4's gate of 19.9 dB on (§2.2).
        // One symmetric bit has the codes −1 and 0 of twice the largest magnitude: everything becomes 0.
        let gate = if bits == 1 { -1.0 } else { f64::from(bits) * 6.02 - 6.0 };
        let only = "IntxWeightOnlyConfig";
        let int = dtype(&format!("int{bits}"));
        all.push(case(
            only,
            2,
            &json!({ "weight_dtype": int, "granularity": group(32) }),
            (gate, gate),
        ));
        all.push(case(
            only,
            2,
            &json!({ "weight_dtype": int, "mapping_type": mapping("ASYMMETRIC") }),
            (gate - 3.0, gate - 3.0),
        ));
        let dynamic = "Int8DynamicActivationIntxWeightConfig";
        let gates = (gate, gate.min(38.0));
        all.push(case(dynamic, 2, &json!({ "weight_dtype": int }), gates));
        let uint = dtype(&format!("uint{bits}"));
        let data = json!({ "dtype": uint, "group_size": 32 });
        all.push(case("UIntXWeightOnlyConfig", 1, &data, (gate, gate)));
    }
    let symnc = json!({ "weight_dtype": dtype("int4"), "mapping_type": mapping("SYMMETRIC_NO_CLIPPING_ERR"),
        "granularity": group(64), "scale_dtype": dtype("bfloat16") });
    all.push(case("IntxWeightOnlyConfig", 2, &symnc, (18.0, 18.0)));
    let asym = json!({ "weight_dtype": dtype("int4"), "weight_mapping_type": mapping("ASYMMETRIC"), "weight_granularity": group(16) });
    all.push(case("Int8DynamicActivationIntxWeightConfig", 2, &asym, (20.0, 20.0)));
    all.push(case("Int4DynamicActivationInt4WeightConfig", 1, &json!({}), (15.0, 10.0)));
    all.push(case("Int8DynamicActivationInt4WeightConfig", 1, &json!({}), (20.0, 20.0)));
    let sym = json!({ "group_size": 128, "act_mapping_type": mapping("SYMMETRIC") });
    all.push(case("Int8DynamicActivationInt4WeightConfig", 1, &sym, (20.0, 15.0)));
    all.push(case("Float8DynamicActivationInt4WeightConfig", 1, &json!({}), (18.0, 18.0)));
    let plain = json!({ "int4_packing_format": "plain" });
    all.push(case("Float8DynamicActivationInt4WeightConfig", 1, &plain, (18.0, 18.0)));
    for (block_size, scaler_block_size) in [(64, 1), (32, 2)] {
        let data = json!({ "block_size": block_size, "scaler_block_size": scaler_block_size });
        all.push(case("NF4WeightOnlyConfig", 1, &data, (20.0, 20.0)));
    }
    for (bits, block, gate) in
        [(4, [1, 1], 12.0), (2, [1, 1], 3.0), (6, [1, 1], 20.0), (8, [1, 4], 4.0)]
    {
        let data = json!({ "dtype": dtype(&format!("uint{bits}")), "block_size": block, "scale_block_size": 64 });
        all.push(case("CodebookWeightOnlyConfig", 1, &data, (gate, gate)));
    }
    for (bits, block, gate) in
        [(4, [-1, 128], 18.0), (3, [1, -1], 12.0), (8, [-1, -1], 35.0), (2, [-1, 64], 8.0)]
    {
        let data = json!({ "dtype": dtype(&format!("uint{bits}")), "block_size": block });
        all.push(case("CodebookCoreMlWeightOnlyConfig", 1, &data, (gate, gate)));
    }
    all.push(case(
        "GroupwiseLutWeightConfig",
        1,
        &json!({ "lut_block_shape": [1, -1] }),
        (18.0, 18.0),
    ));
    all.push(case("Int8LutConfig", 1, &json!({}), (18.0, 18.0)));
    all.push(case("EmbeddingQuantizer", 1, &json!({}), (18.0, 18.0)));
    all.push(case("TiedEmbeddingQuantizer", 1, &json!({ "granularity": group(64) }), (18.0, 18.0)));
    all.push(case("BitNetConfig", 1, &json!({}), (2.0, 2.0)));
    all
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

fn error_db(wanted: &[f32], got: &[f32]) -> f64 {
    let tensor = |values: &[f32]| Tensor::new(values.to_vec(), &[values.len()]).expect("a vector");
    compute_error(&tensor(wanted), &tensor(got)).expect("one shape")
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "weights are rounded to f32 on purpose")]
fn sqnr_reaches_the_gates() {
    // torch.nn.Linear's initial weights, as torchao's tests have them: uniform in ±1/√K.
    let (n, k, m) = (64, 512, 32);
    let mut rng = Rng::new(15);
    let bound = 1.0 / 512.0_f64.sqrt();
    let uniform = |rng: &mut Rng| ((2.0 * rng.uniform() - 1.0) * bound) as f32;
    let weight = dense((0..n * k).map(|_| uniform(&mut rng)).collect(), n, DType::BF16);
    let x = normal(&mut rng, m * k, 1.0);
    let run = |weight: &dyn Weight, isa: Isa| {
        let mut y = vec![f32::NAN; m * n];
        weight.linear(&Cpu::with_isa(isa, Some(2)), &x, m, &mut y).expect("runs");
        y
    };
    let reference = run(&weight, Isa::best());
    for Case { recipe, gates } in cases() {
        let made = quantized(recipe.as_ref(), &weight);
        let of_weight = error_db(&values(&weight), &values(made.as_ref()));
        let name = format!("{recipe:?}");
        assert!(of_weight > gates.0, "{name}: weight {of_weight:.1} dB, wanted {}", gates.0);
        let name = made.kernel(&Cpu::new(Some(1)), 1);
        let blocks = recipe.name() == "codebook-weight-only" && made.details().contains("1 × 4");
        let wide = made.details().starts_with("uint6 for");
        assert!(blocks || wide || !name.contains("dequantize"), "{name}: one token from codes");
        for isa in Isa::available() {
            let of_linear = error_db(&reference, &run(made.as_ref(), isa));
            let wanted = gates.1;
            assert!(of_linear > wanted, "{recipe:?} {}: {of_linear:.1} dB", isa.name());
        }
    }
}

#[test]
fn the_kernels_agree_on_every_instruction_set() {
    let mut rng = Rng::new(14);
    for (n, k) in [(1, 128), (5, 256), (19, 640)] {
        let weight = dense(normal(&mut rng, n * k, 0.1), n, DType::BF16);
        for Case { recipe, .. } in cases() {
            let made = quantized(recipe.as_ref(), &weight);
            let w = values(made.as_ref());
            for m in [1, 2, 9] {
                let x = normal(&mut rng, m * k, 1.0);
                let run = |isa: Isa| {
                    let mut y = vec![f32::NAN; m * n];
                    made.linear(&Cpu::with_isa(isa, Some(2)), &x, m, &mut y).expect("runs");
                    y
                };
                let wanted = run(Isa::Scalar);
                for isa in Isa::available() {
                    let case = format!("{recipe:?} {} ({n}, {k})", isa.name());
                    check_same(&run(isa), &wanted, (&x, &w), (n, k), &case);
                }
                check_against_dense(recipe.as_ref(), &wanted, &x, &w, (n, k));
            }
        }
    }
}

/// Two instruction sets differ by what f32 sums and rounded activations leave open.
fn check_same(
    y: &[f32],
    wanted: &[f32],
    (x, w): (&[f32], &[f32]),
    (n, k): (usize, usize),
    case: &str,
) {
    let amax = w.iter().fold(0.0_f32, |amax, w| amax.max(w.abs()));
    for (at, (got, wanted)) in y.iter().zip(wanted).enumerate() {
        let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
        let amount: f32 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
        // Sums with zero points are larger than what remains of them, and tables are rounded to 14 bits.
        let allowed = 2.0_f32.powi(-12) * (amount + amax * 8.0);
        let off = (got - wanted).abs();
        assert!(off <= allowed, "{case}: y[{at}] = {got}, scalar {wanted} ± {allowed}");
    }
}

/// The scalar kernel multiplies what `dequantize` says, activations rounded as the workflow has it.
fn check_against_dense(
    recipe: &dyn Recipe,
    y: &[f32],
    x: &[f32],
    w: &[f32],
    (n, k): (usize, usize),
) {
    let name = recipe.name();
    for (at, y) in y.iter().enumerate() {
        let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
        let wanted: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        let spread = x.iter().fold(0.0_f64, |amax, x| amax.max(f64::from(x.abs())));
        let norm = w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        // Half a step of every activation at random: 2 spread / steps / √12, five times over.
        let steps = match name {
            "int4-dynamic-activation-int4-weight" => 15.0,
            "float8-dynamic-activation-int4-weight" => 40.0,
            // Dequantized values are rounded to the dtype, bf16; the kernel's are not.
            _ if name.starts_with("nf4") || name == "codebook-weight-only" => 250.0,
            _ if ["int8-lut", "tied-embedding"].contains(&name) => 250.0,
            _ if name.contains("dynamic") || name == "bitnet" => 250.0,
            _ => 30_000.0,
        };
        let allowed = 5.0 * spread * norm / steps + 1e-6;
        let off = (f64::from(*y) - wanted).abs();
        assert!(off <= allowed, "{recipe:?}: y[{at}] = {y}, wanted {wanted} ± {allowed}");
    }
}

#[test]
fn hard_rows_are_stored_as_well_as_they_can_be() {
    let k = 128;
    let mut rng = Rng::new(12);
    let mut outlier = normal(&mut rng, k, 0.01);
    outlier[77] = 1000.0;
    let rows: [Vec<f32>; 8] = [
        vec![0.0; k],
        vec![0.25; k],
        normal(&mut rng, k, 1e-40),
        (0..k).map(|i| if i % 2 == 0 { 1e30 } else { -1e30 }).collect(),
        outlier,
        (0..k).map(|i| (i % 31) as f32 * 0.5 - 7.5).collect(),
        vec![f32::NAN; k],
        normal(&mut rng, k, 1.0),
    ];
    let weight = dense(rows.concat(), rows.len(), DType::F32);
    for Case { recipe, .. } in cases() {
        let made = values(quantized(recipe.as_ref(), &weight).as_ref());
        let shared = ["bitnet", "codebook", "groupwise", "nf4"];
        if shared.iter().any(|name| recipe.name().starts_with(name)) {
            continue; // One scale, table or mean for all: one NaN spoils it, as in torchao.
        }
        let row = |i: usize| &made[i * k..][..k];
        assert!(row(0).iter().all(|value| *value == 0.0), "{recipe:?}: zeros stay zeros");
        assert!(row(6).iter().all(|value| value.is_nan()), "{recipe:?}: NaN stays NaN");
        for i in [1, 2, 3, 4, 5, 7] {
            assert!(row(i).iter().all(|value| value.is_finite()), "{recipe:?}: row {i}");
        }
        // The quiet row is what it would be without its neighbours.
        let alone = dense(rows[7].clone(), 1, DType::F32);
        assert_eq!(row(7), values(quantized(recipe.as_ref(), &alone).as_ref()), "{recipe:?}");
    }
}

#[test]
fn a_weight_comes_back_from_its_tensors_bit_for_bit() {
    let mut rng = Rng::new(16);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let mut numbers = normal(&mut rng, 18 * 128, 1.0);
        numbers[130] = f32::NAN;
        let weight = dense(numbers, 18, dtype);
        for Case { recipe, .. } in cases() {
            let made = quantized(recipe.as_ref(), &weight);
            let back = read_weight(&made.meta(), made.tensors(), made.shape()).expect("reads back");
            assert_eq!(back.meta(), made.meta());
            assert_eq!(back.details(), made.details());
            assert_eq!(back.workflow(), recipe.name());
            assert_eq!((back.dtype(), back.nbytes()), (made.dtype(), made.nbytes()));
            for ((name, got), (_, wanted)) in back.tensors().iter().zip(made.tensors()) {
                assert_eq!(got.bytes(), wanted.bytes(), "{recipe:?} {name}");
            }
            let bits = |w: &dyn Weight| values(w).iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
            assert_eq!(bits(back.as_ref()), bits(made.as_ref()), "{recipe:?}");
            let config = config_from_dict(&recipe.config_to_dict()).expect("reads back");
            assert_eq!(config.config_to_dict(), recipe.config_to_dict());
        }
    }
}

/// One way to spoil a stored weight, and a word that the error must have.
type Spoiled = (&'static str, fn(&mut Json, &mut Vec<(String, Tensor)>));

#[test]
fn damaged_weights_are_refused_in_words() {
    let spoilers: [Spoiled; 9] = [
        ("version", |meta, _| meta["_version"] = json!(99)),
        ("no field", |meta, _| meta["_data"]["surprise"] = json!(1)),
        ("dtype", |meta, _| meta["_data"]["dtype"]["_data"] = json!("float3")),
        ("no tensor", |_, tensors| drop(tensors.remove(0))),
        ("no tensor", |_, tensors| drop(tensors.remove(1))),
        ("belongs to nothing", |_, tensors| tensors.push(("more".into(), tensors[0].1.clone()))),
        ("wanted", |_, tensors| tensors[0].1 = retyped(&tensors[0].1)),
        ("wanted", |_, tensors| tensors[1].1 = retyped(&tensors[1].1)),
        ("wanted", |_, tensors| tensors[0].1 = Tensor::zeros(DType::U8, &[3]).expect("zeros")),
    ];
    let weight = dense(normal(&mut Rng::new(17), 6 * 128, 1.0), 6, DType::BF16);
    for Case { recipe, .. } in cases() {
        let made = quantized(recipe.as_ref(), &weight);
        for (word, spoil) in &spoilers {
            let (mut meta, mut tensors) = (made.meta(), made.tensors());
            spoil(&mut meta, &mut tensors);
            let error = read_weight(&meta, tensors, made.shape()).expect_err("spoiled").to_string();
            assert!(error.contains(word), "{recipe:?}: {word:?} is not in {error:?}");
        }
        for shape in [(0, 128), (6, 0), (6, 127), (7, 128), (6, usize::MAX), (usize::MAX, 128)] {
            let read = read_weight(&made.meta(), made.tensors(), shape);
            assert!(read.is_err(), "{recipe:?} as {shape:?}");
        }
        for field in ["group_size", "weight_dtype", "code_dtype"] {
            for wrong in
                [json!(0), json!(-1), json!(24), json!("32"), json!(u64::MAX), dtype("int9")]
            {
                let mut meta = made.meta();
                if meta["_data"].get(field).is_some() {
                    meta["_data"][field] = wrong.clone();
                    let read = read_weight(&meta, made.tensors(), (6, 128));
                    assert!(read.is_err(), "{recipe:?}: {field} {wrong}");
                }
            }
        }
    }
}

/// The same shape in a dtype that no weight has.
fn retyped(tensor: &Tensor) -> Tensor {
    Tensor::zeros(DType::I64, tensor.shape()).expect("zeros")
}

#[test]
fn odd_shapes_fit_where_they_can_and_are_refused_in_words_where_not() {
    let mut rng = Rng::new(18);
    for (n, k) in [(1, 1), (1, 7), (3, 100), (17, 33)] {
        let weight = dense(normal(&mut rng, n * k, 1.0), n, DType::F32);
        for Case { recipe, .. } in cases() {
            match recipe.check((n, k)) {
                Ok(()) => {
                    let made = quantized(recipe.as_ref(), &weight);
                    let x = normal(&mut rng, k, 1.0);
                    let mut y = vec![f32::NAN; n];
                    made.linear(&Cpu::new(Some(2)), &x, 1, &mut y).expect("runs");
                    assert!(y.iter().all(|y| y.is_finite()), "{recipe:?} ({n}, {k})");
                }
                Err(error) => {
                    let words = error.to_string();
                    assert!(words.contains("multiple") || words.contains("wanted"), "{words}");
                }
            }
        }
    }
}
