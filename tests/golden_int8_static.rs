//! Int8 static activations (int8_static) and the observers behind them.
//!
//! torchao's golden files hold no static run; they hold int8 activations with their scales, and a static weight that is given
//! such a scale must round to the same codes.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use aolab::kernels::{Cpu, Isa};
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::int8_static::ActObserver;
use aolab::quantization::primitives::{
    AffineQuantizedObserver, CodeRange, Granularity, IntType, MappingType, ObserverConfig,
    ObserverKind, QParamsOptions, choose_qparams_affine,
};
use aolab::quantization::{
    Calibrated, Int8StaticActivationInt8WeightConfig, Recipe, SmoothQuantConfig, read_weight,
};
use aolab::rng::Rng;
use aolab::{DType, Tensor};

const OPTIONS: QParamsOptions = QParamsOptions {
    eps: Some(f32::EPSILON),
    scale_dtype: Some(DType::F32),
    zero_point_dtype: Some(DType::I8),
    keepdim: true,
};

fn int8() -> CodeRange {
    CodeRange::full(IntType::Int(8)).expect("int8")
}

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = Rng::new(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
    Tensor::new(values, shape).expect("its shape")
}

fn observer(mapping: MappingType, kind: ObserverKind) -> AffineQuantizedObserver {
    let granularity = Granularity::PerTensor;
    let config = ObserverConfig { mapping, range: int8(), granularity, options: OPTIONS };
    AffineQuantizedObserver::new(config, kind)
}

#[test]
fn min_max_of_pieces_is_that_of_the_whole() {
    let (a, b) = (random(1, &[5, 32]), random(2, &[3, 32]));
    let whole = [a.to_f32_vec(), b.to_f32_vec()].concat();
    let whole = Tensor::new(whole, &[8, 32]).expect("its shape");
    for mapping in [MappingType::Symmetric, MappingType::Asymmetric] {
        let mut seen = observer(mapping, ObserverKind::MinMax);
        assert!(seen.calculate_qparams().is_err(), "nothing was seen");
        seen.observe(&a).expect("sees");
        seen.observe(&b).expect("sees");
        let (scale, zero) = seen.calculate_qparams().expect("was seen");
        let (wanted, wanted_zero) =
            choose_qparams_affine(&whole, mapping, &[8, 32], int8(), OPTIONS).expect("chooses");
        assert_eq!(scale.to_f32_vec(), wanted.to_f32_vec(), "{mapping}");
        assert_eq!(zero.to_f32_vec(), wanted_zero.to_f32_vec(), "{mapping}");
    }
}

#[test]
fn moving_averages_move_and_mse_clips_an_outlier() {
    let mut fading = observer(MappingType::Symmetric, ObserverKind::MovingAverage(0.25));
    for amax in [4.0_f32, 8.0] {
        fading.observe(&Tensor::new(vec![-amax, amax], &[1, 2]).expect("two")).expect("sees");
    }
    // 4 + 0.25 · (8 − 4) = 5, over 127.5.
    assert_eq!(fading.calculate_qparams().expect("was seen").0.to_f32_vec(), [5.0 / 127.5]);
    let mut values = random(3, &[1, 4096]).to_f32_vec();
    values[7] = 40.0;
    let x = Tensor::new(values, &[1, 4096]).expect("its shape");
    let scale = |kind| {
        let mut seen = observer(MappingType::Symmetric, kind);
        seen.observe(&x).expect("sees");
        seen.calculate_qparams().expect("was seen").0.to_f32_vec()[0]
    };
    let (mse, min_max) =
        (scale(ObserverKind::Mse { steps: 100, run_once: true }), scale(ObserverKind::MinMax));
    // Rounding costs 4096 · s² / 12 and clipping (40 − 127.5 · s)²: together least at 39.2, of the hundredths 98.
    assert!((mse * 127.5 - 39.2).abs() < 0.01 && min_max * 127.5 > 39.9, "{mse} and {min_max}");
    let fixed = ObserverKind::FixedQParam(
        Tensor::new(vec![0.5_f32], &[1]).expect("one"),
        Tensor::zeros(DType::I8, &[1]).expect("one"),
    );
    assert!((scale(fixed) - 0.5).abs() < f32::EPSILON);
}

