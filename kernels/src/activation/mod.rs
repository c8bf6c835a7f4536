//! `silu(x) = x / (1 + e⁻ˣ)` · `gelu(x) = x · Φ(x)`, Φ the normal distribution function, by erf or by tanh:
//! `gelu_tanh(x) = x / (1 + e^(−2u))`, `u = √(2/π) · (x + 0.044715 · x³)` · `relu(x) = max(x, 0)` · relu².
//! x, gate, up, y: f32, all of one length; the `_mul` forms give `y = f(gate) · up`.
//! Element by element, any layout.
//! Error: silu 2⁻²¹ · (1 + |x|) relative, and −0 below −88.7, where e⁻ˣ is infinite (2.7e-37 absolute); gelu and gelu_tanh 2⁻²⁰ · |x| absolute. NaN stays NaN.
//! Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415); Shazeer 2020 (arXiv 2002.05202) for the gated
//! forms; So et al. 2021 (arXiv 2109.08668) for relu². erfc: Numerical Recipes, 2nd ed., §6.2 (1.2e-7 relative).

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::rows::over_rows;
use crate::{Cost, Cpu, Isa};

/// The functions of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e⁻ˣ), also called swish.
    Silu,
    /// x · Φ(x).
    Gelu,
    /// GELU with tanh in place of erf: `gelu_pytorch_tanh`.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    ReluSquared,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 5] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::ReluSquared,
    ];
}

/// `y = f(x)`.
pub fn activate(cpu: &Cpu, function: Activation, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "activation: y must be as long as x");
    over_rows(cpu, y, 1, |first, y| {
        let x = &x[first..][..y.len()];
        match cpu.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => x86::activate(avx2, function, x, None, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => x86::activate(avx512.avx2(), function, x, None, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(vnni) => x86::activate(vnni.avx512().avx2(), function, x, None, y),
            _ => activate_scalar(function, x, None, y),
        }
    });
}

/// `y = f(gate) · up`.
pub fn activate_mul(cpu: &Cpu, function: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert_eq!(gate.len(), y.len(), "activation: y must be as long as gate");
    assert_eq!(up.len(), y.len(), "activation: up must be as long as gate");
    over_rows(cpu, y, 1, |first, y| {
        let gate = &gate[first..][..y.len()];
        let up = Some(&up[first..][..y.len()]);
        match cpu.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => x86::activate(avx2, function, gate, up, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => x86::activate(avx512.avx2(), function, gate, up, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(vnni) => x86::activate(vnni.avx512().avx2(), function, gate, up, y),
            _ => activate_scalar(function, gate, up, y),
        }
    });
}

/// `y = silu(gate) · up`: the middle of a Llama's feed-forward.
pub fn silu_mul(cpu: &Cpu, gate: &[f32], up: &[f32], y: &mut [f32]) {
    activate_mul(cpu, Activation::Silu, gate, up, y);
}

/// What one call over `len` numbers moves and computes, for the gated form; an exp counts as one operation.
pub fn cost(len: usize) -> Cost {
    Cost { bytes: 12 * len as u64, flops: 4 * len as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Scalar | Isa::Neon(_) => "scalar-activation-f32",
        Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-activation-f32-avx2",
    }
}

/// Lengths of tests and benches.
pub const SHAPES: &[usize] = &[0, 1, 7, 8, 31, 1536, 70_001];

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn activate_scalar(function: Activation, x: &[f32], up: Option<&[f32]>, y: &mut [f32]) {
    for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
        let up = up.map_or(1.0, |up| f64::from(up[i]));
        *y = (value(function, f64::from(x)) * up) as f32;
    }
}

fn value(function: Activation, x: f64) -> f64 {
    match function {
        Activation::Silu => times_sigmoid(x, x),
        // From here down the result is below every f32; −inf · 0 does not come up.
        Activation::Gelu if x < -40.0 => -0.0,
        Activation::Gelu => 0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            times_sigmoid(x, 2.0 * u)
        }
        // Not `max`, which would turn NaN into 0.
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::ReluSquared => {
            if x < 0.0 {
                0.0
            } else {
                x * x
            }
        }
    }
}

/// x / (1 + e⁻ᵘ), and 0, not NaN, where x = −inf.
fn times_sigmoid(x: f64, u: f64) -> f64 {
    if x == f64::NEG_INFINITY { -0.0 } else { x / (1.0 + (-u).exp()) }
}

