//! Mixed precision: for each layer the workflow that costs the predictions least, within a budget of bits (P24's goal).
//!
//! Each layer is quantized alone with each candidate, and the Kullback-Leibler divergence of the model's predictions from the
//! original's is measured on a few sequences. Sizes and divergences of a layer make a curve; only its lower convex hull matters.
//! All layers start at their smallest point, and the step that saves most divergence a byte is taken
//! again and again while the budget lasts: what a Lagrange multiplier would choose, without solving for it.
//!
//! Divergences are taken to add up over layers, which they do about as well as the model is near its original. torchao searched the
//! whole model's mixes by Bayesian optimisation instead, an evaluation of the model for each try.

use std::sync::Arc;

use super::calibration::wrap_again;
use super::{FqnToConfig, Recipe};
use crate::error::{Context as _, Error, Result};
use crate::eval::divergences;
use crate::kernels::Cpu;
use crate::model::{Linear, Model, NoObserver, Weight};
use crate::table::{Cell, Table};

/// A workflow that layers may take.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// As a person writes it: `int4-weight-only --group-size 32`.
    pub words: String,
    /// The recipe; `None` leaves the layer as it is.
    pub recipe: Option<Arc<dyn Recipe>>,
}

/// One candidate measured on one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its place among the candidates.
    pub candidate: usize,
    /// The bytes of the layer's weight.
    pub nbytes: usize,
    /// Mean divergence in nats of the model with this layer alone quantized.
    pub kl: f64,
}

/// What was measured of a layer, and what it takes.
#[derive(Clone, Debug)]
pub struct LayerChoice {
    /// Its name.
    pub fqn: String,
    /// `(N, K)`.
    pub shape: (usize, usize),
    /// All candidates that apply.
    pub points: Vec<Point>,
    /// The one taken, an index of `points`.
    pub chosen: usize,
}

/// A workflow for each layer.
#[derive(Clone, Debug)]
pub struct Mix {
    /// What was tried.
    pub candidates: Vec<Candidate>,
    /// In the order in which layers run.
    pub layers: Vec<LayerChoice>,
}

/// Tells how many layers are measured of how many; `false` stops.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// Measures every layer that `filter` takes with every candidate, and chooses within `target_bits` a weight on average,
/// scales and all.
pub fn search(
    cpu: &Cpu,
    model: &Model,
    candidates: Vec<Candidate>,
    target_bits: f64,
    filter: &dyn Fn(&str, &Linear) -> bool,
    sequences: &[Vec<u32>],
    progress: Progress<'_>,
) -> Result<Mix> {
    if candidates.is_empty() || sequences.is_empty() {
        return Err(Error::invalid("a mix wants one candidate and one sequence at least"));
    }
    let original = Original::read(cpu, model, sequences)?;
    let linears: Vec<(String, Linear)> =
        model.linears().into_iter().filter(|(fqn, linear)| filter(fqn, linear)).collect();
    let mut layers = Vec::with_capacity(linears.len());
    for (done, (fqn, linear)) in linears.iter().enumerate() {
        if !progress(done, linears.len()) {
            return Err(Error::Cancelled);
        }
        let shape = linear.weight.shape();
        let mut points = Vec::new();
        for (candidate, tried) in candidates.iter().enumerate() {
            let Some(weight) = quantized(cpu, &linear.weight, tried, shape).within(fqn)? else {
                continue;
            };
            let nbytes = weight.nbytes();
            let kl = match tried.recipe {
                None => 0.0,
                Some(_) => original.divergence(cpu, fqn, weight)?,
            };
            points.push(Point { candidate, nbytes, kl });
        }
        if points.is_empty() {
            return Err(Error::invalid(format!("{fqn}: no candidate applies to {shape:?}")));
        }
        layers.push(LayerChoice { fqn: fqn.clone(), shape, points, chosen: 0 });
    }
    progress(linears.len(), linears.len());
    choose(&mut layers, target_bits)?;
    Ok(Mix { candidates, layers })
}

