//! QAT as a rule of linear layers, with LoRA and with ranges that are learned.

use super::base;
use super::config::FakeQuantizeConfig;
use super::dora::{dora_weight, row_norms};
use super::learned::{LearnedRange, initial_range};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::autograd::{Function, Tape, Var};
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::model::is_router;
use crate::quantization::Recipe;
use crate::rng::Rng;
use crate::tensor::{DType, Tensor};
use crate::training::{LinearRule, Parameters, Vars};

/// Low-rank adapters (T15): only they are trained, `W + B · A · alpha / rank` is what is fake-quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rows of A.
    pub rank: usize,
    /// How much the adapters count.
    pub alpha: f64,
    /// Where A's draws start.
    pub seed: u64,
    /// Trains the lengths of rows beside their directions (X26).
    pub dora: bool,
}

/// What is fake-quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct QatConfig {
    /// Activations of linear layers.
    pub activation: Option<FakeQuantizeConfig>,
    /// Weights of linear layers.
    pub weight: Option<FakeQuantizeConfig>,
    /// The embedding.
    pub embedding: Option<FakeQuantizeConfig>,
    /// Steps before fake quantization begins (T08).
    pub delay: usize,
    /// Learns the ranges of integer weights (T07).
    pub range_learning: bool,
    /// Trains adapters only.
    pub lora: Option<LoraConfig>,
    /// What the configuration is called in results.
    pub name: String,
}

impl QatConfig {
    /// The fake quantizers that belong to a configuration of `quantize` (T01, T02).
    pub fn of_base(base: &dyn Recipe) -> Result<QatConfig> {
        let (activation, weight) = base::infer(base)?;
        let name = format!("qat {}", base.name());
        Ok(QatConfig { name, ..QatConfig::new(activation, Some(weight)) })
    }

    /// Explicit fake quantizers.
    pub fn new(
        activation: Option<FakeQuantizeConfig>,
        weight: Option<FakeQuantizeConfig>,
    ) -> QatConfig {
        let words = [weight.map(|w| w.to_string()), activation.map(|a| format!("{a} activations"))];
        let words: Vec<String> = words.into_iter().flatten().collect();
        QatConfig {
            activation,
            weight,
            embedding: None,
            delay: 0,
            range_learning: false,
            lora: None,
            name: format!("qat {}", words.join(", ")),
        }
    }
}

/// Linear layers that see quantized numbers.
#[derive(Debug)]
pub struct QatRule {
    config: QatConfig,
    step: AtomicUsize,
    off: AtomicBool,
}

const SCALE: &str = "qat_scale";
const ZERO: &str = "qat_zero_point";
const LORA_A: &str = "lora_A.weight";
const LORA_B: &str = "lora_B.weight";
const MAGNITUDE: &str = "dora_magnitude";

/// What is no parameter of the plain architecture.
const OWN: [&str; 5] = [SCALE, ZERO, LORA_A, LORA_B, MAGNITUDE];

impl QatRule {
    /// The rule of `config`.
    pub fn new(config: QatConfig) -> Result<QatRule> {
        let learnable = matches!(config.weight, Some(FakeQuantizeConfig::Intx(_)));
        if config.range_learning && !learnable {
            return Err(Error::invalid("only ranges of integer weights are learned"));
        }
        if config.lora.is_some_and(|lora| lora.rank == 0) {
            return Err(Error::invalid("LoRA of rank 0; wanted 1 or more"));
        }
        Ok(QatRule { config, step: AtomicUsize::new(0), off: AtomicBool::new(false) })
    }

    /// The configuration.
    pub fn config(&self) -> &QatConfig {
        &self.config
    }

