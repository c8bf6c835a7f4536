//! A [`Trainer`] whose steps are done on a GPU: everything else of it stays where it is.

use aolab_kernels::adam::Hyper;
use aolab_kernels::cuda::Device;
use indexmap::IndexMap;

use super::{Engine, MatmulKind, NetworkShape};
use crate::error::{Context as _, Error, Result};
use crate::tensor::{DType, Tensor};
use crate::training::optim::{AdamConfig, OptimizerConfig, StateBits};
use crate::training::{Batch, Curve, Ended, MatmulPrecision, Point, RunOptions, Trainer};

impl Trainer {
    /// Does the steps that are left on `device`; what it cannot do yet is an error. Parameters and the optimizer's state are back in the trainer
    /// whenever a checkpoint is written, and at the end.
    pub fn run_on_gpu(
        &mut self,
        device: &Device,
        options: &RunOptions,
        progress: &mut dyn FnMut(&Curve, usize) -> bool,
    ) -> Result<Ended> {
        let adam = self.possible()?;
        let mut engine = self.engine(device)?;
        let every = |count: usize, step: usize| count > 0 && step.is_multiple_of(count);
        if self.step == 0 && options.eval_every > 0 {
            self.curve.start = self.evaluate_on(&mut engine)?;
        }
        let mut ended = Ended::Done;
        while self.step < self.config.steps {
            let stepped = self.step_on(&mut engine, &adam);
            if stepped.is_err() {
                // What a step that failed left is that of the step before.
                self.take_back(&engine)?;
            }
            let mut point = stepped?;
            let last = self.step == self.config.steps;
            if options.eval_every > 0 && (last || every(options.eval_every, self.step)) {
                point.held_out = self.evaluate_on(&mut engine)?;
            }
            self.curve.points.push(point);
            let go_on = progress(&self.curve, self.config.steps);
            if let Some(folder) = &options.checkpoints
                && (last || !go_on || every(options.checkpoint_every, self.step))
            {
                self.take_back(&engine)?;
                self.save(folder)?;
            }
            if !go_on && !last {
                ended = Ended::Stopped;
                break;
            }
        }
        self.take_back(&engine)?;
        Ok(ended)
    }

    /// The options of Adam, or what to do instead.
    fn possible(&self) -> Result<AdamConfig> {
        let config = &self.config;
        let adam = match &config.optimizer {
            OptimizerConfig::Adam(adam)
                if adam.state == StateBits::F32 && !adam.amsgrad && adam.galore.is_none() =>
            {
                adam
            }
            _ => {
                return Err(Error::invalid(format!(
                    "{} does not run on a GPU; use adamw with 32-bit states, or --device cpu",
                    config.optimizer
                )));
            }
        };
        let missing = [
            (config.precision != MatmulPrecision::Bf16, "matmuls in f32", "add --precision bf16"),
            (config.dropout > 0.0, "dropout", "leave --dropout out"),
            (config.distill > 0.0, "distillation", "leave --distill out"),
            (config.parameters != DType::F32, "parameters in bf16", "keep them in f32"),
            (config.checkpoint_blocks, "computing blocks again", "leave --checkpoint-blocks out"),
            (self.group.is_some(), "several ranks", "train on one"),
            (!self.zeros.is_empty(), "weights that stay sparse", "quantize after training"),
        ];
        match missing.into_iter().find(|(has, ..)| *has) {
            None => Ok(adam.clone()),
            Some((_, what, next)) => Err(Error::invalid(format!(
                "training on a GPU has no {what} yet; {next}, or use --device cpu"
            ))),
        }
    }