/// Numerical Recipes' Chebyshev fit in t = 1 / (1 + |z| / 2), the highest power first.
pub(crate) const ERFC: [f64; 10] = [
    0.170_872_77,
    -0.822_152_23,
    1.488_515_87,
    -1.135_203_98,
    0.278_868_07,
    -0.186_288_06,
    0.096_784_18,
    0.374_091_96,
    1.000_023_68,
    -1.265_512_23,
];

fn erfc(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.5 * z.abs());
    let polynomial = ERFC.iter().fold(0.0, |sum, c| sum * t + c);
    let tail = t * (polynomial - z * z).exp();
    if z < 0.0 { 2.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    /// erfc by its Taylor series near 0 and its continued fraction (from the 200th term back) beyond.
    fn erfc_exact(z: f64) -> f64 {
        let a = z.abs();
        let half = if a < 2.5 {
            let (mut term, mut sum) = (a, a);
            for n in 1..100 {
                term *= -a * a / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum
        } else {
            let fraction = (1..200).rev().fold(a, |f, n| a + f64::from(n) * 0.5 / f);
            (-a * a).exp() / std::f64::consts::PI.sqrt() / fraction
        };
        if z < 0.0 { 2.0 - half } else { half }
    }

    fn exact(function: Activation, x: f64) -> f64 {
        match function {
            Activation::Gelu if x == f64::NEG_INFINITY => 0.0,
            Activation::Gelu => 0.5 * x * erfc_exact(-x / 2f64.sqrt()),
            Activation::GeluTanh if x == f64::NEG_INFINITY => 0.0,
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + u.tanh())
            }
            _ => value(function, x),
        }
    }

    #[test]
    fn every_function_matches_f64_on_every_isa() {
        let mut sample = Sample(4);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            println!("activation on {}: {}", isa.name(), kernel_name(isa));
            for (function, &len) in
                Activation::ALL.iter().flat_map(|f| SHAPES.iter().map(move |l| (*f, l)))
            {
                for scale in [1e-3, 1.0, 12.0, 1e5] {
                    let (x, up) = (sample.vec(len, scale), sample.vec(len, 2.0));
                    let mut y = vec![f32::NAN; len];
                    activate(&cpu, function, &x, &mut y);
                    x.iter().zip(&y).for_each(|(x, y)| check(function, *x, 1.0, *y));
                    y.fill(f32::NAN);
                    activate_mul(&cpu, function, &x, &up, &mut y);
                    x.iter().zip(&up).zip(&y).for_each(|((x, up), y)| check(function, *x, *up, *y));
                }
            }
        }
    }

    fn check(function: Activation, x: f32, up: f32, y: f32) {
        let (wide, up) = (f64::from(x), f64::from(up));
        let want = exact(function, wide) * up;
        let bound = match function {
            Activation::Silu => 2f64.powi(-21) * (1.0 + wide.abs()) * want.abs(),
            Activation::Gelu | Activation::GeluTanh => 2f64.powi(-20) * wide.abs() * up.abs(),
            Activation::Relu | Activation::ReluSquared => 2f64.powi(-22) * want.abs(),
        };
        let error = (f64::from(y) - want).abs();
        // 88.73 · e^−88.73: the largest silu whose e⁻ˣ is no f32 any more.
        let vanished = 2.7e-37 * up.abs().max(1.0);
        assert!(error <= bound + vanished, "{function:?}({x}) · {up} = {y}, not {want}");
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "at the edges the results are exact")]
    fn edges() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(1));
            for function in Activation::ALL {
                let x =
                    [f32::NAN, 0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -30.0];
                let mut y = [f32::NAN; 7];
                activate(&cpu, function, &x, &mut y);
                assert!(y[0].is_nan(), "{function:?}");
                assert_eq!(y[1], 0.0, "{function:?}");
                assert_eq!(y[2], f32::INFINITY, "{function:?}");
                assert_eq!(y[3], 0.0, "{function:?} {}", isa.name());
                let largest =
                    if function == Activation::ReluSquared { f32::INFINITY } else { f32::MAX };
                assert_eq!(y[4], largest, "{function:?}");
                assert_eq!(y[5], 0.0, "{function:?}");
                assert!(y[6].abs() < 1e-10, "{function:?}");
            }
        }
    }
}
