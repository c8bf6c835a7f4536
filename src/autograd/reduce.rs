//! Sums and means.

use super::float::Float;
use super::{Tape, Var, rows_of};
use crate::error::Result;
use crate::tensor::Tensor;

impl Tape {
    /// The sum of all numbers, `[1]`.
    pub fn sum(&self, x: &Var) -> Result<Var> {
        self.reduce("sum", x, 1.0, x.value.numel())
    }

    /// The mean of all numbers, `[1]`.
    #[expect(clippy::cast_precision_loss, reason = "element counts are far below 2⁵³")]
    pub fn mean(&self, x: &Var) -> Result<Var> {
        self.reduce("mean", x, 1.0 / x.value.numel().max(1) as f64, x.value.numel())
    }

    /// The sum over the last dimension, which is dropped.
    pub fn sum_last(&self, x: &Var) -> Result<Var> {
        let (_, n) = rows_of("sum_last", x.shape())?;
        let sums = self.reduce("sum_last", x, 1.0, n)?;
        let shape = &x.shape()[..x.shape().len() - 1];
        if shape.is_empty() { Ok(sums) } else { self.reshape(&sums, shape) }
    }

    /// `factor · Σ` over runs of `n` numbers.
    fn reduce(&self, name: &'static str, x: &Var, factor: f64, n: usize) -> Result<Var> {
        let is_f64 = self.is_f64(name, &[x])?;
        let (forward, backward) = if is_f64 {
            (sums::<f64> as Sums, spread::<f64> as Spread)
        } else {
            (sums::<f32> as Sums, spread::<f32> as Spread)
        };
        let shape = x.shape().to_vec();
        let y = forward(&x.value, factor, n)?;
        self.custom(name, &[x], y, move |_, dy| Ok(vec![Some(backward(&dy, factor, n, &shape)?)]))
    }
}

type Sums = fn(&Tensor, f64, usize) -> Result<Tensor>;
type Spread = fn(&Tensor, f64, usize, &[usize]) -> Result<Tensor>;

/// Sums run in f64, in order.
fn sums<T: Float>(x: &Tensor, factor: f64, n: usize) -> Result<Tensor> {
    let x = x.as_slice::<T>()?;
    let sum = |run: &[T]| T::of(run.iter().map(|x| x.wide()).sum::<f64>() * factor);
    let sums: Vec<T> =
        if x.is_empty() { vec![T::default()] } else { x.chunks(n).map(sum).collect() };
    let len = sums.len();
    Tensor::new(sums, &[len])
}

fn spread<T: Float>(dy: &Tensor, factor: f64, n: usize, shape: &[usize]) -> Result<Tensor> {
    let dy = dy.as_slice::<T>()?;
    let len = shape.iter().product::<usize>();
    let at = |i: usize| T::of(dy[i / n.max(1)].wide() * factor);
    Tensor::new((0..len).map(at).collect(), shape)
}
