//! Sparse weights: zeros survive whatever is done to them, formats come back from files bit for bit and multiply as they
//! dequantize, and better sparsifiers cost less.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use aolab::kernels::{Cpu, Isa};
use aolab::model::{DenseWeight, Mask, Pattern, Sparse, Weight};
use aolab::quantization::calibration::{Hessian, LayerObserver};
use aolab::quantization::{
    Calibrated, FPXWeightOnlyConfig, Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig, IntxWeightOnlyConfig, MXWeightOnlyConfig, NF4WeightOnlyConfig,
    NVFP4WeightOnlyConfig, Recipe, UIntXWeightOnlyConfig, config_from_dict, read_weight,
};
use aolab::rng::Rng;
use aolab::sparsity::sparse_gpt::sparse_gpt;
use aolab::sparsity::{
    BlockSparseWeightConfig, FpgmPruner, Int4MarlinSparseConfig, MagnitudeSparsifier,
    NearlyDiagonalSparsifier, SaliencyPruner, SemiSparseWeightConfig, SparseGptSparsifier,
    WandaSparsifier, WeightNormSparsifier,
};
use aolab::{DType, Tensor};

fn cpu() -> Cpu {
    Cpu::new(Some(2))
}

fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.normal()).collect()
}

fn dense(seed: u64, (n, k): (usize, usize), dtype: DType) -> Arc<dyn Weight> {
    let tensor = Tensor::new(normal(seed, n * k), &[n, k]).expect("its shape");
    DenseWeight::shared(tensor.to_dtype(dtype).expect("floats")).expect("a matrix")
}

fn values(weight: &dyn Weight) -> Vec<f32> {
    weight.dequantize().expect("dequantizes").to_f32_vec()
}

fn magnitude(pattern: Pattern) -> MagnitudeSparsifier {
    MagnitudeSparsifier { pattern, sparsity_level: 0.6 }
}

fn patterns() -> [Pattern; 5] {
    [
        Pattern::Unstructured,
        Pattern::TWO_OF_FOUR,
        Pattern::NOfM { n: 4, m: 8 },
        Pattern::Block { size: 16 },
        Pattern::Block { size: 64 },
    ]
}

/// Quantizers of every kind: symmetric and with zero points, integers and floats, groups and rows.
fn quantizers() -> Vec<Box<dyn Recipe>> {
    vec![
        Box::new(Int8WeightOnlyConfig::default()),
        Box::new(Int8DynamicActivationInt8WeightConfig::default()),
        Box::new(Int4WeightOnlyConfig { group_size: 32, ..Default::default() }),
        Box::new(Int4WeightOnlyConfig { group_size: 128, ..Default::default() }),
        Box::new(IntxWeightOnlyConfig::default()),
        Box::new(UIntXWeightOnlyConfig::default()),
        Box::new(Float8WeightOnlyConfig::default()),
        Box::new(Float8DynamicActivationFloat8WeightConfig::default()),
        Box::new(MXWeightOnlyConfig::default()),
        Box::new(NVFP4WeightOnlyConfig::default()),
        Box::new(NF4WeightOnlyConfig::default()),
        Box::new(FPXWeightOnlyConfig::default()),
    ]
}

fn sparse(weight: &Arc<dyn Weight>) -> &dyn Sparse {
    weight.as_sparse().expect("a sparse weight")
}

fn round_trip(weight: &dyn Weight) {
    let back = read_weight(&weight.meta(), weight.tensors(), weight.shape()).expect("reads back");
    let bits = |w: &dyn Weight| values(w).iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    assert_eq!(bits(weight), bits(back.as_ref()), "{}", weight.workflow());
    assert_eq!(weight.workflow(), back.workflow());
    let mask = |w: &dyn Weight| w.as_sparse().expect("sparse").mask().expect("a mask");
    assert_eq!(mask(weight), mask(back.as_ref()), "{}", weight.workflow());
}

