//! MX training (R05, M14): the three matmuls of a linear layer with factors in MX, emulated.
//!
//! Blocks of 32 numbers along the dimension that is summed share a power of two, chosen anew at every call: rows of x and
//! W for y, rows of dy and columns of W for dx, columns of dy and of x for dW. MX's numbers are bf16's, too, so that the
//! products are those of the codes and only their sums are rounded, to f32. As torchao's `KernelPreference.EMULATED`.
//!
//! | | elements | scales | dW |
//! |---|---|---|---|
//! | mxfp8 | e4m3 | RCEIL | MX, or not rounded (`wgrad_with_hp`) |
//! | mxfp4 | e2m1 | FLOOR by default | MX, or not rounded |

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::float_linear::Element;
use crate::kernels::matmul::{Matrix, Precision, multiply};
use crate::quantization::primitives::{ScaleCalculationMode, mx_round_block};
use crate::tensor::Tensor;
use crate::training::{LinearRule, Vars};

/// Numbers that share a scale.
pub const MX_BLOCK: usize = 32;

/// What an element is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MXElement {
    /// fp8 with 3 mantissa bits.
    #[default]
    E4m3,
    /// fp4.
    E2m1,
}

/// torchao's `MXFP8TrainingOpConfig`, and the fp4 of its older `MXLinearConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MXTrainingConfig {
    /// What an element is.
    pub element: MXElement,
    /// Leaves the weight's gradient in high precision.
    pub wgrad_with_hp: bool,
    /// How a block's power of two is chosen.
    pub scale_calculation_mode: ScaleCalculationMode,
}

impl Default for MXTrainingConfig {
    fn default() -> MXTrainingConfig {
        MXTrainingConfig {
            element: MXElement::E4m3,
            wgrad_with_hp: false,
            scale_calculation_mode: ScaleCalculationMode::Rceil,
        }
    }
}

impl MXTrainingConfig {
    /// `MXFP4_EMULATED`.
    pub fn mxfp4() -> MXTrainingConfig {
        MXTrainingConfig {
            element: MXElement::E2m1,
            scale_calculation_mode: ScaleCalculationMode::Floor,
            ..MXTrainingConfig::default()
        }
    }

    fn element(&self) -> Element {
        match self.element {
            MXElement::E4m3 => Element::E4m3,
            MXElement::E2m1 => Element::E2m1,
        }
    }

    /// The rows of `x` as MX holds them; rows must be whole blocks.
    fn rows(&self, cpu: &Cpu, x: &[f32], k: usize) -> Vec<f32> {
        let mut y = x.to_vec();
        let rows = cpu.threads().share(x.len().checked_div(k).unwrap_or(0), 1);
        let (element, mode) = (self.element(), self.scale_calculation_mode);
        cpu.threads().chunks_mut(&mut y, rows * k.max(1), |_, y| {
            y.chunks_mut(MX_BLOCK).for_each(|block| mx_round_block(block, element, mode));
        });
        y
    }

    /// The columns of `x` (rows of `k`) as MX holds them, as rows.
    fn columns(&self, cpu: &Cpu, x: &[f32], k: usize) -> Vec<f32> {
        let turned = transposed(cpu, x, k);
        self.rows(cpu, &turned, x.len().checked_div(k).unwrap_or(0))
    }

