//! ParetoQ (X24): weights of 1 to 4 bits whose row scales α are learned with them.
//!
//! | bits | weight that is seen | α begins as |
//! |---|---|---|
//! | 1 | `α · sign(w)` | mean \|w\| |
//! | 0 (ternary), 2 | `α · (round(clamp(w / α, ±0.99) · n − s) + s) / n` (stretched elastic; n = 1.5, s = 0 or n = 2, s = ½) | max \|w\| |
//! | 3, 4 | `α · clamp(round(w / α), −2ᵇ⁻¹, 2ᵇ⁻¹ − 1)` (learned step size) | max \|w\| / (2ᵇ⁻¹ − 1) |
//!
//! The gradient passes straight to weights within the range; α's is scaled by 1 / √(numbers · largest code).
//! Source: Liu et al. 2025, ParetoQ (arXiv 2502.02631); Esser et al. 2019, LSQ (arXiv 1902.08153).

use crate::autograd::{Tape, Var};
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::model::is_router;
use crate::quantization::primitives::torch_mean;
use crate::tensor::{DType, Tensor};
use crate::training::{LinearRule, Parameters, Vars};

/// The least α.
const EPS: f32 = 1e-5;

/// Where the stretched quantizer clips.
const CLIP: f32 = 0.99;

/// A learned quantizer of a weight's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParetoQ {
    bits: u32,
}

impl ParetoQ {
    /// Of 1 to 4 bits; 0 is ternary.
    pub fn new(bits: u32) -> Result<ParetoQ> {
        if bits > 4 {
            return Err(Error::invalid(format!(
                "ParetoQ with {bits} bits; wanted 0 (ternary), 1, 2, 3 or 4"
            )));
        }
        Ok(ParetoQ { bits })
    }

    /// The α `(N, 1)` that training begins with.
    pub fn initial_clip_val(&self, weight: &Tensor) -> Result<Tensor> {
        let (n, k) = weight.dims2()?;
        let row = |row: &[f32]| {
            let largest = row.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
            match self.bits {
                1 => torch_mean(&row.iter().map(|w| w.abs()).collect::<Vec<f32>>()),
                0 | 2 => largest,
                _ => largest / self.largest_code(),
            }
        };
        let alphas =
            weight.as_slice::<f32>()?.chunks_exact(k.max(1)).map(row).collect::<Vec<f32>>();
        Tensor::new(alphas, &[n, 1])
    }

    fn largest_code(self) -> f32 {
        match self.bits {
            3 => 3.0,
            4 => 7.0,
            _ => 1.0,
        }
    }

    /// The weight that is seen over α, and what α's gradient takes of dy; w / α is in range where the third is true.
    fn at(self, w: f32, alpha: f32) -> (f32, f32, bool) {
        let ratio = w / alpha;
        let (q, low, high) = match self.bits {
            1 => {
                let sign = if w == 0.0 { 0.0 } else { w.signum() };
                return (sign, sign, ratio.abs() <= 1.0 || ratio.is_nan());
            }
            0 | 2 => {
                let (levels, shift) = if self.bits == 0 { (1.5, 0.0) } else { (2.0, 0.5) };
                let code = (ratio.clamp(-CLIP, CLIP) * levels - shift).round_ties_even();
                let end = (levels - shift) / levels;
                let q = (code + shift) / levels;
                return (q, slope(ratio, q, CLIP, (-end, end)), ratio.abs() <= CLIP);
            }
            3 => (ratio.round_ties_even(), -4.0, 3.0),
            _ => (ratio.round_ties_even(), -8.0, 7.0),
        };
        let inside = ratio >= low && ratio <= high;
        let along = match () {
            () if ratio < low => low,
            () if ratio > high => high,
            () => q - ratio,
        };
        (q.clamp(low, high), along, inside)
    }

