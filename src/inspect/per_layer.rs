//! The numeric debugger (G09): two models on one text, each on its own hidden states, compared at every linear layer's output and
//! after every block. Where the numbers fall is where the error came in.

use aolab_kernels::Cpu;

use crate::error::{Error, Result};
use crate::eval::{EvalConfig, Progress, windows_of};
use crate::model::{Linear, Model, Observer};
use crate::table::{Cell, Table};

/// Outputs of one pass, by place: every linear layer's in the order of [`Model::linears`], then the residual stream after every block.
struct Outputs<'a> {
    cpu: &'a Cpu,
    linears: &'a [(String, Linear)],
    hidden: usize,
    seen: Vec<Vec<f32>>,
    error: Option<Error>,
}

impl<'a> Outputs<'a> {
    fn new(cpu: &'a Cpu, linears: &'a [(String, Linear)], model: &Model) -> Outputs<'a> {
        let places = linears.len() + model.layers.len();
        let hidden = model.config.hidden_size;
        Outputs { cpu, linears, hidden, seen: vec![Vec::new(); places], error: None }
    }

    fn output(&mut self, at: usize, x: &[f32]) -> Result<()> {
        let weight = &self.linears[at].1.weight;
        let (n, k) = weight.shape();
        let m = x.len() / k;
        let mut y = vec![0.0; m * n];
        weight.linear(self.cpu, x, m, &mut y)?;
        self.seen[at] = y;
        Ok(())
    }
}

impl Observer for Outputs<'_> {
    fn hidden(&mut self, layer: usize, x: &[f32]) {
        // 0 is the embedding, which no layer has touched.
        if let Some(block) = layer.checked_sub(1) {
            self.seen[self.linears.len() + block] =
                x[..x.len() / self.hidden * self.hidden].to_vec();
        }
    }

    fn linear_input(&mut self, layer: usize, name: &'static str, x: &[f32]) {
        let wanted = format!("model.layers.{layer}.{name}");
        let Some(at) = self.linears.iter().position(|(fqn, _)| *fqn == wanted) else { return };
        if let Err(error) = self.output(at, x) {
            self.error.get_or_insert(error);
        }
    }
}

/// `Σx²`, `Σ(x − y)²`, `max |x − y|` and how many.
#[derive(Clone, Copy, Debug, Default)]
struct Difference {
    signal: f64,
    noise: f64,
    most: f64,
    count: usize,
}

impl Difference {
    fn add(&mut self, x: &[f32], y: &[f32]) {
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            self.signal += x * x;
            self.noise += (x - y) * (x - y);
            // `max` would lose a NaN, which is the first thing to find.
            if (x - y).abs() > self.most || (x - y).is_nan() {
                self.most = (x - y).abs();
            }
        }
        self.count += x.len();
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
    fn cells(self) -> [Cell; 3] {
        let db = 10.0 * (self.signal / self.noise).log10();
        [Cell::Float(db), Cell::Float(self.noise / self.count as f64), Cell::Float(self.most)]
    }
}

/// Positions of a window here unless `config` says otherwise: all outputs of one are held at once.
const CONTEXT: usize = 128;

/// Compares `model` with `base` at every place.
pub fn per_layer(
    base: &Model,
    model: &Model,
    cpu: &Cpu,
    text: &str,
    config: &EvalConfig,
    progress: Progress,
) -> Result<Table> {
    let (names, other) = (base.linears(), model.linears());
    let same = |(a, b): (&(String, Linear), &(String, Linear))| {
        a.0 == b.0 && a.1.weight.shape() == b.1.weight.shape()
    };
    if names.len() != other.len() || !names.iter().zip(&other).all(same) {
        return Err(Error::invalid(format!(
            "{} and {} have different layers: compare a model with its own quantized copy",
            base.name, model.name
        )));
    }
    let config = EvalConfig {
        context: config.context.or(Some(CONTEXT.min(base.config.max_position_embeddings))),
        windows: config.windows.or(Some(4)),
        ..config.clone()
    };
    let (windows, context, _) = windows_of(base, text, &config)?;
    let places = names.len() + base.layers.len();
    let mut differences = vec![Difference::default(); places + 1];
    for (done, window) in windows.iter().enumerate() {
        if !progress(done, windows.len()) {
            return Err(Error::Cancelled);
        }
        let pass =
            |model: &Model, linears: &[(String, Linear)]| -> Result<(Vec<Vec<f32>>, Vec<f32>)> {
                let mut outputs = Outputs::new(cpu, linears, model);
                let mut context = model.context(window.tokens.len());
                let last = model.forward(cpu, &window.tokens, &mut context, &mut outputs)?;
                // An output layer of its own is the last of the list, and no observer sees it.
                if model.lm_head.is_some() && outputs.error.is_none() {
                    outputs.output(linears.len() - 1, &last)?;
                }
                match outputs.error {
                    Some(error) => Err(error),
                    None => Ok((outputs.seen, model.logits(cpu, &last)?)),
                }
            };
        let ((x, x_logits), (y, y_logits)) = (pass(base, &names)?, pass(model, &other)?);
        for (at, (x, y)) in x.iter().zip(&y).enumerate() {
            differences[at].add(x, y);
        }
        differences[places].add(&x_logits, &y_logits);
    }
    progress(windows.len(), windows.len());
    table(base, model, (cpu, context), &differences, windows.len())
}

fn table(
    base: &Model,
    model: &Model,
    (cpu, m): (&Cpu, usize),
    differences: &[Difference],
    windows: usize,
) -> Result<Table> {
    let linears = model.linears();
    let mut table = Table::new(format!("{} against {}, place by place", model.name, base.name))
        .column("place")
        .column("workflow")
        .column("kernel")
        .column_unit("SQNR", "dB")
        .column("MSE")
        .column("max |difference|");
    let mut push = |place: String, workflow: Cell, kernel: Cell, at: usize| {
        let row = [Cell::Text(place), workflow, kernel];
        table.push(row.into_iter().chain(differences[at].cells()))
    };
    for block in 0..model.layers.len() {
        let of_block = format!("model.layers.{block}.");
        for (at, (name, linear)) in linears.iter().enumerate() {
            if name.starts_with(&of_block) {
                let kernel = linear.weight.kernel(cpu, m);
                push(name.clone(), linear.weight.workflow().into(), kernel.into(), at)?;
            }
        }
        let at = linears.len() + block;
        push(format!("residual stream after block {block}"), Cell::Missing, Cell::Missing, at)?;
    }
    push("logits".to_owned(), Cell::Missing, Cell::Missing, differences.len() - 1)?;
    table.note(format!(
        "each model on its own hidden states, outputs compared; SQNR is 20·log10(‖x‖ / ‖x − y‖) with x from {}; \
         {windows} windows of {m} tokens; inf: equal",
        base.name
    ));
    Ok(table)
}
