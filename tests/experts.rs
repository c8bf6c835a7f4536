//! Models with experts (Mixtral, Qwen2-MoE, Qwen3-MoE): read from their configurations, run, and trained in every precision.

#![allow(clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]

use std::sync::Arc;

use aolab::autograd::{Tape, Var};
use aolab::kernels::Cpu;
use aolab::model::{DenseWeight, Model, ModelConfig, NoObserver, ParameterSource, Weight, route};
use aolab::rng::Rng;
use aolab::training::float8::{Recipe, rule};
use aolab::training::int8::Int8MixedRule;
use aolab::training::mx::{MXRule, MXTrainingConfig};
use aolab::training::qat::{QatConfig, QatRule};
use aolab::training::{
    Batch, Corpus, ForwardOptions, LinearRule, Network, Parameters, Plain, RunOptions, TrainConfig,
    Trainer, Vars,
};
use aolab::{DType, Tensor};
use serde_json::{Value as Json, json};

const VOCAB: usize = 96;
const HIDDEN: usize = 64;
const FFN: usize = 96;

fn config(model_type: &str, more: &Json) -> ModelConfig {
    let mut json = json!({
        "model_type": model_type, "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    });
    let fields = json.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    ModelConfig::from_json(&json).expect("a configuration")
}

fn mixtral() -> ModelConfig {
    config("mixtral", &json!({"num_local_experts": 4, "num_experts_per_tok": 2}))
}

fn qwen2() -> ModelConfig {
    config(
        "qwen2_moe",
        &json!({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": FFN,
            "shared_expert_intermediate_size": FFN, "use_sliding_window": false}),
    )
}

fn qwen3() -> ModelConfig {
    config(
        "qwen3_moe",
        &json!({"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": true,
            "mlp_only_layers": [0]}),
    )
}

/// Random parameters, each its own; experts and the dense layer are the same where `alike` says so.
struct Source {
    seed: u64,
    alike: bool,
}

impl Source {
    fn draw(&self, name: &str, len: usize, spread: f32) -> Vec<f32> {
        let mut name = name.to_owned();
        if self.alike {
            for (from, to) in [
                ("block_sparse_moe.experts", "mlp"),
                ("mlp.experts", "mlp"),
                ("shared_expert.", ""),
            ] {
                name = name.replace(from, to);
            }
            for (from, to) in [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")] {
                name = name.replace(from, to);
            }
            for e in 0..8 {
                name = name.replace(&format!("mlp.{e}."), "mlp.");
            }
        }
        let hash =
            name.bytes().fold(self.seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let mut rng = Rng::new(hash);
        (0..len).map(|_| rng.normal() * spread).collect()
    }
}

impl ParameterSource for Source {
    fn weight(&self, module: &str, (n, k): (usize, usize)) -> aolab::Result<Arc<dyn Weight>> {
        let is_gate = module.ends_with("mlp.gate") || module.ends_with("shared_expert_gate");
        let values = if self.alike && is_gate {
            vec![0.0; n * k]
        } else {
            self.draw(module, n * k, 1.0 / (k as f32).sqrt())
        };
        DenseWeight::shared(Tensor::new(values, &[n, k])?)
    }

    fn vector(&self, name: &str, len: usize) -> aolab::Result<Tensor> {
        let values = self.draw(name, len, 0.1).into_iter();
        let one = if name.ends_with("bias") { 0.0 } else { 1.0 };
        Tensor::new(values.map(|x| one + x).collect::<Vec<f32>>(), &[len])
    }

    fn has(&self, _name: &str) -> bool {
        true
    }
}

fn model(config: ModelConfig, alike: bool) -> Model {
    Model::build("experts", config, &Source { seed: 7, alike }, None).expect("a model")
}

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut context = model.context(ids.len());
    let cpu = Cpu::new(Some(2));
    let hidden = model.forward(&cpu, ids, &mut context, &mut NoObserver).expect("hidden states");
    model.logits(&cpu, &hidden).expect("logits")
}

fn ids(count: usize) -> Vec<u32> {
    let mut rng = Rng::new(3);
    (0..count).map(|_| u32::try_from(rng.next_u64() % VOCAB as u64).expect("small")).collect()
}

fn batch(count: usize) -> Batch {
    let inputs = ids(count);
    let targets = inputs.iter().skip(1).copied().chain([0]).collect();
    Batch { batch: 2, inputs, targets }
}

#[test]
fn routing_takes_the_most_probable_and_the_first_of_equals() {
    let config = mixtral().experts.expect("experts");
    let ln = |p: f32| p.ln();
    let chosen = route(&[ln(0.1), ln(0.4), ln(0.3), ln(0.2), 1.0, 1.0, 1.0, 1.0], &config);
    for (got, wanted) in chosen[0].iter().zip([(1, 4.0 / 7.0), (2, 3.0 / 7.0)]) {
        assert!(got.0 == wanted.0 && (got.1 - wanted.1).abs() < 1e-6, "{chosen:?}");
    }
    assert_eq!(chosen[1].iter().map(|(e, _)| *e).collect::<Vec<_>>(), [0, 1]);
    let config = qwen2().experts.expect("experts");
    let chosen = route(&[ln(0.1), ln(0.4), ln(0.3), ln(0.2)], &config);
    assert!((chosen[0][0].1 - 0.4).abs() < 1e-6, "not divided by the sum");
}

#[test]
fn configurations_are_read_and_nonsense_is_refused() {
    let names = |config: ModelConfig| -> Vec<String> {
        model(config, false).linears().into_iter().map(|(name, _)| name).collect()
    };
    let found = names(mixtral());
    assert!(
        found.contains(&"model.layers.1.block_sparse_moe.experts.3.w2".to_owned()),
        "{found:?}"
    );
    assert!(found.contains(&"model.layers.0.block_sparse_moe.gate".to_owned()));
    let found = names(qwen2());
    for name in [
        "mlp.experts.0.gate_proj",
        "mlp.shared_expert.up_proj",
        "mlp.shared_expert_gate",
        "mlp.gate",
    ] {
        assert!(found.contains(&format!("model.layers.0.{name}")), "{name}");
    }
    let found = names(qwen3());
    assert!(found.contains(&"model.layers.0.mlp.down_proj".to_owned()), "a dense layer");
    assert!(found.contains(&"model.layers.1.mlp.experts.4.down_proj".to_owned()));
    for wrong in [
        json!({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3}),
        json!({"model_type": "mixtral", "num_experts_per_tok": 1}),
        json!({"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 0, "moe_intermediate_size": 8}),
        json!({"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
            "mlp_only_layers": 3}),
    ] {
        let mut json = mixtral().json;
        json.retain(|key, _| !key.contains("experts"));
        json.extend(wrong.as_object().expect("an object").clone());
        assert!(ModelConfig::from_json(&Json::Object(json)).is_err(), "{wrong}");
    }
}

#[test]
fn equal_experts_are_one_dense_layer() {
    let ids = ids(24);
    let close = |a: &[f32], b: &[f32], what: &str| {
        let most = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most < 1e-4, "{what}: {most}");
    };
    let dense = logits(&model(config("llama", &json!({})), true), &ids);
    close(&logits(&model(mixtral(), true), &ids), &dense, "mixtral");
    // Two of four, each a quarter, and half of the shared one: one.
    let dense = logits(&model(config("qwen2", &json!({})), true), &ids);
    close(&logits(&model(qwen2(), true), &ids), &dense, "qwen2_moe");
}

#[test]
fn training_computes_what_the_model_does() {
    for config in [mixtral(), qwen2(), qwen3()] {
        let name = config.model_type.clone();
        let model = model(config, false);
        let cpu = Cpu::new(Some(2));
        let tape = Tape::no_grad(&cpu);
        let parameters = Parameters::of(&model, DType::F32).expect("parameters");
        let vars = parameters.on(&tape, &|_| true).expect("variables");
        let network = Network::new(Arc::clone(&model.config));
        let inputs = ids(40);
        let one = Batch { batch: 1, targets: inputs.clone(), inputs };
        let options = ForwardOptions::new(Arc::new(Plain));
        let found =
            network.logits(&tape, &vars, &one, &options).expect("logits").value().to_f32_vec();
        let wanted = logits(&model, &one.inputs);
        let most = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most < 1e-4, "{name}: {most}");
    }
}

/// The gradient's own direction: the loss must rise by |g|² along it.
#[test]
fn gradients_are_central_differences() {
    for config in [mixtral(), qwen2(), qwen3()] {
        let name = config.model_type.clone();
        let model = model(config, false);
        let network = Network::new(Arc::clone(&model.config));
        let cpu = Cpu::new(Some(2));
        let batch = batch(32);
        let options = ForwardOptions::new(Arc::new(Plain));
        let parameters = Parameters::of(&model, DType::F32).expect("parameters");
        let tape = Tape::new(&cpu);
        let vars = parameters.on(&tape, &|_| false).expect("variables");
        let loss = network.loss(&tape, &vars, &batch, &options).expect("a loss");
        let mut found = tape.backward(&loss).expect("gradients");
        for part in ["experts.1.", "gate.weight", "shared_expert_gate", "experts"] {
            let moved = |h: f64, gradients: &[(String, Vec<f32>)]| -> f64 {
                let tape = Tape::no_grad(&cpu);
                let mut moved = parameters.clone();
                for (name, g) in gradients {
                    let mut values = moved.get(name).expect("known").to_f32_vec();
                    values.iter_mut().zip(g).for_each(|(w, g)| *w += (h * f64::from(*g)) as f32);
                    let shape = moved.get(name).expect("known").shape().to_vec();
                    moved.set(name, Tensor::new(values, &shape).expect("its shape"));
                }
                let vars = moved.on(&tape, &|_| true).expect("variables");
                let loss = network.loss(&tape, &vars, &batch, &options).expect("a loss");
                f64::from(loss.value().to_f32_vec()[0])
            };
            let own: Vec<(String, Vec<f32>)> = vars
                .iter()
                .filter(|(name, _)| name.contains(part))
                .filter_map(|(name, var)| Some((name.clone(), found.of(var)?.to_f32_vec())))
                .collect();
            let square: f64 = own.iter().flat_map(|(_, g)| g).map(|g| f64::from(*g).powi(2)).sum();
            if own.is_empty() {
                assert!(part.contains("shared"), "{name}: no gradient of {part}");
                continue;
            }
            // A step that moves the loss by a thousandth or so: few tokens change their experts.
            let h = 0.001 / square;
            let slope = (moved(h, &own) - moved(-h, &own)) / (2.0 * h);
            assert!((slope / square - 1.0).abs() < 0.03, "{name} {part}: {slope} {square}");
        }
        found.take(vars.get("model.norm.weight").expect("it is there"));
    }
}

/// Plain layers that want their tokens in sixteens.
#[derive(Debug)]
struct Sixteens;

impl LinearRule for Sixteens {
    fn name(&self) -> String {
        "sixteens".to_owned()
    }

    fn linear(
        &self,
        tape: &Tape,
        fqn: &str,
        x: &Var,
        weight: &Var,
        _own: &Vars,
    ) -> aolab::Result<Var> {
        let rows = x.value().numel() / x.shape().last().copied().unwrap_or(1);
        assert!(!fqn.contains("experts") || rows.is_multiple_of(16), "{fqn}: {rows} rows");
        tape.linear(x, weight)
    }

    fn token_multiple(&self) -> usize {
        16
    }
}

#[test]
fn groups_that_are_filled_up_give_the_same_numbers() {
    let model = model(mixtral(), false);
    let network = Network::new(Arc::clone(&model.config));
    let parameters = Parameters::of(&model, DType::F32).expect("parameters");
    let run = |rule: Arc<dyn LinearRule>| {
        let tape = Tape::new(&Cpu::new(Some(2)));
        let vars = parameters.on(&tape, &|_| false).expect("variables");
        let options = ForwardOptions::new(rule);
        let loss = network.loss(&tape, &vars, &batch(26), &options).expect("a loss");
        let mut found = tape.backward(&loss).expect("gradients");
        let all = vars.iter().map(|(_, var)| found.take(var).map(|g| g.to_f32_vec()));
        all.collect::<Option<Vec<_>>>().expect("every parameter has a gradient")
    };
    for (a, b) in
        run(Arc::new(Plain)).iter().flatten().zip(run(Arc::new(Sixteens)).iter().flatten())
    {
        assert!((a - b).abs() <= 1e-6 + 1e-4 * a.abs(), "{a} {b}");
    }
}

#[test]
fn experts_are_trained_in_every_precision() {
    let start = model(mixtral(), false);
    // A text that can be learned: each token says the next.
    let text: Vec<u32> = (0..4000).map(|i| 3 + (i * 7) % 31).collect();
    let qat = QatConfig::of_word("8da4w", Some(32)).expect("known");
    let rules: [Arc<dyn LinearRule>; 7] = [
        Arc::new(Plain),
        rule(Recipe::Tensorwise),
        rule(Recipe::Rowwise),
        rule(Recipe::Blockwise),
        Arc::new(MXRule { config: MXTrainingConfig::default() }),
        Arc::new(Int8MixedRule::default()),
        Arc::new(QatRule::new(qat).expect("sound")),
    ];
    for rule in rules {
        let config = TrainConfig {
            steps: 25,
            batch: 4,
            sequence: 32,
            lr: 5e-3,
            warmup: 2,
            ..TrainConfig::default()
        };
        let corpus = Corpus::of_ids(text.clone(), Some(1));
        let mut trainer = Trainer::new(&start, corpus, config, rule).expect("a run");
        let cpu = Cpu::new(Some(2));
        trainer.run(&cpu, &RunOptions::default(), &mut |_, _| true).expect("runs");
        let losses = trainer.losses().expect("a table").column_f64("loss").expect("losses");
        println!("{}: {:.3} → {:.3}", trainer.rule().name(), losses[0], losses[24]);
        assert!(losses[24] < 0.6 * losses[0], "{}: {losses:?}", trainer.rule().name());
        let trained = trainer.model().expect("a model");
        assert_eq!(trained.parameters(), start.parameters());
        assert!(logits(&trained, &[1, 3, 10]).iter().all(|x| x.is_finite()));
    }
}
