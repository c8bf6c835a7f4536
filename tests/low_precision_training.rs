//! MX and NVFP4 training against plain matmuls, by torchao's SQNR gates, and fake quantization against `quantize`.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use aolab::autograd::{Tape, Var};
use aolab::kernels::Cpu;
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::{Recipe, config_from_dict};
use aolab::training::mx::MXTrainingConfig;
use aolab::training::nvfp4::NVFP4TrainingConfig;
use aolab::training::qat::{LegacyQuantizer, QatConfig, QatRule};
use aolab::training::{LinearRule, Parameters, Vars};
use aolab::{DType, Tensor};
use serde_json::json;

/// bf16 numbers in f32, of a spread.
fn random(seed: u64, shape: &[usize], spread: f32) -> Tensor {
    let mut rng = aolab::rng::Rng::new(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() * spread).collect();
    let tensor = Tensor::new(values, shape).expect("its shape");
    tensor.to_dtype(DType::BF16).and_then(|t| t.to_dtype(DType::F32)).expect("rounded")
}

type Layer<'a> = &'a dyn Fn(&Tape, &Var, &Var) -> aolab::Result<Var>;

/// y, dx and dW on one and on three threads, which must agree.
fn run([x, w, dy]: [&Tensor; 3], layer: Layer<'_>) -> [Tensor; 3] {
    let on = |threads| {
        let tape = Tape::new(&Cpu::new(Some(threads)));
        let (x, w) = (tape.leaf(x.clone()), tape.leaf(w.clone()));
        let y = layer(&tape, &x, &w).expect("a layer");
        let mut gradients = tape.backward_from(&y, dy.clone()).expect("gradients");
        let dx = gradients.take(&x).expect("of x");
        [y.value().clone(), dx, gradients.take(&w).expect("of w")]
    };
    let (one, three) = (on(1), on(3));
    assert!(one.iter().zip(&three).all(|(a, b)| a.bytes() == b.bytes()), "threads");
    one
}

fn sqnr_db(wanted: &Tensor, got: &Tensor) -> f64 {
    let (wanted, got) = (wanted.to_f32_vec(), got.to_f32_vec());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let signal: f64 = wanted.iter().map(|x| square(*x)).sum();
    let noise: f64 = wanted.iter().zip(&got).map(|(a, b)| square(a - b)).sum();
    10.0 * (signal / noise).log10()
}

