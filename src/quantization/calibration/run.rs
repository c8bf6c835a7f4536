//! A model calibrated and quantized one block at a time, which can be stopped and gone on with.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::quantize::{Action, LayerReport, Planned, QuantizeReport, plan};
use super::super::{Choice, Recipe};
use super::{LayerObserver, needs_calibration};
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::model::{InputTransform, Linear, Model, NoObserver, Observer, Weight};

/// Told how many steps are done, how many there are, and what is next; `false` stops.
pub type Steps<'a> = dyn FnMut(usize, usize, &str) -> bool + 'a;

/// A calibrated quantization under way. [`Calibration::run`] may be called again after it was stopped: it goes on with the
/// first block that is not done.
#[derive(Debug)]
pub struct Calibration {
    recipe: Arc<dyn Recipe>,
    /// The model as it came, for whoever asks whether this is the same work.
    source: Model,
    model: Model,
    /// What is to be done to each layer that is not done.
    planned: BTreeMap<String, Option<String>>,
    order: Vec<String>,
    sequential: bool,
    /// The residual stream `(M, hidden)` of each sequence before block `next`.
    streams: Vec<Vec<f32>>,
    length: usize,
    next: usize,
    reports: BTreeMap<String, LayerReport>,
    /// What the recipe has to say of the model's layers.
    notes: Vec<String>,
}

impl Calibration {
    /// Plans the work. Every layer is checked before anything is computed.
    pub fn new(
        model: &Model,
        recipe: Arc<dyn Recipe>,
        filter: &dyn Fn(&str, &Linear) -> bool,
        skip_incompatible: bool,
        sequences: &[Vec<u32>],
    ) -> Result<Calibration> {
        if !needs_calibration(model, recipe.as_ref()) {
            return Err(Error::invalid(format!(
                "{} quantizes without calibration; use quantize_",
                recipe.name()
            )));
        }
        let (plans, notes) = plan(model, recipe.as_ref(), filter, skip_incompatible)?;
        let mut planned = BTreeMap::new();
        let mut reports = BTreeMap::new();
        let mut sequential = false;
        for Planned { layer, action } in plans {
            let left = match action {
                Action::Leave(why) => Some(why),
                Action::Apply(chosen) => {
                    let calibrated = chosen.calibrated();
                    if let Some(calibrated) = calibrated {
                        let weight = &model.linear(&layer.fqn)?.weight;
                        // Made only to hear now whether it can be made.
                        calibrated.prepare(&layer.fqn, &innermost(weight)).within(&layer.fqn)?;
                    }
                    sequential |= calibrated.is_some_and(|recipe| recipe.sequential());
                    None
                }
            };
            planned.insert(layer.fqn.clone(), left);
            reports.insert(layer.fqn.clone(), layer);
        }
        let streams =
            sequences.iter().map(|tokens| model.embedded(tokens)).collect::<Result<_>>()?;
        Ok(Calibration {
            recipe,
            source: model.clone(),
            model: model.clone(),
            planned,
            order: model.linears().into_iter().map(|(fqn, _)| fqn).collect(),
            sequential,
            streams,
            length: sequences.iter().map(Vec::len).max().unwrap_or(0),
            next: 0,
            reports,
            notes,
        })
    }

    /// Whether `model` is the one that came, and not only one like it.
    pub fn is_of(&self, model: &Model) -> bool {
        let ours = &self.source;
        ours.layers.len() == model.layers.len()
            && Arc::ptr_eq(&ours.embed_tokens, &model.embed_tokens)
            && ours.layers.iter().zip(&model.layers).all(|(ours, theirs)| Arc::ptr_eq(ours, theirs))
    }

    /// How many blocks are done, and how many there are; the output layer counts as one.
    pub fn blocks(&self) -> (usize, usize) {
        (self.next, self.model.layers.len() + usize::from(self.model.lm_head.is_some()))
    }

    /// Goes on to the end. [`Error::Cancelled`] keeps the blocks that are done, for another call.
    pub fn run(&mut self, cpu: &Cpu, progress: &mut Steps<'_>) -> Result<()> {
        let (_, blocks) = self.blocks();
        let mut context = self.model.block_context(self.length);
        while self.next < blocks {
            let block = self.next;
            let total = blocks * self.streams.len();
            let mut tell = |done: usize, what: &str| {
                let go_on = progress(block * self.streams.len() + done, total, what);
                if go_on { Ok(()) } else { Err(Error::Cancelled) }
            };
            let mut watched = watch(&self.model, &self.recipe, &self.planned, &self.order, block)?;
            let mut streams = self.streams.clone();
            loop {
                streams.clone_from(&self.streams);
                for (i, stream) in streams.iter_mut().enumerate() {
                    tell(i, &format!("block {block}"))?;
                    watched.read(cpu, &self.model, block, stream, &mut context)?;
                }
                if !watched.another_pass()? {
                    break;
                }
            }
            let mut model = self.model.clone();
            for (fqn, layer) in watched.layers {
                tell(self.streams.len(), &fqn)?;
                let weight = layer.convert(cpu).within(&fqn)?;
                let report = self.reports.get_mut(&fqn).ok_or_else(|| unplanned(&fqn))?;
                (report.workflow, report.nbytes_after) = (weight.workflow(), weight.nbytes());
                model.set_weight(&fqn, weight)?;
            }
            if self.sequential && block < model.layers.len() {
                streams.clone_from(&self.streams);
                for stream in &mut streams {
                    tell(self.streams.len(), &format!("block {block}, quantized"))?;
                    model.forward_block(cpu, block, stream, &mut context, &mut NoObserver)?;
                }
            }
            // Only now: a stop before this line leaves the block as it was.
            (self.model, self.streams, self.next) = (model, streams, block + 1);
        }
        progress(1, 1, "");
        Ok(())
    }

