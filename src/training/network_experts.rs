//! Experts in training (R06–R09): each token goes through some of them, and every kind of linear layer is one of experts.
//!
//! Tokens are sorted by expert (`permute`), each expert's rows are one group of the grouped matmul, and results go back to their
//! tokens weighted by the router's probabilities (`unpermute`). A group is multiplied by the rule of linear layers with scales of its
//! own, as the grouped matmuls of float8 (rowwise, blockwise) and MXFP8 do: in the weight's gradient no scale crosses experts.
//! Groups are filled with rows of zeros up to what the rule wants (R07), which changes no scale and no sum.
//! The router itself stays in high precision. An expert without tokens gets a gradient of zeros, so that all ranks have the same ones.

use super::network::Layer;
use crate::autograd::Var;
use crate::error::{Context as _, Result};
use crate::kernels::activation::Activation;
use crate::model::{ExpertsConfig, SHARED_GATE, route};
use crate::tensor::Tensor;

/// The tokens of each expert, in the order of the tokens.
struct Groups {
    /// Rows of the input.
    rows: Vec<Vec<u32>>,
    /// Where each token's result lies among all results: one list a choice.
    places: Vec<Vec<u32>>,
    /// Where its probability lies among all probabilities.
    probabilities: Vec<Vec<u32>>,
}

#[expect(clippy::cast_possible_truncation, reason = "tokens times experts are far below 2³²")]
fn groups(logits: &[f32], config: &ExpertsConfig) -> Groups {
    let chosen = route(logits, config);
    let mut rows = vec![Vec::new(); config.count];
    for (row, all) in chosen.iter().enumerate() {
        all.iter().for_each(|(e, _)| rows[*e].push(row as u32));
    }
    let mut firsts = vec![0; config.count];
    for e in 1..config.count {
        firsts[e] = firsts[e - 1] + rows[e - 1].len() as u32;
    }
    let mut places = vec![Vec::with_capacity(chosen.len()); config.per_token];
    let mut probabilities = places.clone();
    for (row, all) in chosen.iter().enumerate() {
        for (choice, (e, _)) in all.iter().enumerate() {
            places[choice].push(firsts[*e]);
            firsts[*e] += 1;
            probabilities[choice].push((row * config.count + e) as u32);
        }
    }
    Groups { rows, places, probabilities }
}

impl Layer<'_> {
    /// What the experts make of `x (M, hidden)`.
    pub(super) fn experts(&self, config: &ExpertsConfig, x: &Var) -> Result<Var> {
        let tape = self.tape;
        let (m, hidden) = x.value().dims2()?;
        let router = self.get(&format!("{}.weight", config.router()))?;
        let logits = tape.linear(x, router).within(config.router())?;
        let groups = groups(logits.value().as_slice::<f32>()?, config);
        // (m · experts, 1)
        let probabilities = tape.reshape(&tape.softmax(&logits)?, &[m * config.count, 1])?;
        let mut results = Vec::with_capacity(config.count);
        for (e, rows) in groups.rows.iter().enumerate() {
            results.push(self.group(config, e, x, rows).within(format!("expert {e}"))?);
        }
        let parts: Vec<&Var> = results.iter().collect();
        // (m · per_token, hidden)
        let results = tape.concat_rows(&parts)?;
        let mut weights = Vec::with_capacity(config.per_token);
        for at in &groups.probabilities {
            weights.push(tape.embedding(&probabilities, at)?);
        }
        if config.norm_topk_prob {
            let mut sum = weights[0].clone();
            for weight in &weights[1..] {
                sum = tape.add(&sum, weight)?;
            }
            for weight in &mut weights {
                *weight = tape.div(weight, &sum)?;
            }
        }
        let mut y = tape.constant(Tensor::zeros(x.value().dtype(), &[m, hidden])?);
        for (places, weight) in groups.places.iter().zip(&weights) {
            let own = tape.embedding(&results, places)?;
            y = tape.add(&y, &tape.scale_rows(&own, weight)?)?;
        }
        match config.shared_intermediate_size {
            Some(_) => tape.add(&y, &self.shared(config, x)?),
            None => Ok(y),
        }
    }

    /// Expert `e` on its rows of `x`.
    fn group(&self, config: &ExpertsConfig, e: usize, x: &Var, rows: &[u32]) -> Result<Var> {
        let tape = self.tape;
        let (_, hidden) = x.value().dims2()?;
        let own = tape.embedding(x, rows)?;
        let multiple = self.token_multiple().max(1);
        let filled = rows.len().max(1).next_multiple_of(multiple);
        let own = if filled > rows.len() {
            let zeros = Tensor::zeros(x.value().dtype(), &[filled - rows.len(), hidden])?;
            tape.concat_rows(&[&own, &tape.constant(zeros)])?
        } else {
            own
        };
        let y = self.gated(config.expert(e), &own)?;
        if filled == rows.len() {
            return Ok(y);
        }
        let kept = (0..).take(rows.len()).collect::<Vec<u32>>();
        tape.embedding(&y, &kept)
    }

    /// `down(silu(gate(x)) · up(x))`
    fn gated(&self, [gate, up, down]: [String; 3], x: &Var) -> Result<Var> {
        let (gate, up) = (self.linear(&gate, x)?, self.linear(&up, x)?);
        self.linear(&down, &self.tape.activate_mul(Activation::Silu, &gate, &up)?)
    }

    /// Qwen2-MoE's expert of all tokens, times the sigmoid of its gate.
    fn shared(&self, config: &ExpertsConfig, x: &Var) -> Result<Var> {
        let tape = self.tape;
        let y = self.gated(config.shared(), x).within("mlp.shared_expert")?;
        let open = tape.linear(x, self.get(&format!("{SHARED_GATE}.weight"))?)?;
        // The sigmoid of a is the first of the softmax of (a, 0).
        let (m, _) = open.value().dims2()?;
        let ones = tape.constant(Tensor::new(vec![1.0_f32, 0.0], &[2, 1])?);
        let both = tape.softmax(&tape.linear(&open, &ones)?)?;
        let at: Vec<u32> = (0..).step_by(2).take(m).collect();
        let share = tape.embedding(&tape.reshape(&both, &[2 * m, 1])?, &at)?;
        tape.scale_rows(&y, &share)
    }
}
