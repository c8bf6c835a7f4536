//! What looks at inputs: smoothquant, awq, gptq; and the rotations of hadamard.

use std::sync::Arc;

use super::checks::{Allowed, Checks, number_behind, of_each, unknown};
use crate::error::{Error, Result};
use crate::kernels::hadamard as kernel;
use crate::model::DenseWeight;
use crate::quantization::awq::{self as awq_search, AwqConfig, Trials};
use crate::quantization::gptq::{Hessian, Solver, gptq_quantize};
use crate::quantization::primitives::{inverse_cholesky_upper, to_blocked};
use crate::quantization::smoothquant::{SmoothQuantConfig, grow_abs_max, smoothing_factor};
use crate::quantization::{
    Calibrated as _, CodeType, Granularity, Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, MappingType,
    NVFP4DynamicActivationNVFP4WeightConfig, Recipe,
};
use crate::tensor::{DType, Tensor};

/// torch's vectorised power and root are an ulp off now and then, and two of them are divided: four ulps each.
const POWERS: f64 = 4.0 * f32::EPSILON as f64;

fn vector(values: Vec<f32>) -> Result<Tensor> {
    let shape = [values.len()];
    Tensor::new(values, &shape)
}

/// `n64.x`, `n64.y`, `n64.H`
pub(super) fn hadamard(checks: &mut Checks) -> Result<()> {
    for prefix in checks.prefixes(".x") {
        let n = number_behind(&prefix, "n")?;
        let plan = kernel::Plan::new(n)
            .ok_or_else(|| Error::invalid(format!("there is no Hadamard matrix of {n} here")))?;
        let x = checks.matrix_of(&format!("{prefix}.x"), n)?;
        let mut y = x.to_f32_vec();
        kernel::transform(&checks.cpu, &plan, &mut y);
        // Butterflies are exact to the bit; the product with a stored matrix adds in torch's own order.
        let allowed = if n.is_power_of_two() { Allowed::Nothing } else { Allowed::OfLargest(1e-6) };
        checks.near(format!("{prefix}.y"), &Tensor::new(y, x.shape())?, &allowed)?;
        let mut h: Vec<f32> = (0..n * n).map(|at| f32::from(u8::from(at % (n + 1) == 0))).collect();
        kernel::transform(&checks.cpu, &plan, &mut h);
        checks.exact(format!("{prefix}.H"), &Tensor::new(h, &[n, n])?)?;
    }
    Ok(())
}

/// `a0.25.smoothing_factor`, and a layer that was converted with alpha 0.5.
pub(super) fn smoothquant(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?;
    let (n, k) = w.dims2()?;
    let inputs = [checks.matrix_of("x0", k)?, checks.matrix_of("x1", k)?];
    let (mut w_abs_max, mut x_abs_max) = (vec![0.0; k], vec![0.0; k]);
    grow_abs_max(&mut w_abs_max, &w.to_f32_vec());
    inputs.iter().for_each(|x| grow_abs_max(&mut x_abs_max, &x.to_f32_vec()));
    for prefix in checks.prefixes(".smoothing_factor") {
        let word = prefix.rsplit_once(".a").map_or(&prefix[1..], |(_, alpha)| alpha);
        let alpha: f64 = word.parse().map_err(|_| unknown(&prefix))?;
        let name = format!("{prefix}.smoothing_factor");
        let got = vector(smoothing_factor(&x_abs_max, &w_abs_max, Some(alpha)))?;
        let whole = alpha.fract() == 0.0;
        let near = of_each(&checks.golden(&name)?, POWERS, 0.0);
        checks.near(name, &got, if whole { &Allowed::Nothing } else { &near })?;
    }
    let config = SmoothQuantConfig::new(Arc::new(Int8DynamicActivationInt8WeightConfig::default()));
    let mut observer = config.prepare("layer", &DenseWeight::shared(w)?)?;
    for x in &inputs {
        observer.observe(&checks.cpu, &x.to_f32_vec())?;
    }
    let weight = observer.convert(&checks.cpu)?;
    for (name, tensor) in weight.tensors() {
        let golden_name = format!("int8dq.{name}");
        if !checks.contains(&golden_name) {
            continue;
        }
        let golden = checks.golden(&golden_name)?;
        let near =
            if name == "qdata" { Allowed::But(0.005) } else { of_each(&golden, POWERS, 0.0) };
        checks.near(golden_name, &tensor.reshape(golden.shape())?, &near)?;
    }
    let x = inputs[0].to_f32_vec();
    let m = x.len() / k.max(1);
    let mut y = vec![f32::NAN; m * n];
    weight.linear(&checks.cpu, &x, m, &mut y)?;
    // Scales of activations may differ by an ulp, and a code by one at half a step.
    checks.near("int8dq.y", &Tensor::new(y, &[m, n])?, &Allowed::OfLargest(2e-2))
}

