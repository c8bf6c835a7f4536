//! Module-swap recipes beyond ranges of weights (P16): rounded inputs and results, ranges that a text gave, codebooks; through a file
//! and back. The ranges themselves are golden vectors (tests/golden_vectors.rs, family `recipes`).

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod gates_support;

use std::sync::Arc;

use aolab::kernels::Cpu;
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::module_swap::ActivationGroups;
use aolab::quantization::{QuantizationRecipe, Recipe, read_weight};
use aolab::{Session, Tensor};
use gates_support::{db, inputs};

fn recipe() -> QuantizationRecipe {
    QuantizationRecipe { weight_bits: 8, ..QuantizationRecipe::default() }
}

/// `x` between its extremes, in f32 as torch computes it.
fn rounded(x: &[f32], (min, max): (f32, f32), bits: u32) -> Vec<f32> {
    let top = f32::from(u16::try_from((1_u32 << bits) - 1).expect("16 bits"));
    let scale = (max - min) / top;
    let offset = (-min / scale).round_ties_even().clamp(0.0, top);
    let code = |x: &f32| ((x / scale).round_ties_even() + offset).clamp(0.0, top);
    x.iter().map(|x| (code(x) - offset) * scale).collect()
}

fn extremes(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| (min.min(*x), max.max(*x)))
}

/// The bits of a weight that went through its description and tensors.
fn through_file(weight: &dyn Weight) -> Arc<dyn Weight> {
    read_weight(&weight.meta(), weight.tensors(), weight.shape()).expect("reads")
}

#[test]
fn inputs_and_results_are_rounded_around_the_weight() {
    let cpu = Cpu::new(Some(2));
    for (seed, shape, groups, bits) in [
        (3, [5, 32, 64], ActivationGroups::PerToken, 8),
        (4, [1, 7, 96], ActivationGroups::PerTensor, 4),
        (5, [4, 64, 64], ActivationGroups::Size(32), 6),
        (6, [3, 16, 33], ActivationGroups::PerToken, 2),
    ] {
        let inputs = inputs(seed, shape);
        let plain = inputs.made(&recipe());
        let both = QuantizationRecipe {
            input_quantization: true,
            output_quantization: true,
            activation_bits: bits,
            activation_group_size: groups,
            ..recipe()
        };
        let made = inputs.made(&both);
        let [m, n, k] = shape;
        let round = |values: &[f32], width: usize| -> Vec<f32> {
            let size = match groups {
                ActivationGroups::PerToken => width,
                ActivationGroups::PerTensor => values.len(),
                ActivationGroups::Size(size) => size,
            };
            values.chunks(size).flat_map(|group| rounded(group, extremes(group), bits)).collect()
        };
        let x = round(&inputs.x, k);
        let mut y = vec![f32::NAN; m * n];
        plain.linear(&cpu, &x, m, &mut y).expect("runs");
        let wanted = round(&y, n);
        assert_eq!(inputs.run(made.as_ref(), &cpu), wanted, "{}, {groups}", inputs.name);
        let read = through_file(made.as_ref());
        assert_eq!(inputs.run(read.as_ref(), &cpu), wanted, "{}, read back", inputs.name);
        assert_eq!((read.meta(), read.details()), (made.meta(), made.details()));
        assert_eq!(made.workflow(), "module-swap");
    }
}

