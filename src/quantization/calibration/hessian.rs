//! The second moments of a layer's inputs.

use crate::error::{Error, Result};
use crate::kernels::{Cpu, Shape, dense_linear};

/// `H = (2 / n) · Σ xᵀ · x` over the sequences seen so far, kept as a running mean as torchao's observer does: what
/// was gathered shrinks by n / (n + 1), and the new inputs come in scaled by √(2 / (n + 1)).
#[derive(Clone, Debug)]
pub struct Hessian {
    values: Vec<f32>,
    inputs: usize,
    sequences: usize,
}

impl Hessian {
    /// Of a layer with so many inputs, none seen.
    pub fn new(inputs: usize) -> Hessian {
        Hessian { values: vec![0.0; inputs * inputs], inputs, sequences: 0 }
    }

    /// `(K, K)`, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// How many inputs the layer has.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many sequences were seen.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Adds the inputs `(M, K)` of one sequence.
    #[expect(clippy::cast_precision_loss, reason = "counts of sequences are small")]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "factors are rounded to f32 as torch rounds them"
    )]
    pub fn update(&mut self, cpu: &Cpu, x: &[f32]) -> Result<()> {
        let k = self.inputs;
        if k == 0 || !x.len().is_multiple_of(k) {
            let got = x.len();
            return Err(Error::invalid(format!("inputs of {k} features each; got {got} values")));
        }
        let (m, n) = (x.len() / k, self.sequences as f64);
        let (keep, weight) = ((n / (n + 1.0)) as f32, (2.0 / (n + 1.0)).sqrt() as f32);
        let mut columns = vec![0.0; x.len()];
        for (i, row) in x.chunks_exact(k).enumerate() {
            row.iter().enumerate().for_each(|(j, value)| columns[j * m + i] = weight * value);
        }
        let mut moments = vec![0.0; k * k];
        dense_linear::f32(cpu, &columns, &columns, &mut moments, Shape { m: k, n: k, k: m });
        for (value, new) in self.values.iter_mut().zip(moments) {
            *value = *value * keep + new;
        }
        self.sequences += 1;
        Ok(())
    }
}