type Root = fn(f32) -> f32;

/// The nearest root, and its neighbours.
const ROOTS: [Root; 3] = [f32::sqrt, |x| x.sqrt().next_up(), |x| x.sqrt().next_down()];

/// The loss of candidate `i` and its scales. Torch takes √(max · min) from MKL, whose last bit is wrong for one number in six, and a scale's
/// last bit decides which way the largest magnitude of a symmetric group, at half a step, is rounded: of the nearest root and its
/// neighbours the one whose loss is nearest to `wanted` is torch's.
#[expect(clippy::cast_possible_truncation, reason = "torch's losses are f32")]
fn with_torchs_root(trials: &Trials<'_>, i: usize, wanted: f32) -> Result<(f32, Vec<f32>)> {
    let mut best: Option<(f32, Vec<f32>)> = None;
    for root in ROOTS {
        let scales = trials.candidate(i, root);
        let loss = trials.loss(&scales)?.0 as f32;
        let off = |loss: f32| (loss - wanted).abs();
        if best.as_ref().is_none_or(|(known, _)| off(loss) < off(*known)) {
            best = Some((loss, scales));
        }
    }
    best.ok_or_else(|| Error::invalid("no root was tried"))
}

/// `int4g32.losses`, `int4g32.best_scales`
pub(super) fn awq(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?;
    let (_, k) = w.dims2()?;
    let inputs = [checks.matrix_of("x0", k)?, checks.matrix_of("x1", k)?];
    let inputs = inputs.map(|x| x.to_f32_vec()).concat();
    let means = vector(awq_search::mean_magnitudes(&inputs, k))?;
    for prefix in checks.prefixes(".act_scale") {
        let name = format!("{prefix}.act_scale");
        let golden = checks.golden(&name)?;
        checks.exact(name, &means.reshape(golden.shape())?)?;
    }
    let w = DenseWeight::shared(w)?;
    for prefix in checks.prefixes(".losses") {
        let group = |mapping_type| -> Arc<dyn Recipe> {
            Arc::new(IntxWeightOnlyConfig {
                weight_dtype: CodeType::int(4),
                granularity: Granularity::PerGroup { group_size: 32 },
                mapping_type,
                ..IntxWeightOnlyConfig::default()
            })
        };
        let base = match prefix.as_str() {
            "int4g32" => group(MappingType::Symmetric),
            "int4g32asym" => group(MappingType::Asymmetric),
            "int8" => Arc::new(Int8WeightOnlyConfig::default()),
            _ => return Err(unknown(&prefix)),
        };
        let config = AwqConfig::new(base);
        let trials = Trials::new(&checks.cpu, w.as_ref(), &inputs, &config)?;
        let name = format!("{prefix}.losses");
        let golden = checks.golden(&name)?;
        let wanted = golden.to_f32_vec();
        let least = (0..wanted.len()).min_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
        // x̄^½ is a root, too, of which torch has no exact last bits: errors of half a step turn their sign, a few percent of the loss.
        let is_root = |i: usize| 2 * i == wanted.len();
        let (mut losses, mut best) = (Vec::new(), Vec::new());
        for (i, wanted) in wanted.iter().enumerate() {
            let (loss, scales) = with_torchs_root(&trials, i, *wanted)?;
            losses.push(loss);
            if least == Some(i) {
                // Where no code lies at half a step the loss does not tell which root was torch's, and the scales do.
                let golden = checks.golden(&format!("{prefix}.best_scales"))?.to_f32_vec();
                let same = |root: &Root| trials.candidate(i, root) == golden;
                let torchs = ROOTS.iter().find(|root| same(root));
                best = torchs.map_or(scales, |root| trials.candidate(i, root));
            }
        }
        // The kernels give activations 15 bits and a sign: errors of 2⁻¹⁶ beside those of 4 bits, in a mean of a few hundred squares.
        let bound =
            |(i, wanted): (usize, &f32)| f64::from(*wanted) * if is_root(i) { 0.1 } else { 1e-3 };
        let near = Allowed::Each(wanted.iter().enumerate().map(bound).collect());
        checks.near(name, &Tensor::new(losses, golden.shape())?, &near)?;
        let name = format!("{prefix}.best_scales");
        let near = match least.is_some_and(is_root) {
            true => of_each(&checks.golden(&name)?, POWERS, 0.0),
            false => Allowed::Nothing,
        };
        checks.near(name, &vector(best)?, &near)?;
    }
    Ok(())
}

