//! Weights that are hard on purpose, through every workflow of the list: what comes out is an error in words or a sound weight, never a
//! panic and never a NaN that was not there. A workflow that is added to the list is tested from its first day.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use aolab::kernels::Cpu;
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::{
    ExpertWeights, Recipe, WORKFLOWS, Workflow, config_from_dict, read_weight,
};
use aolab::rng::Rng;
use aolab::{DType, Result, Tensor};
use serde_json::{Value as Json, json};

/// The workflow with its defaults, over an integer base where it wants one.
fn recipe(workflow: &Workflow) -> Arc<dyn Recipe> {
    let base = json!({ "_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {} });
    let dynamic =
        json!({ "_type": "Int8DynamicActivationInt8WeightConfig", "_version": 2, "_data": {} });
    let mut faults = Vec::new();
    for data in [json!({}), json!({ "base_config": base }), json!({ "base_config": dynamic })] {
        for version in [1, 2] {
            let json = json!({ "_type": workflow.config_type, "_version": version, "_data": data });
            match config_from_dict(&json) {
                Ok(recipe) => return recipe,
                Err(error) => faults.push(error.to_string()),
            }
        }
    }
    panic!("{}: no defaults: {faults:?}", workflow.name)
}

/// The weight that a recipe makes, with inputs for those that look at them.
fn quantized(recipe: &dyn Recipe, weight: &Arc<dyn Weight>) -> Result<Arc<dyn Weight>> {
    let cpu = Cpu::new(Some(2));
    recipe.check(weight.shape())?;
    let Some(calibrated) = recipe.calibrated() else {
        return recipe.quantize(&cpu, weight.as_ref());
    };
    let mut observer = calibrated.prepare("layer", weight)?;
    let mut rng = Rng::new(3);
    let x: Vec<f32> = (0..9 * weight.shape().1).map(|_| rng.normal()).collect();
    loop {
        observer.observe(&cpu, &x)?;
        if !observer.another_pass()? {
            return observer.convert(&cpu);
        }
    }
}

struct Case {
    name: &'static str,
    shape: (usize, usize),
    value: fn(usize, usize, &mut Rng) -> f32,
    finite: bool,
}

fn case(
    name: &'static str,
    shape: (usize, usize),
    value: fn(usize, usize, &mut Rng) -> f32,
) -> Case {
    Case { name, shape, value, finite: true }
}

/// Row and column, and a source of normal numbers.
fn cases() -> Vec<Case> {
    let normal = |_, _, rng: &mut Rng| rng.normal() * 0.1;
    vec![
        case("normal", (64, 256), normal),
        case("all zero", (64, 256), |_, _, _| 0.0),
        case("zero rows and groups", (64, 256), |row, column, rng| {
            if row % 3 == 0 || column < 64 { 0.0 } else { rng.normal() }
        }),
        case("negative zeros", (64, 256), |_, _, _| -0.0),
        case("one outlier", (64, 256), |row, column, rng| {
            if (row, column) == (5, 77) { 1000.0 } else { rng.normal() * 0.01 }
        }),
        case("denormals", (64, 256), |_, _, rng| rng.normal() * 1e-40),
        case("tiny", (64, 256), |_, _, rng| rng.normal() * 1e-20),
        case("one value", (64, 256), |_, _, _| 0.3),
        case("one sign", (64, 256), |_, _, rng| -rng.normal().abs() - 0.01),
        case("ties", (64, 256), |_, column, _| {
            f32::from(u8::try_from(column % 31).unwrap_or(0)) * 0.5 - 7.5
        }),
        case("one row", (1, 256), normal),
        case("one column", (32, 1), normal),
        case("one number", (1, 1), normal),
        case("K of no group", (16, 100), normal),
        case("odd K", (16, 33), normal),
        case("N of no tile", (19, 256), normal),
        Case {
            name: "a NaN",
            shape: (64, 256),
            finite: false,
            value: |row, column, rng| {
                if (row, column) == (4, 9) { f32::NAN } else { rng.normal() }
            },
        },
        Case {
            name: "infinities",
            shape: (64, 256),
            finite: false,
            value: |row, column, rng| match (row, column) {
                (4, 9) => f32::INFINITY,
                (7, 200) => f32::NEG_INFINITY,
                _ => rng.normal(),
            },
        },
    ]
}

fn values_of(weight: &dyn Weight) -> Vec<f32> {
    weight.dequantize().expect("a weight has values").to_f32_vec()
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

/// What is asked of a weight that was made.
fn check(name: &str, case: &Case, w: &[f32], made: &Arc<dyn Weight>) {
    let (n, k) = case.shape;
    assert_eq!(made.shape(), case.shape, "{name}");
    let dq = values_of(made.as_ref());
    let back =
        read_weight(&made.meta(), made.tensors(), (n, k)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(same(&dq, &values_of(back.as_ref())), "{name}: saved and read, other values");
    assert_eq!(back.meta(), made.meta(), "{name}");
    let x: Vec<f32> =
        (0..2 * k).map(|i| f32::from(u8::try_from(i % 7).unwrap_or(0)) - 3.0).collect();
    let mut y = vec![f32::NAN; 2 * n];
    made.linear(&Cpu::new(Some(2)), &x, 2, &mut y).unwrap_or_else(|e| panic!("{name}: {e}"));
    if !case.finite {
        return;
    }
    assert!(dq.iter().chain(&y).all(|value| value.is_finite()), "{name}: not finite");
    let amax = w.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
    // Two bits too: no value moves by more than the largest magnitude and a little.
    let off = dq.iter().zip(w).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(off <= 1.1 * amax + 1e-6, "{name}: off by {off} where the largest is {amax}");
    if amax == 0.0 {
        assert!(dq.iter().all(|value| *value == 0.0), "{name}: zeros became {off}");
    }
}

#[test]
fn every_workflow_takes_hard_weights_or_says_why_not() {
    let mut refused = 0;
    for workflow in WORKFLOWS.iter().filter(|workflow| workflow.name != "spinquant") {
        let recipe = recipe(workflow);
        let mut taken = 0;
        for dtype in [DType::F32, DType::BF16] {
            for case in cases() {
                let mut rng = Rng::new(11);
                let (n, k) = case.shape;
                let w: Vec<f32> =
                    (0..n * k).map(|at| (case.value)(at / k, at % k, &mut rng)).collect();
                let w =
                    Tensor::new(w, &[n, k]).expect("its shape").to_dtype(dtype).expect("a float");
                let weight = DenseWeight::shared(w.clone()).expect("a matrix");
                let name = format!("{}, {}, {dtype}", workflow.name, case.name);
                match quantized(recipe.as_ref(), &weight) {
                    Ok(made) => {
                        check(&name, &case, &w.to_f32_vec(), &made);
                        taken += 1;
                    }
                    Err(error) => {
                        let words = error.to_string();
                        assert!(words.len() > 20, "{name}: {words}");
                        assert!(case.name != "normal", "{name}: {words}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(taken >= 8, "{}: only {taken} cases were taken", workflow.name);
    }
    println!("{refused} were refused in words");
}

/// Experts in one tensor of three dimensions: each is quantized for itself, and a matrix of a model says that it is none.
#[test]
fn three_dimensions_are_experts_or_refused_in_words() {
    let cpu = Cpu::new(Some(2));
    let (e, n, k) = (4, 19, 256);
    let mut rng = Rng::new(21);
    let mut values: Vec<f32> = (0..e * n * k).map(|_| rng.normal() * 0.1).collect();
    // An outlier of one expert is no other's, and an expert may be zero.
    values[5] = 100.0;
    values[2 * n * k..3 * n * k].fill(0.0);
    let experts = Tensor::new(values.clone(), &[e, n, k]).expect("its shape");
    let x: Vec<f32> = (0..7 * k).map(|_| rng.normal()).collect();
    for workflow in WORKFLOWS.iter().filter(|workflow| workflow.name != "spinquant") {
        let (recipe, name) = (recipe(workflow), workflow.name);
        if recipe.calibrated().is_some() {
            continue;
        }
        let made = match ExpertWeights::quantize(&cpu, recipe.as_ref(), &experts) {
            Ok(made) => made,
            Err(error) => {
                assert!(error.to_string().len() > 20, "{name}: {error}");
                continue;
            }
        };
        assert_eq!(made.shape(), [e, n, k], "{name}");
        let dq = made.dequantize().expect("values").to_f32_vec();
        for (i, expert) in values.chunks_exact(n * k).enumerate() {
            let alone = Tensor::new(expert.to_vec(), &[n, k]).expect("a matrix");
            let alone = quantized(recipe.as_ref(), &DenseWeight::shared(alone).expect("dense"));
            let alone = values_of(alone.expect("as the others").as_ref());
            assert!(same(&alone, &dq[i * n * k..][..n * k]), "{name}: expert {i}");
        }
        let tensors = made.tensors().expect("tensors");
        let back = ExpertWeights::read(&made.meta(), &tensors, [e, n, k]);
        let back = back.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(same(&dq, &back.dequantize().expect("values").to_f32_vec()), "{name}: read back");
        assert!(ExpertWeights::read(&made.meta(), &tensors, [e + 1, n, k]).is_err(), "{name}");
        // Some experts have no tokens.
        let (mut y, mut alone) = (vec![f32::NAN; 7 * n], vec![f32::NAN; 2 * n]);
        made.linear(&cpu, &x, &[2, 0, 1, 4], &mut y).unwrap_or_else(|e| panic!("{name}: {e}"));
        made.experts()[0].linear(&cpu, &x[..2 * k], 2, &mut alone).expect("two tokens");
        assert!(same(&alone, &y[..2 * n]) && y.iter().all(|y| y.is_finite()), "{name}");
        assert!(made.linear(&cpu, &x, &[2, 0, 1, 3], &mut y).is_err(), "{name}");
    }
    let experts = Tensor::zeros(DType::F32, &[4, 32, 64]).expect("zeros");
    let words = DenseWeight::new(experts).expect_err("no matrix").to_string();
    assert!(words.contains("[4, 32, 64]"), "{words}");
    let matrix = Tensor::zeros(DType::F32, &[32, 64]).expect("zeros");
    let int8 = recipe(WORKFLOWS.iter().find(|w| w.name == "int8-weight-only").expect("listed"));
    let words = ExpertWeights::quantize(&cpu, int8.as_ref(), &matrix).expect_err("no experts");
    assert!(words.to_string().contains("wanted (E, N, K)"), "{words}");
    let json: Json = json!({ "_type": "IntxWeight", "_version": 1, "_data": {
        "dtype": { "_type": "torch.dtype", "_data": "float32" }, "group_size": 32,
        "weight_dtype": { "_type": "torch.dtype", "_data": "int4" },
        "mapping_type": { "_type": "MappingType", "_data": "SYMMETRIC" } } });
    let tensors = vec![
        ("qdata".to_owned(), Tensor::zeros(DType::U8, &[4, 32, 32]).expect("zeros")),
        ("scale".to_owned(), Tensor::zeros(DType::F32, &[4, 32, 2]).expect("zeros")),
    ];
    assert!(read_weight(&json, tensors, (128, 64)).is_err());
}
