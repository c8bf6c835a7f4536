//! The workflows that look at inputs (gptq, awq, smoothquant) against torchao 0.18.
//!
//! What comes out of a matrix product depends on the order of additions and is compared with a tolerance that is said
//! beside it; what does not is bit-equal.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::ops::Range;
use std::sync::Arc;

use aolab::kernels::Cpu;
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::awq::{self, AwqConfig};
use aolab::quantization::gptq::{Hessian, Solver, gptq_quantize};
use aolab::quantization::primitives::{
    CodeRange, IntType, MappingType, QParamsOptions, choose_qparams_affine, dequantize_affine,
    inverse_cholesky_upper, quantize_affine,
};
use aolab::quantization::smoothquant::{SmoothQuantConfig, grow_abs_max, smoothing_factor};
use aolab::quantization::{
    Calibrated, CodeType, Granularity, Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig, IntxWeightOnlyConfig, Recipe,
};
use aolab::{DType, Result, Tensor};
use golden_support::Family;

fn cpu() -> Cpu {
    Cpu::new(Some(2))
}

fn floats(family: &Family, name: &str) -> Vec<f32> {
    family.tensor(name).to_f32_vec()
}

fn dense(w: &Tensor) -> Arc<dyn Weight> {
    DenseWeight::shared(w.clone()).expect("a float matrix")
}

/// `|got − wanted| ≤ tolerance · max |wanted|`, for every value.
fn close(name: &str, wanted: &[f32], got: &[f32], tolerance: f32) {
    assert_eq!(wanted.len(), got.len(), "{name}: length");
    let most = wanted.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for (i, (wanted, got)) in wanted.iter().zip(got).enumerate() {
        let error = (wanted - got).abs();
        assert!(error <= tolerance * most, "{name}[{i}]: wanted {wanted}, got {got}");
    }
}

#[test]
fn gptq() {
    let family = Family::read("gptq");
    let mut hessian = Hessian::new(64);
    for x in ["x0", "x1"] {
        hessian.update(&cpu(), &floats(&family, x)).expect("64 features");
    }
    assert_eq!(family.tensor("total").as_slice::<i64>().expect("i64"), [2]);
    assert_eq!(hessian.sequences(), 2);
    // Sums of 32 products, in another order than torch's: a few ulps of the largest.
    close("H", &floats(&family, "H"), hessian.values(), 1e-6);
    let h = floats(&family, "H");
    let mut damped: Vec<f64> = h.iter().map(|value| f64::from(*value)).collect();
    (0..64).filter(|j| h[j * 65] == 0.0).for_each(|j| damped[j * 65] = 1.0);
    let mean = (0..64).map(|j| damped[j * 65]).sum::<f64>() / 64.0;
    // The golden factor's damping is computed before the dead feature's 1 is, on the mean that torch takes after.
    (0..64).for_each(|j| damped[j * 65] += 0.01 * mean);
    let upper = inverse_cholesky_upper(&cpu(), &damped, 64).expect("positive definite");
    // torch inverts in f32, which a condition number of some 10³ multiplies.
    close("Hinv_chol", &floats(&family, "Hinv_chol"), &upper, 2e-4);
    let int8: Box<dyn Recipe> = Box::new(Int8WeightOnlyConfig::default());
    let int4 = Int4WeightOnlyConfig { group_size: 32, ..Int4WeightOnlyConfig::default() };
    check_gptq(&family, "int8", &*int8, 256);
    check_gptq(&family, "int8_bs16", &*int8, 16);
    check_gptq(&family, "int4g32", &int4, 256);
    check_gptq(&family, "int4g32_bs32", &int4, 32);
}

