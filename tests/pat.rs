//! PAT (P19) against torchao's `PruneOptimizer` around SGD, step by step: tests/pat/torchao_pat.py made the vectors.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use aolab::Tensor;
use aolab::io::safetensors::SafetensorsFile;
use aolab::training::pat::{Grouper, PatConfig, PatRule, Prox};
use aolab::training::{LinearRule, Parameters, Schedule, TrainConfig};

const LR: f32 = 0.125;
const NAMES: [&str; 2] = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"];

fn config(word: &str) -> PatConfig {
    let (prox, group, reg_lambda) = match word {
        "lasso" => ("lasso", Grouper::Elem, 0.5),
        "group-lasso.dim0" => ("group-lasso", Grouper::Dim0, 1.0),
        "group-lasso.dim1" => ("group-lasso", Grouper::Dim1, 1.0),
        "nuclear-norm" => ("nuclear-norm", Grouper::Svd, 2.0),
        "min-sparsity" => ("min-sparsity:0.5", Grouper::Dim1, 0.0),
        "min-rank" => ("min-rank:0.5", Grouper::Svd, 0.0),
        "nm-sparse" => ("nm-sparse:2", Grouper::KElement(4), 0.0),
        "global-min-sparsity" => ("global-min-sparsity:0.5", Grouper::Dim0, 0.0),
        other => panic!("{other}"),
    };
    let prox: Prox = prox.parse().expect("known");
    PatConfig {
        reg_lambda,
        warmup_steps: 2,
        healing_start_step: Some(6),
        min_sparsity_schedule: word.starts_with("min") || word.starts_with("global"),
        prox_freq: if word == "nm-sparse" { 2 } else { 1 },
        ..PatConfig::new(prox, group)
    }
}

fn seen(rule: &PatRule, parameters: &Parameters, name: &str) -> Vec<f32> {
    let plain = rule.finish(parameters).expect("plain");
    plain.get(&format!("{name}.weight")).expect("it is there").to_f32_vec()
}

#[test]
fn every_map_steps_as_torchaos_optimizer_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pat/torchao.safetensors");
    let file = SafetensorsFile::open(path).expect("vectors");
    let tensor = |name: &str| file.tensor(name).expect(name);
    for word in [
        "lasso",
        "group-lasso.dim0",
        "group-lasso.dim1",
        "nuclear-norm",
        "min-sparsity",
        "min-rank",
        "nm-sparse",
        "global-min-sparsity",
    ] {
        let run = TrainConfig {
            lr: f64::from(LR),
            warmup: 0,
            schedule: Schedule::Constant,
            ..TrainConfig::default()
        };
        let config = config(word);
        let rule = PatRule::new(config, run).expect("sound");
        let mut parameters = Parameters::default();
        for (i, name) in NAMES.iter().enumerate() {
            parameters.set(&format!("{name}.weight"), tensor(&format!("start.{i}")));
        }
        rule.prepare(&mut parameters).expect("it fits");
        for step in 0..8 {
            rule.begin_step(step);
            for (i, name) in NAMES.iter().enumerate() {
                let weight = parameters.get(&format!("{name}.weight")).expect("there").clone();
                let gradients = tensor(&format!("gradients.{i}")).to_f32_vec();
                let own = &gradients[step * weight.numel()..][..weight.numel()];
                let before = seen(&rule, &parameters, name);
                let masked = step >= 6 && config.group != Grouper::Svd;
                let moved = weight
                    .to_f32_vec()
                    .into_iter()
                    .zip(own)
                    .zip(&before)
                    .map(|((w, g), s)| if masked && *s == 0.0 { w } else { w - LR * g });
                let moved = Tensor::new(moved.collect::<Vec<f32>>(), weight.shape());
                parameters.set(&format!("{name}.weight"), moved.expect("its shape"));
            }
            rule.end_step(step, &mut parameters).expect("pruned");
            for (i, name) in NAMES.iter().enumerate() {
                let wanted = tensor(&format!("{word}.{i}")).to_f32_vec();
                let got = seen(&rule, &parameters, name);
                let wanted = &wanted[step * got.len()..][..got.len()];
                // Singular vectors and lengths are sums in another order; everything else is exact.
                let is_svd = config.group == Grouper::Svd;
                let bound = if is_svd { 2e-5 } else { 2e-6 };
                for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                    let same = is_svd || (*got == 0.0) == (*wanted == 0.0);
                    let error = (got - wanted).abs();
                    assert!(
                        same && error <= bound,
                        "{word}, step {step}, {name}[{at}]: {got} {wanted}"
                    );
                }
            }
        }
    }
}