    fn engine(&self, device: &Device) -> Result<Engine> {
        let rule = self.rule.name();
        let kind = MatmulKind::ALL.into_iter().find(|kind| kind.name() == rule);
        let kind = kind.ok_or_else(|| {
            Error::invalid(format!(
                "{rule} does not run on a GPU yet; --linear plain, float8-tensorwise, float8-rowwise, \
                 float8-rowwise-with-gw-hp and int8-mixed-precision do; else use --device cpu"
            ))
        })?;
        let shape = NetworkShape::of(&self.model.config, self.config.sequence)?;
        let rows = self.config.batch * self.config.sequence;
        if kind != MatmulKind::Bf16 && !rows.is_multiple_of(16) {
            return Err(Error::invalid(format!(
                "{rows} tokens a pass; in 8 bits a GPU wants a multiple of 16"
            )));
        }
        if !device.has_wgmma() && !matches!(kind, MatmulKind::Bf16 | MatmulKind::Float8Tensorwise) {
            return Err(Error::invalid(format!(
                "{rule} wants a Hopper GPU; {} is none: use --linear plain",
                device.name()
            )));
        }
        let find = |name: &str, len: usize| -> Result<Vec<f32>> {
            let values = self.parameters.get(name)?.as_slice::<f32>()?.to_vec();
            match values.len() == len {
                true => Ok(values),
                false => Err(Error::invalid(format!("{name} has {} numbers", values.len()))),
            }
        };
        let mut engine = Engine::new(device, shape, kind, &find)?;
        if self.step > 0 {
            let mut moments: IndexMap<String, Vec<f32>> = IndexMap::new();
            for (name, tensor) in self.optimizer.tensors()? {
                if name.ends_with(".exp_avg") || name.ends_with(".exp_avg_sq") {
                    moments.insert(name, tensor.into_vec()?);
                }
            }
            engine.set_moments(&|name| {
                let get = |part: &str| moments.get(&format!("{name}.{part}")).cloned();
                Some([get("exp_avg")?, get("exp_avg_sq")?])
            })?;
        }
        Ok(engine)
    }

    fn step_on(&mut self, engine: &mut Engine, adam: &AdamConfig) -> Result<Point> {
        let (accumulate, size) = (self.config.accumulate, self.config.batch);
        let mut batches = Vec::with_capacity(accumulate);
        for micro in 0..accumulate {
            let index = self.step * accumulate + micro;
            batches.push(self.windows.batch((index * size) as u64, size));
        }
        let lr = self.config.lr_at(self.step);
        let step = u32::try_from(self.step + 1).map_err(|_| Error::invalid("too many steps"))?;
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as it is used")]
        let hyper = Hyper {
            lr: lr as f32,
            betas: adam.betas,
            eps: adam.eps,
            weight_decay: adam.weight_decay,
            decoupled: adam.decoupled,
            step,
        };
        let told = engine.step(&batches, self.config.clip, &hyper)?;
        if !told.loss.is_finite() {
            return Err(self.at_step(&format!("the loss is {}", told.loss)));
        }
        if !told.norm.is_finite() {
            return Err(self.at_step("the gradient is not finite"));
        }
        self.step += 1;
        Ok(Point { loss: told.loss, lr, gradient_norm: told.norm, held_out: None })
    }

    /// As [`Trainer::evaluate`].
    fn evaluate_on(&self, engine: &mut Engine) -> Result<Option<f64>> {
        let Some(held_out) = &self.held_out else { return Ok(None) };
        let tokens = held_out.tokens();
        let span = self.config.batch * tokens;
        let mut sum = 0.0;
        for (inputs, targets) in held_out.inputs.chunks(span).zip(held_out.targets.chunks(span)) {
            let batch = inputs.len() / tokens;
            let part = Batch { batch, inputs: inputs.to_vec(), targets: targets.to_vec() };
            #[expect(clippy::cast_precision_loss, reason = "window counts are far below 2⁵³")]
            let weight = batch as f64 / held_out.batch as f64;
            sum += weight * engine.evaluate(&part)?;
        }
        Ok(Some(sum))
    }

    /// Copies parameters and moments from the GPU.
    fn take_back(&mut self, engine: &Engine) -> Result<()> {
        let mut state: IndexMap<String, Tensor> = IndexMap::new();
        for (index, (name, [values, mean, square])) in engine.download()?.into_iter().enumerate() {
            let shape = self.parameters.get(&name)?.shape().to_vec();
            let len = values.len();
            self.parameters.set(&name, Tensor::new(values, &shape)?);
            let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            let place = vec![number(self.step), number(index)];
            state.insert(format!("{name}.step"), Tensor::new(place, &[2])?);
            state.insert(format!("{name}.exp_avg"), Tensor::new(mean, &[len])?);
            state.insert(format!("{name}.exp_avg_sq"), Tensor::new(square, &[len])?);
        }
        let shapes = self.parameters.iter().map(|(name, tensor)| (name.as_str(), tensor.shape()));
        self.optimizer
            .restore(shapes, &|name| state.get(name).cloned())
            .within("the optimizer's state on the GPU")
    }
}
