//! Powers as PyTorch's vectorised `torch.pow` rounds them, which is not always to the nearest f32.
//!
//! `xʸ = exp(y · log x)` in pairs of f32 that are added without being rounded to one: SLEEF's `powf` with an error of an ulp at most,
//! which every x86 with AVX2 and FMA runs. An ulp of a scale decides which way a value at half a step is rounded, so that
//! a search over scales takes the same steps as torch's only with the same powers. Torch takes roots from another library, so that y = ½ is
//! the nearest root here. Source: Shibata and Petrogalli 2020, SLEEF (arXiv 2001.09258).

/// A number as the sum of two.
#[derive(Clone, Copy)]
struct Pair(f32, f32);

fn times(x: Pair, y: Pair) -> Pair {
    let s = x.0 * y.0;
    Pair(s, x.0.mul_add(y.1, x.1.mul_add(y.0, x.0.mul_add(y.0, -s))))
}

fn times_one(x: Pair, y: f32) -> Pair {
    let s = x.0 * y;
    Pair(s, x.1.mul_add(y, x.0.mul_add(y, -s)))
}

fn square(x: Pair) -> Pair {
    let s = x.0 * x.0;
    Pair(s, (x.0 + x.0).mul_add(x.1, x.0.mul_add(x.0, -s)))
}

fn over(n: Pair, d: Pair) -> Pair {
    let t = 1.0 / d.0;
    let s = n.0 * t;
    let u = t.mul_add(n.0, -s);
    let v = (-d.1).mul_add(t, (-d.0).mul_add(t, 1.0));
    Pair(s, s.mul_add(v, n.1.mul_add(t, u)))
}

/// What `x + y` loses, whichever is larger.
fn lost(x: f32, y: f32, s: f32) -> f32 {
    let v = s - x;
    (x - (s - v)) + (y - v)
}

fn sum_of_two(x: f32, y: f32) -> Pair {
    let s = x + y;
    Pair(s, lost(x, y, s))
}

fn plus_one(x: Pair, y: f32) -> Pair {
    let s = x.0 + y;
    Pair(s, lost(x.0, y, s) + x.1)
}

fn plus(x: Pair, y: Pair) -> Pair {
    let s = x.0 + y.0;
    Pair(s, lost(x.0, y.0, s) + (x.1 + y.1))
}

/// The same where `|x| ≥ |y|`.
fn plus_smaller(x: Pair, y: Pair) -> Pair {
    let s = x.0 + y.0;
    Pair(s, (((x.0 - s) + y.0) + x.1) + y.1)
}

/// `log x` of a positive finite x.
#[expect(clippy::cast_precision_loss, reason = "an exponent")]
fn log(x: f32) -> Pair {
    let denormal = x < f32::MIN_POSITIVE;
    let x = if denormal { x * 2.0_f32.powi(64) } else { x };
    // x = m · 2ᵉ with m from 0.75 on.
    let e = ((x * (1.0 / 0.75)).to_bits() >> 23 & 0xff).cast_signed() - 127;
    let m = f32::from_bits(x.to_bits().wrapping_sub(e.cast_unsigned() << 23));
    let e = if denormal { e - 64 } else { e };
    let t = over(sum_of_two(-1.0, m), sum_of_two(1.0, m));
    let t2 = square(t);
    let mut u = 0.240_320_36_f32;
    u = u.mul_add(t2.0, 0.285_112_68);
    u = u.mul_add(t2.0, 0.400_008);
    let s = times_one(Pair(std::f32::consts::LN_2, -1.904_654_3e-9), e as f32);
    let s = plus_smaller(s, Pair(t.0 * 2.0, t.1 * 2.0));
    let series = plus(times_one(t2, u), Pair(0.666_666_6, 3.691_838_6e-9));
    plus_smaller(s, times(times(t2, t), series))
}

