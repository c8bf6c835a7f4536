//! int8 training with weights that are int8 between steps (R01, torchao's `Int8WeightOnlyQuantizedTrainingConfig`).
//!
//! `W ≈ q · s`, a scale a row: `s = amax / 127`, `q = round(w / s)`. Forward and input gradient multiply the codes and then
//! the scale, the weight's gradient is that of high precision. After each step a weight is rounded to codes again, at random
//! so that small changes add up: `q = ⌊w / s + U[0, 1)⌋`. Parameters hold `q · s` in f32 here; a step sees no other number.

use crate::autograd::{Tape, Var};
use crate::error::{Context as _, Result};
use crate::kernels::matmul::{Matrix, multiply};
use crate::kernels::stochastic_round::uniform;
use crate::tensor::Tensor;
use crate::training::{LinearRule, Parameters, Vars};

use super::{clip, plain_product, quantize_int8_rowwise, shapes};

/// The least scale that is divided by.
const EPS: f32 = 1e-12;

/// `y (…, N) = (x (…, K) · qᵀ) · s` with the codes of `weight (N, K)`.
pub fn int8_weight_only_linear(tape: &Tape, x: &Var, weight: &Var) -> Result<Var> {
    let ([m, n, k], shape) = shapes("int8 weights", x, weight)?;
    let xs = x.value().clone();
    let (codes, scales) = quantize_int8_rowwise(Matrix::new(weight.value().as_slice()?, n, k), EPS);
    let mut y = vec![0.0; m * n];
    let (a, b) = (Matrix::new(xs.as_slice()?, m, k), Matrix::new(&codes, n, k).transposed());
    // (m, k) · (k, n)
    multiply(tape.cpu(), tape.precision(), a, b, &mut y);
    scale_columns(&mut y, &scales);
    tape.custom("int8_weight_only", &[x, weight], Tensor::new(y, &shape)?, move |up, dy| {
        let dy = dy.as_slice::<f32>()?;
        let dx = up.wants(0, || {
            let mut scaled = dy.to_vec();
            scale_columns(&mut scaled, &scales);
            // (m, n) · (n, k)
            let (a, b) = (Matrix::new(&scaled, m, n), Matrix::new(&codes, n, k));
            Tensor::new(plain_product(up, a, b), xs.shape())
        })?;
        let dw = up.wants(1, || {
            // (n, m) · (m, k)
            let (a, b) = (Matrix::new(dy, m, n).transposed(), Matrix::new(xs.as_slice()?, m, k));
            Tensor::new(plain_product(up, a, b), &[n, k])
        })?;
        Ok(vec![dx, dw])
    })
}

fn scale_columns(y: &mut [f32], scales: &[f32]) {
    for row in y.chunks_exact_mut(scales.len().max(1)) {
        row.iter_mut().zip(scales).for_each(|(y, scale)| *y *= scale);
    }
}

/// `w` as codes times scales, rounded to the nearest code, or at random with the draws of a seed.
fn rounded(w: &Tensor, seed: Option<u64>) -> Result<Tensor> {
    let (n, k) = w.dims2()?;
    let values = w.to_f32_vec();
    let (mut codes, scales) = quantize_int8_rowwise(Matrix::new(&values, n, k), EPS);
    for (row, scale) in scales.iter().enumerate() {
        let inverse = 1.0 / if *scale < EPS { EPS } else { *scale };
        for at in row * k..(row + 1) * k {
            if let Some(seed) = seed {
                let code = (values[at] * inverse + uniform(seed, at as u64)).floor();
                codes[at] = clip(code, -128.0, 127.0);
            }
            codes[at] *= scale;
        }
    }
    Tensor::new(codes, w.shape())?.to_dtype(w.dtype())
}

/// Linear layers whose weights are int8 between steps; the output layer stays as it is.
#[derive(Clone, Copy, Debug)]
pub struct Int8WeightOnlyRule {
    /// Where the draws of the rounding start.
    pub seed: u64,
}

impl Int8WeightOnlyRule {
    fn round(self, parameters: &mut Parameters, step: Option<usize>) -> Result<()> {
        let is_chosen = |(name, tensor): &(&String, &Tensor)| {
            let module = name.strip_suffix(".weight");
            let left_alone =
                module.is_none_or(|module| ["model.embed_tokens", "lm_head"].contains(&module));
            tensor.shape().len() == 2 && !left_alone
        };
        let chosen: Vec<(String, Tensor)> = parameters
            .iter()
            .filter(is_chosen)
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        for (i, (name, weight)) in chosen.into_iter().enumerate() {
            // A stream of draws for each weight of each step.
            let stream = |step: usize| {
                let (step, i) = (step as u64, i as u64);
                self.seed ^ (step << 40 | i << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15)
            };
            let weight = rounded(&weight, step.map(stream)).within(&name)?;
            parameters.set(&name, weight);
        }
        Ok(())
    }
}

impl LinearRule for Int8WeightOnlyRule {
    fn name(&self) -> String {
        "int8 weights".to_owned()
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, _own: &Vars) -> Result<Var> {
        if fqn == "lm_head" {
            return tape.linear(x, weight);
        }
        int8_weight_only_linear(tape, x, weight)
    }

    fn prepare(&self, parameters: &mut Parameters) -> Result<()> {
        self.round(parameters, None)
    }

    fn end_step(&self, step: usize, parameters: &mut Parameters) -> Result<()> {
        self.round(parameters, Some(step))
    }
}
