//! Layers, inputs and configurations of the gates of tests/sqnr_gates.rs and tests/sqnr_gates_algorithms.rs.

#![allow(dead_code, reason = "each test crate that includes this module uses a part of it")]

use std::sync::Arc;

use aolab::kernels::Cpu;
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::primitives::compute_error;
use aolab::quantization::{Recipe, config_from_dict};
use aolab::rng::Rng;
use aolab::{DType, Tensor};
use serde_json::{Value as Json, json};

pub(crate) const SEEDS: [u64; 3] = [1, 20, 300];
/// M, N and K.
pub(crate) const SHAPES: [[usize; 3]; 2] = [[32, 256, 512], [5, 96, 768]];

/// A layer and what it is given.
pub(crate) struct Inputs {
    pub(crate) x: Vec<f32>,
    pub(crate) weight: Arc<dyn Weight>,
    pub(crate) shape: [usize; 3],
    pub(crate) name: String,
}

/// Uniform in ±1/√K, as bf16, and normal inputs.
#[expect(clippy::cast_possible_truncation, reason = "weights are rounded on purpose")]
pub(crate) fn inputs(seed: u64, [m, n, k]: [usize; 3]) -> Inputs {
    let mut rng = Rng::new(seed);
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let bound = 1.0 / (k as f64).sqrt();
    let w: Vec<f32> = (0..n * k).map(|_| ((2.0 * rng.uniform() - 1.0) * bound) as f32).collect();
    let w = Tensor::new(w, &[n, k]).and_then(|w| w.to_dtype(DType::BF16)).expect("a matrix");
    let x: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
    let x = Tensor::new(x, &[m, k]).and_then(|x| x.to_dtype(DType::BF16)).expect("inputs");
    let name = format!("seed {seed}, {m} × {n} × {k}");
    Inputs {
        x: x.to_f32_vec(),
        weight: DenseWeight::shared(w).expect("dense"),
        shape: [m, n, k],
        name,
    }
}

pub(crate) fn all_inputs() -> impl Iterator<Item = Inputs> {
    SEEDS.into_iter().flat_map(|seed| SHAPES.map(|shape| inputs(seed, shape)))
}

pub(crate) fn vector(values: &[f32]) -> Tensor {
    Tensor::new(values.to_vec(), &[values.len()]).expect("a vector")
}

pub(crate) fn db(wanted: &[f32], got: &[f32]) -> f64 {
    compute_error(&vector(wanted), &vector(got)).expect("one shape")
}

impl Inputs {
    /// The same weight in another dtype.
    pub(crate) fn rounded_to(self, dtype: DType) -> Inputs {
        let weight = self.weight.dequantize().and_then(|w| w.to_dtype(dtype)).expect("rows");
        Inputs { weight: DenseWeight::shared(weight).expect("dense"), ..self }
    }

    pub(crate) fn run(&self, weight: &dyn Weight, cpu: &Cpu) -> Vec<f32> {
        let [m, n, _] = self.shape;
        let mut y = vec![f32::NAN; m * n];
        weight.linear(cpu, &self.x, m, &mut y).expect("runs");
        y
    }

    /// The layer's outputs and its weight against the original ones.
    pub(crate) fn seen(&self, made: &dyn Weight) -> (f64, f64) {
        let cpu = Cpu::new(Some(2));
        let (w, q) = (self.weight.dequantize(), made.dequantize());
        let of_weight = db(&w.expect("rows").to_f32_vec(), &q.expect("rows").to_f32_vec());
        (db(&self.run(self.weight.as_ref(), &cpu), &self.run(made, &cpu)), of_weight)
    }

    pub(crate) fn made(&self, recipe: &dyn Recipe) -> Arc<dyn Weight> {
        let (cpu, name) = (Cpu::new(Some(2)), recipe.name());
        let Some(calibrated) = recipe.calibrated() else {
            return recipe.quantize(&cpu, self.weight.as_ref()).expect(name);
        };
        let mut observer = calibrated.prepare("layer", &self.weight).expect(name);
        loop {
            observer.observe(&cpu, &self.x).expect("seen");
            if !observer.another_pass().expect("passes") {
                return observer.convert(&cpu).expect(name);
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "calls read like the JSON that they give")]
pub(crate) fn config(class: &str, data: Json) -> Arc<dyn Recipe> {
    let of =
        |version| config_from_dict(&json!({ "_type": class, "_version": version, "_data": data }));
    of(2).or_else(|_| of(1)).unwrap_or_else(|error| panic!("{class}: {error}"))
}

pub(crate) fn dtype(name: &str) -> Json {
    json!({ "_type": "torch.dtype", "_data": name })
}

pub(crate) fn word(class: &str, name: &str) -> Json {
    json!({ "_type": class, "_data": name })
}

pub(crate) fn group(size: usize) -> Json {
    json!({ "_type": "PerGroup", "_version": 1, "_data": { "group_size": size } })
}

pub(crate) fn axis(axis: i64) -> Json {
    json!({ "_type": "PerAxis", "_version": 1, "_data": { "axis": axis } })
}

pub(crate) fn per(name: &str) -> Json {
    json!({ "_type": name, "_version": 1, "_data": {} })
}