/// The layer's weight as the candidate makes it, or `None` where it does not apply.
fn quantized(
    cpu: &Cpu,
    weight: &Arc<dyn Weight>,
    candidate: &Candidate,
    shape: (usize, usize),
) -> Result<Option<Arc<dyn Weight>>> {
    let Some(recipe) = &candidate.recipe else { return Ok(Some(Arc::clone(weight))) };
    if recipe.calibrated().is_some() {
        return Err(Error::invalid(format!(
            "{} calibrates anew for every layer that is tried; mix formats, and calibrate the mix that comes out",
            recipe.name()
        )));
    }
    if recipe.check(shape).is_err() {
        return Ok(None);
    }
    let mut inner = weight;
    while let Some(transform) = inner.as_transform() {
        inner = transform.inner();
    }
    let made = recipe.quantize(cpu, inner.as_ref())?;
    Ok(Some(wrap_again(weight.as_transform(), made)?))
}

/// The original model on the sequences.
struct Original<'a> {
    model: &'a Model,
    /// The residual stream before each block, and after the last: per block, per sequence.
    streams: Vec<Vec<Vec<f32>>>,
    logits: Vec<Vec<f32>>,
    length: usize,
}

impl Original<'_> {
    fn read<'a>(cpu: &Cpu, model: &'a Model, sequences: &[Vec<u32>]) -> Result<Original<'a>> {
        let length = sequences.iter().map(Vec::len).max().unwrap_or(0);
        let mut context = model.block_context(length);
        let first: Vec<Vec<f32>> =
            sequences.iter().map(|tokens| model.embedded(tokens)).collect::<Result<_>>()?;
        let mut streams = vec![first];
        for block in 0..model.layers.len() {
            let mut next = streams[block].clone();
            for stream in &mut next {
                model.forward_block(cpu, block, stream, &mut context, &mut NoObserver)?;
            }
            streams.push(next);
        }
        let last = &streams[model.layers.len()];
        let logits = last
            .iter()
            .map(|stream| model.logits(cpu, &model.final_norm(cpu, stream)?))
            .collect::<Result<_>>()?;
        Ok(Original { model, streams, logits, length })
    }

    /// The mean divergence with `weight` in the place of the layer `fqn`'s.
    #[expect(clippy::cast_precision_loss, reason = "positions are far fewer than 2⁵³")]
    fn divergence(&self, cpu: &Cpu, fqn: &str, weight: Arc<dyn Weight>) -> Result<f64> {
        let mut changed = self.model.clone();
        changed.set_weight(fqn, weight)?;
        let blocks = changed.layers.len();
        let block = fqn.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        let first = block.and_then(|block| block.parse().ok()).unwrap_or(blocks);
        let mut context = changed.block_context(self.length);
        let vocab = changed.config.vocab_size;
        let (mut sum, mut positions) = (0.0, 0);
        for (stream, logits) in self.streams[first].iter().zip(&self.logits) {
            let mut stream = stream.clone();
            for block in first..blocks {
                changed.forward_block(cpu, block, &mut stream, &mut context, &mut NoObserver)?;
            }
            let q = changed.logits(cpu, &changed.final_norm(cpu, &stream)?)?;
            let found = divergences(cpu, logits, &q, vocab);
            sum += found.iter().map(|(kl, _)| kl).sum::<f64>();
            positions += found.len();
        }
        Ok(sum / positions as f64)
    }
}

/// The points of a layer's lower convex hull from the smallest to the nearest, as indices.
fn hull(points: &[Point]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&points[*a], &points[*b]);
        a.nbytes.cmp(&b.nbytes).then(a.kl.total_cmp(&b.kl))
    });
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        if kept.last().is_some_and(|last| points[i].kl >= points[*last].kl) {
            continue;
        }
        while let [.., a, b] = kept[..] {
            if saving(&points[a], &points[b]) > saving(&points[b], &points[i]) {
                break;
            }
            kept.pop();
        }
        kept.push(i);
    }
    kept
}

/// Divergence saved a byte by going from `a` to `b`.
#[expect(clippy::cast_precision_loss, reason = "bytes of a layer are far fewer than 2⁵³")]
fn saving(a: &Point, b: &Point) -> f64 {
    (a.kl - b.kl) / b.nbytes.saturating_sub(a.nbytes).max(1) as f64
}