pub(super) fn gptq(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?;
    let (_, k) = w.dims2()?;
    let mut hessian = Hessian::new(k);
    for name in checks.names_with("x") {
        let x = checks.matrix_of(&name, k)?.to_f32_vec();
        hessian.update(&checks.cpu, &x)?;
    }
    let sequences = i64::try_from(hessian.sequences()).unwrap_or(i64::MAX);
    checks.exact("total", &Tensor::new(vec![sequences], &[1])?)?;
    // Sums of products, in another order than torch's: a few ulps of the largest.
    let found = Tensor::new(hessian.values().to_vec(), &[k, k])?;
    checks.near("H", &found, &Allowed::OfLargest(1e-6))?;
    let h = checks.golden("H")?.to_f32_vec();
    if h.len() != k * k {
        return Err(Error::invalid(format!("H has {} numbers for K = {k}", h.len())));
    }
    let upper = inverse_cholesky_upper(&checks.cpu, &damped(&h, k), k)?;
    // torch inverts in f32, which a condition number of some 10³ multiplies.
    checks.near("Hinv_chol", &Tensor::new(upper, &[k, k])?, &Allowed::OfLargest(2e-4))?;
    for prefix in checks.prefixes(".qdata") {
        let (name, block_size) = match prefix.split_once("_bs") {
            Some((name, size)) => (name, size.parse().map_err(|_| unknown(&prefix))?),
            None => (prefix.as_str(), 256),
        };
        let base: Box<dyn Recipe> = match name {
            "int8" => Box::new(Int8WeightOnlyConfig::default()),
            "nvfp4" => Box::new(NVFP4DynamicActivationNVFP4WeightConfig::default()),
            _ => {
                let group_size = number_behind(name, "int4g")?;
                Box::new(Int4WeightOnlyConfig { group_size, ..Int4WeightOnlyConfig::default() })
            }
        };
        base.check(w.dims2()?)?;
        let mut columns = base.columns(&checks.cpu, &DenseWeight::new(w.clone())?)?;
        let solver = Solver { percdamp: 0.01, block_size, whole_groups: false };
        let weight = gptq_quantize(&checks.cpu, &h, &w, columns.as_mut(), &solver)?;
        for (part, tensor) in weight.tensors() {
            solved(checks, (&prefix, name, &part), &tensor)?;
        }
        let zero = format!("{prefix}.zero");
        if name == "int8" && checks.contains(&zero) {
            // Symmetric: none is stored, and all are 0.
            checks.exact(&zero, &Tensor::zeros(DType::I8, checks.golden(&zero)?.shape())?)?;
        }
    }
    Ok(())
}

/// As torch damps it where the golden factor was made.
#[expect(clippy::cast_precision_loss, reason = "layers have fewer than 2⁵³ inputs")]
fn damped(h: &[f32], k: usize) -> Vec<f64> {
    let mut damped: Vec<f64> = h.iter().map(|value| f64::from(*value)).collect();
    (0..k).filter(|j| h[j * (k + 1)] == 0.0).for_each(|j| damped[j * (k + 1)] = 1.0);
    let mean = (0..k).map(|j| damped[j * (k + 1)]).sum::<f64>() / k.max(1) as f64;
    (0..k).for_each(|j| damped[j * (k + 1)] += 0.01 * mean);
    damped
}

/// One tensor of a weight that GPTQ filled, in torchao's layout. A code may be another where an error moved a weight across half
/// a step.
fn solved(
    checks: &mut Checks,
    (prefix, base, part): (&str, &str, &str),
    tensor: &Tensor,
) -> Result<()> {
    let name = match part {
        "zero_point" => format!("{prefix}.zero"),
        _ => format!("{prefix}.{part}"),
    };
    if !checks.contains(&name) {
        return Ok(());
    }
    let golden = checks.golden(&name)?;
    let int4 = base.starts_with("int4");
    let got = match (part, int4) {
        // torchao keeps two's complement nibbles, this layout codes from 0.
        ("qdata", true) => {
            let bytes = tensor.as_slice::<u8>()?.iter();
            let signed = bytes.map(|byte| (byte ^ 0x88).cast_signed()).collect::<Vec<i8>>();
            Tensor::new(signed, tensor.shape())?
        }
        ("qdata", false) => tensor.clone(),
        (_, true) => super::linear::transposed(tensor)?,
        ("scale", _) if base == "nvfp4" => to_blocked(tensor)?.reshape(golden.shape())?,
        (_, false) => tensor.reshape(golden.shape())?,
    };
    let near = match golden.dtype() {
        DType::F32 => Allowed::OfLargest(1e-4),
        _ => Allowed::But(0.02),
    };
    checks.near(name, &got, &near)
}
