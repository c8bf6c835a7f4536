//! One linear layer on libtorch, timed beside ours: what `bench linear --vs torch` prints as the ratio.

use tch::{Kind, Tensor};

use super::network::int;
use super::{prepare, wrong};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::rng::Rng;

/// A dense layer of libtorch: the weight in bf16 or f32, the activation in the same type, as PyTorch's users run it.
#[derive(Debug)]
pub struct TorchLinear {
    weight: Tensor,
    x: Tensor,
}

impl TorchLinear {
    /// A random layer `(n, k)` with `m` rows of activations.
    pub fn new(cpu: &Cpu, (m, n, k): (usize, usize, usize), bf16: bool) -> Result<TorchLinear> {
        prepare(cpu)?;
        let mut rng = Rng::new(4);
        let mut random = |rows: usize, scale: f32| -> Tensor {
            let values: Vec<f32> = (0..rows * k).map(|_| scale * rng.normal()).collect();
            let kind = if bf16 { Kind::BFloat16 } else { Kind::Float };
            Tensor::from_slice(&values).view([int(rows), int(k)]).to_kind(kind)
        };
        Ok(TorchLinear { weight: random(n, 0.02), x: random(m, 1.0) })
    }

    /// Multiplies once; `at::linear`, which calls MKL or oneDNN.
    pub fn run(&self) -> Result<()> {
        let y = tch::no_grad(|| self.x.f_linear::<&Tensor>(&self.weight, None));
        std::hint::black_box(y.map_err(wrong)?);
        Ok(())
    }
}
