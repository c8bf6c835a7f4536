//! `dx = f′(x) · dy` and, for the gated forms `y = f(gate) · up`, `dgate = f′(gate) · up · dy`, `dup = f(gate) · dy`,
//! f one of [`Activation`].
//! x, gate, up, dy, dx, dgate, dup: f32 or f64, all of one length. Element by element, any layout.
//! Error: |dx − f64 result| ≤ 2⁻¹⁸ · (1 + |x|) · |dy|, for silu, relu and relu² 2⁻²⁰. The f64 instance is the scalar oracle.
//! relu′(0) is 0, as in PyTorch. Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415); Shazeer 2020 (arXiv 2002.05202).

use crate::activation::Activation;
use crate::real::{Real, wide};
use crate::rows::{over_parts, over_rows};
use crate::{Cost, Cpu, Isa};

/// Lengths of tests and benches.
pub const SHAPES: &[usize] = &[0, 1, 7, 16, 33, 1536, 70_001];

/// `y = f(x)`, in one thread: its f64 instance is the function that [`backward`] differentiates.
pub fn forward<T: Real>(function: Activation, x: &[T], y: &mut [T]) {
    x.iter().zip(y).for_each(|(x, y)| *y = value(function, *x)[0]);
}

/// `dx = f′(x) · dy`.
pub fn backward<T: Real>(cpu: &Cpu, function: Activation, x: &[T], dy: &[T], dx: &mut [T]) {
    assert!(x.len() == dy.len() && dx.len() == dy.len(), "activation_backward: one length");
    over_rows(cpu, dx, 1, |first, dx| {
        let (x, dy) = (&x[first..][..dx.len()], &dy[first..][..dx.len()]);
        wide(cpu.isa(), || match function {
            Activation::Silu => slope(|x| silu(x), x, dy, dx),
            other => slope(|x| value(other, x), x, dy, dx),
        });
    });
}

/// `(dgate, dup)` of `y = f(gate) · up`.
pub fn backward_mul<T: Real>(
    cpu: &Cpu,
    function: Activation,
    (gate, up): (&[T], &[T]),
    dy: &[T],
    (dgate, dup): (&mut [T], &mut [T]),
) {
    let len = dy.len();
    assert!(
        [gate.len(), up.len(), dgate.len(), dup.len()] == [len; 4],
        "activation_backward: one length"
    );
    let share = cpu.threads().share(len, 16);
    let parts = dgate.chunks_mut(share).zip(dup.chunks_mut(share)).collect();
    over_parts(cpu, parts, |i, (dgate, dup): (&mut [T], &mut [T])| {
        let range = i * share..i * share + dgate.len();
        let (gate, up, dy) = (&gate[range.clone()], &up[range.clone()], &dy[range]);
        wide(cpu.isa(), || match function {
            Activation::Silu => gated(|x| silu(x), (gate, up), dy, (dgate, dup)),
            other => gated(|x| value(other, x), (gate, up), dy, (dgate, dup)),
        });
    });
}

