//! What operations need of f32, which has kernels, and of f64, which has loops.

use crate::error::Result;
use crate::kernels::activation::{self, Activation};
use crate::kernels::buffers::Buffer;
use crate::kernels::matmul::Multiply;
use crate::kernels::norm_backward::{self, Call, Norm};
use crate::kernels::rope::{self, Order, RopeShape};
use crate::kernels::{Cpu, activation_backward, norm};
use crate::tensor::{Element, Tensor};

/// f32 or f64.
pub(super) trait Float: Element + Multiply {
    /// The numbers in `room` as a tensor.
    fn tensor(room: Self::Room, shape: &[usize]) -> Result<Tensor>;
    fn norm(cpu: &Cpu, call: &Call<'_, Self>, bias: Option<&[Self]>, y: &mut [Self]);
    fn activate(cpu: &Cpu, function: Activation, x: &[Self], y: &mut [Self]);
    /// `y = f(gate) · up`
    fn activate_mul(cpu: &Cpu, function: Activation, gated: [&[Self]; 2], y: &mut [Self]);
    /// Turns pairs (i, i + d / 2) by the angles of the tables; row m of a table belongs to token m.
    fn rotate(cpu: &Cpu, x: &mut [Self], shape: RopeShape, tables: [&[f32]; 2]);
}

impl Float for f32 {
    fn tensor(room: Buffer, shape: &[usize]) -> Result<Tensor> {
        Tensor::recycled(room, shape)
    }

    fn norm(cpu: &Cpu, call: &Call<'_, f32>, bias: Option<&[f32]>, y: &mut [f32]) {
        match call.norm {
            Norm::Rms => norm::rms_norm(cpu, call.x, call.weight, call.eps, y),
            Norm::Layer => norm::layer_norm(cpu, call.x, call.weight, bias, call.eps, y),
        }
    }

    fn activate(cpu: &Cpu, function: Activation, x: &[f32], y: &mut [f32]) {
        activation::activate(cpu, function, x, y);
    }

    fn activate_mul(cpu: &Cpu, function: Activation, [gate, up]: [&[f32]; 2], y: &mut [f32]) {
        activation::activate_mul(cpu, function, gate, up, y);
    }

    fn rotate(cpu: &Cpu, x: &mut [f32], shape: RopeShape, [cos, sin]: [&[f32]; 2]) {
        rope::apply(cpu, x, shape, cos, sin, Order::Half);
    }
}

impl Float for f64 {
    fn tensor(room: Vec<f64>, shape: &[usize]) -> Result<Tensor> {
        Tensor::new(room, shape)
    }

    fn norm(_cpu: &Cpu, call: &Call<'_, f64>, bias: Option<&[f64]>, y: &mut [f64]) {
        norm_backward::forward(call, bias, y);
    }

    fn activate(_cpu: &Cpu, function: Activation, x: &[f64], y: &mut [f64]) {
        activation_backward::forward(function, x, y);
    }

    fn activate_mul(_cpu: &Cpu, function: Activation, [gate, up]: [&[f64]; 2], y: &mut [f64]) {
        activation_backward::forward(function, gate, y);
        y.iter_mut().zip(up).for_each(|(y, up)| *y *= up);
    }

    fn rotate(_cpu: &Cpu, x: &mut [f64], shape: RopeShape, [cos, sin]: [&[f32]; 2]) {
        let pairs = cos.len() / shape.m.max(1);
        let tokens = x.chunks_exact_mut(shape.heads * shape.head_dim);
        for ((x, cos), sin) in tokens.zip(cos.chunks_exact(pairs)).zip(sin.chunks_exact(pairs)) {
            for head in x.chunks_exact_mut(shape.head_dim) {
                for i in 0..pairs {
                    let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
                    let (a, b) = (head[i], head[i + pairs]);
                    (head[i], head[i + pairs]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
    }
}
