//! llama.cpp's importance matrix: found, written in both forms, read back, used; and files that lie.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::fs;

use aolab::data::texts;
use aolab::eval::{EvalConfig, kl};
use aolab::io::gguf::ImportanceMatrix;
use aolab::kernels::Cpu;
use aolab::model::Model;
use aolab::quantization::calibration::{Sequences, draw};
use aolab::quantization::gguf::importance_matrix;
use aolab::quantization::{Calibration, GgufBlockConfig, is_linear, quantize_};

fn sequences(model: &Model) -> Vec<Vec<u32>> {
    let wanted = Sequences { count: 8, length: 256, seed: 3 };
    draw(model, texts::CALIBRATION, &wanted).expect("pieces")
}

fn config(name: &str) -> GgufBlockConfig {
    GgufBlockConfig { block_type: name.parse().expect("a type"), ..GgufBlockConfig::default() }
}

#[test]
fn both_forms_come_back_and_say_the_same_as_calibration() {
    let (cpu, dir) = (Cpu::new(Some(2)), tempfile::tempdir().expect("a folder"));
    let model = aolab::load("tiny").expect("the built-in model");
    let sequences = sequences(&model);
    let found = importance_matrix(&cpu, &model, &sequences, &mut |_, _, _| true).expect("reads");
    assert_eq!(found.entries().count(), 43);
    let (name, q) = found.of("model.layers.0.self_attn.q_proj").expect("a layer");
    assert_eq!((name, q.count), ("blk.0.attn_q.weight", 2048.0));
    let mut made: Vec<Vec<f32>> = Vec::new();
    for file in ["m.gguf", "m.dat"] {
        let path = dir.path().join(file);
        found.write(&path).expect("writes");
        let back = ImportanceMatrix::read(&path).expect("reads what it wrote");
        assert_eq!((back.chunk_count, back.entries().count()), (8, 43), "{file}");
        for ((name, a), (_, b)) in back.entries().zip(found.entries()) {
            for (a, b) in a.means().iter().zip(b.means()) {
                assert!((a - b).abs() <= 4.0 * f32::EPSILON * b, "{file}: {name}");
            }
        }
        let mut with = model.clone();
        let recipe = GgufBlockConfig { imatrix: Some(path), ..config("Q4_K") };
        quantize_(&mut with, recipe.recipe().expect("reads").as_ref(), is_linear).expect("applies");
        let down = with.linear("model.layers.5.mlp.down_proj").expect("a layer");
        made.push(down.weight.dequantize().expect("rows").to_f32_vec());
    }
    let recipe = GgufBlockConfig { importance: true, ..config("Q4_K") };
    let recipe = recipe.recipe().expect("a recipe");
    let mut work = Calibration::new(&model, recipe, &is_linear, false, &sequences).expect("it may");
    work.run(&cpu, &mut |_, _, _| true).expect("runs");
    let (calibrated, _) = work.finish().expect("done");
    let down = calibrated.linear("model.layers.5.mlp.down_proj").expect("a layer");
    made.push(down.weight.dequantize().expect("rows").to_f32_vec());
    // The older form rounds its means once more, which may turn a code here and there.
    let apart = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count() * 1000
    };
    assert_eq!(made[0], made[2], "file and calibration");
    assert!(apart(&made[0], &made[1]) < made[0].len(), "the older form");
}

/// Q2_K, Q3_K and Q4_K diverge less from the model with an importance than without.
#[test]
fn an_importance_brings_predictions_nearer() {
    let cpu = Cpu::new(Some(2));
    let model = aolab::load("tiny").expect("the built-in model");
    let sequences = sequences(&model);
    let matrix = importance_matrix(&cpu, &model, &sequences, &mut |_, _, _| true).expect("reads");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    matrix.write(&path).expect("writes");
    for ty in ["Q2_K", "Q3_K", "Q4_K"] {
        let quantized = |config: GgufBlockConfig| {
            let mut made = model.clone();
            let recipe = config.recipe().expect("reads");
            quantize_(&mut made, recipe.as_ref(), is_linear).expect("quantizes");
            made
        };
        let plain = quantized(config(ty));
        let with = quantized(GgufBlockConfig { imatrix: Some(path.clone()), ..config(ty) });
        let eval = EvalConfig { windows: Some(8), ..EvalConfig::default() };
        let both = [&plain, &with];
        let found =
            kl(&model, &both, &cpu, texts::SOTU, &eval, &mut |_, _| true).expect("measures");
        println!("{ty}: KL {:.5} without, {:.5} with", found[0].mean, found[1].mean);
        assert!(found[1].mean < found[0].mean, "{ty}: {} and {}", found[0].mean, found[1].mean);
    }
}

#[test]
fn files_that_lie_are_refused_in_words() {
    let (cpu, dir) = (Cpu::new(Some(2)), tempfile::tempdir().expect("a folder"));
    let model = aolab::load("tiny").expect("the built-in model");
    let matrix = importance_matrix(&cpu, &model, &sequences(&model)[..1], &mut |_, _, _| true);
    let matrix = matrix.expect("reads");
    for file in ["m.gguf", "m.dat"] {
        let path = dir.path().join(file);
        matrix.write(&path).expect("writes");
        let whole = fs::read(&path).expect("a file");
        let step = whole.len() / 300;
        for len in (0..whole.len() - 40).step_by(step) {
            fs::write(&path, &whole[..len]).expect("a file");
            let error = ImportanceMatrix::read(&path).expect_err("cut short").to_string();
            assert!(error.contains(file), "{len} bytes: {error}");
        }
    }
    let mut negative = matrix.clone();
    let (_, first) = matrix.of("model.layers.0.self_attn.q_proj").expect("a layer");
    let sums = vec![-1.0; first.sums.len()];
    let lie = aolab::io::gguf::Importance { sums, count: 1.0 };
    negative.insert("model.layers.0.self_attn.q_proj", lie).expect("a name");
    let path = dir.path().join("n.gguf");
    negative.write(&path).expect("writes");
    let words = ImportanceMatrix::read(&path).expect_err("negative").to_string();
    assert!(words.contains("not negative"), "{words}");
    // A matrix of other columns is one of another model.
    let mut other = matrix.clone();
    let short = aolab::io::gguf::Importance { sums: vec![1.0; 3], count: 1.0 };
    other.insert("model.layers.0.self_attn.q_proj", short).expect("a name");
    other.write(&path).expect("writes");
    let recipe = GgufBlockConfig { imatrix: Some(path), ..config("Q4_0") }.recipe().expect("reads");
    let words = quantize_(&mut model.clone(), recipe.as_ref(), is_linear).expect_err("other");
    assert!(words.to_string().contains("another model"), "{words}");
}