/// It multiplies what it dequantizes to.
fn multiplies(weight: &dyn Weight, tolerance: f32) {
    let (n, k) = weight.shape();
    let w = values(weight);
    for m in [1, 3, 11] {
        let x = normal(m as u64, m * k);
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; m * n];
            let cpu = Cpu::with_isa(isa, Some(2));
            weight.linear(&cpu, &x, m, &mut y).expect("multiplies");
            for (at, got) in y.iter().enumerate() {
                let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
                let wanted: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                let size: f32 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
                assert!(
                    (got - wanted).abs() <= tolerance * size + 1e-6,
                    "{} on {} with {m} tokens ({}): {got}, wanted {wanted}",
                    weight.workflow(),
                    isa.name(),
                    weight.kernel(&cpu, m),
                );
            }
        }
    }
}

#[test]
fn a_mask_survives_every_quantizer_in_either_order() {
    for pattern in patterns() {
        for quantizer in quantizers() {
            let weight = dense(5, (128, 256), DType::BF16);
            let name = format!("{pattern} and {}", quantizer.name());
            let pruned = magnitude(pattern).quantize_shared(&cpu(), &weight).expect(&name);
            let mask = sparse(&pruned).mask().expect(&name);
            let after = quantizer.quantize_shared(&cpu(), &pruned).expect(&name);
            assert_eq!(sparse(&after).mask().expect(&name), mask, "{name}");
            assert_eq!(sparse(&after).pattern(), pattern, "{name}");
            let (plain, kept) =
                (values(after.as_ref()), |at: usize| mask.keeps(at / 256, at % 256));
            assert!((0..plain.len()).all(|at| kept(at) || plain[at] == 0.0), "{name}");
            // What is kept is what the quantizer makes of the pruned weight.
            let direct = values(&*quantizer.quantize(&cpu(), pruned.as_ref()).expect(&name));
            for at in (0..plain.len()).filter(|at| kept(*at)) {
                let close = (plain[at] - direct[at]).abs() <= 1e-6 * direct[at].abs();
                assert!(close, "{name}: {} {}", plain[at], direct[at]);
            }
            round_trip(after.as_ref());

            // The other way round: the codes of what is kept stay.
            let quantized = quantizer.quantize(&cpu(), weight.as_ref()).expect(&name);
            let first = values(quantized.as_ref());
            let other = magnitude(pattern).quantize_shared(&cpu(), &quantized).expect(&name);
            assert_eq!(other.workflow(), after.workflow(), "{name}");
            let mask = sparse(&other).mask().expect(&name);
            for (at, w) in values(other.as_ref()).iter().enumerate() {
                let wanted = if mask.keeps(at / 256, at % 256) { first[at] } else { 0.0 };
                assert!((w - wanted).abs() <= 1e-6 * wanted.abs(), "{name}: {w} {wanted}");
            }
            round_trip(other.as_ref());
        }
    }
}

#[test]
fn sparse_weights_multiply_as_they_dequantize() {
    for pattern in patterns() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let weight = dense(7, (64, 192), dtype);
            let pruned = magnitude(pattern).quantize_shared(&cpu(), &weight).expect("fits");
            multiplies(pruned.as_ref(), 1e-5);
            round_trip(pruned.as_ref());
            let direct = magnitude(pattern).quantize(&cpu(), weight.as_ref()).expect("fits");
            assert_eq!(values(direct.as_ref()), values(pruned.as_ref()));
        }
        let weight = dense(8, (64, 256), DType::BF16);
        let pruned = magnitude(pattern).quantize_shared(&cpu(), &weight).expect("fits");
        for quantizer in &quantizers()[..4] {
            let tolerance = if quantizer.name().contains("dynamic") { 3e-2 } else { 2e-4 };
            let after = quantizer.quantize_shared(&cpu(), &pruned).expect("fits");
            multiplies(after.as_ref(), tolerance);
        }
    }
    let marlin = Int4MarlinSparseConfig::default();
    let made = marlin.quantize(&cpu(), dense(9, (64, 256), DType::BF16).as_ref()).expect("fits");
    multiplies(made.as_ref(), 2e-4);
    round_trip(made.as_ref());
    assert_eq!(made.workflow(), "2:4·int4-weight-only");
}

