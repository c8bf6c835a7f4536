//! The loop: the same bytes whatever the threads and interruptions, and clear words where something is wrong.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use aolab::data::texts;
use aolab::kernels::Cpu;
use aolab::model::Model;
use aolab::training::nvfp4::{NVFP4Rule, NVFP4TrainingConfig};
use aolab::training::optim::{AdamConfig, GaloreConfig, OptimizerConfig, StateBits};
use aolab::training::qat::{LoraConfig, QatConfig, QatRule};
use aolab::training::{
    Corpus, Ended, LinearRule, Parameters, Plain, RunOptions, TrainConfig, Trainer,
};
use aolab::{DType, Tensor};

fn tiny() -> Model {
    aolab::load("tiny").expect("the built-in model")
}

fn corpus(model: &Model) -> Corpus {
    let text = texts::SOTU_TRAIN[..40_000].to_owned();
    let tokenizer = model.tokenizer().expect("a tokenizer");
    Corpus::of_texts(tokenizer, model.config.bos_token_id, &[text]).expect("tokens")
}

fn config() -> TrainConfig {
    TrainConfig { steps: 4, batch: 2, sequence: 32, warmup: 1, ..TrainConfig::default() }
}

fn trainer(model: &Model, config: TrainConfig, rule: Arc<dyn LinearRule>) -> Trainer {
    Trainer::new(model, corpus(model), config, rule).expect("a run")
}

fn rule(word: &str, lora: bool, range_learning: bool) -> Arc<dyn LinearRule> {
    let lora = lora.then_some(LoraConfig { rank: 4, alpha: 8.0, seed: 1, dora: false });
    let config = QatConfig::of_word(word, Some(32)).expect("known");
    Arc::new(QatRule::new(QatConfig { lora, range_learning, ..config }).expect("sound"))
}

fn run(trainer: &mut Trainer, threads: usize, options: &RunOptions, until: usize) -> Ended {
    let cpu = Cpu::new(Some(threads));
    let mut go_on = |curve: &aolab::training::Curve, _| curve.points.len() < until;
    trainer.run(&cpu, options, &mut go_on).expect("runs")
}

fn bytes(trainer: &Trainer) -> Vec<(String, Vec<u8>)> {
    let copy = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.bytes().to_vec());
    trainer.parameters().iter().map(copy).collect()
}

#[test]
fn an_interrupted_run_gives_the_bytes_of_an_uninterrupted_one_on_any_number_of_threads() {
    let model = tiny();
    let bf16 =
        AdamConfig { state: StateBits::Int8, bf16_stochastic_round: true, ..AdamConfig::default() };
    let sgd = OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.0 };
    let galore = GaloreConfig { rank: 4, update_proj_gap: 2, ..GaloreConfig::default() };
    let galore = AdamConfig { galore: Some(galore), ..AdamConfig::default() };
    let dora = LoraConfig { rank: 2, alpha: 4.0, seed: 1, dora: true };
    let dora = QatConfig { lora: Some(dora), ..QatConfig::new(None, None) };
    let cases: [(TrainConfig, Arc<dyn LinearRule>); 6] = [
        (TrainConfig { dropout: 0.1, accumulate: 2, ..config() }, Arc::new(Plain)),
        (
            TrainConfig {
                optimizer: OptimizerConfig::Adam(bf16),
                parameters: DType::BF16,
                checkpoint_blocks: true,
                ..config()
            },
            rule("8da4w", false, false),
        ),
        (TrainConfig { optimizer: sgd, ..config() }, rule("int3", false, true)),
        (TrainConfig { distill: 0.5, ..config() }, rule("int3", false, false)),
        (
            TrainConfig { optimizer: OptimizerConfig::Adam(galore), ..config() },
            Arc::new(QatRule::new(dora).expect("sound")),
        ),
        (config(), Arc::new(NVFP4Rule::new(NVFP4TrainingConfig::new(2)))),
    ];
    for (config, rule) in cases {
        let mut whole = trainer(&model, config.clone(), Arc::clone(&rule));
        assert_eq!(run(&mut whole, 2, &RunOptions::default(), 99), Ended::Done);

        let folder = tempfile::tempdir().expect("a folder");
        let options = RunOptions {
            checkpoints: Some(folder.path().to_owned()),
            checkpoint_every: 1,
            ..RunOptions::default()
        };
        let mut first = trainer(&model, config.clone(), Arc::clone(&rule));
        assert_eq!(run(&mut first, 1, &options, 3), Ended::Stopped);
        // What a kill leaves behind half-written has another name and is not looked at.
        std::fs::create_dir(folder.path().join(".step-00000009.1.partial")).expect("a folder");
        let mut second = trainer(&model, config, rule);
        assert!(second.resume(folder.path()).expect("a checkpoint"));
        assert_eq!(second.steps_done(), 3);
        assert_eq!(run(&mut second, 3, &options, 99), Ended::Done);
        assert!(bytes(&whole) == bytes(&second), "{}", whole.rule().name());
        let tables = [whole.table().expect("a table"), second.table().expect("a table")];
        assert_eq!(tables[0], tables[1]);
        let kept = std::fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(kept, 3, "two checkpoints and what the kill left");
    }
}

