//! [`quantize_`]: a configuration applied to a model, layer by layer (A01, A05).

use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::model::{Linear, Model};
use crate::table::{Cell, Table};

use super::calibration::wrap_again;
use super::{Choice, Recipe};

/// The filter that takes every linear layer (A05); a tied output layer is no layer of its own.
pub fn is_linear(_fqn: &str, _linear: &Linear) -> bool {
    true
}

/// Quantizes the linear layers that `filter` takes, in place, on all cores.
///
/// A layer that the configuration cannot apply to is an error before anything is changed.
pub fn quantize_(
    model: &mut Model,
    recipe: &dyn Recipe,
    filter: impl Fn(&str, &Linear) -> bool,
) -> Result<QuantizeReport> {
    quantize_with(&Cpu::new(None), model, recipe, &filter, QuantizeOptions::default())
}

/// Told how many layers are done, how many there are, and which is next.
pub type Progress<'a> = dyn FnMut(usize, usize, &str) + 'a;

/// What [`quantize_with`] does besides.
#[derive(Default)]
pub struct QuantizeOptions<'a> {
    /// Leave layers alone that the configuration cannot apply to, and say so in the report.
    pub skip_incompatible: bool,
    /// Called before each layer with how many are done, how many there are, and its name.
    pub progress: Option<&'a mut Progress<'a>>,
    /// Asked before each layer; `true` stops with [`Error::Cancelled`].
    pub cancelled: Option<&'a dyn Fn() -> bool>,
}

impl std::fmt::Debug for QuantizeOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuantizeOptions")
            .field("skip_incompatible", &self.skip_incompatible)
            .finish_non_exhaustive()
    }
}

/// What happened to one linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerReport {
    /// Its name: `model.layers.0.mlp.up_proj`.
    pub fqn: String,
    /// `(N, K)`.
    pub shape: (usize, usize),
    /// Its workflow before, or its dtype.
    pub before: String,
    /// Its workflow now.
    pub workflow: String,
    /// The bytes of the weight before.
    pub nbytes_before: usize,
    /// The bytes of the weight now.
    pub nbytes_after: usize,
    /// Why it was left alone, if it was.
    pub skipped: Option<String>,
}

/// What happened to every linear layer, in the order in which they run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizeReport {
    /// One for each linear layer of the model.
    pub layers: Vec<LayerReport>,
    /// What the configuration says and no layer heeds, in words: a pattern that matches none.
    pub notes: Vec<String>,
}

impl QuantizeReport {
    /// How many layers were quantized.
    pub fn quantized(&self) -> usize {
        self.layers.iter().filter(|layer| layer.skipped.is_none()).count()
    }

    /// The bytes of the linear layers' weights before and after.
    pub fn nbytes(&self) -> (usize, usize) {
        let before = self.layers.iter().map(|layer| layer.nbytes_before).sum();
        (before, self.layers.iter().map(|layer| layer.nbytes_after).sum())
    }

    /// One row a layer.
    pub fn table(&self) -> Result<Table> {
        let mut table = Table::new("Quantized layers")
            .column("layer")
            .column("shape")
            .column("was")
            .column("workflow")
            .column_unit("before", "bytes")
            .column_unit("after", "bytes")
            .column("skipped");
        for layer in &self.layers {
            table.push([
                layer.fqn.as_str().into(),
                format!("{} × {}", layer.shape.0, layer.shape.1).into(),
                layer.before.as_str().into(),
                layer.workflow.as_str().into(),
                Cell::bytes(layer.nbytes_before),
                Cell::bytes(layer.nbytes_after),
                layer.skipped.as_deref().map_or(Cell::Missing, Cell::from),
            ])?;
        }
        Ok(table)
    }
}

