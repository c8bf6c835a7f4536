//! The loop: batches, gradients, steps, and what is known of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint;
use super::curve::{Curve, Point};
use super::distributed::Group;
use super::optim::Optimizer;
use super::teacher::Teacher;
use super::together::average;
use super::zeros::Zeros;
use super::{Batch, Corpus, ForwardOptions, LinearRule, Network, Parameters, TrainConfig, Windows};
use crate::autograd::Tape;
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::kernels::buffers::Buffers;
use crate::model::Model;
use crate::store::Metric;
use crate::table::{Table, number};
use crate::tensor::Tensor;

/// A training run under way. The state after each step depends on the config, the data and the seed alone.
#[derive(Debug)]
pub struct Trainer {
    pub(super) config: TrainConfig,
    pub(super) parameters: Parameters,
    pub(super) optimizer: Optimizer,
    pub(super) curve: Curve,
    /// Steps done.
    pub(super) step: usize,
    pub(super) model: Model,
    network: Network,
    pub(super) rule: Arc<dyn LinearRule>,
    teacher: Option<Teacher>,
    /// The ranks that train together, where there are others.
    pub(super) group: Option<Group>,
    /// What stays zero.
    pub(super) zeros: Zeros,
    pub(super) windows: Windows,
    pub(super) held_out: Option<Batch>,
    /// Where the last good state is, for error messages.
    saved: Option<PathBuf>,
}

/// How often, and where to.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Evaluates every so many steps, and at the end; 0 does not.
    pub eval_every: usize,
    /// A folder for checkpoints.
    pub checkpoints: Option<PathBuf>,
    /// Writes one every so many steps, at the end and when stopped; 0 only then.
    pub checkpoint_every: usize,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps were done.
    Done,
    /// The person stopped it.
    Stopped,
}

impl Trainer {
    /// A run that starts from `model`.
    pub fn new(
        model: &Model,
        corpus: Corpus,
        config: TrainConfig,
        rule: Arc<dyn LinearRule>,
    ) -> Result<Trainer> {
        config.check()?;
        let reads = model.config.max_position_embeddings;
        if config.sequence > reads {
            return Err(Error::invalid(format!(
                "sequences of {} tokens; {} reads at most {reads}",
                config.sequence, model.name
            )));
        }
        let mut parameters = Parameters::of(model, config.parameters)?;
        let teacher = Teacher::new(&parameters, config.distill);
        rule.prepare(&mut parameters)?;
        Ok(Trainer {
            teacher,
            group: None,
            windows: Windows::new(corpus, config.sequence, config.seed)?,
            optimizer: Optimizer::new(config.optimizer.clone(), config.seed)?,
            network: Network::new(Arc::clone(&model.config)),
            zeros: Zeros::of(model)?,
            model: model.clone(),
            curve: Curve::default(),
            held_out: None,
            saved: None,
            step: 0,
            parameters,
            config,
            rule,
        })
    }

    /// Evaluates on the first `count` windows of `corpus`.
    pub fn hold_out(&mut self, corpus: Corpus, count: usize) -> Result<()> {
        let windows = Windows::new(corpus, self.config.sequence, self.config.seed)?;
        self.held_out = Some(windows.in_order(count));
        Ok(())
    }

    /// Goes on from the newest checkpoint in `folder`. `false` where there is none.
    pub fn resume(&mut self, folder: &Path) -> Result<bool> {
        let Some(found) = checkpoint::newest(folder)? else { return Ok(false) };
        checkpoint::load(self, &found).within(found.display())?;
        self.saved = Some(found);
        Ok(true)
    }

