//! CPU offload (O15): moments and a copy of the parameters lie in host memory, and the processor steps them while something else
//! (a GPU's backward pass) still makes gradients: torchao's `CPUOffloadOptimizer`.
//!
//! Gradients are queued one by one as they become known; a thread of its own takes them in that order, so that numbers are those of
//! the base optimizer. Parameters below `minimal_size` numbers are not worth a transfer: they are stepped where they are, once
//! the work is done. On a machine without a GPU host memory is all there is: then nothing is copied, and what remains is the overlap.

use std::sync::mpsc;

use indexmap::IndexMap;

use super::{Optimizer, OptimizerConfig, Update};
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::tensor::Tensor;

/// How much is offloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadOptions {
    /// Parameters of fewer numbers stay where they are.
    pub minimal_size: usize,
    /// Gradients are gone once they are queued, so that they cannot be accumulated; else they are handed back.
    pub offload_gradients: bool,
}

impl Default for OffloadOptions {
    fn default() -> OffloadOptions {
        OffloadOptions { minimal_size: 4096, offload_gradients: false }
    }
}

/// An optimizer whose memory is the host's.
#[derive(Debug)]
pub struct CpuOffloadOptimizer {
    base: Optimizer,
    options: OffloadOptions,
    /// The host's copies of offloaded parameters.
    masters: IndexMap<String, Tensor>,
}

/// A gradient on its way.
#[derive(Debug)]
struct Ready {
    name: String,
    gradient: Tensor,
    decays: bool,
}

/// Where gradients go as soon as they are known.
#[derive(Debug)]
pub struct Gradients {
    queue: mpsc::Sender<Ready>,
}

impl Gradients {
    /// The whole gradient of the parameter `name`; `decays` as in [`Update`].
    pub fn push(&self, name: &str, gradient: Tensor, decays: bool) -> Result<()> {
        let ready = Ready { name: name.to_owned(), gradient, decays };
        // The worker ends early only with an error, which `step_while` gives.
        self.queue.send(ready).map_err(|_| Error::invalid("the optimizer stopped"))
    }
}

/// What a step gave.
#[derive(Debug)]
pub struct Stepped {
    /// Parameters as they are now, in the order of their gradients.
    pub parameters: Vec<(String, Tensor)>,
    /// The gradients, unless they were offloaded.
    pub gradients: Vec<(String, Tensor)>,
}

impl CpuOffloadOptimizer {
    /// Takes its copies of `parameters`.
    pub fn new<'a>(
        parameters: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
        config: OptimizerConfig,
        options: OffloadOptions,
        seed: u64,
    ) -> Result<CpuOffloadOptimizer> {
        let masters =
            parameters.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.clone()));
        let base = Optimizer::new(config, seed)?;
        Ok(CpuOffloadOptimizer { base, options, masters: masters.collect() })
    }

    /// Runs `work`, which pushes gradients, and steps along them meanwhile with the learning rate `lr`.
    pub fn step_while<R>(
        &mut self,
        cpu: &Cpu,
        lr: f32,
        work: impl FnOnce(&Gradients) -> Result<R>,
    ) -> Result<(R, Stepped)> {
        let (queue, ready) = mpsc::channel();
        let (result, stepped) = std::thread::scope(|scope| {
            let worker = scope.spawn(|| self.take(cpu, lr, ready));
            let gradients = Gradients { queue };
            let result = work(&gradients);
            drop(gradients);
            let stepped = worker.join();
            (result, stepped.map_err(|_| Error::invalid("the optimizer's thread broke")))
        });
        let stepped = stepped??;
        Ok((result?, stepped))
    }

    fn take(&mut self, cpu: &Cpu, lr: f32, ready: mpsc::Receiver<Ready>) -> Result<Stepped> {
        let mut stepped = Stepped { parameters: Vec::new(), gradients: Vec::new() };
        let mut small = Vec::new();
        for one in ready {
            if one.gradient.numel() < self.options.minimal_size {
                small.push(one);
            } else {
                self.step(cpu, lr, one, &mut stepped)?;
            }
        }
        for one in small {
            self.step(cpu, lr, one, &mut stepped)?;
        }
        Ok(stepped)
    }

    fn step(&mut self, cpu: &Cpu, lr: f32, ready: Ready, stepped: &mut Stepped) -> Result<()> {
        let Ready { name, gradient, decays } = ready;
        let master = self.masters.get_mut(&name);
        let master = master.ok_or_else(|| Error::invalid(format!("no parameter {name}")))?;
        let update = Update { name: &name, gradient: &gradient, lr, decays };
        let moved = self.base.step(cpu, master.clone(), &update).within(&*name)?;
        *master = moved.clone();
        stepped.parameters.push((name.clone(), moved));
        if !self.options.offload_gradients {
            stepped.gradients.push((name, gradient));
        }
        Ok(())
    }

    /// The bytes in host memory: copies of parameters and moments.
    pub fn nbytes(&self) -> usize {
        self.base.nbytes() + self.masters.values().map(Tensor::nbytes).sum::<usize>()
    }

    /// The optimizer itself, for checkpoints.
    pub fn base(&self) -> &Optimizer {
        &self.base
    }
}