#[test]
fn mx_and_nvfp4_layers_hold_torchaos_gates() {
    let (m, n, k) = (256, 384, 512);
    let inputs =
        [random(1, &[2, m / 2, k], 1.0), random(2, &[n, k], 0.02), random(3, &[2, m / 2, n], 1e-3)];
    let inputs = [&inputs[0], &inputs[1], &inputs[2]];
    let exact = run(inputs, &|tape, x, w| tape.linear(x, w));
    let (fp8, hp) = (
        MXTrainingConfig::default(),
        MXTrainingConfig { wgrad_with_hp: true, ..MXTrainingConfig::default() },
    );
    let (fp4, nv) = (MXTrainingConfig::mxfp4(), NVFP4TrainingConfig::new(5));
    let cases: [(&str, Layer<'_>, [f64; 3]); 4] = [
        ("mxfp8", &|tape, x, w| fp8.linear(tape, x, w), [27.0, 25.0, 24.0]),
        ("mxfp8 hp", &|tape, x, w| hp.linear(tape, x, w), [27.0, 25.0, 34.0]),
        // torchao has no gate for training in mxfp4; 12 dB is its inference's.
        ("mxfp4", &|tape, x, w| fp4.linear(tape, x, w), [12.0, 12.0, 12.0]),
        ("nvfp4", &|tape, x, w| nv.linear(tape, x, w, 7), [15.0, 14.0, 14.0]),
    ];
    for (name, layer, gates) in cases {
        let got = run(inputs, layer);
        let seen: Vec<f64> = exact.iter().zip(&got).map(|(a, b)| sqnr_db(a, b)).collect();
        println!("{name}: y {:.1} dB, dx {:.1} dB, dW {:.1} dB", seen[0], seen[1], seen[2]);
        for ((seen, gate), part) in seen.iter().zip(gates).zip(["y", "dx", "dW"]) {
            assert!(*seen >= gate, "{name} {part}: {seen:.1} dB, wanted {gate}");
        }
    }
}

#[test]
fn gradients_that_are_rounded_at_random_are_right_on_average() {
    let (m, n, k) = (32, 32, 64);
    let inputs = [random(4, &[m, k], 1.0), random(5, &[n, k], 0.1), random(6, &[m, n], 1.0)];
    let inputs = [&inputs[0], &inputs[1], &inputs[2]];
    let config = NVFP4TrainingConfig::new(1);
    let one = run(inputs, &|tape, x, w| config.linear(tape, x, w, 0));
    let again = run(inputs, &|tape, x, w| config.linear(tape, x, w, 0));
    let other = run(inputs, &|tape, x, w| config.linear(tape, x, w, 1));
    assert!(one[1].bytes() == again[1].bytes(), "the same draws");
    assert!(one[1].bytes() != other[1].bytes(), "other draws");
    assert!(one[0].bytes() == other[0].bytes(), "the forward pass rounds to the nearest");
    // The mean of many draws is the gradient of the rounded weight; each alone is 14 dB or so off.
    let mut mean = vec![0.0_f32; m * k];
    for draw in 0..200 {
        let [_, dx, _] = run(inputs, &|tape, x, w| config.linear(tape, x, w, draw));
        mean.iter_mut().zip(dx.to_f32_vec()).for_each(|(mean, dx)| *mean += dx / 200.0);
    }
    let mean = Tensor::new(mean, &[m, k]).expect("its shape");
    // A layer of the identity gives the weight as it was rounded.
    let mut eye = vec![0.0_f32; k * k];
    (0..k).for_each(|i| eye[i * k + i] = 1.0);
    let eye = Tensor::new(eye, &[k, k]).expect("square");
    let tape = Tape::no_grad(&Cpu::new(Some(1)));
    let turned = config
        .linear(&tape, &tape.constant(eye), &tape.constant(inputs[1].clone()), 0)
        .expect("a layer");
    // (k, n): Wᵀ; dx = dy · W.
    let wanted = tape.linear(&tape.constant(inputs[2].clone()), &turned).expect("a product");
    let (mean_db, one_db) = (sqnr_db(wanted.value(), &mean), sqnr_db(wanted.value(), &one[1]));
    println!("mean of 200: {mean_db:.1} dB, one: {one_db:.1} dB");
    assert!(mean_db > one_db + 15.0, "{mean_db} {one_db}");
}

#[test]
fn shapes_that_are_not_whole_blocks_are_refused() {
    let tape = Tape::new(&Cpu::new(Some(1)));
    let words = |x: &[usize], w: &[usize], nvfp4: bool| {
        let (x, w) = (tape.leaf(random(1, x, 1.0)), tape.leaf(random(2, w, 1.0)));
        let result = if nvfp4 {
            NVFP4TrainingConfig::default().linear(&tape, &x, &w, 0)
        } else {
            MXTrainingConfig::default().linear(&tape, &x, &w)
        };
        result.expect_err("refused").to_string()
    };
    assert!(words(&[31, 64], &[32, 64], false).contains("31 tokens"));
    assert!(words(&[32, 48], &[32, 48], false).contains("whole blocks of 32"));
    assert!(words(&[32, 64], &[24, 64], true).contains("whole blocks of 16"));
    assert!(words(&[32, 64], &[32, 32], true).contains("x [32, 64]"));
}

#[test]
fn fake_quantized_weights_are_those_that_quantize_stores() {
    let weight = random(9, &[48, 64], 0.05);
    let mx = |dtype: &str| {
        json!({"_type": "MXDynamicActivationMXWeightConfig", "_version": 1, "_data": {
            "activation_dtype": {"_type": "torch.dtype", "_data": dtype},
            "weight_dtype": {"_type": "torch.dtype", "_data": dtype}}})
    };
    let nvfp4 = |two: bool| {
        json!({"_type": "NVFP4DynamicActivationNVFP4WeightConfig", "_version": 1,
            "_data": {"use_dynamic_per_tensor_scale": two}})
    };
    for dict in [mx("float8_e4m3fn"), mx("float4_e2m1fn_x2"), nvfp4(true), nvfp4(false)] {
        let recipe = config_from_dict(&dict).unwrap_or_else(|error| panic!("{dict}: {error}"));
        let config = QatConfig::of_base(&*recipe).expect("it has fake quantizers");
        assert_eq!(config.activation, config.weight, "{dict}");
        let cpu = Cpu::new(Some(2));
        let tape = Tape::new(&cpu);
        let leaf = tape.leaf(weight.clone());
        let fake = config.weight.expect("one").fake_quantize(&tape, &leaf).expect("rounded");
        let dense = DenseWeight::shared(weight.clone()).expect("a weight");
        let stored = Recipe::quantize(&*recipe, &cpu, &*dense).expect("quantized");
        let stored = Weight::dequantize(&*stored).expect("numbers");
        let pairs = fake.value().to_f32_vec().into_iter().zip(stored.to_f32_vec());
        let mut pairs = pairs.map(|(a, b)| (a + 0.0).to_bits() == (b + 0.0).to_bits());
        assert!(pairs.all(|same| same), "{}", config.name);
        // Straight through.
        let dy = random(10, &[48, 64], 1.0);
        let gradients = tape.backward_from(&fake, dy.clone()).expect("gradients");
        assert!(gradients.of(&leaf).expect("of w").bytes() == dy.bytes());
    }
    for word in ["mxfp8", "mxfp4", "nvfp4"] {
        assert!(QatConfig::of_word(word, None).is_ok(), "{word}");
        let error = QatConfig::of_word(word, Some(32)).expect_err("refused").to_string();
        assert!(error.contains("blocks of its own"), "{error}");
    }
}

/// `dequantize` of what `recipe` makes of `weight`.
fn stored(recipe: &dyn Recipe, weight: &Tensor) -> Tensor {
    let dense = DenseWeight::shared(weight.clone()).expect("a weight");
    let stored = Recipe::quantize(recipe, &Cpu::new(Some(2)), &*dense).expect("quantized");
    Weight::dequantize(&*stored).expect("numbers")
}

#[test]
fn flows_compose_and_embeddings_are_those_that_quantize_stores() {
    let config = QatConfig::of_word("4w-embedding-qat+8da4w-qat", Some(32)).expect("known");
    assert!(config.embedding.is_some() && config.weight.is_some() && config.activation.is_some());
    assert!(QatConfig::of_word("8da4w-qat+4w-qat", Some(32)).is_err(), "linear layers twice");
    let model = aolab::load("tiny").expect("the built-in model");
    let mut parameters = Parameters::of(&model, DType::F32).expect("parameters");
    let rule = QatRule::new(config).expect("sound");
    rule.prepare(&mut parameters).expect("32 divides 256");
    let table = parameters.get("model.embed_tokens.weight").expect("it is there").clone();
    let tape = Tape::no_grad(&Cpu::new(Some(2)));
    let ids = [0, 7, 4095];
    let rows = |rule: &QatRule| {
        rule.embedding(&tape, &tape.constant(table.clone()), &ids).expect("rows").value().clone()
    };
    let flow = LegacyQuantizer::of_word("4w-embedding-qat", Some(32)).expect("known");
    let recipe = config_from_dict(&flow.convert().expect("it converts")[0]).expect("known");
    let whole = stored(&*recipe, &table).to_f32_vec();
    let wanted: Vec<f32> =
        ids.iter().flat_map(|id| whole[*id as usize * 256..][..256].to_vec()).collect();
    assert!(rows(&rule).to_f32_vec() == wanted, "the embedding");
    // T08: off, plain numbers; on again, the same rounded ones.
    rule.enable(false);
    let plain = tape.embedding(&tape.constant(table.clone()), &ids).expect("rows");
    assert!(rows(&rule).bytes() == plain.value().bytes());
    let (x, w) = (tape.constant(random(3, &[2, 64], 1.0)), tape.constant(random(4, &[8, 64], 0.1)));
    let y = rule.linear(&tape, "lm_head", &x, &w, &Vars::default()).expect("a product");
    assert!(y.value().bytes() == tape.linear(&x, &w).expect("a product").value().bytes());
    rule.enable(true);
    assert!(rows(&rule).to_f32_vec() == wanted, "on again");
}
