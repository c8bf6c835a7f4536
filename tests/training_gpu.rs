//! Training on a GPU is the CPU's training to rounding. Where no GPU is, each test says that it was skipped.

#![allow(clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test that was skipped says so")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aolab::data::texts;
use aolab::kernels::Cpu;
use aolab::kernels::cuda::{Device, Options};
use aolab::model::Model;
use aolab::training::float8::{self, Recipe};
use aolab::training::int8::Int8MixedRule;
use aolab::training::optim::{AdamConfig, OptimizerConfig, StateBits};
use aolab::training::qat::{QatConfig, QatRule};
use aolab::training::{
    Corpus, LinearRule, MatmulPrecision, Plain, RunOptions, TrainConfig, Trainer,
};

/// The GPU, or `None` after saying why not.
#[expect(clippy::disallowed_methods, reason = "a test has no main that could pass this down")]
fn device() -> Option<Device> {
    let library_folders: Vec<PathBuf> =
        std::env::var_os("AOLAB_CUDA_LIBRARIES").map(PathBuf::from).into_iter().collect();
    match Device::open(&Options { library_folders, ..Options::default() }) {
        Ok(device) => Some(device),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn tiny() -> Model {
    aolab::load("tiny").expect("the built-in model")
}

fn config() -> TrainConfig {
    TrainConfig {
        steps: 12,
        batch: 2,
        sequence: 64,
        accumulate: 2,
        warmup: 3,
        lr: 1e-3,
        precision: MatmulPrecision::Bf16,
        seed: 5,
        ..TrainConfig::default()
    }
}

fn trainer(model: &Model, config: TrainConfig, rule: Arc<dyn LinearRule>) -> Trainer {
    let tokenizer = model.tokenizer().expect("a tokenizer");
    let corpus = |text: &str| {
        Corpus::of_texts(tokenizer, model.config.bos_token_id, &[text.to_owned()]).expect("tokens")
    };
    let mut trainer =
        Trainer::new(model, corpus(&texts::SOTU_TRAIN[..60_000]), config, rule).expect("a run");
    trainer.hold_out(corpus(&texts::SOTU_TRAIN[60_000..80_000]), 6).expect("held out");
    trainer
}

/// The columns of the curve: losses, held-out losses and norms.
fn numbers(trainer: &Trainer) -> Vec<f64> {
    let metrics = trainer.metrics();
    metrics.into_iter().filter(|m| m.name.contains("loss")).map(|m| m.value).collect()
}

fn on_gpu(trainer: &mut Trainer, device: &Device, options: &RunOptions, until: usize) {
    let mut go_on = |curve: &aolab::training::Curve, _| curve.points.len() < until;
    trainer.run_on_gpu(device, options, &mut go_on).expect("runs");
}

#[test]
fn a_run_on_a_gpu_is_the_cpus_to_rounding() {
    let Some(device) = device() else { return };
    let model = tiny();
    let options = RunOptions { eval_every: 6, ..RunOptions::default() };
    let mut rules: Vec<(Arc<dyn LinearRule>, f64)> = vec![(Arc::new(Plain), 0.01)];
    if device.has_wgmma() {
        rules.push((float8::rule(Recipe::Tensorwise), 0.03));
        rules.push((float8::rule(Recipe::Rowwise), 0.03));
        rules.push((float8::rule(Recipe::RowwiseWithGwHp), 0.03));
        rules.push((Arc::new(Int8MixedRule::default()), 0.03));
    }
    for (rule, tolerance) in rules {
        let mut host = trainer(&model, config(), Arc::clone(&rule));
        host.run(&Cpu::new(None), &options, &mut |_, _| true).expect("runs");
        let mut gpu = trainer(&model, config(), Arc::clone(&rule));
        on_gpu(&mut gpu, &device, &options, usize::MAX);
        let (wanted, got) = (numbers(&host), numbers(&gpu));
        println!("{}: CPU {wanted:?}, GPU {got:?}", rule.name());
        for (got, wanted) in got.iter().zip(&wanted) {
            assert!((got - wanted).abs() < tolerance, "{}: {got}, wanted {wanted}", rule.name());
        }
        assert_eq!(got.len(), wanted.len());
    }
}

fn bytes(trainer: &Trainer) -> Vec<Vec<u8>> {
    trainer.parameters().iter().map(|(_, tensor)| tensor.bytes().to_vec()).collect()
}

#[test]
fn an_interrupted_run_on_a_gpu_gives_the_same_bytes() {
    let Some(device) = device() else { return };
    let model = tiny();
    let folder = tempfile::tempdir().expect("a folder");
    let mut whole = trainer(&model, config(), Arc::new(Plain));
    on_gpu(&mut whole, &device, &RunOptions::default(), usize::MAX);
    let kept =
        |path: &Path| RunOptions { checkpoints: Some(path.to_owned()), ..RunOptions::default() };
    let mut first = trainer(&model, config(), Arc::new(Plain));
    on_gpu(&mut first, &device, &kept(folder.path()), 5);
    let mut second = trainer(&model, config(), Arc::new(Plain));
    assert!(second.resume(folder.path()).expect("a checkpoint"));
    assert_eq!(second.steps_done(), 5);
    on_gpu(&mut second, &device, &kept(folder.path()), usize::MAX);
    assert!(bytes(&second) == bytes(&whole), "the bytes differ");
}

#[test]
fn what_a_gpu_cannot_train_is_said() {
    let Some(device) = device() else { return };
    let model = tiny();
    let qat = QatConfig::of_word("int4-weight-only", Some(32)).expect("known");
    let int8 = AdamConfig { state: StateBits::Int8, ..AdamConfig::default() };
    let sgd = OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.0 };
    let plain = || Arc::new(Plain) as Arc<dyn LinearRule>;
    let cases: [(TrainConfig, Arc<dyn LinearRule>, &str); 6] = [
        (config(), Arc::new(QatRule::new(qat).expect("sound")), "--device cpu"),
        (TrainConfig { optimizer: sgd, ..config() }, plain(), "adamw"),
        (
            TrainConfig { optimizer: OptimizerConfig::Adam(int8), ..config() },
            plain(),
            "32-bit states",
        ),
        (TrainConfig { precision: MatmulPrecision::F32, ..config() }, plain(), "--precision bf16"),
        (TrainConfig { dropout: 0.1, ..config() }, plain(), "--dropout"),
        (TrainConfig { checkpoint_blocks: true, ..config() }, plain(), "--checkpoint-blocks"),
    ];
    for (config, rule, words) in cases {
        let mut run = trainer(&model, config, rule);
        let told = run.run_on_gpu(&device, &RunOptions::default(), &mut |_, _| true);
        let told = told.expect_err("it cannot").to_string();
        assert!(told.contains(words), "{told}");
    }
}