/// With torchao's Hessian. A code may differ by one where an error moved a weight across half a step.
fn check_gptq(family: &Family, name: &str, base: &dyn Recipe, block_size: usize) {
    let (w, h) = (family.tensor("w"), floats(family, "H"));
    let mut columns = base.columns(&cpu(), dense(&w).as_ref()).expect("it has columns");
    let solver = Solver { percdamp: 0.01, block_size, whole_groups: false };
    let weight = gptq_quantize(&cpu(), &h, &w, columns.as_mut(), &solver).expect("solves");
    let tensor = |name: &str| {
        let found = weight.tensors().into_iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no {name}")).1
    };
    let wanted = family.tensor(&format!("{name}.qdata"));
    let wanted: Vec<i32> = if base.name() == "int4-weight-only" {
        // torchao keeps two's complement nibbles, this layout codes from 0.
        let bytes = wanted.as_slice::<i8>().expect("i8");
        bytes.iter().map(|byte| i32::from(byte.cast_unsigned() ^ 0x88)).collect()
    } else {
        wanted.as_slice::<i8>().expect("i8").iter().map(|code| i32::from(*code)).collect()
    };
    let qdata = tensor("qdata");
    let got: Vec<i32> = match qdata.dtype() {
        DType::U8 => qdata.as_slice::<u8>().expect("u8").iter().map(|b| i32::from(*b)).collect(),
        _ => qdata.as_slice::<i8>().expect("i8").iter().map(|b| i32::from(*b)).collect(),
    };
    let same = wanted.iter().zip(&got).filter(|(wanted, got)| wanted == got).count();
    assert!(100 * same >= 98 * wanted.len(), "{name}: {same} of {} are equal", wanted.len());
    let scale = floats(family, &format!("{name}.scale"));
    let turned = |values: Vec<f32>| -> Vec<f32> {
        if base.name() != "int4-weight-only" {
            return values;
        }
        (0..2)
            .flat_map(|group| (0..16).map(move |row| row * 2 + group))
            .map(|at| values[at])
            .collect()
    };
    close(&format!("{name}.scale"), &scale, &turned(tensor("scale").to_f32_vec()), 1e-4);
    if base.name() == "int4-weight-only" {
        let zero = floats(family, &format!("{name}.zero"));
        close(&format!("{name}.zero"), &zero, &turned(tensor("zero_point").to_f32_vec()), 1e-4);
    }
}

/// Int4 in groups of 32, as `IntxWeightOnlyConfig` quantizes.
#[derive(Debug)]
struct Int4Groups(MappingType);

impl Recipe for Int4Groups {
    fn name(&self) -> &'static str {
        "int4-groups"
    }

    fn config_to_dict(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn check(&self, _shape: (usize, usize)) -> Result<()> {
        Ok(())
    }

    fn quantize(&self, _cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        let w = weight.dequantize()?;
        let range = CodeRange::new(IntType::Int(8), -8, 7)?;
        let options =
            QParamsOptions { zero_point_dtype: Some(DType::I8), ..QParamsOptions::default() };
        let block = [1, 32];
        let (scale, zero) = choose_qparams_affine(&w, self.0, &block, range, options)?;
        let codes = quantize_affine(&w, &block, &scale, &zero, range)?;
        DenseWeight::shared(dequantize_affine(&codes, &block, &scale, &zero, DType::F32)?)
    }
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "torch's losses are f32")]
fn awq() {
    let family = Family::read("awq");
    let inputs = [floats(&family, "x0"), floats(&family, "x1")].concat();
    close(
        "act_scale",
        &floats(&family, "int4g32.act_scale"),
        &awq::mean_magnitudes(&inputs, 64),
        1e-6,
    );
    let bases: [(&str, Arc<dyn Recipe>); 3] = [
        ("int4g32", Arc::new(Int4Groups(MappingType::Symmetric))),
        ("int4g32asym", Arc::new(Int4Groups(MappingType::Asymmetric))),
        ("int8", Arc::new(Int8WeightOnlyConfig::default())),
    ];
    let w = dense(&family.tensor("w"));
    for (name, base) in bases {
        let found =
            awq::search(&cpu(), w.as_ref(), &inputs, &AwqConfig::new(base)).expect("searches");
        let losses: Vec<f32> = found.losses.iter().map(|loss| *loss as f32).collect();
        // The largest magnitude of a symmetric group lies at half a step, −7.5: an ulp of a power decides between −8 and −7, an error
        // of half a step either way, with its sign turned. A mean of 768 squares has moved by 7 % from that.
        let wanted = floats(&family, &format!("{name}.losses"));
        close(&format!("{name}.losses"), &wanted, &losses, 0.1);
        let least = |all: &[f32]| (0..all.len()).min_by(|a, b| all[*a].total_cmp(&all[*b]));
        let (torch, ours) = (least(&wanted).expect("twenty"), least(&losses).expect("twenty"));
        if torch == ours {
            let best = floats(&family, &format!("{name}.best_scales"));
            close(&format!("{name}.best_scales"), &best, &found.scales, 1e-6);
        } else {
            let (torch, ours) = (losses[torch], losses[ours]);
            assert!(torch < 1.1 * ours, "{name}: torch's choice loses {torch}, ours {ours}");
        }
    }
}

/// torch's vectorised power and root are an ulp off now and then, and two of them are divided: four ulps each.
fn check_ulps(name: &str, wanted: &[f32], got: &[f32]) {
    assert_eq!(wanted.len(), got.len(), "{name}: length");
    for (wanted, got) in wanted.iter().zip(got) {
        let error = (wanted - got).abs() / wanted.abs();
        assert!(error <= 4.0 * f32::EPSILON, "{name}: wanted {wanted}, got {got}");
    }
}

