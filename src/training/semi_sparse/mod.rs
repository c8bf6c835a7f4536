//! 2:4 sparse training (X07): weights, or the inputs of layers, made 2:4 anew at every call.
//!
//! Of each 4 × 4 tile the numbers are taken in the order of their size as long as their row and their column have fewer than two, so that the
//! mask is 2:4 along both: what the forward pass multiplies with W and the backward pass with Wᵀ is sparse alike. torch's default does the same.
//! Gradients pass as if nothing had been pruned (STE), or only where something was kept. Here nothing runs faster for it: the CPU multiplies zeros
//! too; what is trained is a weight that can be made 2:4 afterwards at no loss.

use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::training::{LinearRule, Vars};

/// What is made sparse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `SemiSparseLinear`: the weight.
    Weight,
    /// `SemiSparseActivationLinear`: the input.
    Input,
}

/// What a pruned number's gradient is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// As if it had not been pruned.
    Ste,
    /// Zero.
    Sparse,
}

/// Linear layers whose weights or inputs are 2:4; the output layer stays as it is.
#[derive(Clone, Copy, Debug)]
pub struct SemiSparseRule {
    /// What is made sparse.
    pub side: Side,
    /// What a pruned number's gradient is.
    pub gradient: Gradient,
}

/// Which numbers of `values (rows, columns)` stay: 2:4 along rows and columns.
pub fn tile_mask(values: &[f32], (rows, columns): (usize, usize)) -> Result<Vec<bool>> {
    if !rows.is_multiple_of(4) || !columns.is_multiple_of(4) || values.len() != rows * columns {
        return Err(Error::invalid(format!(
            "{rows} × {columns} has no whole tiles of 4 × 4; semi-sparse training wants multiples of 4"
        )));
    }
    let mut keep = vec![false; values.len()];
    for top in (0..rows).step_by(4) {
        for left in (0..columns).step_by(4) {
            let at = |i: usize| (top + i / 4) * columns + left + i % 4;
            let mut order: [usize; 16] = std::array::from_fn(|i| i);
            order.sort_by(|a, b| values[at(*b)].abs().total_cmp(&values[at(*a)].abs()));
            let (mut in_row, mut in_column) = ([0; 4], [0; 4]);
            for i in order {
                if in_row[i / 4] < 2 && in_column[i % 4] < 2 {
                    keep[at(i)] = true;
                    in_row[i / 4] += 1;
                    in_column[i % 4] += 1;
                }
            }
        }
    }
    Ok(keep)
}

/// `x` with a fresh mask.
pub fn semi_sparse(tape: &Tape, x: &Var, gradient: Gradient) -> Result<Var> {
    let shape = x.shape().to_vec();
    let columns = shape.last().copied().unwrap_or(0);
    let values = x.value().as_slice::<f32>()?;
    let keep = tile_mask(values, (values.len() / columns.max(1), columns))?;
    let masked = |values: &[f32], keep: &[bool]| -> Vec<f32> {
        values.iter().zip(keep).map(|(v, keep)| if *keep { *v } else { 0.0 }).collect()
    };
    let sparse = Tensor::new(masked(values, &keep), &shape)?;
    tape.custom("semi_sparse", &[x], sparse, move |_, dy| match gradient {
        Gradient::Ste => Ok(vec![Some(dy)]),
        Gradient::Sparse => {
            let dx = masked(dy.as_slice::<f32>()?, &keep);
            Ok(vec![Some(Tensor::new(dx, dy.shape())?)])
        }
    })
}

impl LinearRule for SemiSparseRule {
    fn name(&self) -> String {
        let side = if self.side == Side::Weight { "weights" } else { "inputs" };
        format!("2:4 {side}")
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, _own: &Vars) -> Result<Var> {
        if fqn == "lm_head" {
            return tape.linear(x, weight);
        }
        match self.side {
            Side::Weight => tape.linear(x, &semi_sparse(tape, weight, self.gradient)?),
            Side::Input => tape.linear(&semi_sparse(tape, x, self.gradient)?, weight),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Cpu;
    use crate::rng::Rng;

    #[test]
    fn masks_are_two_of_four_along_both_and_take_the_largest() {
        let mut rng = Rng::new(1);
        let values: Vec<f32> = (0..16 * 24).map(|_| rng.normal()).collect();
        let keep = tile_mask(&values, (16, 24)).expect("multiples of 4");
        for (i, keep) in keep.as_chunks::<4>().0.iter().enumerate() {
            assert!(keep.iter().filter(|keep| **keep).count() <= 2, "four {i}");
        }
        for column in 0..24 {
            for top in (0..16).step_by(4) {
                let kept = (top..top + 4).filter(|row| keep[row * 24 + column]).count();
                assert!(kept <= 2, "column {column} from {top}");
            }
        }
        // What is left out had no room: its row or its column has two that are larger.
        for (at, keeps) in keep.iter().enumerate() {
            let (row, column) = (at / 24, at % 24);
            let (top, left) = (row / 4 * 4, column / 4 * 4);
            let larger = |other: usize| keep[other] && values[other].abs() >= values[at].abs();
            let in_row = (left..left + 4).filter(|c| larger(row * 24 + c)).count();
            let in_column = (top..top + 4).filter(|r| larger(r * 24 + column)).count();
            assert!(*keeps || in_row == 2 || in_column == 2, "({row}, {column})");
        }
        assert!(tile_mask(&values[..18], (3, 6)).is_err());
    }

    #[test]
    fn gradients_pass_or_stop_at_what_was_pruned() {
        let cpu = Cpu::new(Some(1));
        let values: Vec<f32> = (1..17_u8).map(f32::from).collect();
        for (gradient, wanted) in [(Gradient::Ste, 16), (Gradient::Sparse, 8)] {
            let tape = Tape::new(&cpu);
            let x = tape.leaf(Tensor::new(values.clone(), &[4, 4]).expect("its shape"));
            let y = semi_sparse(&tape, &x, gradient).expect("a tile");
            let kept = y.value().to_f32_vec().iter().filter(|v| **v != 0.0).count();
            assert_eq!(kept, 8);
            let loss = tape.sum(&y).expect("a sum");
            let mut found = tape.backward(&loss).expect("gradients");
            let dx = found.take(&x).expect("a gradient").to_f32_vec();
            assert_eq!(dx.iter().filter(|v| (**v - 1.0).abs() < 1e-6).count(), wanted);
        }
    }
}