    /// The quantized model and what happened to each layer.
    pub fn finish(mut self) -> Result<(Model, QuantizeReport)> {
        let (done, blocks) = self.blocks();
        if done < blocks {
            return Err(Error::invalid(format!(
                "calibration has done {done} of {blocks} blocks; call run until it is through"
            )));
        }
        let mut report = QuantizeReport { layers: Vec::new(), notes: self.notes };
        for fqn in &self.order {
            let mut layer = self.reports.remove(fqn).ok_or_else(|| unplanned(fqn))?;
            layer.skipped = self.planned.get(fqn).cloned().flatten();
            report.layers.push(layer);
        }
        Ok((self.model, report))
    }
}

fn unplanned(fqn: &str) -> Error {
    Error::invalid(format!("{fqn} was not planned"))
}

/// The weight inside all input transforms.
fn innermost(weight: &Arc<dyn Weight>) -> Arc<dyn Weight> {
    match weight.as_transform() {
        Some(transform) => innermost(transform.inner()),
        None => Arc::clone(weight),
    }
}

/// One layer of the block at work.
struct Watched {
    /// The weight as it was, transforms and all.
    weight: Arc<dyn Weight>,
    /// `None` for a recipe that needs no inputs.
    observer: Option<Box<dyn LayerObserver>>,
    recipe: Arc<dyn Recipe>,
    fqn: String,
}

impl Watched {
    fn observe(&mut self, cpu: &Cpu, x: &[f32]) -> Result<()> {
        let Some(observer) = &mut self.observer else { return Ok(()) };
        let Some(mut transform) = self.weight.as_transform() else {
            return observer.observe(cpu, x);
        };
        let mut x = transform.transform(cpu, x)?;
        while let Some(inner) = transform.inner().as_transform() {
            transform = inner;
            x = transform.transform(cpu, &x)?;
        }
        observer.observe(cpu, &x)
    }

    fn convert(mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let quantized = match &mut self.observer {
            Some(observer) => observer.convert(cpu)?,
            None => {
                let chosen = chosen(&self.recipe, &self.fqn);
                chosen.quantize_shared(cpu, &innermost(&self.weight))?
            }
        };
        wrap_again(self.weight.as_transform(), quantized)
    }
}

/// Puts the transforms of a weight around the one that took its place inside.
pub(in super::super) fn wrap_again(
    transform: Option<&dyn InputTransform>,
    quantized: Arc<dyn Weight>,
) -> Result<Arc<dyn Weight>> {
    match transform {
        Some(outer) => outer.around(wrap_again(outer.inner().as_transform(), quantized)?),
        None => Ok(quantized),
    }
}

fn chosen<'a>(recipe: &'a Arc<dyn Recipe>, fqn: &str) -> &'a dyn Recipe {
    match recipe.choose(fqn) {
        Choice::Other(other) => other,
        _ => recipe.as_ref(),
    }
}

/// The layers of a block that will be quantized, in the order in which they run.
struct Block {
    layers: Vec<(String, Watched)>,
}

fn watch(
    model: &Model,
    recipe: &Arc<dyn Recipe>,
    planned: &BTreeMap<String, Option<String>>,
    order: &[String],
    block: usize,
) -> Result<Block> {
    let prefix = match block < model.layers.len() {
        true => format!("model.layers.{block}."),
        false => "lm_head".to_owned(),
    };
    let mut layers = Vec::new();
    let ours = |fqn: &&String| fqn.starts_with(&prefix) && planned.get(*fqn) == Some(&None);
    for fqn in order.iter().filter(ours) {
        let weight = Arc::clone(&model.linear(fqn)?.weight);
        let observer = match chosen(recipe, fqn).calibrated() {
            Some(calibrated) => Some(calibrated.prepare(fqn, &innermost(&weight)).within(fqn)?),
            None => None,
        };
        let watched = Watched { weight, observer, recipe: Arc::clone(recipe), fqn: fqn.clone() };
        layers.push((fqn.clone(), watched));
    }
    Ok(Block { layers })
}

impl Block {
    /// Moves a sequence through the block, under the observers' eyes.
    fn read(
        &mut self,
        cpu: &Cpu,
        model: &Model,
        block: usize,
        stream: &mut [f32],
        context: &mut crate::model::Context,
    ) -> Result<()> {
        if block == model.layers.len() {
            let x = model.final_norm(cpu, stream)?;
            return self
                .layers
                .iter_mut()
                .try_for_each(|(fqn, layer)| layer.observe(cpu, &x).within(&*fqn));
        }
        let mut eyes = Eyes { cpu, layers: &mut self.layers, fault: None };
        model.forward_block(cpu, block, stream, context, &mut eyes)?;
        eyes.fault.map_or(Ok(()), Err)
    }

    fn another_pass(&mut self) -> Result<bool> {
        let mut any = false;
        for (fqn, layer) in &mut self.layers {
            if let Some(observer) = &mut layer.observer {
                any |= observer.another_pass().within(&*fqn)?;
            }
        }
        Ok(any)
    }
}

/// Hands a block's inputs to the observers of its layers.
struct Eyes<'a> {
    cpu: &'a Cpu,
    layers: &'a mut [(String, Watched)],
    fault: Option<Error>,
}

impl Observer for Eyes<'_> {
    fn linear_input(&mut self, layer: usize, name: &'static str, x: &[f32]) {
        let fqn = format!("model.layers.{layer}.{name}");
        let found = self.layers.iter_mut().find(|(other, _)| *other == fqn);
        if let Some((_, watched)) = found.filter(|_| self.fault.is_none()) {
            self.fault = watched.observe(self.cpu, x).within(&fqn).err();
        }
    }
}
