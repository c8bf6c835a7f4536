//! Supermask (X06): weights stay, and scores are trained that say which of them are used (Ramanujan et al. 2020, arXiv 1911.13299).
//!
//! A score for each `blocksize × blocksize` block, `kaiming_uniform(a = √5)` at first; a block is used while its score is at least the k-th smallest,
//! `k = 1 + round(level · (blocks − 1))`, as torchao's `SupermaskLinear` counts. The gradient of the mask is the score's (straight through). A level that
//! would leave no block is lowered to `1 − 1 / blocks`.

use crate::autograd::{Tape, Var};
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::rng::Rng;
use crate::tensor::{DType, Tensor};
use crate::training::{LinearRule, Parameters, Vars};

/// What the scores' parameters are called behind the layer's name.
const SCORES: &str = "scores";

/// Linear layers behind masks that are trained; the output layer stays as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SupermaskRule {
    /// The share of blocks that is not used.
    pub sparsity_level: f64,
    /// Rows and columns of a block.
    pub blocksize: usize,
    /// Leave the weights as they are and train scores alone.
    pub fixed_weight: bool,
    /// Where the scores' draws start.
    pub seed: u64,
}

/// The mask's threshold: torchao's `percentile`.
#[expect(clippy::cast_precision_loss, reason = "counts of blocks are far below 2⁵³")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to the count")]
pub fn threshold(scores: &[f32], level: f64) -> Option<f32> {
    let last = scores.len().checked_sub(1)?;
    let most = 1.0 - 1.0 / scores.len() as f64;
    let at = (level.min(most) * last as f64).round_ties_even() as usize;
    let mut sorted = scores.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.get(at.min(last)).copied()
}

impl SupermaskRule {
    fn check(&self) -> Result<()> {
        if self.blocksize == 0 || !(0.0..=1.0).contains(&self.sparsity_level) {
            return Err(Error::invalid(format!(
                "blocks of {} at level {}; wanted 1 or more, and a share from 0 to 1",
                self.blocksize, self.sparsity_level
            )));
        }
        Ok(())
    }

    /// 1 and 0 for each number of a weight `(N, K)`; the gradient of a block's numbers is summed into its score.
    pub fn mask(&self, tape: &Tape, scores: &Var, (n, k): (usize, usize)) -> Result<Var> {
        let b = self.blocksize;
        let (rows, across) = (n.div_ceil(b), k.div_ceil(b));
        let values = scores.value().as_slice::<f32>()?;
        if values.len() != rows * across {
            let got = values.len();
            return Err(Error::invalid(format!("{got} scores for {rows} × {across} blocks")));
        }
        let least = threshold(values, self.sparsity_level).unwrap_or(0.0);
        let block = move |at: usize| at / k / b * across + at % k / b;
        let mask: Vec<f32> =
            (0..n * k).map(|at| if values[block(at)] >= least { 1.0 } else { 0.0 }).collect();
        let shape = scores.shape().to_vec();
        tape.custom("supermask", &[scores], Tensor::new(mask, &[n, k])?, move |_, dy| {
            let mut sums = vec![0.0_f32; rows * across];
            for (at, dy) in dy.as_slice::<f32>()?.iter().enumerate() {
                sums[block(at)] += dy;
            }
            Ok(vec![Some(Tensor::new(sums, &shape)?)])
        })
    }
}

/// The weights of blocks, without the output layer.
fn linears(parameters: &Parameters) -> Vec<(String, Tensor)> {
    let layer = |(name, tensor): (&String, &Tensor)| {
        let module = name.strip_suffix(".weight")?;
        let is_linear = module.starts_with("model.layers.") && module.ends_with("_proj");
        is_linear.then(|| (module.to_owned(), tensor.clone()))
    };
    parameters.iter().filter_map(layer).collect()
}

impl LinearRule for SupermaskRule {
    fn name(&self) -> String {
        format!("supermask {} × {} at {}", self.blocksize, self.blocksize, self.sparsity_level)
    }

    fn linear(&self, tape: &Tape, fqn: &str, x: &Var, weight: &Var, own: &Vars) -> Result<Var> {
        let Some(scores) = own.find(&format!("{fqn}.{SCORES}")) else {
            return tape.linear(x, weight);
        };
        let shape = weight.value().dims2()?;
        let mask = self.mask(tape, scores, shape)?;
        tape.linear(x, &tape.mul(weight, &mask)?)
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "draws")]
    fn prepare(&self, parameters: &mut Parameters) -> Result<()> {
        self.check()?;
        let mut rng = Rng::new(self.seed);
        for (module, weight) in linears(parameters) {
            let (n, k) = weight.dims2()?;
            let shape = [n.div_ceil(self.blocksize), k.div_ceil(self.blocksize)];
            // kaiming_uniform with a = √5 is uniform within 1 / √fan_in.
            let bound = 1.0 / (shape[1] as f64).sqrt();
            let draw = |_| ((2.0 * rng.uniform() - 1.0) * bound) as f32;
            let scores: Vec<f32> = (0..shape[0] * shape[1]).map(draw).collect();
            parameters.set(&format!("{module}.{SCORES}"), Tensor::new(scores, &shape)?);
        }
        Ok(())
    }

    fn is_frozen(&self, name: &str) -> bool {
        self.fixed_weight && name.ends_with("_proj.weight")
    }

    fn finish(&self, parameters: &Parameters) -> Result<Parameters> {
        let tape = Tape::no_grad(&Cpu::new(None));
        let mut plain = Parameters::default();
        for (name, tensor) in parameters.iter().filter(|(name, _)| !name.ends_with(SCORES)) {
            plain.set(name, tensor.clone());
        }
        for (module, weight) in linears(&plain) {
            let scores = parameters.get(&format!("{module}.{SCORES}"))?.to_dtype(DType::F32)?;
            let scores = tape.constant(scores);
            let mask = self.mask(&tape, &scores, weight.dims2()?).within(&module)?;
            let trained = tape.constant(weight.to_dtype(DType::F32)?);
            let used = tape.mul(&trained, &mask)?.value().to_dtype(weight.dtype())?;
            plain.set(&format!("{module}.weight"), used);
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_torchaos_percentiles() {
        let scores = [0.5, -1.0, 2.0, 0.0, 1.0];
        assert_eq!(threshold(&scores, 0.0), Some(-1.0));
        assert_eq!(threshold(&scores, 0.5), Some(0.5));
        // 1 is lowered to 0.8, and 0.8 · 4 rounds to the fourth.
        assert_eq!(threshold(&scores, 1.0), Some(1.0));
        assert_eq!(threshold(&[], 0.5), None);
    }

    #[test]
    fn a_blocks_score_gets_the_sum_of_its_numbers_gradients() {
        let cpu = Cpu::new(Some(1));
        let tape = Tape::new(&cpu);
        let rule = SupermaskRule { sparsity_level: 0.5, blocksize: 2, fixed_weight: true, seed: 0 };
        let scores = Tensor::new(vec![0.1_f32, 0.4, 0.2, 0.3], &[2, 2]).expect("its shape");
        let scores = tape.leaf(scores);
        let mask = rule.mask(&tape, &scores, (3, 4)).expect("it fits");
        let wanted = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0];
        assert_eq!(mask.value().to_f32_vec(), wanted);
        let loss = tape.sum(&mask).expect("a sum");
        let mut found = tape.backward(&loss).expect("gradients");
        let ds = found.take(&scores).expect("a gradient").to_f32_vec();
        assert_eq!(ds, [4.0, 4.0, 2.0, 2.0]);
    }
}
