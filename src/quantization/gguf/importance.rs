//! Columns weighed by the mean square of their inputs, as llama.cpp's imatrix has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use super::{GgufBlockConfig, blocks_of};
use crate::error::{Context as _, Error, Result};
use crate::io::gguf::{Importance, ImportanceMatrix};
use crate::kernels::Cpu;
use crate::kernels::ggml::BlockType;
use crate::model::{Model, Observer, Weight};
use crate::quantization::calibration::{Calibrated, LayerObserver, Steps, check_original};
use crate::quantization::{Choice, Recipe};

/// Adds the squares of the inputs `x (M, K)` to the sums of their columns.
fn add_squares(sums: &mut [f64], x: &[f32]) -> Result<usize> {
    let k = sums.len();
    if k == 0 || !x.len().is_multiple_of(k) {
        let got = x.len();
        return Err(Error::invalid(format!("inputs of {k} features each; got {got} values")));
    }
    for row in x.chunks_exact(k) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    Ok(x.len() / k)
}

#[expect(clippy::cast_possible_truncation, reason = "files and kernels keep singles")]
#[expect(clippy::cast_precision_loss, reason = "tokens are far fewer than 2²⁴")]
fn importance_of(sums: &[f64], tokens: usize) -> Importance {
    Importance { sums: sums.iter().map(|sum| *sum as f32).collect(), count: tokens as f32 }
}

impl Calibrated for GgufBlockConfig {
    fn prepare(&self, _fqn: &str, weight: &Arc<dyn Weight>) -> Result<Box<dyn LayerObserver>> {
        check_original(super::WORKFLOW.name, weight.as_ref())?;
        self.check(weight.shape())?;
        let (ty, weight) = (self.block_type.block_type(), Arc::clone(weight));
        let sums = vec![0.0; weight.shape().1];
        Ok(Box::new(Watch { ty, weight, sums, tokens: 0 }))
    }
}

/// Sums the squares of one layer's inputs, then quantizes.
#[derive(Debug)]
struct Watch {
    ty: BlockType,
    weight: Arc<dyn Weight>,
    sums: Vec<f64>,
    tokens: usize,
}

impl LayerObserver for Watch {
    fn observe(&mut self, _cpu: &Cpu, x: &[f32]) -> Result<()> {
        self.tokens += add_squares(&mut self.sums, x)?;
        Ok(())
    }

    fn convert(&mut self, cpu: &Cpu) -> Result<Arc<dyn Weight>> {
        let means = importance_of(&self.sums, self.tokens).means();
        blocks_of(cpu, self.weight.as_ref(), self.ty, Some(&means))
    }
}

/// Blocks chosen by the importance that a file holds. A layer that the file does not know is quantized without, and told about.
#[derive(Clone, Debug)]
pub(super) struct GgufWithMatrix {
    config: GgufBlockConfig,
    /// By the layers' names in GGUF files.
    layers: BTreeMap<String, Layer>,
    matrix: ImportanceMatrix,
    plain: GgufBlockConfig,
}

impl GgufWithMatrix {
    pub(super) fn new(config: GgufBlockConfig, matrix: &ImportanceMatrix) -> GgufWithMatrix {
        let plain = GgufBlockConfig { imatrix: None, ..config.clone() };
        let layer = |(name, importance): (&str, &Importance)| {
            let (name, means) = (name.to_owned(), importance.means());
            (name.clone(), Layer { config: config.clone(), name, means })
        };
        let layers = matrix.entries().map(layer).collect();
        GgufWithMatrix { layers, matrix: matrix.clone(), plain, config }
    }
}

impl Recipe for GgufWithMatrix {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn config_to_dict(&self) -> Json {
        self.config.config_to_dict()
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.config.check(shape)
    }

    fn quantize(&self, _cpu: &Cpu, _weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        Err(Error::invalid(
            "an importance matrix tells layers apart by their names; quantize a model with it, not one weight",
        ))
    }

    fn choose(&self, fqn: &str) -> Choice<'_> {
        let known = self.matrix.of(fqn).and_then(|(name, _)| self.layers.get(name));
        match known {
            Some(layer) => Choice::Other(layer),
            None => Choice::Other(&self.plain),
        }
    }

    fn check_layers(&self, fqns: &[&str]) -> Result<Vec<String>> {
        let unknown: Vec<&str> =
            fqns.iter().copied().filter(|fqn| self.matrix.of(fqn).is_none()).collect();
        if unknown.len() == fqns.len() {
            let known = self.matrix.entries().next().map_or("nothing", |(name, _)| name);
            return Err(Error::invalid(format!(
                "the importance matrix is of another model: it knows {known} …, and none of the layers"
            )));
        }
        let note = |fqn| format!("{fqn} is not in the importance matrix and is quantized without");
        Ok(unknown.into_iter().map(note).collect())
    }
}

/// The recipe of one layer.
#[derive(Clone, Debug)]
struct Layer {
    config: GgufBlockConfig,
    name: String,
    means: Vec<f32>,
}

impl Recipe for Layer {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn config_to_dict(&self) -> Json {
        self.config.config_to_dict()
    }

    fn check(&self, shape: (usize, usize)) -> Result<()> {
        self.config.check(shape)?;
        let (got, k) = (self.means.len(), shape.1);
        if got == k {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the importance matrix has {got} columns for {}, the layer has {k}: it is of another model",
            self.name
        )))
    }

    fn quantize(&self, cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        blocks_of(cpu, weight, self.config.block_type.block_type(), Some(&self.means))
    }
}

/// The importance matrix of a model's linear layers on `sequences`. `progress` is told how many are read and may stop.
pub fn importance_matrix(
    cpu: &Cpu,
    model: &Model,
    sequences: &[Vec<u32>],
    progress: &mut Steps<'_>,
) -> Result<ImportanceMatrix> {
    let mut sums = Sums { layers: BTreeMap::new(), fault: None };
    for (fqn, linear) in model.linears() {
        sums.layers.insert(fqn, (vec![0.0; linear.weight.shape().1], 0));
    }
    for (i, tokens) in sequences.iter().enumerate() {
        if !progress(i, sequences.len(), "") {
            return Err(Error::Cancelled);
        }
        let mut context = model.context(tokens.len());
        let hidden = model.forward(cpu, tokens, &mut context, &mut sums)?;
        sums.add("lm_head", &hidden);
    }
    if let Some(fault) = sums.fault {
        return Err(fault);
    }
    let length = sequences.first().map_or(0, Vec::len);
    let mut matrix = ImportanceMatrix::new(sequences.len(), length);
    for (fqn, (sums, tokens)) in &sums.layers {
        matrix.insert(fqn, importance_of(sums, *tokens))?;
    }
    progress(sequences.len(), sequences.len(), "");
    Ok(matrix)
}

/// The sums of squares and the tokens of each layer.
struct Sums {
    layers: BTreeMap<String, (Vec<f64>, usize)>,
    fault: Option<Error>,
}

impl Sums {
    fn add(&mut self, fqn: &str, x: &[f32]) {
        let Some((sums, tokens)) = self.layers.get_mut(fqn) else { return };
        match add_squares(sums, x).within(fqn) {
            Ok(more) => *tokens += more,
            Err(error) => self.fault = self.fault.take().or(Some(error)),
        }
    }
}

impl Observer for Sums {
    fn linear_input(&mut self, layer: usize, name: &'static str, x: &[f32]) {
        self.add(&format!("model.layers.{layer}.{name}"), x);
    }
}