    /// The weight `(N, K)` as it is seen with `clip_val (N, 1)`.
    pub fn quantize(self, tape: &Tape, weight: &Var, clip_val: &Var) -> Result<Var> {
        let (n, k) = weight.value().dims2()?;
        if clip_val.shape() != [n, 1] || k == 0 {
            return Err(Error::invalid(format!(
                "ParetoQ: a weight ({n}, {k}) with {:?} scales; wanted ({n}, 1)",
                clip_val.shape()
            )));
        }
        let (ws, alphas) = (weight.value().clone(), clip_val.value().clone());
        let mut seen = ws.as_slice::<f32>()?.to_vec();
        on_rows(tape.cpu(), k, &mut seen, alphas.as_slice()?, |_, alpha, row| {
            row.iter_mut().for_each(|w| *w = self.at(*w, alpha).0 * alpha);
        });
        let seen = Tensor::new(seen, &[n, k])?;
        #[expect(clippy::cast_precision_loss, reason = "weights are far smaller than 2⁵³")]
        let share = 1.0 / ((n * k) as f64 * f64::from(self.largest_code())).sqrt();
        tape.custom("paretoq", &[weight, clip_val], seen, move |up, dy| {
            let (w, alphas) = (ws.as_slice::<f32>()?, alphas.as_slice::<f32>()?);
            let dalpha = self.clip_val_gradient(w, alphas, dy.as_slice()?, share);
            let dw = dy.changed::<f32>(|dw| {
                on_rows(up.cpu, k, dw, alphas, |first, alpha, row| {
                    let outside = |w: &f32| !self.at(*w, alpha).2;
                    let pairs = row.iter_mut().zip(&w[first..]);
                    // torch multiplies with 0, which keeps a sign.
                    pairs.filter(|(_, w)| outside(w)).for_each(|(dw, _)| *dw *= 0.0);
                });
            })?;
            Ok(vec![Some(dw), Some(Tensor::new(dalpha, &[n, 1])?)])
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "summed in f64, rounded to f32")]
    fn clip_val_gradient(self, w: &[f32], alphas: &[f32], dy: &[f32], share: f64) -> Vec<f32> {
        let k = w.len() / alphas.len();
        let rows = w.chunks_exact(k).zip(dy.chunks_exact(k)).zip(alphas);
        rows.map(|((w, dy), alpha)| {
            let alpha = at_least_eps(*alpha);
            let terms = w.iter().zip(dy).map(|(w, dy)| f64::from(self.at(*w, alpha).1 * dy));
            (terms.sum::<f64>() * share) as f32
        })
        .collect()
    }
}

/// What α's gradient takes of dy where the range ends at ± `clip`.
fn slope(ratio: f32, q: f32, clip: f32, (low, high): (f32, f32)) -> f32 {
    if ratio < -clip {
        low
    } else if ratio > clip {
        high
    } else {
        q - ratio
    }
}

fn at_least_eps(alpha: f32) -> f32 {
    if alpha > EPS { alpha } else { EPS }
}

/// Runs `f(first number, α, row)` on every row, some of them on each thread.
fn on_rows(
    cpu: &Cpu,
    k: usize,
    values: &mut [f32],
    alphas: &[f32],
    f: impl Fn(usize, f32, &mut [f32]) + Sync,
) {
    let rows = cpu.threads().share(alphas.len(), 1);
    cpu.threads().chunks_mut(values, rows * k, |part, values| {
        for (i, row) in values.chunks_mut(k).enumerate() {
            let at = part * rows + i;
            f(at * k, at_least_eps(alphas[at]), row);
        }
    });
}

const CLIP_VAL: &str = "weight_clip_val";

/// Linear layers that see ParetoQ's weights; the output layer as it is.
#[derive(Clone, Copy, Debug)]
pub struct ParetoQRule {
    quantizer: ParetoQ,
}

impl ParetoQRule {
    /// The rule of a quantizer.
    pub fn new(quantizer: ParetoQ) -> ParetoQRule {
        ParetoQRule { quantizer }
    }
}

impl LinearRule for ParetoQRule {
    fn name(&self) -> String {
        match self.quantizer.bits {
            0 => "paretoq ternary".to_owned(),
            bits => format!("paretoq {bits} bits"),
        }
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, own: &Vars) -> Result<Var> {
        match own.find(&format!("{fqn}.{CLIP_VAL}")) {
            Some(clip_val) => tape.linear(x, &self.quantizer.quantize(tape, weight, clip_val)?),
            None => tape.linear(x, weight),
        }
    }

    fn prepare(&self, parameters: &mut Parameters) -> Result<()> {
        for (module, weight) in chosen(parameters) {
            let weight = weight.to_dtype(DType::F32)?;
            let clip_val = self.quantizer.initial_clip_val(&weight).within(&module)?;
            parameters.set(&format!("{module}.{CLIP_VAL}"), clip_val);
        }
        Ok(())
    }

    fn finish(&self, parameters: &Parameters) -> Result<Parameters> {
        let tape = Tape::no_grad(&Cpu::new(None));
        let mut plain = Parameters::default();
        for (name, tensor) in parameters.iter().filter(|(name, _)| !name.ends_with(CLIP_VAL)) {
            plain.set(name, tensor.clone());
        }
        for (module, weight) in chosen(&plain) {
            let clip_val = tape.constant(parameters.get(&format!("{module}.{CLIP_VAL}"))?.clone());
            let latent = tape.constant(weight.to_dtype(DType::F32)?);
            let seen = self.quantizer.quantize(&tape, &latent, &clip_val).within(&module)?;
            plain.set(&format!("{module}.weight"), seen.value().to_dtype(weight.dtype())?);
        }
        Ok(plain)
    }
}

/// The modules whose weights are quantized.
fn chosen(parameters: &Parameters) -> Vec<(String, Tensor)> {
    let module = |(name, tensor): (&String, &Tensor)| {
        let module = name.strip_suffix(".weight")?;
        let left_alone = ["model.embed_tokens", "lm_head"].contains(&module) || is_router(module);
        (tensor.shape().len() == 2 && !left_alone).then(|| (module.to_owned(), tensor.clone()))
    };
    parameters.iter().filter_map(module).collect()
}