fn exp(d: Pair) -> f32 {
    let q = ((d.0 + d.1) * std::f32::consts::LOG2_E).round_ties_even();
    let s = plus_one(plus_one(d, q * -0.693_145_75), q * -1.428_606_8e-6);
    let sum = s.0 + s.1;
    let s = Pair(sum, (s.0 - sum) + s.1);
    let mut u = 0.001_363_246_5_f32;
    u = u.mul_add(s.0, 0.008_365_969);
    u = u.mul_add(s.0, 0.041_671_082);
    u = u.mul_add(s.0, 0.166_665_52);
    u = u.mul_add(s.0, 0.499_999_85);
    let t = plus_smaller(s, times_one(square(s), u));
    let sum = 1.0 + t.0;
    let y = sum + (((1.0 - sum) + t.0) + t.1);
    if d.0 < -104.0 {
        return 0.0;
    }
    // 2^q in two factors: one alone may overflow where the product does not.
    #[expect(clippy::cast_possible_truncation, reason = "at most 2 · 150")]
    let q = q.clamp(-300.0, 300.0) as i32;
    y * 2.0_f32.powi(q / 2) * 2.0_f32.powi(q - q / 2)
}

/// `xʸ` as `torch.pow(x, y)` gives it for contiguous x.
pub(crate) fn torch_pow(x: f32, y: f32) -> f32 {
    // Torch has forms of its own for these.
    let is = |known: f32| y.to_bits() == known.to_bits();
    match () {
        () if is(0.5) => x.sqrt(),
        () if is(0.0) || is(1.0) || is(2.0) => x.powf(y),
        () if x > 0.0 && x.is_finite() && y.is_finite() => exp(times_one(log(x), y)),
        () => x.powf(y),
    }
}

#[cfg(test)]
mod tests {
    use super::torch_pow;
    use crate::rng::Rng;

    #[test]
    fn powers_are_within_an_ulp() {
        let mut rng = Rng::new(3);
        for i in 0..20_000 {
            let (x, y) =
                ((rng.normal() * 5.0).exp(), [0.05, 0.25, 0.35, 0.75, 0.95, -0.3, 1.7][i % 7]);
            let exact = f64::from(x).powf(f64::from(y));
            let off = (f64::from(torch_pow(x, y)) - exact).abs();
            assert!(off <= exact * f64::from(f32::EPSILON), "{x} to {y}: off by {off}");
        }
        assert!(torch_pow(0.0, 0.3).abs() < 1e-30 && torch_pow(f32::NAN, 0.3).is_nan());
        assert!(torch_pow(1e-42, 0.5) > 0.0 && torch_pow(1e-42, 0.3) > 0.0);
    }

    /// Numbers that torch 2.13.0 gave; the first of each three is not the nearest f32.
    #[test]
    fn powers_are_torchs() {
        for (x, y, wanted) in KNOWN {
            let (x, wanted) = (f32::from_bits(x), f32::from_bits(wanted));
            assert_eq!(torch_pow(x, y).to_bits(), wanted.to_bits(), "{x} to {y}");
        }
    }

    const KNOWN: [(u32, f32, u32); 24] = [
        (0x41EE7ABB, 0.05, 0x3F97AE0D),
        (0x3E348A6F, 0.05, 0x3F6AB8D3),
        (0x395DDD47, 0.05, 0x3F27B15A),
        (0x3F555037, 0.25, 0x3F74966E),
        (0x3D2A7A77, 0.25, 0x3EE7421F),
        (0x4279E799, 0.25, 0x4033EE9C),
        (0x403A6970, 0.35, 0x3FBA15E8),
        (0x3F657495, 0.35, 0x3F76608B),
        (0x3AE10451, 0.35, 0x3DDC88DD),
        (0x4140AC77, 0.6, 0x408E6B8F),
        (0x413B2736, 0.6, 0x408BF522),
        (0x3CDB90CC, 0.6, 0x3DE978CC),
        (0x3B71AD6F, 0.75, 0x3C752E61),
        (0x407DAF74, 0.75, 0x4033CA59),
        (0x3A6C67FA, 0.75, 0x3BAA8681),
        (0x40381B7C, 0.95, 0x402EA214),
        (0x40714798, 0.95, 0x4061CA1A),
        (0x3F250182, 0.95, 0x3F28AB62),
        (0x3E937A52, -0.3, 0x3FB9F0A7),
        (0x410B53E5, -0.3, 0x3F05BDB5),
        (0x402DB25F, -0.3, 0x3F3DBD2A),
        (0x3E7745BD, 1.7, 0x3DB6E6EE),
        (0x42266D24, 1.7, 0x440D6BEA),
        (0x378CCFDC, 1.7, 0x32030C90),
    ];
}