#[test]
fn configurations_come_back_from_json_and_say_what_is_wrong() {
    let all: Vec<Box<dyn Recipe>> = vec![
        Box::new(MagnitudeSparsifier::default()),
        Box::new(magnitude(Pattern::Block { size: 32 })),
        Box::new(WandaSparsifier::default()),
        Box::new(SparseGptSparsifier::default()),
        Box::new(WeightNormSparsifier::default()),
        Box::new(NearlyDiagonalSparsifier::default()),
        Box::new(SaliencyPruner::default()),
        Box::new(FpgmPruner::default()),
        Box::new(SemiSparseWeightConfig::default()),
        Box::new(BlockSparseWeightConfig::default()),
        Box::new(Int4MarlinSparseConfig::default()),
    ];
    for recipe in all {
        let json = recipe.config_to_dict();
        let back = config_from_dict(&json).expect("reads back");
        assert_eq!(back.config_to_dict(), json);
        assert_eq!(back.name(), recipe.name());
    }
    let says = |error: aolab::Error, words: &str| {
        let text = error.to_string();
        assert!(text.contains(words), "{text}");
    };
    let weight = dense(1, (30, 30), DType::F32);
    let error =
        |recipe: &dyn Recipe| recipe.quantize(&cpu(), weight.as_ref()).expect_err("refused");
    says(error(&magnitude(Pattern::TWO_OF_FOUR)), "not a multiple of 4");
    says(error(&magnitude(Pattern::Block { size: 16 })), "no whole blocks");
    says(error(&MagnitudeSparsifier { sparsity_level: 1.5, ..Default::default() }), "0 to 1");
    says(error(&NearlyDiagonalSparsifier { nearliness: 2 }), "odd");
    says(error(&WandaSparsifier::default()), "looks at a layer's inputs first");
    let weight = dense(1, (32, 32), DType::F32);
    let refused = SemiSparseWeightConfig::default().quantize(&cpu(), weight.as_ref());
    says(refused.expect_err("not 2:4"), "prune first");
    assert!("3:2".parse::<Pattern>().is_err() && "block:0".parse::<Pattern>().is_err());
}

#[test]
fn lies_in_files_are_refused() {
    let weight = dense(3, (32, 64), DType::BF16);
    for pattern in [Pattern::TWO_OF_FOUR, Pattern::Block { size: 16 }, Pattern::Unstructured] {
        let pruned = magnitude(pattern).quantize_shared(&cpu(), &weight).expect("fits");
        let (meta, tensors) = (pruned.meta(), pruned.tensors());
        for at in 0..tensors.len() {
            let mut lie = tensors.clone();
            let (name, tensor) = &mut lie[at];
            let worst = match tensor.dtype() {
                DType::U8 => Tensor::new(vec![0xff_u8; tensor.numel()], tensor.shape()),
                DType::I32 => Tensor::new(vec![-3_i32; tensor.numel()], tensor.shape()),
                _ => continue,
            };
            *tensor = worst.expect("its shape");
            let name = name.clone();
            // A mask that keeps all is no lie; everything else is.
            let read = read_weight(&meta, lie, (32, 64));
            assert_eq!(read.is_ok(), name == "mask", "{pattern}: {name}");
        }
        assert!(read_weight(&meta, tensors[1..].to_vec(), (32, 64)).is_err(), "{pattern}");
        assert!(read_weight(&meta, tensors, (32, 128)).is_err(), "{pattern}");
    }
}