/// Sets `chosen` of every layer.
#[expect(clippy::cast_precision_loss, reason = "bytes of a model are far fewer than 2⁵³")]
pub fn choose(layers: &mut [LayerChoice], target_bits: f64) -> Result<()> {
    let weights: usize = layers.iter().map(|layer| layer.shape.0 * layer.shape.1).sum();
    let budget = target_bits * weights as f64 / 8.0;
    let hulls: Vec<Vec<usize>> = layers.iter().map(|layer| hull(&layer.points)).collect();
    let mut steps = Vec::new();
    let mut spent = 0;
    for (at, (layer, hull)) in layers.iter_mut().zip(&hulls).enumerate() {
        layer.chosen = hull[0];
        spent += layer.points[hull[0]].nbytes;
        let pairs = hull.windows(2);
        steps.extend(pairs.map(|pair| {
            (saving(&layer.points[pair[0]], &layer.points[pair[1]]), at, pair[0], pair[1])
        }));
    }
    if spent as f64 > budget {
        return Err(Error::invalid(format!(
            "the smallest mix has {:.3} bits a weight, scales and all, and the target is {target_bits}; \
             raise the target or add a smaller candidate",
            8.0 * spent as f64 / weights as f64
        )));
    }
    // Along a hull savings fall, so that a layer's steps come in order. Equal ones go by layer.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for (_, at, from, to) in steps {
        let layer = &mut layers[at];
        let grown = spent - layer.points[from].nbytes + layer.points[to].nbytes;
        // A step that does not fit ends its layer; smaller steps of others may still fit.
        if layer.chosen == from && grown as f64 <= budget {
            (layer.chosen, spent) = (to, grown);
        }
    }
    Ok(())
}

impl Mix {
    /// The configuration of every layer by name, for `quantize_`; over each, `around` may put an algorithm such as GPTQ.
    pub fn recipe(
        &self,
        around: &dyn Fn(Arc<dyn Recipe>) -> Arc<dyn Recipe>,
    ) -> Result<FqnToConfig> {
        let entry = |layer: &LayerChoice| {
            let taken = &self.candidates[layer.points[layer.chosen].candidate];
            (layer.fqn.clone(), taken.recipe.clone().map(around))
        };
        FqnToConfig::new(self.layers.iter().map(entry))
    }

    /// Bits a weight, scales and all.
    #[expect(clippy::cast_precision_loss, reason = "bytes of a model are far fewer than 2⁵³")]
    pub fn bits_per_weight(&self) -> f64 {
        let weights: usize = self.layers.iter().map(|l| l.shape.0 * l.shape.1).sum();
        let nbytes: usize = self.layers.iter().map(|l| l.points[l.chosen].nbytes).sum();
        8.0 * nbytes as f64 / weights as f64
    }

    /// The sum of the layers' own divergences: what to expect of the whole.
    pub fn expected_kl(&self) -> f64 {
        self.layers.iter().map(|layer| layer.points[layer.chosen].kl).sum()
    }

    /// A row a layer: what it takes, and what each candidate would cost.
    #[expect(clippy::cast_precision_loss, reason = "bytes of a layer are far fewer than 2⁵³")]
    pub fn table(&self) -> Result<Table> {
        let mut table =
            Table::new("Mixed precision: KL of each layer quantized alone, in millinats")
                .column("layer")
                .column("takes")
                .column("bits/weight");
        for candidate in &self.candidates {
            table = table.column(&candidate.words);
        }
        for layer in &self.layers {
            let taken = &layer.points[layer.chosen];
            let weights = (layer.shape.0 * layer.shape.1) as f64;
            let mut row: Vec<Cell> = vec![
                layer.fqn.as_str().into(),
                self.candidates[taken.candidate].words.as_str().into(),
                Cell::Float(8.0 * taken.nbytes as f64 / weights),
            ];
            row.extend((0..self.candidates.len()).map(|i| {
                let point = layer.points.iter().find(|point| point.candidate == i);
                point.map_or(Cell::Missing, |point| Cell::Float(1e3 * point.kl))
            }));
            table.push(row)?;
        }
        Ok(table)
    }
}
