//! int8 and ternary training (R01, R02, R03): matmuls whose factors are rounded to integers.
//!
//! [`Int8WeightOnlyRule`] keeps weights that are int8 between steps.
//!
//! int8 mixed precision rounds the rows of the one and the columns of the other factor of each chosen matmul to
//! `round(x · 127 / amax)`. BitNet b1.58 keeps weights as `round(w / mean |w|)` in −1, 0, 1 and activations in int8 rows; its
//! gradients are those of the rounded numbers. Codes are multiplied as bf16, which holds them exactly, and summed in f32.

mod weight_only;

pub use weight_only::{Int8WeightOnlyRule, int8_weight_only_linear};

use crate::autograd::{Tape, Upstream, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::matmul::{Matrix, Precision, multiply};
use crate::tensor::Tensor;
use crate::training::{LinearRule, Vars};

/// Which matmuls of a linear layer run in int8 (R02).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int8MixedPrecisionTrainingConfig {
    /// y = x · Wᵀ
    pub output: bool,
    /// dx = dy · W
    pub grad_input: bool,
    /// dW = dyᵀ · x
    pub grad_weight: bool,
}

impl Default for Int8MixedPrecisionTrainingConfig {
    fn default() -> Self {
        Self { output: true, grad_input: true, grad_weight: true }
    }
}

/// Codes −128 ..= 127 as f32, and the scale of each row: `amax / 127`, its inverse not above `1 / eps` (R01's quantizer).
pub fn quantize_int8_rowwise(x: Matrix<'_, f32>, eps: f32) -> (Vec<f32>, Vec<f32>) {
    let (rows, cols) = (x.rows(), x.cols());
    let mut codes = Vec::with_capacity(rows * cols);
    let mut scales = Vec::with_capacity(rows);
    for row in 0..rows {
        let values = || (0..cols).map(|col| x.at(row, col));
        let larger = |most: f32, x: f32| if x.abs() > most || x.is_nan() { x.abs() } else { most };
        let scale = values().fold(0.0, larger) / 127.0;
        let inverse = 1.0 / if scale < eps { eps } else { scale };
        codes.extend(values().map(|x| clip((x * inverse).round_ties_even(), -128.0, 127.0)));
        scales.push(scale);
    }
    (codes, scales)
}

/// −1, 0 or 1, and the mean of |w|: `round(w / mean)` (R03).
#[expect(clippy::cast_possible_truncation, reason = "summed in f64, rounded to f32")]
#[expect(clippy::cast_precision_loss, reason = "element counts are far below 2⁵³")]
pub fn quantize_bitnet_weight(w: &[f32]) -> (Vec<f32>, f32) {
    let sum: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
    let scale = (sum / w.len().max(1) as f64) as f32;
    let divisor = if scale < 1e-5 { 1e-5 } else { scale };
    let codes = w.iter().map(|w| clip((w / divisor).round_ties_even(), -1.0, 1.0)).collect();
    (codes, scale)
}