#[test]
fn smoothquant() {
    let family = Family::read("smoothquant");
    let w = family.tensor("w");
    let mut w_abs_max = vec![0.0; 64];
    grow_abs_max(&mut w_abs_max, &w.to_f32_vec());
    let mut x_abs_max = vec![0.0; 64];
    grow_abs_max(&mut x_abs_max, &floats(&family, "x0"));
    grow_abs_max(&mut x_abs_max, &floats(&family, "x1"));
    for (name, alpha) in [("0.0", 0.0), ("0.25", 0.25), ("0.5", 0.5), ("0.75", 0.75), ("1.0", 1.0)]
    {
        let wanted = floats(&family, &format!("a{name}.smoothing_factor"));
        let got = smoothing_factor(&x_abs_max, &w_abs_max, Some(alpha));
        if ["0.0", "1.0"].contains(&name) {
            assert_eq!(wanted, got, "alpha {name}");
        } else {
            check_ulps(name, &wanted, &got);
        }
    }
    let running = smoothing_factor(&x_abs_max, &w_abs_max, Some(0.5));
    check_ulps("running", &floats(&family, "running.a0.5.smoothing_factor"), &running);
    let config = SmoothQuantConfig::new(Arc::new(Int8DynamicActivationInt8WeightConfig::default()));
    let mut observer = config.prepare("layer", &dense(&w)).expect("prepares");
    for x in ["x0", "x1"] {
        observer.observe(&cpu(), &floats(&family, x)).expect("64 features");
    }
    assert!(!observer.another_pass().expect("a pass"), "a dynamic base needs one pass");
    let weight = observer.convert(&cpu()).expect("converts");
    for (name, tensor) in weight.tensors() {
        let wanted = family.tensor(&format!("int8dq.{name}"));
        if name == "qdata" {
            let codes = |t: &Tensor| t.as_slice::<i8>().expect("i8").to_vec();
            let pairs: Vec<_> = codes(&wanted).into_iter().zip(codes(&tensor)).collect();
            let same = pairs.iter().filter(|(a, b)| a == b).count();
            assert!(
                pairs.iter().all(|(a, b)| a.abs_diff(*b) <= 1),
                "a code is off by more than one"
            );
            assert!(1000 * same >= 995 * pairs.len(), "{same} of {} codes", pairs.len());
        } else {
            check_ulps(&name, &wanted.to_f32_vec(), &tensor.to_f32_vec());
        }
    }
    let mut y = vec![f32::NAN; 8 * 16];
    weight.linear(&cpu(), &floats(&family, "x0"), 8, &mut y).expect("runs");
    // Scales of activations may differ by an ulp, and a code by one at half a step.
    close("int8dq.y", &floats(&family, "int8dq.y"), &y, 2e-2);
}

/// A base that is seen through to its columns rounds as it quantizes: without errors to make up for, the codes are the base's.
#[test]
fn columns_round_as_their_format_does() {
    let mut rng = aolab::rng::Rng::new(5);
    let w = Tensor::new((0..24 * 128).map(|_| rng.normal()).collect::<Vec<f32>>(), &[24, 128]);
    let w = w.expect("its shape");
    let identity: Vec<f32> = (0..128 * 128).map(|at| f32::from(u8::from(at % 129 == 0))).collect();
    let bases: Vec<Box<dyn Recipe>> = vec![
        Box::new(Int8WeightOnlyConfig::default()),
        Box::new(Int4WeightOnlyConfig { group_size: 32, ..Int4WeightOnlyConfig::default() }),
        Box::new(IntxWeightOnlyConfig {
            weight_dtype: CodeType::int(3),
            granularity: Granularity::PerGroup { group_size: 64 },
            mapping_type: MappingType::Asymmetric,
            ..IntxWeightOnlyConfig::default()
        }),
        Box::new(IntxWeightOnlyConfig {
            weight_dtype: CodeType::int(2),
            ..IntxWeightOnlyConfig::default()
        }),
    ];
    for base in bases {
        let weight = dense(&w);
        let solver = Solver { percdamp: 0.0, block_size: 48, whole_groups: true };
        let mut columns = base.columns(&cpu(), weight.as_ref()).expect("it has columns");
        let filled =
            gptq_quantize(&cpu(), &identity, &w, columns.as_mut(), &solver).expect("solves");
        let plain = base.quantize(&cpu(), weight.as_ref()).expect("quantizes");
        let everything: Range<usize> = 0..24;
        let (mut a, mut b) = (vec![f32::NAN; 24 * 128], vec![f32::NAN; 24 * 128]);
        filled.dequantize_rows(everything.clone(), &mut a).expect("rows");
        plain.dequantize_rows(everything, &mut b).expect("rows");
        assert_eq!(a, b, "{}", base.name());
        assert_eq!(filled.meta(), plain.meta(), "{}", base.name());
    }
}