#[test]
fn a_text_fixes_the_ranges() {
    let cpu = Cpu::new(Some(2));
    let inputs = inputs(8, [16, 48, 64]);
    let fixed = QuantizationRecipe {
        input_quantization: true,
        output_quantization: true,
        activation_group_size: ActivationGroups::PerTensor,
        dynamic_activations: false,
        ..recipe()
    };
    let made = inputs.made(&fixed);
    let plain = inputs.made(&recipe());
    // Results were seen behind inputs that were not rounded, as torchao turns its quantizers off for that.
    let mut seen = vec![f32::NAN; 16 * 48];
    plain.linear(&cpu, &inputs.x, 16, &mut seen).expect("runs");
    // One token, twice as large as the text's: what is beyond the range is cut.
    let x: Vec<f32> = inputs.x[..64].iter().map(|x| 2.0 * x).collect();
    let mut y = vec![f32::NAN; 48];
    made.linear(&cpu, &x, 1, &mut y).expect("runs");
    let mut wanted = vec![f32::NAN; 48];
    let cut = rounded(&x, extremes(&inputs.x), 8);
    plain.linear(&cpu, &cut, 1, &mut wanted).expect("runs");
    assert_eq!(y, rounded(&wanted, extremes(&seen), 8));
    assert!(y.iter().all(|y| *y >= extremes(&seen).0 - 0.1 && *y <= extremes(&seen).1 + 0.1));
    let error = fixed.quantize(&cpu, inputs.weight.as_ref()).expect_err("wants inputs");
    assert!(error.to_string().contains("looks at a layer's inputs"), "{error}");
}

#[test]
fn a_codebook_finds_what_there_is_to_find() {
    let cpu = Cpu::new(Some(2));
    // Rows of different size whose numbers are four values: two bits hold them.
    let (n, k) = (24, 64);
    let value = |at: usize| [-1.0, -0.25, 0.5, 2.0][at * 7 % 4];
    let w: Vec<f32> = (0..n * k).map(|at| value(at % k) * (1 + at / k) as f32).collect();
    let weight = DenseWeight::shared(Tensor::new(w.clone(), &[n, k]).expect("a matrix"));
    let weight = weight.expect("dense");
    let book = |weight_bits, codebook_dim| QuantizationRecipe {
        weight_bits,
        codebook_dim,
        weight_codebook: true,
        ..QuantizationRecipe::default()
    };
    let made = book(2, 1).quantize(&cpu, weight.as_ref()).expect("codes");
    let seen = db(&w, &made.dequantize().expect("numbers").to_f32_vec());
    assert!(seen > 100.0, "four values in two bits: {seen} dB");
    // On numbers as layers start with: more bits are nearer, pairs in 8 bits nearer than single numbers in 4.
    let inputs = inputs(9, [4, 64, 128]);
    let of = |bits, dim| inputs.seen(inputs.made(&book(bits, dim)).as_ref()).1;
    let all = [of(2, 1), of(3, 1), of(4, 1), of(4, 2)];
    assert!(all.is_sorted() && all[2] > 18.0, "{all:?} dB");
    for recipe in
        [book(4, 1), book(2, 4), QuantizationRecipe { input_quantization: true, ..book(3, 2) }]
    {
        let made = inputs.made(&recipe);
        let read = through_file(made.as_ref());
        assert_eq!(inputs.run(made.as_ref(), &cpu), inputs.run(read.as_ref(), &cpu));
        assert!(made.kernel(&cpu, 1).contains("round") == recipe.input_quantization);
    }
}

#[test]
fn senseless_recipes_say_why() {
    let cases = [
        ("--weight-codebook --weight-bits 5 --codebook-dim 2", "at most 8"),
        ("--weight-codebook --codebook-dim 7 --weight-bits 1", "2 to 8"),
        ("--weight-codebook --codebook-dim 5 --weight-bits 2", "at most 8"),
        ("--weight-codebook --range-setting activation-loss", "no range to set"),
        ("--input-quantization --activation-bits 17", "2 to 16"),
        ("--input-quantization --activation-group-size 7", "does not divide"),
        ("--input-quantization --dynamic-activations false", "per-tensor"),
        ("--codebook-dim 2", "--weight-codebook"),
        ("--sequential", "reads a text"),
    ];
    for (words, why) in cases {
        let mut lab = Session::new();
        let line = format!("load tiny | quantize module-swap {words}");
        let error = lab.run(&line).expect_err(&line).to_string();
        assert!(error.contains(why), "{line}: {error}");
    }
}
