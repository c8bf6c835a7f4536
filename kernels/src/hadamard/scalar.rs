//! The scalar oracle, in f64: what the kernels are tested against, and what weights are rotated with.

use super::Plan;

/// `x · H / √n` of one row.
pub fn oracle(plan: &Plan, x: &mut [f64]) {
    for run in x.chunks_exact_mut(plan.run) {
        let mut half = 1;
        while half < run.len() {
            for i in (0..run.len()).filter(|i| i & half == 0) {
                (run[i], run[i + half]) = (run[i] + run[i + half], run[i] - run[i + half]);
            }
            half *= 2;
        }
    }
    mix(x, plan.run, |to, from| plan.signs[to * plan.stored + from]);
}

/// `x · Hᵀ / √n` of one row.
pub fn oracle_inverse(plan: &Plan, x: &mut [f64]) {
    oracle(&plan.transposed(), x);
}

fn mix(x: &mut [f64], run: usize, sign: impl Fn(usize, usize) -> f32) {
    let stored = x.len() / run;
    let root = (x.len() as f64).sqrt();
    let old = x.to_vec();
    for (i, value) in x.iter_mut().enumerate() {
        let (to, at) = (i / run, i % run);
        let sum: f64 =
            (0..stored).map(|from| f64::from(sign(to, from)) * old[from * run + at]).sum();
        *value = sum / root;
    }
}