    /// Turns fake quantization on or off (T08): what is learned stays, and layers see plain numbers while it is off.
    pub fn enable(&self, on: bool) {
        self.off.store(!on, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        let on = !self.off.load(Ordering::Relaxed);
        on && self.step.load(Ordering::Relaxed) >= self.config.delay
    }

    /// The weight with its adapters.
    fn adapted(&self, tape: &Tape, fqn: &str, weight: &Var, own: &Vars) -> Result<Var> {
        let Some(lora) = self.config.lora else { return Ok(weight.clone()) };
        let (a, b) = (own.get(&format!("{fqn}.{LORA_A}"))?, own.get(&format!("{fqn}.{LORA_B}"))?);
        // (n, r) · (r, k)
        let product = tape.matmul(b, a)?;
        let scaled = tape.map(Function::Scale(factor(lora)), &product)?;
        let adapted = tape.add(weight, &scaled)?;
        match own.find(&format!("{fqn}.{MAGNITUDE}")) {
            Some(magnitude) => dora_weight(tape, &adapted, magnitude),
            None => Ok(adapted),
        }
    }

    fn weight(&self, tape: &Tape, fqn: &str, weight: &Var, own: &Vars) -> Result<Var> {
        let Some(config) = self.config.weight.filter(|_| self.is_on()) else {
            return Ok(weight.clone());
        };
        match (config, own.find(&format!("{fqn}.{SCALE}"))) {
            (FakeQuantizeConfig::Intx(config), Some(scale)) => {
                let zero_point = own.find(&format!("{fqn}.{ZERO}")).cloned();
                let range = LearnedRange { scale: scale.clone(), zero_point };
                config.fake_quantize_learned(tape, weight, &range)
            }
            _ => config.fake_quantize(tape, weight),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
fn factor(lora: LoraConfig) -> f64 {
    lora.alpha / lora.rank as f64
}

/// The modules of linear layers, by their weights' names.
fn linears(parameters: &Parameters) -> Vec<(String, Tensor)> {
    let is_linear = |(name, tensor): (&String, &Tensor)| {
        let module = name.strip_suffix(".weight")?;
        let module = Some(module).filter(|m| *m != "model.embed_tokens" && !is_router(m))?;
        (tensor.shape().len() == 2).then(|| (module.to_owned(), tensor.clone()))
    };
    parameters.iter().filter_map(is_linear).collect()
}

impl LinearRule for QatRule {
    fn name(&self) -> String {
        let mut name = self.config.name.clone();
        if self.config.range_learning {
            name += ", learned ranges";
        }
        if let Some(lora) = self.config.lora {
            let kind = if lora.dora { "DoRA" } else { "LoRA" };
            name += &format!(", {kind} of rank {}", lora.rank);
        }
        name
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, own: &Vars) -> Result<Var> {
        let weight = self.adapted(tape, fqn, weight, own)?;
        let weight = self.weight(tape, fqn, &weight, own)?;
        match self.config.activation.filter(|_| self.is_on()) {
            Some(config) => tape.linear(&config.fake_quantize(tape, x)?, &weight),
            None => tape.linear(x, &weight),
        }
    }

    fn embedding(&self, tape: &Tape, table: &Var, ids: &[u32]) -> Result<Var> {
        match self.config.embedding.filter(|_| self.is_on()) {
            Some(config) => tape.embedding(&config.fake_quantize(tape, table)?, ids),
            None => tape.embedding(table, ids),
        }
    }

    fn prepare(&self, parameters: &mut Parameters) -> Result<()> {
        if let Some(config) = self.config.embedding {
            let (_, width) = parameters.get("model.embed_tokens.weight")?.dims2()?;
            config.check(width).within("model.embed_tokens")?;
        }
        let mut rng = Rng::new(self.config.lora.map_or(0, |lora| lora.seed));
        for (module, weight) in linears(parameters) {
            let (n, k) = weight.dims2()?;
            for config in [self.config.weight, self.config.activation].into_iter().flatten() {
                config.check(k).within(&module)?;
            }
            if let (true, Some(FakeQuantizeConfig::Intx(config))) =
                (self.config.range_learning, self.config.weight)
            {
                let weight = weight.to_dtype(DType::F32)?;
                let range = initial_range(&Cpu::new(Some(1)), &config, &weight).within(&module)?;
                parameters.set(&format!("{module}.{SCALE}"), range.scale);
                if let Some(zero_point) = range.zero_point {
                    parameters.set(&format!("{module}.{ZERO}"), zero_point);
                }
            }
            if let Some(lora) = self.config.lora {
                // As LoRA's paper: A at random, B zero, so that training begins at the model itself.
                #[expect(clippy::cast_precision_loss, reason = "dimensions are far below 2²⁴")]
                let spread = 1.0 / (k as f32).sqrt();
                let a = (0..lora.rank * k).map(|_| rng.normal() * spread).collect::<Vec<f32>>();
                parameters.set(&format!("{module}.{LORA_A}"), Tensor::new(a, &[lora.rank, k])?);
                let b = Tensor::zeros(DType::F32, &[n, lora.rank])?;
                parameters.set(&format!("{module}.{LORA_B}"), b);
                if lora.dora {
                    let lengths = row_norms(&weight.to_dtype(DType::F32)?)?;
                    parameters.set(&format!("{module}.{MAGNITUDE}"), lengths);
                }
            }
        }
        Ok(())
    }

    fn is_frozen(&self, name: &str) -> bool {
        self.config.lora.is_some() && !OWN.iter().any(|suffix| name.ends_with(suffix))
    }

    fn begin_step(&self, step: usize) {
        self.step.store(step, Ordering::Relaxed);
    }

    fn finish(&self, parameters: &Parameters) -> Result<Parameters> {
        let mut plain = Parameters::default();
        for (name, tensor) in parameters.iter() {
            let own = OWN.iter().any(|suffix| name.ends_with(suffix));
            if !own {
                plain.set(name, tensor.clone());
            }
        }
        let tape = Tape::no_grad(&Cpu::new(None));
        let vars = parameters.on(&tape, &|_| true)?;
        for (module, weight) in linears(&plain) {
            let own = vars.below(&format!("{module}."));
            let trained = tape.constant(weight.to_dtype(DType::F32)?);
            let mut merged = self.adapted(&tape, &module, &trained, &own)?;
            if self.config.range_learning {
                // A learned range is not what `quantize` would choose: the numbers it stands for are what is kept.
                merged = self.weight(&tape, &module, &merged, &own)?;
            }
            let merged = merged.value().to_dtype(weight.dtype())?;
            plain.set(&format!("{module}.weight"), merged);
        }
        Ok(plain)
    }
}
