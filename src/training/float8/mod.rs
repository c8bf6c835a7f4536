//! float8 training (F01–F07, F12): the three matmuls of a linear layer with factors in float8, emulated.
//!
//! Each factor is scaled so that its largest number becomes float8's, rounded, and scaled back: the products that a GPU
//! computes from codes, in f32. As torchao's `emulate=True`.
//!
//! | recipe | y = x · Wᵀ | dx = dy · W | dW = dyᵀ · x |
//! |---|---|---|---|
//! | tensorwise | e4m3 | dy in e5m2 | dy in e5m2 |
//! | rowwise | e4m3, a power of two per row | a row of dy, a column of W | a column of each |
//! | rowwise with gw hp | as rowwise | a row of dy, all of W | not rounded |
//! | blockwise | 128 numbers of a row of x, squares of 128 × 128 of W | 128 of a row of dy, the same squares | 128 of a column of each |

mod all_gather;
mod cast;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use all_gather::{Gathered, Shard, float8_all_gather, precompute_float8_dynamic_scales};
pub use cast::{Axis, Cast, Format, cast_to_float8};

use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::matmul::{Matrix, Precision, multiply};
use crate::tensor::Tensor;
use crate::training::{LinearRule, Vars};

/// Which scales and formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Recipe {
    /// One scale a tensor; gradients in e5m2 (F01).
    #[default]
    Tensorwise,
    /// A scale along the dimension that is summed, a power of two (F02).
    Rowwise,
    /// As rowwise, with the weight's gradient in high precision (F03).
    RowwiseWithGwHp,
    /// A scale for 128 numbers along the dimension that is summed, of weights for 128 × 128 (F12).
    Blockwise,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Recipe::Tensorwise => "tensorwise",
            Recipe::Rowwise => "rowwise",
            Recipe::RowwiseWithGwHp => "rowwise_with_gw_hp",
            Recipe::Blockwise => "blockwise",
        })
    }
}

/// The casts of one recipe.
struct Casts {
    input: Cast,
    weight: Cast,
    grad_output: Cast,
    weight_for_grad_input: Cast,
    /// Of dy and x; `None` leaves both as they are.
    for_grad_weight: Option<[Cast; 2]>,
}

impl Recipe {
    fn casts(self) -> Casts {
        let cast = |format, axis, power_of_two| Cast { format, axis, power_of_two };
        let row = cast(Format::E4m3, Axis::Row, true);
        let column = cast(Format::E4m3, Axis::Column, true);
        let rowwise = Casts {
            input: row,
            weight: row,
            grad_output: row,
            weight_for_grad_input: column,
            for_grad_weight: Some([column, column]),
        };
        match self {
            Recipe::Tensorwise => {
                let (number, gradient) =
                    (cast(Format::E4m3, Axis::All, false), cast(Format::E5m2, Axis::All, false));
                Casts {
                    input: number,
                    weight: number,
                    grad_output: gradient,
                    weight_for_grad_input: number,
                    for_grad_weight: Some([gradient, number]),
                }
            }
            Recipe::Rowwise => rowwise,
            Recipe::RowwiseWithGwHp => Casts {
                weight_for_grad_input: cast(Format::E4m3, Axis::All, true),
                for_grad_weight: None,
                ..rowwise
            },
            Recipe::Blockwise => {
                let block = |axis| cast(Format::E4m3, axis, false);
                let (row, column) = (block(Axis::RowBlock), block(Axis::ColumnBlock));
                Casts {
                    input: row,
                    weight: block(Axis::Square),
                    grad_output: row,
                    weight_for_grad_input: block(Axis::Square),
                    for_grad_weight: Some([column, column]),
                }
            }
        }
    }
}

/// Whether torchao's filter would convert a layer `(N, K)` for speed (F07): on small ones casts cost more than they save.
///
/// `filter_fqns` are parts of names that are left alone.
pub fn auto_filter_for_recipe(
    recipe: Recipe,
    filter_fqns: &[String],
    fqn: &str,
    (n, k): (usize, usize),
) -> Result<bool> {
    if matches!(recipe, Recipe::RowwiseWithGwHp | Recipe::Blockwise) {
        return Err(Error::invalid(format!("torchao has no filter for {recipe}")));
    }
    let named = filter_fqns.iter().any(|part| fqn.contains(part.as_str()));
    if named || !k.is_multiple_of(16) || !n.is_multiple_of(16) {
        return Ok(false);
    }
    let small = match recipe {
        Recipe::Rowwise => n <= 2048 || k <= 1024 || (n <= 4096 && k <= 2048),
        _ => k <= 4096 && n <= 1024,
    };
    Ok(!small)
}