/// [`quantize_`] with threads, progress, cancelling, and a say about layers that do not fit.
///
/// Every layer is checked before the first is changed. Each old weight is let go before the next is read, so
/// that a mapped model and its quantized copy never exist twice. If the work is stopped, the layers that were done
/// stay quantized and the model stays whole.
pub fn quantize_with(
    cpu: &Cpu,
    model: &mut Model,
    recipe: &dyn Recipe,
    filter: &dyn Fn(&str, &Linear) -> bool,
    mut options: QuantizeOptions<'_>,
) -> Result<QuantizeReport> {
    let (plan, notes) = plan(model, recipe, filter, options.skip_incompatible)?;
    let total = plan.iter().filter(|planned| matches!(planned.action, Action::Apply(_))).count();
    let mut done = 0;
    let mut report = QuantizeReport { layers: Vec::new(), notes };
    for planned in plan {
        let Action::Apply(recipe) = planned.action else {
            report.layers.push(planned.left_alone());
            continue;
        };
        if options.cancelled.is_some_and(|cancelled| cancelled()) {
            return Err(Error::Cancelled);
        }
        if let Some(progress) = &mut options.progress {
            progress(done, total, &planned.layer.fqn);
        }
        report.layers.push(apply(cpu, model, recipe, planned.layer)?);
        done += 1;
    }
    if let Some(progress) = &mut options.progress {
        progress(done, total, "");
    }
    Ok(report)
}

pub(super) enum Action<'a> {
    Apply(&'a dyn Recipe),
    Leave(String),
}

pub(super) struct Planned<'a> {
    /// As the layer is now.
    pub(super) layer: LayerReport,
    pub(super) action: Action<'a>,
}

impl Planned<'_> {
    fn left_alone(self) -> LayerReport {
        let reason = match self.action {
            Action::Leave(reason) => reason,
            Action::Apply(_) => String::new(),
        };
        LayerReport { skipped: Some(reason), ..self.layer }
    }
}

/// What is to be done to each layer, or the first reason why it cannot be; and what to tell.
pub(super) fn plan<'a>(
    model: &Model,
    recipe: &'a dyn Recipe,
    filter: &dyn Fn(&str, &Linear) -> bool,
    skip_incompatible: bool,
) -> Result<(Vec<Planned<'a>>, Vec<String>)> {
    let linears = model.linears();
    let fqns: Vec<&str> = linears.iter().map(|(fqn, _)| fqn.as_str()).collect();
    let notes = recipe.check_layers(&fqns)?;
    let plan_one = |(fqn, linear): &(String, Linear)| {
        let action = if filter(fqn, linear) {
            match recipe.choose(fqn) {
                Choice::Itself => Action::Apply(recipe),
                Choice::Other(other) => Action::Apply(other),
                Choice::Leave(reason) => Action::Leave(reason),
            }
        } else {
            Action::Leave("the filter leaves it out".to_owned())
        };
        let action = match action {
            Action::Apply(recipe) => match recipe.check(linear.weight.shape()) {
                Ok(()) => Action::Apply(recipe),
                Err(error) if skip_incompatible => Action::Leave(error.to_string()),
                Err(error) => return Err(error).within(fqn),
            },
            leave @ Action::Leave(_) => leave,
        };
        Ok(Planned { layer: as_it_is(fqn, linear), action })
    };
    let plan = linears.iter().map(plan_one).collect::<Result<_>>()?;
    Ok((plan, notes))
}

fn as_it_is(fqn: &str, linear: &Linear) -> LayerReport {
    let weight = &linear.weight;
    LayerReport {
        fqn: fqn.to_owned(),
        shape: weight.shape(),
        before: weight.workflow(),
        workflow: weight.workflow(),
        nbytes_before: weight.nbytes(),
        nbytes_after: weight.nbytes(),
        skipped: None,
    }
}

fn apply(
    cpu: &Cpu,
    model: &mut Model,
    recipe: &dyn Recipe,
    layer: LayerReport,
) -> Result<LayerReport> {
    let fqn = layer.fqn.clone();
    let linear = model.linear(&fqn)?;
    let mut inner = &linear.weight;
    while let Some(transform) = inner.as_transform() {
        inner = transform.inner();
    }
    let weight = recipe.quantize_shared(cpu, inner).within(&fqn)?;
    let weight = wrap_again(linear.weight.as_transform(), weight)?;
    let (workflow, nbytes_after) = (weight.workflow(), weight.nbytes());
    model.set_weight(&fqn, weight)?;
    Ok(LayerReport { workflow, nbytes_after, ..layer })
}