    /// Writes the state to a folder in `folder` that appears once it is complete, and removes older ones but the last.
    pub fn save(&mut self, folder: &Path) -> Result<PathBuf> {
        let path = checkpoint::save(self, folder)?;
        self.saved = Some(path.clone());
        Ok(path)
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// What the linear layers do, as results call it.
    pub fn rule(&self) -> &Arc<dyn LinearRule> {
        &self.rule
    }

    /// The parameters as they are now.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The bytes of what the optimizer remembers.
    pub fn optimizer_nbytes(&self) -> usize {
        self.optimizer.nbytes()
    }

    /// The model as it is now, of the plain architecture.
    pub fn model(&self) -> Result<Model> {
        let name = format!("{}·trained", self.model.name);
        let dense = self.rule.finish(&self.parameters)?.to_model(&self.model, &name)?;
        self.zeros.around(dense)
    }

    /// Loss, learning rate, gradient norm and held-out loss of every step.
    pub fn table(&self) -> Result<Table> {
        self.curve.table(&format!("Training of {}", self.model.name), &self.rule.name())
    }

    /// The loss of every step, and what the linear layers were: such tables of several runs can be joined.
    pub fn losses(&self) -> Result<Table> {
        let mut name = self.rule.name();
        if self.config.precision != super::MatmulPrecision::F32 {
            name += ", bf16";
        }
        self.curve.losses(&name)
    }

    /// The numbers that a run is known by: its last losses and where it began.
    pub fn metrics(&self) -> Vec<Metric> {
        let points = &self.curve.points;
        let held_out = points.iter().rev().find_map(|point| point.held_out);
        #[expect(clippy::cast_precision_loss, reason = "a count of steps")]
        let steps = points.len() as f64;
        let found = [
            ("loss", "nats", points.last().map(|point| point.loss)),
            ("held-out loss", "nats", held_out),
            ("held-out perplexity", "", held_out.map(f64::exp)),
            ("held-out perplexity before", "", self.curve.start.map(f64::exp)),
            ("first loss", "nats", points.first().map(|point| point.loss)),
            ("steps", "", Some(steps)),
        ];
        let metric = |(name, unit, value): (&str, &str, Option<f64>)| {
            Some(Metric { name: name.to_owned(), unit: unit.to_owned(), value: value? })
        };
        found.into_iter().filter_map(metric).collect()
    }

    /// One line: how the losses went.
    pub fn summary(&self) -> String {
        let points = &self.curve.points;
        let loss = |at: Option<&Point>| at.map_or(f64::NAN, |point| point.loss);
        let mut words = format!(
            "{} steps with {}, state of {} ({}): loss {:.4} → {:.4}",
            points.len(),
            self.config.optimizer,
            number::bytes(self.optimizer_nbytes() as u64),
            self.rule.name(),
            loss(points.first()),
            loss(points.last()),
        );
        let held_out = points.iter().rev().find_map(|point| point.held_out);
        if let (Some(before), Some(after)) = (self.curve.start, held_out) {
            let (before, after) = (before.exp(), after.exp());
            words += &format!("; held-out perplexity {before:.3} → {after:.3}");
        }
        words
    }

    /// Does the steps that are left. `progress(done, total, loss)` is asked after each whether to go on.
    pub fn run(
        &mut self,
        cpu: &Cpu,
        options: &RunOptions,
        progress: &mut dyn FnMut(&Curve, usize) -> bool,
    ) -> Result<Ended> {
        // Ranks stop together, between two steps; whoever is alone stops in the middle of one, which is then not done.
        let cpu = if self.group.is_some() { cpu.clone().with_stop(None) } else { cpu.clone() };
        let cpu = &cpu.with_buffers(Buffers::default());
        if self.step == 0 && options.eval_every > 0 {
            self.curve.start = self.evaluate(cpu)?;
        }
        let every = |count: usize, step: usize| count > 0 && step.is_multiple_of(count);
        while self.step < self.config.steps {
            let stepped = self.step(cpu);
            if stepped.as_ref().is_err_and(Error::is_cancelled) {
                if let Some(folder) = options.checkpoints.as_ref().filter(|_| self.step > 0) {
                    self.save(folder)?;
                }
                return Ok(Ended::Stopped);
            }
            if let (Err(error), Some(group)) = (&stepped, &mut self.group) {
                group.give_up(&error.to_string());
            }
            let mut point = stepped?;
            let last = self.step == self.config.steps;
            if options.eval_every > 0 && (last || every(options.eval_every, self.step)) {
                point.held_out = match self.evaluate(cpu) {
                    // The step itself is done.
                    Err(error) if error.is_cancelled() => None,
                    evaluated => evaluated?,
                };
            }
            self.curve.points.push(point);
            let wanted = progress(&self.curve, self.config.steps);
            let go_on = self.all_go_on(wanted)?;
            if let Some(folder) = options.checkpoints.as_ref().filter(|_| self.place().0 == 0)
                && (last || !go_on || every(options.checkpoint_every, self.step))
            {
                self.save(folder)?;
            }
            if !go_on && !last {
                return Ok(Ended::Stopped);
            }
        }
        Ok(Ended::Done)
    }

    /// One optimizer step.
    pub fn step(&mut self, cpu: &Cpu) -> Result<Point> {
        let (accumulate, step) = (self.config.accumulate, self.step);
        self.rule.begin_step(step);
        let mut sums: Vec<Option<Tensor>> = vec![None; self.parameters.iter().count()];
        let mut loss = 0.0;
        let (rank, ranks) = self.place();
        for micro in 0..accumulate {
            let index = step * accumulate + micro;
            let own = self.config.batch / ranks;
            let first = (index * self.config.batch + rank * own) as u64;
            let batch = self.windows.batch(first, own);
            loss += self.gradients(cpu, &batch, (index * ranks + rank) as u64, &mut sums)?;
        }
        if let Some(group) = &mut self.group {
            average(group, &mut sums, &mut loss)?;
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of passes")]
        let share = 1.0 / accumulate as f64;
        let norm = self.norm(cpu, &sums)? * share;
        let clip = self.config.clip;
        let scale = if clip > 0.0 && norm > clip { share * clip / norm } else { share };
        let lr = self.config.lr_at(step);
        self.update(cpu, sums, scale, lr)?;
        self.rule.end_step(step, &mut self.parameters)?;
        self.step += 1;
        Ok(Point { loss: loss * share, lr, gradient_norm: norm, held_out: None })
    }

    /// Adds the gradients of one forward pass to `sums`; gives its loss.
    fn gradients(
        &self,
        cpu: &Cpu,
        batch: &Batch,
        index: u64,
        sums: &mut [Option<Tensor>],
    ) -> Result<f64> {
        let options = self.options(index);
        let tape = Tape::new(cpu).with_precision(self.config.precision.into());
        let vars = self.parameters.on(&tape, &|name| self.rule.is_frozen(name))?;
        let logits = self.network.logits(&tape, &vars, batch, &options)?;
        let loss = match &self.teacher {
            Some(teacher) => teacher.loss(&tape, &self.network, batch, &logits)?,
            None => tape.cross_entropy(&logits, &batch.targets)?,
        };
        // Their gradient takes their place.
        drop(logits);
        let value = f64::from(loss.value().as_slice::<f32>()?[0]);
        if !value.is_finite() {
            return Err(self.not_finite(cpu, batch, &options, value));
        }
        let mut found = tape.backward(&loss)?;
        for ((_, var), sum) in vars.iter().zip(sums) {
            let Some(gradient) = found.take(var) else { continue };
            *sum = Some(match sum.take() {
                None => gradient,
                Some(sum) => crate::autograd::sum_of_two(cpu, sum, &gradient)?,
            });
        }
        Ok(value)
    }

    fn options(&self, index: u64) -> ForwardOptions {
        ForwardOptions {
            rule: Arc::clone(&self.rule),
            dropout: self.config.dropout,
            // Passes are far enough apart for the draws of all places.
            seed: self.config.seed.wrapping_add(index.wrapping_mul(0xD134_2543_DE82_EF95)),
            checkpoint_blocks: self.config.checkpoint_blocks,
        }
    }

    /// The mean loss on the held-out windows; `None` where none are held out.
    pub fn evaluate(&self, cpu: &Cpu) -> Result<Option<f64>> {
        let Some(held_out) = &self.held_out else { return Ok(None) };
        let tape = Tape::no_grad(cpu).with_precision(self.config.precision.into());
        let vars = self.parameters.on(&tape, &|_| true)?;
        let options = ForwardOptions::new(Arc::clone(&self.rule));
        let tokens = held_out.tokens();
        let mut sum = 0.0;
        let span = self.config.batch * tokens;
        for (inputs, targets) in held_out.inputs.chunks(span).zip(held_out.targets.chunks(span)) {
            let batch = inputs.len() / tokens;
            let part = Batch { batch, inputs: inputs.to_vec(), targets: targets.to_vec() };
            let loss = self.network.loss(&tape, &vars, &part, &options)?;
            #[expect(clippy::cast_precision_loss, reason = "window counts are far below 2⁵³")]
            let weight = batch as f64 / held_out.batch as f64;
            sum += weight * f64::from(loss.value().as_slice::<f32>()?[0]);
        }
        Ok(Some(sum))
    }

    /// Finds the layer in which a loss that is not finite begins, by doing the pass again.
    fn not_finite(&self, cpu: &Cpu, batch: &Batch, options: &ForwardOptions, loss: f64) -> Error {
        let tape = Tape::no_grad(cpu).with_precision(self.config.precision.into());
        tape.watch();
        let again = || {
            let vars = self.parameters.on(&tape, &|_| true)?;
            self.network.loss(&tape, &vars, batch, options)
        };
        let place = match again() {
            Err(error) => error.to_string(),
            Ok(_) => "no operation of it gave one when it was done again".to_owned(),
        };
        self.at_step(&format!("the loss is {loss}: {place}"))
    }

    pub(super) fn at_step(&self, words: &str) -> Error {
        let next = match &self.saved {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint; `--checkpoints DIR` keeps some".to_owned(),
        };
        let step = self.step + 1;
        Error::invalid(format!("step {step}: {words}; {next}; try a smaller learning rate"))
    }
}
