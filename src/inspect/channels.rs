//! Outlier channels: a few columns of a layer's input that are many times as large as the others, which is what makes
//! activations hard to quantize (Dettmers et al. 2022, "LLM.int8()"; SmoothQuant and rotations exist for them).

use aolab_kernels::Cpu;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::eval::{EvalConfig, Progress, windows_of};
use crate::model::{Model, Observer};
use crate::table::{Cell, Table};

/// A channel this many times as large as the median one is called an outlier.
const OUTLIER: f32 = 6.0;

/// The inputs of one linear layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerChannels {
    /// The layer's name; layers that read the same input have an entry each.
    pub layer: String,
    /// The largest |x| of each input channel, over all tokens: `(K)`.
    pub max: Vec<f32>,
}

/// What [`channels`] found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Channels {
    /// Of which model.
    pub model: String,
    /// Every linear layer of the blocks, in the order in which they run.
    pub layers: Vec<LayerChannels>,
    /// Positions read.
    pub tokens: usize,
}

/// Reads the first windows of `text` and keeps the largest |x| of every input channel of every linear layer.
pub fn channels(
    model: &Model,
    cpu: &Cpu,
    text: &str,
    config: &EvalConfig,
    progress: Progress,
) -> Result<Channels> {
    let (windows, _, _) = windows_of(model, text, config)?;
    let mut watch = Watch::default();
    let mut tokens = 0;
    for (done, window) in windows.iter().enumerate() {
        if !progress(done, windows.len()) {
            return Err(Error::Cancelled);
        }
        let mut context = model.context(window.tokens.len());
        watch.rows = window.tokens.len();
        model.forward(cpu, &window.tokens, &mut context, &mut watch)?;
        tokens += window.tokens.len();
    }
    progress(windows.len(), windows.len());
    Ok(Channels { model: model.name.clone(), layers: watch.layers, tokens })
}

#[derive(Default)]
struct Watch {
    rows: usize,
    layers: Vec<LayerChannels>,
}

impl Observer for Watch {
    fn linear_input(&mut self, layer: usize, name: &'static str, x: &[f32]) {
        let k = x.len() / self.rows.max(1);
        if k == 0 {
            return;
        }
        let fqn = format!("model.layers.{layer}.{name}");
        let at = self.layers.iter().position(|one| one.layer == fqn).unwrap_or_else(|| {
            self.layers.push(LayerChannels { layer: fqn, max: vec![0.0; k] });
            self.layers.len() - 1
        });
        let max = &mut self.layers[at].max;
        for row in x.chunks_exact(max.len()) {
            for (max, x) in max.iter_mut().zip(row) {
                // NaN stays and is seen in the table.
                *max = if x.is_nan() { f32::NAN } else { max.max(x.abs()) };
            }
        }
    }
}

impl LayerChannels {
    /// The median over channels of their largest |x|.
    pub fn median(&self) -> f32 {
        let mut sorted = self.max.clone();
        sorted.sort_by(f32::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    }

    /// The channels that exceed six times the median one, largest first.
    pub fn outliers(&self) -> Vec<usize> {
        let limit = OUTLIER * self.median();
        let mut found: Vec<usize> = (0..self.max.len()).filter(|&c| self.max[c] > limit).collect();
        found.sort_by(|a, b| self.max[*b].total_cmp(&self.max[*a]).then(a.cmp(b)));
        found
    }
}

impl Channels {
    /// A row a layer: the largest and the median channel, their ratio, and which channels are outliers.
    pub fn table(&self) -> Result<Table> {
        let mut table = Table::new(format!("input channels of {}", self.model))
            .column("layer")
            .column("max |x|")
            .column("median channel")
            .column("max / median")
            .column("outliers")
            .column("channels");
        for layer in &self.layers {
            let max = layer.max.iter().copied().fold(0.0, f32::max);
            let (median, outliers) = (layer.median(), layer.outliers());
            let mut named: Vec<String> = outliers.iter().take(4).map(usize::to_string).collect();
            if outliers.len() > 4 {
                named.push("…".into());
            }
            table.push([
                layer.layer.as_str().into(),
                f64::from(max).into(),
                f64::from(median).into(),
                f64::from(max / median).into(),
                outliers.len().into(),
                named.join(" ").into(),
            ])?;
        }
        table.note(format!(
            "largest |x| of each input channel over {} tokens; an outlier exceeds {OUTLIER} times the median channel",
            self.tokens
        ));
        Ok(table)
    }

    /// The map of one kind of layer (`self_attn.q_proj`): for each block and each of at most `buckets` runs of
    /// neighbouring channels, the largest channel over the block's median one.
    pub fn map(&self, kind: &str, buckets: usize) -> Result<Table> {
        let suffix = format!(".{kind}");
        let layers: Vec<&LayerChannels> =
            self.layers.iter().filter(|one| one.layer.ends_with(&suffix)).collect();
        let Some(first) = layers.first() else {
            let mut kinds: Vec<&str> = self
                .layers
                .iter()
                .filter_map(|one| one.layer.strip_prefix("model.layers.0."))
                .collect();
            kinds.dedup();
            return Err(Error::usage(format!(
                "no layer is called {kind}; {} has {}",
                self.model,
                kinds.join(", ")
            )));
        };
        let run = first.max.len().div_ceil(buckets.max(1));
        let mut table = Table::new(format!("outlier channels of {}, inputs of {kind}", self.model))
            .column("layer")
            .column("channel")
            .column("max / median");
        for layer in layers {
            let median = layer.median();
            for (at, channels) in layer.max.chunks(run).enumerate() {
                let max = channels.iter().copied().fold(0.0, f32::max);
                table.push([
                    layer.layer.as_str().into(),
                    (at * run).into(),
                    Cell::Float(f64::from(max / median)),
                ])?;
            }
        }
        table.note(format!(
            "each cell: the largest of {run} channels from the one named; {} tokens",
            self.tokens
        ));
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_each_channel_is_kept_and_outliers_come_first() {
        let mut watch = Watch { rows: 2, layers: Vec::new() };
        watch.linear_input(0, "mlp.up_proj", &[1.0, -1.0, 2.0, 1.0, 0.5, 1.5, -20.0, 1.0]);
        watch.rows = 1;
        watch.linear_input(0, "mlp.up_proj", &[0.0, 0.0, 0.0, 90.0]);
        watch.linear_input(1, "mlp.up_proj", &[1.0, 1.0, 1.0, 1.0]);
        let found = Channels { model: "m".into(), layers: watch.layers, tokens: 3 };
        assert_eq!(found.layers[0].max.as_slice(), [1.0, 1.5, 20.0, 90.0].as_slice());
        assert!((found.layers[0].median() - 20.0).abs() < 1e-6);
        assert_eq!(found.layers[0].outliers(), Vec::<usize>::new());
        let odd = LayerChannels { layer: String::new(), max: vec![1.0, 1.5, 20.0, 90.0, 1.0] };
        assert_eq!(odd.outliers(), [3, 2]);
        assert_eq!(found.map("mlp.up_proj", 2).unwrap().len(), 4);
        let text = found.map("mlp.up", 2).unwrap_err().to_string();
        assert!(text.contains("m has mlp.up_proj"), "{text}");
        assert_eq!(found.table().unwrap().len(), 2);
    }
}
