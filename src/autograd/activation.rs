//! SiLU, GELU, ReLU and relu², alone and gated, and softmax.

use super::float::Float;
use super::{Tape, Upstream, Var, check_shape, rows_of};
use crate::error::Result;
use crate::kernels::activation::Activation;
use crate::kernels::real::Real;
use crate::kernels::{Cpu, activation_backward};
use crate::tensor::Tensor;

impl Tape {
    /// `f(x)`.
    pub fn activate(&self, function: Activation, x: &Var) -> Result<Var> {
        let is_f64 = self.is_f64("activate", &[x])?;
        let (forward, backward) = if is_f64 {
            (forward::<f64> as Ahead, backward::<f64> as Back)
        } else {
            (forward::<f32> as Ahead, backward::<f32> as Back)
        };
        let kept = x.value.clone();
        let y = forward(&self.cpu, function, &kept)?;
        self.custom("activate", &[x], y, move |up, dy| {
            Ok(vec![Some(backward(up.cpu, function, &kept, &dy)?)])
        })
    }

    /// `f(gate) · up`: the middle of a gated feed-forward.
    pub fn activate_mul(&self, function: Activation, gate: &Var, up: &Var) -> Result<Var> {
        check_shape("activate_mul", &gate.value, &up.value)?;
        let is_f64 = self.is_f64("activate_mul", &[gate, up])?;
        let (forward, backward) = if is_f64 {
            (forward_mul::<f64> as AheadMul, backward_mul::<f64> as BackMul)
        } else {
            (forward_mul::<f32> as AheadMul, backward_mul::<f32> as BackMul)
        };
        let kept = [gate.value.clone(), up.value.clone()];
        let y = forward(&self.cpu, function, &kept)?;
        self.custom("activate_mul", &[gate, up], y, move |upstream, dy| {
            backward(upstream, function, &kept, &dy)
        })
    }

    /// The softmax over the last dimension.
    pub fn softmax(&self, x: &Var) -> Result<Var> {
        let (_, n) = rows_of("softmax", x.shape())?;
        let is_f64 = self.is_f64("softmax", &[x])?;
        let (forward, backward) = if is_f64 {
            (
                softmax::<f64> as fn(&Tensor, usize) -> Result<Tensor>,
                softmax_back::<f64> as SoftmaxBack,
            )
        } else {
            (
                softmax::<f32> as fn(&Tensor, usize) -> Result<Tensor>,
                softmax_back::<f32> as SoftmaxBack,
            )
        };
        let y = forward(&x.value, n)?;
        let kept = y.clone();
        self.custom("softmax", &[x], y, move |_, dy| Ok(vec![Some(backward(&kept, &dy, n)?)]))
    }
}

type Ahead = fn(&Cpu, Activation, &Tensor) -> Result<Tensor>;
type Back = fn(&Cpu, Activation, &Tensor, &Tensor) -> Result<Tensor>;
type AheadMul = fn(&Cpu, Activation, &[Tensor; 2]) -> Result<Tensor>;
type BackMul = fn(&Upstream<'_>, Activation, &[Tensor; 2], &Tensor) -> Result<Vec<Option<Tensor>>>;
type SoftmaxBack = fn(&Tensor, &Tensor, usize) -> Result<Tensor>;

fn forward<T: Float>(cpu: &Cpu, function: Activation, x: &Tensor) -> Result<Tensor> {
    let mut y = T::room(cpu, x.numel());
    T::activate(cpu, function, x.as_slice()?, &mut y);
    T::tensor(y, x.shape())
}

fn backward<T: Float>(cpu: &Cpu, function: Activation, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let mut dx = T::room(cpu, x.numel());
    activation_backward::backward(cpu, function, x.as_slice::<T>()?, dy.as_slice()?, &mut dx);
    T::tensor(dx, x.shape())
}

fn forward_mul<T: Float>(
    cpu: &Cpu,
    function: Activation,
    [gate, up]: &[Tensor; 2],
) -> Result<Tensor> {
    let mut y = T::room(cpu, gate.numel());
    T::activate_mul(cpu, function, [gate.as_slice()?, up.as_slice()?], &mut y);
    T::tensor(y, gate.shape())
}

fn backward_mul<T: Float>(
    upstream: &Upstream<'_>,
    function: Activation,
    [gate, up]: &[Tensor; 2],
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let [mut dgate, mut dup] = [(); 2].map(|()| T::room(upstream.cpu, dy.numel()));
    let inputs = (gate.as_slice::<T>()?, up.as_slice::<T>()?);
    let to = (&mut dgate[..], &mut dup[..]);
    activation_backward::backward_mul(upstream.cpu, function, inputs, dy.as_slice()?, to);
    Ok(vec![Some(T::tensor(dgate, gate.shape())?), Some(T::tensor(dup, up.shape())?)])
}

fn softmax<T: Float>(x: &Tensor, n: usize) -> Result<Tensor> {
    let mut y = x.as_slice::<T>()?.to_vec();
    for row in y.chunks_exact_mut(n) {
        let max = row.iter().fold(row[0], |max, x| max.larger(*x));
        row.iter_mut().for_each(|x| *x = Real::exp(*x - max));
        let sum = row.iter().fold(T::default(), |sum, x| sum + *x);
        row.iter_mut().for_each(|x| *x = *x / sum);
    }
    Tensor::new(y, x.shape())
}

/// `dx = y · (dy − Σ y · dy)`
fn softmax_back<T: Float>(y: &Tensor, dy: &Tensor, n: usize) -> Result<Tensor> {
    let mut dx = dy.as_slice::<T>()?.to_vec();
    for (y, dx) in y.as_slice::<T>()?.chunks_exact(n).zip(dx.chunks_exact_mut(n)) {
        let along = y.iter().zip(dx.iter()).fold(T::default(), |sum, (y, dy)| sum + *y * *dy);
        dx.iter_mut().zip(y).for_each(|(dx, y)| *dx = *y * (*dx - along));
    }
    Tensor::new(dx, y.shape())
}