#[test]
fn other_sparsifiers_choose_what_they_say() {
    let weight = dense(11, (16, 32), DType::F32);
    let w = values(weight.as_ref());
    let mask = |recipe: &dyn Recipe| {
        let made = recipe.quantize_shared(&cpu(), &weight).expect("fits");
        sparse(&made).mask().expect("a mask")
    };
    let rows = |mask: &Mask| -> Vec<bool> { (0..16).map(|n| mask.keeps(n, 0)).collect() };
    let saliency = rows(&mask(&SaliencyPruner { sparsity_level: 0.25 }));
    let norm = |n: usize| w[n * 32..][..32].iter().map(|w| w.abs()).sum::<f32>();
    for (n, kept) in saliency.iter().enumerate() {
        let below = (0..16).filter(|other| norm(*other) < norm(n)).count();
        assert_eq!(*kept, below >= 4, "row {n}");
    }
    let fpgm = rows(&mask(&FpgmPruner { sparsity_level: 0.25 }));
    let distance = |n: usize| -> f64 {
        let square = |m: usize| -> f64 {
            let pairs = w[n * 32..][..32].iter().zip(&w[m * 32..][..32]);
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        (0..16).map(|m| square(m).sqrt()).sum()
    };
    for (n, kept) in fpgm.iter().enumerate() {
        let below = (0..16).filter(|other| distance(*other) < distance(n)).count();
        assert_eq!(*kept, below >= 4, "row {n}");
    }
    let band = mask(&NearlyDiagonalSparsifier { nearliness: 3 });
    assert!((0..16).all(|n| (0..32).all(|k| band.keeps(n, k) == (n.abs_diff(k) <= 1))));
    let norm = WeightNormSparsifier {
        sparse_block_shape: vec![4, 4],
        zeros_per_block: Some(10),
        ..Default::default()
    };
    assert_eq!(mask(&norm).kept(), 16 * 32 - 16 * 10, "half of the 32 blocks lose ten");
}

#[test]
fn sparse_gpt_beats_wanda_beats_magnitude_on_a_layers_output() {
    let (n, k, tokens) = (48, 64, 512);
    let weight = dense(21, (n, k), DType::F32);
    // Inputs of very different sizes that hang together.
    let mut x = normal(22, tokens * k);
    for row in x.chunks_exact_mut(k) {
        let common = row[0];
        for (j, x) in row.iter_mut().enumerate() {
            *x = (*x + common) * (1.0 + (j % 7) as f32);
        }
    }
    let mut hessian = Hessian::new(k);
    hessian.update(&cpu(), &x).expect("64 features");
    let output_error = |made: &dyn Weight| -> f64 {
        let (mut y, mut z) = (vec![0.0; tokens * n], vec![0.0; tokens * n]);
        weight.linear(&cpu(), &x, tokens, &mut y).expect("multiplies");
        made.linear(&cpu(), &x, tokens, &mut z).expect("multiplies");
        y.iter().zip(&z).map(|(y, z)| f64::from(y - z).powi(2)).sum()
    };
    for pattern in [Pattern::Unstructured, Pattern::TWO_OF_FOUR] {
        let level = MagnitudeSparsifier { pattern, sparsity_level: 0.5 };
        let by_magnitude = level.quantize_shared(&cpu(), &weight).expect("fits");
        let half = match pattern {
            Pattern::Unstructured => None,
            _ => Some(4),
        };
        let wanda = WandaSparsifier { semi_structured_block_size: half, ..Default::default() };
        let mut observer: Box<dyn LayerObserver> = wanda.prepare("layer", &weight).expect("fits");
        observer.observe(&cpu(), &x).expect("64 features");
        let by_wanda = observer.convert(&cpu()).expect("prunes");
        let config = SparseGptSparsifier { pattern, blocksize: 16, ..Default::default() };
        let original = weight.dequantize().expect("dense");
        let (w, mask) = sparse_gpt(&cpu(), hessian.values(), &original, &config).expect("prunes");
        assert!((mask.sparsity() - 0.5).abs() < 1e-9 && mask.holds(pattern));
        let by_gpt = DenseWeight::shared(w).expect("a matrix");
        let errors = [by_gpt, by_wanda, by_magnitude].map(|made| output_error(made.as_ref()));
        assert!(errors[0] < errors[1] && errors[1] < errors[2], "{pattern}: {errors:?}");
    }
}