/// Linear layers whose matmuls are float8's. The output layer stays as it is, as torchao's users leave it.
#[derive(Clone, Copy, Debug)]
pub struct Float8Rule {
    /// Which scales and formats.
    pub recipe: Recipe,
    /// Whether `lm_head` is converted, too.
    pub output_layer: bool,
}

impl LinearRule for Float8Rule {
    fn name(&self) -> String {
        format!("float8 {}", self.recipe)
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, _own: &Vars) -> Result<Var> {
        if fqn == "lm_head" && !self.output_layer {
            return tape.linear(x, weight);
        }
        float8_linear(tape, self.recipe, x, weight)
    }
}

/// `y (…, N) = x (…, K) · Wᵀ` with the recipe's rounding, forward and backward.
pub fn float8_linear(tape: &Tape, recipe: Recipe, x: &Var, weight: &Var) -> Result<Var> {
    let (n, k) = weight.value().dims2()?;
    if x.shape().last() != Some(&k) || k == 0 {
        return Err(Error::invalid(format!("float8: x {:?} · W ({n}, {k})ᵀ", x.shape())));
    }
    let m = x.value().numel() / k;
    let casts = recipe.casts();
    let (xs, ws) = (x.value().clone(), weight.value().clone());
    let cpu = tape.cpu();
    let low_x = cast_to_float8(cpu, xs.as_slice()?, k, casts.input);
    let low_w = cast_to_float8(cpu, ws.as_slice()?, k, casts.weight);
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(n);
    // (m, k) · (k, n)
    let (a, b) = (Matrix::new(&low_x, m, k), Matrix::new(&low_w, n, k).transposed());
    let y = product(cpu, casts.input, a, b, &shape)?;
    tape.custom("float8_linear", &[x, weight], y, move |up, dy| {
        let dy = dy.as_slice::<f32>()?;
        let (x, w) = (xs.as_slice::<f32>()?, ws.as_slice::<f32>()?);
        let dx = up.wants(0, || {
            let dy = cast_to_float8(up.cpu, dy, n, casts.grad_output);
            let w = cast_to_float8(up.cpu, w, k, casts.weight_for_grad_input);
            // (m, n) · (n, k)
            let (a, b) = (Matrix::new(&dy, m, n), Matrix::new(&w, n, k));
            product(up.cpu, casts.grad_output, a, b, xs.shape())
        })?;
        let dw = up.wants(1, || {
            let Some([of_dy, of_x]) = casts.for_grad_weight else {
                let (a, b) = (Matrix::new(dy, m, n).transposed(), Matrix::new(x, m, k));
                let mut dw = vec![0.0; n * k];
                multiply(up.cpu, up.precision, a, b, &mut dw);
                return Tensor::new(dw, &[n, k]);
            };
            let dy = cast_to_float8(up.cpu, dy, n, of_dy);
            let x = cast_to_float8(up.cpu, x, k, of_x);
            // (n, m) · (m, k)
            let (a, b) = (Matrix::new(&dy, m, n).transposed(), Matrix::new(&x, m, k));
            product(up.cpu, of_dy, a, b, &[n, k])
        })?;
        Ok(vec![dx, dw])
    })
}

/// Float8 numbers times a power of two are bf16 numbers: their products are exact at twice the speed.
fn product(
    cpu: &Cpu,
    cast: Cast,
    a: Matrix<'_, f32>,
    b: Matrix<'_, f32>,
    shape: &[usize],
) -> Result<Tensor> {
    let precision = if cast.power_of_two { Precision::Bf16 } else { Precision::F32 };
    let mut c = vec![0.0; a.rows() * b.cols()];
    multiply(cpu, precision, a, b, &mut c);
    Tensor::new(c, shape)
}

/// The rule behind the pointer that training takes.
pub fn rule(recipe: Recipe) -> Arc<dyn LinearRule> {
    Arc::new(Float8Rule { recipe, output_layer: false })
}