    /// `y (…, N) = x (…, K) · Wᵀ`.
    pub fn linear(&self, tape: &Tape, x: &Var, weight: &Var) -> Result<Var> {
        let (n, k) = weight.value().dims2()?;
        if x.shape().last() != Some(&k) || k == 0 {
            return Err(Error::invalid(format!("mx: x {:?} · W ({n}, {k})ᵀ", x.shape())));
        }
        let m = x.value().numel() / k;
        self.check([m, n, k])?;
        let (config, cpu) = (*self, tape.cpu());
        let (xs, ws) = (x.value().clone(), weight.value().clone());
        let low_x = config.rows(cpu, xs.as_slice()?, k);
        let low_w = config.rows(cpu, ws.as_slice()?, k);
        let mut shape = x.shape().to_vec();
        shape.pop();
        shape.push(n);
        // (m, k) · (k, n)
        let (a, b) = (Matrix::new(&low_x, m, k), Matrix::new(&low_w, n, k).transposed());
        let y = Tensor::new(product(cpu, Precision::Bf16, a, b), &shape)?;
        tape.custom("mx_linear", &[x, weight], y, move |up, dy| {
            let dy = dy.as_slice::<f32>()?;
            let (x, w) = (xs.as_slice::<f32>()?, ws.as_slice::<f32>()?);
            let dx = up.wants(0, || {
                let dy = config.rows(up.cpu, dy, n);
                let w = config.columns(up.cpu, w, k);
                // (m, n) · (n, k)
                let (a, b) = (Matrix::new(&dy, m, n), Matrix::new(&w, k, n).transposed());
                Tensor::new(product(up.cpu, Precision::Bf16, a, b), xs.shape())
            })?;
            let dw = up.wants(1, || {
                if config.wgrad_with_hp {
                    let (a, b) = (Matrix::new(dy, m, n).transposed(), Matrix::new(x, m, k));
                    return Tensor::new(product(up.cpu, up.precision, a, b), &[n, k]);
                }
                let dy = config.columns(up.cpu, dy, n);
                let x = config.columns(up.cpu, x, k);
                // (n, m) · (m, k)
                let (a, b) = (Matrix::new(&dy, n, m), Matrix::new(&x, k, m).transposed());
                Tensor::new(product(up.cpu, Precision::Bf16, a, b), &[n, k])
            })?;
            Ok(vec![dx, dw])
        })
    }

    /// Every dimension that is summed is whole blocks.
    fn check(&self, [m, n, k]: [usize; 3]) -> Result<()> {
        let whole = |size: usize| size.is_multiple_of(MX_BLOCK);
        let tokens = self.wgrad_with_hp || whole(m);
        if whole(n) && whole(k) && tokens {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "mx: {m} tokens and a weight ({n}, {k}) are not whole blocks of {MX_BLOCK}; choose batch · sequence a \
             multiple of it, or keep the weight's gradient in high precision"
        )))
    }
}

fn product(cpu: &Cpu, precision: Precision, a: Matrix<'_, f32>, b: Matrix<'_, f32>) -> Vec<f32> {
    let mut c = vec![0.0; a.rows() * b.cols()];
    multiply(cpu, precision, a, b, &mut c);
    c
}

/// The columns of `x` (rows of `k`) as rows.
fn transposed(cpu: &Cpu, x: &[f32], k: usize) -> Vec<f32> {
    let m = x.len().checked_div(k).unwrap_or(0);
    let mut y = vec![0.0; x.len()];
    cpu.threads().chunks_mut(&mut y, MX_BLOCK * m.max(1), |part, y| {
        let first = part * MX_BLOCK;
        for (row, x) in x.chunks_exact(k).enumerate() {
            for (column, x) in x[first..].iter().take(y.len() / m).enumerate() {
                y[column * m + row] = *x;
            }
        }
    });
    y
}

impl fmt::Display for MXTrainingConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.element {
            MXElement::E4m3 => "mxfp8",
            MXElement::E2m1 => "mxfp4",
        })?;
        f.write_str(if self.wgrad_with_hp { " with wgrad in high precision" } else { "" })
    }
}

/// Linear layers whose matmuls are MX's; the output layer stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct MXRule {
    /// Elements and scales.
    pub config: MXTrainingConfig,
}

impl LinearRule for MXRule {
    fn name(&self) -> String {
        self.config.to_string()
    }

    fn token_multiple(&self) -> usize {
        MX_BLOCK
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, _own: &Vars) -> Result<Var> {
        if fqn == "lm_head" {
            return tape.linear(x, weight);
        }
        self.config.linear(tape, x, weight)
    }
}