fn clip(x: f32, low: f32, high: f32) -> f32 {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

/// `a · b` with the rows of a and the columns of b in int8: codes multiplied, then a column's scale, then a row's.
fn int8_product(cpu: &Cpu, a: Matrix<'_, f32>, b: Matrix<'_, f32>) -> Vec<f32> {
    const EPS: f32 = 1e-12;
    let (a_codes, a_scales) = quantize_int8_rowwise(a, EPS);
    let (b_codes, b_scales) = quantize_int8_rowwise(b.transposed(), EPS);
    let (m, n, k) = (a.rows(), b.cols(), a.cols());
    let b = Matrix::new(&b_codes, n, k).transposed();
    let mut c = codes_product(cpu, Matrix::new(&a_codes, m, k), b);
    for (row, scale) in c.chunks_exact_mut(n.max(1)).zip(a_scales) {
        row.iter_mut().zip(&b_scales).for_each(|(c, column)| *c = *c * column * scale);
    }
    c
}

fn codes_product(cpu: &Cpu, a: Matrix<'_, f32>, b: Matrix<'_, f32>) -> Vec<f32> {
    let mut c = vec![0.0; a.rows() * b.cols()];
    multiply(cpu, Precision::Bf16, a, b, &mut c);
    c
}

fn plain_product(up: &Upstream<'_>, a: Matrix<'_, f32>, b: Matrix<'_, f32>) -> Vec<f32> {
    let mut c = vec![0.0; a.rows() * b.cols()];
    multiply(up.cpu, up.precision, a, b, &mut c);
    c
}

/// `(m, n, k)` and the shape of y.
fn shapes(name: &str, x: &Var, weight: &Var) -> Result<([usize; 3], Vec<usize>)> {
    let (n, k) = weight.value().dims2()?;
    if x.shape().last() != Some(&k) || k == 0 {
        return Err(Error::invalid(format!("{name}: x {:?} · W ({n}, {k})ᵀ", x.shape())));
    }
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(n);
    Ok(([x.value().numel() / k, n, k], shape))
}

impl Int8MixedPrecisionTrainingConfig {
    /// `y (…, N) = x (…, K) · Wᵀ`.
    pub fn linear(&self, tape: &Tape, x: &Var, weight: &Var) -> Result<Var> {
        let ([m, n, k], shape) = shapes("int8 mixed precision", x, weight)?;
        let (xs, ws) = (x.value().clone(), weight.value().clone());
        let (a, b) = (Matrix::new(xs.as_slice()?, m, k), Matrix::new(ws.as_slice()?, n, k));
        let all = [true, true];
        let up = Upstream { cpu: tape.cpu(), precision: tape.precision(), needs: &all };
        let b = b.transposed();
        let y = if self.output { int8_product(up.cpu, a, b) } else { plain_product(&up, a, b) };
        let config = *self;
        tape.custom("int8_linear", &[x, weight], Tensor::new(y, &shape)?, move |up, dy| {
            let dy = Matrix::new(dy.as_slice::<f32>()?, m, n);
            let (x, w) = (Matrix::new(xs.as_slice()?, m, k), Matrix::new(ws.as_slice()?, n, k));
            let product = |int8: bool, a, b| {
                if int8 { int8_product(up.cpu, a, b) } else { plain_product(up, a, b) }
            };
            let dx = up.wants(0, || Tensor::new(product(config.grad_input, dy, w), xs.shape()))?;
            let dw = up.wants(1, || {
                Tensor::new(product(config.grad_weight, dy.transposed(), x), &[n, k])
            })?;
            Ok(vec![dx, dw])
        })
    }
}

/// A BitNet layer: `y (…, N) = x (…, K) · Wᵀ` of ternary weights and int8 rows.
pub fn bitnet_linear(tape: &Tape, x: &Var, weight: &Var) -> Result<Var> {
    let ([m, n, k], shape) = shapes("bitnet", x, weight)?;
    let xs = x.value().clone();
    let (x_codes, x_scales) = quantize_int8_rowwise(Matrix::new(xs.as_slice()?, m, k), 1e-5);
    let (w_codes, w_scale) = quantize_bitnet_weight(weight.value().as_slice()?);
    let b = Matrix::new(&w_codes, n, k).transposed();
    let mut y = codes_product(tape.cpu(), Matrix::new(&x_codes, m, k), b);
    for (row, scale) in y.chunks_exact_mut(n.max(1)).zip(&x_scales) {
        row.iter_mut().for_each(|y| *y = *y * w_scale * scale);
    }
    tape.custom("bitnet_linear", &[x, weight], Tensor::new(y, &shape)?, move |up, dy| {
        let dy = Matrix::new(dy.as_slice::<f32>()?, m, n);
        let dx = up.wants(0, || {
            let mut dx = plain_product(up, dy, Matrix::new(&w_codes, n, k));
            dx.iter_mut().for_each(|dx| *dx *= w_scale);
            Tensor::new(dx, xs.shape())
        })?;
        let dw = up.wants(1, || {
            let rows = x_codes.chunks_exact(k).zip(&x_scales);
            let x: Vec<f32> = rows.flat_map(|(row, s)| row.iter().map(move |x| x * s)).collect();
            Tensor::new(plain_product(up, dy.transposed(), Matrix::new(&x, m, k)), &[n, k])
        })?;
        Ok(vec![dx, dw])
    })
}

/// Linear layers in int8; the output layer stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Int8MixedRule {
    /// Which matmuls.
    pub config: Int8MixedPrecisionTrainingConfig,
}

impl LinearRule for Int8MixedRule {
    fn name(&self) -> String {
        let Int8MixedPrecisionTrainingConfig { output, grad_input, grad_weight } = self.config;
        let parts = [(output, "output"), (grad_input, "grad_input"), (grad_weight, "grad_weight")];
        let chosen: Vec<&str> = parts.into_iter().filter(|p| p.0).map(|p| p.1).collect();
        format!("int8 mixed precision ({})", chosen.join(", "))
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, _own: &Vars) -> Result<Var> {
        if fqn == "lm_head" {
            return tape.linear(x, weight);
        }
        self.config.linear(tape, x, weight)
    }
}

/// BitNet b1.58; the output layer stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct BitNetRule;

impl LinearRule for BitNetRule {
    fn name(&self) -> String {
        "bitnet b1.58".to_owned()
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, _own: &Vars) -> Result<Var> {
        if fqn == "lm_head" {
            return tape.linear(x, weight);
        }
        bitnet_linear(tape, x, weight)
    }
}
