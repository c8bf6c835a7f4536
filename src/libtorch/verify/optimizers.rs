//! Optimizers: ten steps of each with the same gradients, against torch::optim.

use tch::nn::{self, OptimizerConfig as _};
use tch::{Device, Tensor as Torch};

use super::super::network::int;
use super::super::{from_torch, wrong};
use super::{Check, SUMS, numbers};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::rng::Rng;
use crate::tensor::Tensor;
use crate::training::optim::{AdamConfig, Optimizer, OptimizerConfig, Update};

const STEPS: usize = 10;
const LR: f64 = 1e-2;

pub(super) fn verify(cpu: &Cpu, rng: &mut Rng) -> Result<Vec<Check>> {
    let adam = |decoupled| {
        let config = AdamConfig { decoupled, weight_decay: 0.05, ..AdamConfig::default() };
        OptimizerConfig::Adam(config)
    };
    let sgd = OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.05 };
    let torch_adam = nn::Adam { wd: 0.05, ..nn::Adam::default() };
    let torch_adamw = nn::AdamW { wd: 0.05, ..nn::AdamW::default() };
    let torch_sgd = nn::Sgd { momentum: 0.9, wd: 0.05, ..nn::Sgd::default() };
    Ok(vec![
        steps(cpu, rng, "AdamW", &adam(true), |vs| torch_adamw.build(vs, LR))?,
        steps(cpu, rng, "Adam", &adam(false), |vs| torch_adam.build(vs, LR))?,
        steps(cpu, rng, "SGD", &sgd, |vs| torch_sgd.build(vs, LR))?,
    ])
}

fn steps(
    cpu: &Cpu,
    rng: &mut Rng,
    name: &'static str,
    config: &OptimizerConfig,
    build: impl Fn(&nn::VarStore) -> Result<nn::Optimizer, tch::TchError>,
) -> Result<Check> {
    let mut check = Check::new(name, "torch::optim", SUMS);
    for kind in ["normal", "zeros", "tiny", "mixed"] {
        let shape = [7, 37];
        let first = numbers(rng, "normal", 7 * 37);
        let mut ours = Tensor::new(first.clone(), &shape)?;
        let mut optimizer = Optimizer::new(config.clone(), 0)?;
        let vs = nn::VarStore::new(Device::Cpu);
        let mut theirs = vs.root().zeros("p", &shape.map(int));
        let start = Torch::from_slice(&first).view(shape.map(int));
        tch::no_grad(|| theirs.f_copy_(&start).map(|_| ())).map_err(wrong)?;
        let mut torch = build(&vs).map_err(wrong)?;
        for _ in 0..STEPS {
            let gradient = numbers(rng, kind, 7 * 37);
            let slopes = Torch::from_slice(&gradient).view(shape.map(int));
            let gradient = Tensor::new(gradient, &shape)?;
            #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as it is used")]
            let update = Update { name: "p", gradient: &gradient, lr: LR as f32, decays: true };
            ours = optimizer.step(cpu, ours, &update)?;
            // The gradient of Σ p · g is g.
            let loss = theirs.f_mul(&slopes).map_err(wrong)?.sum(tch::Kind::Float);
            torch.zero_grad();
            loss.f_backward().map_err(wrong)?;
            torch.step();
        }
        let found = from_torch(theirs.detach().copy())?;
        check.compare(&format!("{STEPS} steps, {kind}"), ours.as_slice()?, found.as_slice()?);
    }
    Ok(check)
}