/// What one call of the gated form over `len` numbers moves and computes; an exp counts as one operation.
pub fn cost(len: usize) -> Cost {
    Cost { bytes: 20 * len as u64, flops: 11 * len as u64 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> String {
    format!("any-activation-backward-f32-{}", isa.name())
}

#[inline(always)]
fn slope<T: Real>(f: impl Fn(T) -> [T; 2], x: &[T], dy: &[T], dx: &mut [T]) {
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = f(*x)[1] * *dy;
    }
}

#[inline(always)]
fn gated<T: Real>(
    f: impl Fn(T) -> [T; 2],
    (gate, up): (&[T], &[T]),
    dy: &[T],
    (dgate, dup): (&mut [T], &mut [T]),
) {
    let len = dy.len();
    let (gate, up, dgate, dup) = (&gate[..len], &up[..len], &mut dgate[..len], &mut dup[..len]);
    for i in 0..len {
        let [value, slope] = f(gate[i]);
        dgate[i] = slope * up[i] * dy[i];
        dup[i] = value * dy[i];
    }
}

/// f(x) and f′(x).
#[inline(always)]
fn value<T: Real>(function: Activation, x: T) -> [T; 2] {
    let zero = T::default();
    match function {
        Activation::Silu => silu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::Relu if x > zero => [x, T::of(1.0)],
        Activation::ReluSquared if x > zero => [x * x, x + x],
        // NaN stays NaN.
        Activation::Relu | Activation::ReluSquared if x <= zero => [zero; 2],
        Activation::Relu | Activation::ReluSquared => [x; 2],
    }
}

#[inline(always)]
fn silu<T: Real>(x: T) -> [T; 2] {
    let one = T::of(1.0);
    let sigmoid = one / (one + (-x).exp());
    [x * sigmoid, sigmoid * (one + x * (one - sigmoid))]
}

#[inline(always)]
fn gelu_tanh<T: Real>(x: T) -> [T; 2] {
    let (one, cubic) = (T::of(1.0), T::of(0.044_715));
    // 2u, u = √(2/π) · (x + 0.044715 · x³), and its derivative.
    let twice = T::of((8.0 / std::f64::consts::PI).sqrt());
    let u = twice * (x + cubic * x * x * x);
    let du = twice * (one + T::of(3.0) * cubic * x * x);
    let sigmoid = one / (one + (-u).exp());
    [x * sigmoid, sigmoid + x * sigmoid * (one - sigmoid) * du]
}

/// x · Φ(x), whose derivative is Φ(x) + x · φ(x).
#[inline(always)]
fn gelu<T: Real>(x: T) -> [T; 2] {
    let half = T::of(0.5);
    let normal = half * erfc(-x * T::of(std::f64::consts::FRAC_1_SQRT_2));
    let density = (-(x * x) * half).exp() * T::of(0.398_942_280_401_432_7);
    [x * normal, normal + x * density]
}

/// As in `activation`: Numerical Recipes' Chebyshev fit (1.2e-7 relative).
#[inline(always)]
fn erfc<T: Real>(z: T) -> T {
    let size = if z < T::default() { -z } else { z };
    let t = T::of(1.0) / (T::of(1.0) + T::of(0.5) * size);
    let polynomial =
        crate::activation::ERFC.iter().fold(T::default(), |sum, c| sum * t + T::of(*c));
    let tail = t * (polynomial - z * z).exp();
    if z < T::default() { T::of(2.0) - tail } else { tail }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "a slope of 0 is exact")]
mod tests {
    use super::*;
    use crate::sample::Sample;

    fn widen(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(*x)).collect()
    }

    #[test]
    fn f32_matches_f64_on_every_isa_and_thread_count() {
        let mut sample = Sample(41);
        let cases = Activation::ALL.iter().flat_map(|f| SHAPES.iter().map(move |l| (*f, *l)));
        for (function, len) in cases {
            for scale in [1e-3, 1.0, 12.0] {
                let x = [sample.vec(len, scale), sample.vec(len, 2.0), sample.vec(len, 1.0)];
                Isa::available().into_iter().for_each(|isa| check(isa, function, &x));
            }
        }
    }

    fn check(isa: Isa, function: Activation, [x, up, dy]: &[Vec<f32>; 3]) {
        let cpu = Cpu::with_isa(isa, Some(2));
        let mut got = [(); 3].map(|()| vec![f32::NAN; x.len()]);
        let [dgate, dup, alone] = &mut got;
        backward_mul(&cpu, function, (x, up), dy, (dgate, dup));
        backward(&cpu, function, x, dy, alone);
        let power = match function {
            Activation::Gelu | Activation::GeluTanh => -18,
            Activation::ReluSquared => -20 + 4,
            _ => -20,
        };
        let (x, up, dy) = (widen(x), widen(up), widen(dy));
        for (i, x) in x.into_iter().enumerate() {
            let [value, slope] = value(function, x);
            let exact = [slope * up[i] * dy[i], value * dy[i], slope * dy[i]];
            let size = (1.0 + x.abs()) * dy[i].abs() * up[i].abs().max(1.0);
            for (got, exact) in got.iter().map(|got| got[i]).zip(exact) {
                let error = (f64::from(got) - exact).abs();
                let bound = 2f64.powi(power) * size + 1e-30;
                assert!(error <= bound, "{function:?}({x}): {got}, not {exact}");
            }
        }
    }

    #[test]
    fn slopes_are_the_central_differences_of_the_functions() {
        for function in Activation::ALL {
            for i in -60..60 {
                let x = f64::from(i) * 0.11 + 0.05;
                let at = |x: f64| value(function, x)[0];
                let difference = (at(x + 1e-4) - at(x - 1e-4)) / 2e-4;
                let slope = value(function, x)[1];
                // gelu's erfc is a fit of 1.2e-7, whose own slope is off by that much times x².
                assert!(
                    (slope - difference).abs() < 2e-6,
                    "{function:?}′({x}): {slope} {difference}"
                );
            }
            assert!(value(function, f32::NAN)[1].is_nan(), "{function:?}");
        }
        assert_eq!(value(Activation::Relu, 0.0_f64), [0.0; 2]);
    }
}
