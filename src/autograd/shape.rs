//! Other shapes of the same numbers.

use super::float::Float;
use super::{Tape, Var};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

impl Tape {
    /// The same numbers under another shape.
    pub fn reshape(&self, x: &Var, shape: &[usize]) -> Result<Var> {
        let before = x.shape().to_vec();
        let y = x.value.reshape(shape)?;
        self.custom("reshape", &[x], y, move |_, dy| Ok(vec![Some(dy.reshape(&before)?)]))
    }

    /// Dimensions in another order: `order[i]` is the dimension of x that becomes dimension i.
    pub fn permute(&self, x: &Var, order: &[usize]) -> Result<Var> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if sorted != (0..x.shape().len()).collect::<Vec<usize>>() {
            return Err(Error::invalid(format!(
                "permute: {order:?} is no order of {:?}",
                x.shape()
            )));
        }
        let is_f64 = self.is_f64("permute", &[x])?;
        let permuted = if is_f64 { permuted::<f64> } else { permuted::<f32> };
        let mut inverse = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
        let y = permuted(&x.value, order)?;
        self.custom("permute", &[x], y, move |_, dy| Ok(vec![Some(permuted(&dy, &inverse)?)]))
    }

    /// A matrix with rows and columns exchanged.
    pub fn transpose(&self, x: &Var) -> Result<Var> {
        x.value.dims2()?;
        self.permute(x, &[1, 0])
    }
}

fn permuted<T: Float>(x: &Tensor, order: &[usize]) -> Result<Tensor> {
    let from = x.shape();
    let shape: Vec<usize> = order.iter().map(|dim| from[*dim]).collect();
    let stride = |dim: usize| from[dim + 1..].iter().product::<usize>();
    let strides: Vec<usize> = order.iter().map(|dim| stride(*dim)).collect();
    let values = x.as_slice::<T>()?;
    let mut at = vec![0; shape.len()];
    let mut place = 0;
    let mut turned = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        turned.push(values[place]);
        for dim in (0..shape.len()).rev() {
            at[dim] += 1;
            place += strides[dim];
            if at[dim] < shape[dim] {
                break;
            }
            place -= strides[dim] * shape[dim];
            at[dim] = 0;
        }
    }
    Tensor::new(turned, &shape)
}