#[test]
fn training_lowers_the_loss_and_the_model_is_what_was_evaluated() {
    let model = tiny();
    let fresh = Parameters::of(&model, DType::F32).expect("parameters");
    let fresh = aolab::training::initialize(&fresh, 6, 3).expect("random ones");
    let model = fresh.to_model(&model, "fresh").expect("a model");
    let config = TrainConfig { steps: 30, lr: 3e-3, batch: 4, ..config() };
    for (rule, name) in [
        (Arc::new(Plain) as Arc<dyn LinearRule>, "plain"),
        (rule("int4", false, false), "int4"),
        (rule("int4", true, false), "LoRA"),
    ] {
        let mut trainer = trainer(&model, config.clone(), rule);
        trainer.hold_out(corpus(&model), 4).expect("long enough");
        let options = RunOptions { eval_every: 30, ..RunOptions::default() };
        run(&mut trainer, 2, &options, 99);
        let table = trainer.table().expect("a table");
        assert_eq!(table.len(), 31);
        println!("{name}: {}", trainer.summary());
        let start = trainer.evaluate(&Cpu::new(Some(2))).expect("a loss").expect("held out");
        // Random weights know nothing: ln 4096 = 8.3. Adapters alone learn less.
        assert!(start < if name == "LoRA" { 8.2 } else { 7.5 }, "{name}: {start}");
        let trained = trainer.model().expect("a model");
        assert_eq!(trained.parameters(), model.parameters());
        let mut again = self::trainer(&trained, config.clone(), Arc::new(Plain));
        again.hold_out(corpus(&model), 4).expect("long enough");
        if name == "plain" {
            let same = again.evaluate(&Cpu::new(Some(2))).expect("a loss").expect("held out");
            assert!((same - start).abs() < 1e-6, "{same} {start}");
        }
    }
}

#[test]
fn a_teacher_asks_nothing_of_its_equal_and_brings_a_quantized_model_back() {
    let model = tiny();
    let config = TrainConfig { distill: 1.0, steps: 12, lr: 1e-4, ..config() };
    let cpu = Cpu::new(Some(2));
    let mut equal = trainer(&model, config.clone(), Arc::new(Plain));
    let point = equal.step(&cpu).expect("a step");
    assert!(point.loss.abs() < 1e-6 && point.gradient_norm < 1e-5, "{point:?}");
    let mut taught = trainer(&model, config, rule("int2", false, false));
    taught.hold_out(corpus(&model), 16).expect("long enough");
    let loss = |trainer: &Trainer| trainer.evaluate(&cpu).expect("a loss").expect("held out");
    let rounded = loss(&taught);
    assert_eq!(run(&mut taught, 2, &RunOptions::default(), 99), Ended::Done);
    let trained = loss(&taught);
    // Two bits cost half a nat; some of it comes back in a dozen steps.
    assert!(trained < rounded - 0.01, "{rounded} as rounded, {trained} as trained");
}

#[test]
fn faults_are_said_with_their_place() {
    let model = tiny();
    let words = |result: aolab::Result<bool>| result.expect_err("refused").to_string();

    // A parameter that is not a number: the layer, the step and what to do.
    let mut broken = Parameters::of(&model, DType::F32).expect("parameters");
    let name = "model.layers.2.mlp.up_proj.weight";
    let shape = broken.get(name).expect("it is there").shape().to_vec();
    let numel = shape.iter().product();
    broken.set(name, Tensor::new(vec![f32::NAN; numel], &shape).expect("its shape"));
    let broken = broken.to_model(&model, "broken").expect("a model");
    let mut run = trainer(&broken, config(), Arc::new(Plain));
    let error = run.step(&Cpu::new(Some(2))).expect_err("no number").to_string();
    for part in ["step 1", "NaN", "model.layers.2", "mlp", "checkpoint"] {
        assert!(error.contains(part), "{part}: {error}");
    }

    // Too little text, and sequences that the model cannot read.
    let short = Corpus::of_ids((0..40).collect(), Some(0));
    let error = Trainer::new(&model, short, config(), Arc::new(Plain)).expect_err("short");
    assert!(error.to_string().contains("40 tokens: too few"), "{error}");
    let long = TrainConfig { sequence: 4096, ..config() };
    let error = Trainer::new(&model, corpus(&model), long, Arc::new(Plain)).expect_err("long");
    assert!(error.to_string().contains("reads at most 512"), "{error}");

    // Checkpoints of another run, of another model, and damaged ones.
    let folder = tempfile::tempdir().expect("a folder");
    let mut saved = trainer(&model, config(), Arc::new(Plain));
    saved.step(&Cpu::new(Some(2))).expect("a step");
    assert!(!saved.resume(folder.path()).expect("an empty folder"), "nothing to resume");
    let mut run = trainer(&model, config(), Arc::new(Plain));
    run.run(
        &Cpu::new(Some(2)),
        &RunOptions { checkpoints: Some(folder.path().to_owned()), ..RunOptions::default() },
        &mut |curve, _| curve.points.len() < 2,
    )
    .expect("runs");
    let other = TrainConfig { lr: 1.0, ..config() };
    let error = words(trainer(&model, other, Arc::new(Plain)).resume(folder.path()));
    assert!(error.contains("lr was 0.0001, now 1.0"), "{error}");
    let error = words(trainer(&model, config(), rule("int4", false, false)).resume(folder.path()));
    assert!(error.contains("plain"), "{error}");
    damage(folder.path());
    let error = words(trainer(&model, config(), Arc::new(Plain)).resume(folder.path()));
    assert!(error.contains("optimizer.safetensors"), "{error}");
}

/// Cuts a file of the newest checkpoint short.
fn damage(folder: &Path) {
    let path = folder.join("step-00000002/optimizer.safetensors");
    let bytes = std::fs::read(&path).expect("it is there");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
}