/// `Σ a · q · s_x · s_w` in f64 of the codes, on every instruction set, symmetric and not, M from one up.
#[test]
fn the_product_is_that_of_the_codes() {
    let (n, k) = (37, 96);
    let weight: Arc<dyn Weight> =
        Arc::new(DenseWeight::new(random(4, &[n, k])).expect("a float matrix"));
    for (mapping, m) in [(MappingType::Symmetric, 1), (MappingType::Asymmetric, 9)] {
        let x = random(5, &[m, k]).to_f32_vec().iter().map(|x| x + 0.3).collect::<Vec<f32>>();
        let config = Int8StaticActivationInt8WeightConfig {
            act_mapping_type: mapping,
            observer: ActObserver::Mse,
            ..Int8StaticActivationInt8WeightConfig::default()
        };
        let mut seen = config.prepare("layer", &weight).expect("prepares");
        seen.observe(&Cpu::new(Some(1)), &x).expect("sees");
        let quantized = seen.convert(&Cpu::new(Some(1))).expect("converts");
        let tensors = quantized.tensors();
        let values = |name: &str| {
            tensors.iter().find(|(known, _)| known == name).expect("a tensor").1.to_f32_vec()
        };
        let (s_x, zero) = (values("act_quant_scale")[0], values("act_quant_zero_point")[0]);
        let dense = quantized.dequantize().expect("rows").to_f32_vec();
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; m * n];
            quantized.linear(&Cpu::with_isa(isa, Some(2)), &x, m, &mut y).expect("runs");
            for (at, y) in y.iter().enumerate() {
                let row = &x[at / n * k..][..k];
                let code =
                    |x: &f32| ((x * (1.0 / s_x)).round_ties_even() + zero).clamp(-128.0, 127.0);
                let products = row
                    .iter()
                    .zip(&dense[at % n * k..][..k])
                    .map(|(x, w)| f64::from(code(x) - zero) * f64::from(s_x) * f64::from(*w));
                let (sum, size) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
                let error = (f64::from(*y) - sum).abs();
                assert!(error <= 1e-5 * size, "{} {mapping}: {y}, wanted {sum}", isa.name());
            }
        }
        let back = read_weight(&quantized.meta(), tensors, (n, k)).expect("reads what it wrote");
        assert_eq!(back.dequantize().expect("rows").to_f32_vec(), dense);
    }
}

/// SmoothQuant over a static base: the scale is that of the smoothed inputs, found in a second pass.
#[test]
fn smoothquant_hands_smoothed_inputs_to_a_static_base() {
    let weight: Arc<dyn Weight> =
        Arc::new(DenseWeight::new(random(6, &[24, 32])).expect("a float matrix"));
    let mut x = random(7, &[10, 32]).to_f32_vec();
    x.iter_mut().step_by(32).for_each(|x| *x *= 50.0);
    let base: Arc<dyn Recipe> = Arc::new(Int8StaticActivationInt8WeightConfig::default());
    let cpu = Cpu::new(Some(1));
    let error = |recipe: &dyn Calibrated| {
        let mut seen = recipe.prepare("layer", &weight).expect("prepares");
        loop {
            seen.observe(&cpu, &x).expect("sees");
            if !seen.another_pass().expect("a pass") {
                break;
            }
        }
        let quantized = seen.convert(&cpu).expect("converts");
        let (mut y, mut wanted) = (vec![f32::NAN; 240], vec![f32::NAN; 240]);
        quantized.linear(&cpu, &x, 10, &mut y).expect("runs");
        weight.linear(&cpu, &x, 10, &mut wanted).expect("runs");
        y.iter().zip(&wanted).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let plain = error(base.calibrated().expect("it reads inputs"));
    let smooth = error(&SmoothQuantConfig::new(Arc::clone(&base)));
    assert!(smooth < 0.25 * plain, "squared error {smooth} against {plain} without smoothing");
}
