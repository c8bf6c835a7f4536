//! The gradients of the built-in model against transformers', and the two ways of keeping activations against each other.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use aolab::autograd::Tape;
use aolab::kernels::cross_entropy::IGNORE;
use aolab::kernels::matmul::Precision;
use aolab::kernels::{Cpu, Isa};
use aolab::training::{Batch, ForwardOptions, Network, Parameters, Plain};
use aolab::{DType, Tensor};
use safetensors::SafeTensors;

fn golden() -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
    std::fs::read(folder.join("reference.safetensors")).expect("the reference")
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(file.tensor(name).expect(name).data())
}

/// The reference's two rows of 64 tokens; the last of each has no target.
fn batch(file: &SafeTensors) -> Batch {
    let ids: Vec<i32> =
        bytemuck::pod_collect_to_vec(file.tensor("input_ids").expect("input_ids").data());
    let ids: Vec<u32> = ids.into_iter().map(i32::cast_unsigned).collect();
    let row = |row: &[u32]| row[1..].iter().copied().chain([IGNORE]).collect::<Vec<u32>>();
    let targets = ids.chunks(64).flat_map(row).collect();
    Batch { batch: 2, inputs: ids, targets }
}

struct Run {
    loss: f32,
    gradients: Vec<(String, Tensor)>,
}

fn run(cpu: &Cpu, precision: Precision, batch: &Batch, checkpoint_blocks: bool) -> Run {
    let model = aolab::load("tiny").expect("the built-in model");
    let parameters = Parameters::of(&model, DType::F32).expect("parameters");
    let tape = Tape::new(cpu).with_precision(precision);
    let vars = parameters.on(&tape, &|_| false).expect("variables");
    let network = Network::new(Arc::clone(&model.config));
    let options = ForwardOptions { checkpoint_blocks, ..ForwardOptions::new(Arc::new(Plain)) };
    let loss = network.loss(&tape, &vars, batch, &options).expect("a loss");
    let mut gradients = tape.backward(&loss).expect("gradients");
    let gradients = vars
        .iter()
        .map(|(name, var)| (name.clone(), gradients.take(var).expect("every parameter matters")))
        .collect();
    Run { loss: loss.value().to_f32_vec()[0], gradients }
}

fn relative(got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(wanted).map(|(a, b)| square(a - b)).sum();
    (error / wanted.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

#[test]
fn gradients_equal_transformers_on_every_isa() {
    let bytes = golden();
    let file = SafeTensors::deserialize(&bytes).expect("valid safetensors");
    let batch = batch(&file);
    let names: Vec<String> =
        file.names().iter().filter_map(|n| n.strip_prefix("grad.").map(str::to_owned)).collect();
    assert!(names.len() >= 3, "{names:?}");
    for isa in Isa::available() {
        let got = run(&Cpu::with_isa(isa, Some(2)), Precision::F32, &batch, false);
        let loss = floats(&file, "loss")[0];
        assert!((got.loss - loss).abs() < 1e-5 * loss, "{}: {} not {loss}", isa.name(), got.loss);
        for name in &names {
            let wanted = floats(&file, &format!("grad.{name}"));
            let (_, gradient) = got.gradients.iter().find(|(n, _)| n == name).expect(name);
            let error = relative(&gradient.to_f32_vec(), &wanted);
            println!("{}: {name}: relative error {error:.2e}", isa.name());
            assert!(error < 1e-5, "{}: {name}: {error}", isa.name());
        }
    }
}

#[test]
fn checkpointing_and_threads_do_not_change_a_byte_and_bf16_comes_close() {
    let bytes = golden();
    let file = SafeTensors::deserialize(&bytes).expect("valid safetensors");
    let batch = batch(&file);
    let cpu = |threads| Cpu::new(Some(threads));
    let kept = run(&cpu(2), Precision::F32, &batch, false);
    for other in [
        run(&cpu(2), Precision::F32, &batch, true),
        run(&cpu(1), Precision::F32, &batch, false),
        run(&cpu(3), Precision::F32, &batch, false),
    ] {
        assert_eq!(kept.loss.to_bits(), other.loss.to_bits());
        for ((name, a), (_, b)) in kept.gradients.iter().zip(&other.gradients) {
            assert!(a.bytes() == b.bytes(), "{name}");
        }
    }
    let bf16 = run(&cpu(2), Precision::Bf16, &batch, false);
    assert!((bf16.loss - kept.loss).abs() < 0.01, "{} and {}", bf16.loss, kept.loss);
    for ((name, a), (_, b)) in kept.gradients.iter().zip(&bf16.gradients) {
        let error = relative(&b.to_f32_vec(), &a.to_f32_vec());
        assert!(error < 0.05, "{name}: {error}");
    }
}
