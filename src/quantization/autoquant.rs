//! Autoquant (X01): for each layer the workflow that runs fastest on this machine, among those that keep its output.
//!
//! Each candidate quantizes each layer; where a least signal-to-noise ratio is wanted, one whose output on standard normal
//! inputs falls below is out. The others' kernels are timed on a weight of the layer's shape, cold, as a decoder finds it:
//! the median, and where that is within a tenth of the best so far a longer run decides, `0.9 · t₂ + 0.1 · t`. The lowest time wins,
//! of equal ones the later.
//!
//! With `interpolate` a workflow that quantizes activations is judged between its whole call and its bare integer product, for
//! what a compiler would fuse: it must beat the best so far by a margin, and counts `c · t + (1 − c) · m`. Times are cached by
//! candidate, shape, number of rows and machine; torchao's cache forgot the machine, and kept what SQNR had ruled out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::calibration::wrap_again;
use super::mixed_precision::Candidate;
use super::primitives::compute_error;
use super::{FqnToConfig, Recipe};
use crate::bench::{LinearCase, Times, linear};
use crate::error::{Context as _, Error, Result};
use crate::kernels::{Cpu, Shape, int8_linear};
use crate::model::{Linear, Model, Weight};
use crate::rng::Rng;
use crate::table::{Cell, Table};
use crate::tensor::Tensor;

/// How [`autoquant`] judges.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoquantOptions {
    /// Rows of the activation: 1 for decoding, more for prompts.
    pub m: usize,
    /// The least signal-to-noise ratio of a layer's output, in dB.
    pub min_sqnr: Option<f64>,
    /// c of torchao's interpolate mode, which is 0.85 there; `None` takes whole calls as they are.
    pub interpolate: Option<f64>,
    /// Seconds to spend on a candidate and a shape.
    pub seconds: f64,
}

impl Default for AutoquantOptions {
    fn default() -> AutoquantOptions {
        AutoquantOptions { m: 1, min_sqnr: None, interpolate: Some(0.85), seconds: 0.1 }
    }
}

/// Times in microseconds by what was timed. Serde keeps it in a file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AutoquantCache {
    times: BTreeMap<String, f64>,
}

impl AutoquantCache {
    /// How many times are known.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Takes the times that `other` knows and this one does not.
    pub fn merge(&mut self, other: AutoquantCache) {
        for (what, us) in other.times {
            self.times.entry(what).or_insert(us);
        }
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }
}

/// One candidate tried on one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// Its place among the candidates.
    pub candidate: usize,
    /// The kernel that ran.
    pub kernel: String,
    /// What it was judged by, in microseconds.
    pub us: Option<f64>,
    /// Of the layer's output, in dB; measured only where a least one is wanted.
    pub sqnr_db: Option<f64>,
    /// Why it was out before it was timed.
    pub out: Option<String>,
    /// Whether the time was known.
    pub cached: bool,
}

/// What was tried for a layer.
#[derive(Clone, Debug)]
pub struct LayerTrial {
    /// Its name.
    pub fqn: String,
    /// `(N, K)`.
    pub shape: (usize, usize),
    /// All candidates.
    pub tried: Vec<Tried>,
    /// The winner, an index of `tried`.
    pub won: usize,
}

/// What won where.
#[derive(Clone, Debug)]
pub struct Autoquant {
    /// What was tried.
    pub candidates: Vec<Candidate>,
    /// In the order in which layers run.
    pub layers: Vec<LayerTrial>,
    options: AutoquantOptions,
}

/// Says of a layer whether it is among those that are asked about.
pub type Filter<'a> = dyn Fn(&str, &Linear) -> bool + 'a;

/// Tells how many layers are done of how many; `false` stops. Times that were measured stay in the cache.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// Tries all candidates on every layer that `filter` takes.
pub fn autoquant(
    cpu: &Cpu,
    model: &Model,
    (candidates, filter): (Vec<Candidate>, &Filter<'_>),
    options: &AutoquantOptions,
    cache: &mut AutoquantCache,
    progress: Progress<'_>,
) -> Result<Autoquant> {
    if candidates.is_empty() || options.m == 0 {
        return Err(Error::invalid("autoquant wants one candidate and one row at least"));
    }
    if let Some(c) = options.interpolate.filter(|c| !(0.0..1.0).contains(c)) {
        return Err(Error::invalid(format!("interpolate is {c}; wanted 0 up to 1, usual is 0.85")));
    }
    let linears: Vec<(String, Linear)> =
        model.linears().into_iter().filter(|(fqn, linear)| filter(fqn, linear)).collect();
    let mut layers = Vec::with_capacity(linears.len());
    for (done, (fqn, linear)) in linears.iter().enumerate() {
        if !progress(done, linears.len()) {
            return Err(Error::Cancelled);
        }
        let mut trial = Trial { cpu, options, cache, best: f64::INFINITY };
        let mut tried = Vec::new();
        for (candidate, one) in candidates.iter().enumerate() {
            tried.push(Tried { candidate, ..trial.of(one, &linear.weight).within(fqn)? });
        }
        let winner = tried.iter().enumerate().filter_map(|(i, tried)| Some((i, tried.us?)));
        // `<=`: of equal times the later candidate wins, as in torchao.
        let winner = winner.reduce(|best, other| if other.1 <= best.1 { other } else { best });
        let (won, _) = winner.ok_or_else(|| {
            let why: Vec<String> = tried.iter().filter_map(|tried| tried.out.clone()).collect();
            Error::invalid(format!("{fqn}: no candidate is left: {}", why.join("; ")))
        })?;
        layers.push(LayerTrial { fqn: fqn.clone(), shape: linear.weight.shape(), tried, won });
    }
    progress(linears.len(), linears.len());
    Ok(Autoquant { candidates, layers, options: options.clone() })
}

struct Trial<'a> {
    cpu: &'a Cpu,
    options: &'a AutoquantOptions,
    cache: &'a mut AutoquantCache,
    /// The best score of the layer so far.
    best: f64,
}

impl Trial<'_> {
    fn of(&mut self, candidate: &Candidate, original: &Arc<dyn Weight>) -> Result<Tried> {
        let mut tried = Tried {
            candidate: 0,
            kernel: String::new(),
            us: None,
            sqnr_db: None,
            out: None,
            cached: false,
        };
        let weight = match &candidate.recipe {
            None => Arc::clone(original),
            Some(recipe) => {
                if let Err(error) = recipe.check(original.shape()) {
                    tried.out = Some(error.to_string());
                    return Ok(tried);
                }
                let mut inner = original;
                while let Some(transform) = inner.as_transform() {
                    inner = transform.inner();
                }
                let made = recipe.quantize(self.cpu, inner.as_ref())?;
                wrap_again(original.as_transform(), made)?
            }
        };
        tried.kernel = weight.kernel(self.cpu, self.options.m);
        if let Some(least) = self.options.min_sqnr {
            let found = sqnr(self.cpu, original.as_ref(), weight.as_ref(), self.options.m)?;
            tried.sqnr_db = Some(found);
            if found < least || found.is_nan() {
                tried.out = Some(format!("SQNR {found:.1} dB is below {least} dB"));
                return Ok(tried);
            }
        }
        let (us, cached) = self.score(&candidate.words, weight.as_ref())?;
        self.best = self.best.min(us.unwrap_or(f64::INFINITY));
        (tried.us, tried.cached) = (us, cached);
        if us.is_none() {
            tried.out = Some("not by the margin that interpolation asks for".to_owned());
        }
        Ok(tried)
    }

    /// The time that counts, or `None` where interpolation's margin is missed, and whether it was known.
    fn score(&mut self, words: &str, weight: &dyn Weight) -> Result<(Option<f64>, bool)> {
        let before = self.cache.len();
        let integer = weight.workflow() == "int8-dynamic-activation-int8-weight";
        let score = match self.options.interpolate.filter(|_| integer) {
            None => Some(self.time(words, weight)?),
            Some(c) => {
                let bare = self.bare(weight.shape());
                if bare >= self.best {
                    Some(bare)
                } else {
                    let whole = self.time(words, weight)?;
                    let margin = c / (1.0 - c) * (self.best - bare);
                    let good = self.best.is_infinite() || whole < self.best + margin;
                    good.then_some(c * whole + (1.0 - c) * bare)
                }
            }
        };
        Ok((score, self.cache.len() == before))
    }

    fn key(&self, what: &str, (n, k): (usize, usize)) -> String {
        let threads = self.cpu.threads().count();
        format!(
            "{what} · {n} × {k} · M {} · {} · {threads} threads",
            self.options.m,
            self.cpu.isa().name()
        )
    }

    fn time(&mut self, words: &str, weight: &dyn Weight) -> Result<f64> {
        let key = self
            .key(&format!("{words} ({})", weight.kernel(self.cpu, self.options.m)), weight.shape());
        if let Some(known) = self.cache.times.get(&key) {
            return Ok(*known);
        }
        let case =
            LinearCase { weight, m: self.options.m, cold: true, seconds: self.options.seconds };
        let mut us = linear(self.cpu, &case)?.us;
        if us < 1.1 * self.best {
            let longer = LinearCase { seconds: 5.0 * self.options.seconds, ..case };
            us = 0.9 * linear(self.cpu, &longer)?.us + 0.1 * us;
        }
        self.cache.times.insert(key, us);
        Ok(us)
    }

    /// The integer product alone, on codes that are there already.
    fn bare(&mut self, (n, k): (usize, usize)) -> f64 {
        let key = self.key("the bare int8 product", (n, k));
        if let Some(known) = self.cache.times.get(&key) {
            return *known;
        }
        let m = self.options.m;
        let (qdata, q) = (vec![3_i8; n * k], vec![5_i8; m * k]);
        let (scale, act_scale) = (vec![1.0_f32; n], vec![1.0_f32; m]);
        let mut y = vec![0.0; m * n];
        let mut cold = vec![1_u64; 8 << 20];
        let times = Times::of(
            5,
            self.options.seconds,
            // Streams 64 MiB, so that the weight comes from memory as it does in a decoder.
            || cold.iter_mut().for_each(|word| *word = word.rotate_left(1)),
            || {
                let w = int8_linear::Weight { qdata: &qdata, scale: &scale, row_sums: None };
                let act = int8_linear::Activation { q: &q, scale: &act_scale, zero_point: None };
                int8_linear::dynamic(self.cpu, w, act, &mut y, Shape { m, n, k });
            },
        );
        let us = 1e6 * times.median();
        self.cache.times.insert(key, us);
        us
    }
}

/// The signal-to-noise ratio of `weight`'s output on standard normal inputs, `original`'s as signal.
fn sqnr(cpu: &Cpu, original: &dyn Weight, weight: &dyn Weight, m: usize) -> Result<f64> {
    let (n, k) = original.shape();
    let mut rng = Rng::new(0);
    let x: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
    let output = |weight: &dyn Weight| {
        let mut y = vec![0.0; m * n];
        weight.linear(cpu, &x, m, &mut y)?;
        Tensor::new(y, &[m, n])
    };
    compute_error(&output(original)?, &output(weight)?)
}

impl Autoquant {
    /// The configuration of every layer by name, for `quantize_`.
    pub fn recipe(&self) -> Result<FqnToConfig> {
        let entry = |layer: &LayerTrial| -> (String, Option<Arc<dyn Recipe>>) {
            let winner = layer.tried[layer.won].candidate;
            (layer.fqn.clone(), self.candidates[winner].recipe.clone())
        };
        FqnToConfig::new(self.layers.iter().map(entry))
    }

    /// A row for every shape and candidate: what it was judged by, and why the winner won.
    pub fn table(&self) -> Result<Table> {
        let mode = match self.options.interpolate {
            Some(c) => format!("interpolated with {c}"),
            None => "whole calls".to_owned(),
        };
        let title = format!("Autoquant: median µs of a cold call, M = {}, {mode}", self.options.m);
        let mut table = Table::new(title)
            .column("shape")
            .column("layers")
            .column("candidate")
            .column("kernel")
            .column_unit("time", "µs")
            .column_unit("SQNR", "dB")
            .column("verdict");
        let mut seen: Vec<(usize, usize)> = Vec::new();
        for layer in &self.layers {
            if seen.contains(&layer.shape) {
                continue;
            }
            seen.push(layer.shape);
            let alike: Vec<&LayerTrial> =
                self.layers.iter().filter(|other| other.shape == layer.shape).collect();
            for (i, candidate) in self.candidates.iter().enumerate() {
                let tried = &layer.tried[i];
                let wins = alike.iter().filter(|layer| layer.won == i).count();
                let out = alike.iter().filter(|layer| layer.tried[i].out.is_some()).count();
                let least = alike.iter().filter_map(|layer| layer.tried[i].sqnr_db);
                let us = alike.iter().find_map(|layer| layer.tried[i].us);
                table.push([
                    format!("{} × {}", layer.shape.0, layer.shape.1).into(),
                    Cell::Int(i64::try_from(alike.len()).unwrap_or(i64::MAX)),
                    candidate.words.as_str().into(),
                    tried.kernel.as_str().into(),
                    us.map_or(Cell::Missing, Cell::Float),
                    least.reduce(f64::min).map_or(Cell::Missing, Cell::Float),
                    verdict(wins, out, tried).into(),
                ])?;
            }
        }
        Ok(table)
    }
}

fn verdict(wins: usize, out: usize, tried: &Tried) -> String {
    match (wins, out) {
        (0, 0) => "slower".to_owned(),
        (0, _) => tried.out.clone().unwrap_or_else(|| format!("out in {out} layers")),
        (_, 0) => format!("fastest in {wins}"),
        _ => format!("fastest in {wins}, out in {out}"),
    }
}
