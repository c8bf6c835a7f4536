//! Values that training draws weights to: parq, paretoq.

use super::checks::{Checks, number_behind, of_each, unknown};
use super::qat::taken;
use crate::autograd::Tape;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::training::paretoq::ParetoQ;
use crate::training::parq::{Quantizer, stretched_code, stretched_scale};

fn quantizer(name: &str) -> Result<Quantizer> {
    Ok(match name {
        "unif" => Quantizer::Unif,
        "maxunif" => Quantizer::MaxUnif,
        "ternary" => Quantizer::TernaryUnif,
        "lsbq_greedy" => Quantizer::LSB,
        "lsbq_opt" => Quantizer::Lsb { optimal: true, ternary_multiplier: 1.1 },
        _ => return Err(unknown(name)),
    })
}

/// `unif.b2.t.q`, `lsbq_opt.b0.c.Q`: t of the whole tensor, c of each row; `stretched.scale`, `stretched.q`.
pub(super) fn parq(checks: &mut Checks) -> Result<()> {
    let p = checks.input("p")?;
    for prefix in checks.prefixes(".Q") {
        let words: Vec<&str> = prefix.split('.').collect();
        let [name, bits, part] = words[..] else { return Err(unknown(&prefix)) };
        let bits = u32::try_from(number_behind(bits, "b")?).map_err(|_| unknown(&prefix))?;
        let found = quantizer(name)?.quantize(&p, bits, part == "c")?;
        checks.exact(format!("{prefix}.q"), &found.values)?;
        checks.exact(format!("{prefix}.Q"), &found.grid)?;
    }
    if checks.contains("stretched.scale") {
        stretched(checks, &p)?;
    }
    Ok(())
}

/// Two bits, codes from −2 to 1, clamped at ± 1.5; the scale's shape says how many numbers share one.
fn stretched(checks: &mut Checks, p: &Tensor) -> Result<()> {
    const LARGEST: f32 = 1.5;
    let scales = checks.golden("stretched.scale")?;
    let group = p.numel().checked_div(scales.numel()).filter(|group| *group > 0);
    let group = group.ok_or_else(|| Error::invalid("stretched.scale has more numbers than p"))?;
    let (mut scale, mut codes) = (Vec::new(), Vec::new());
    for part in p.as_slice::<f32>()?.chunks(group) {
        let s = stretched_scale(part, 2, LARGEST);
        codes.extend(part.iter().map(|w| stretched_code(*w, s, LARGEST)));
        scale.push(s);
    }
    checks.exact("stretched.scale", &Tensor::new(scale, scales.shape())?)?;
    checks.exact("stretched.q", &Tensor::new(codes, p.shape())?)
}

/// `b2.begin`, `.seen`, `.dw`, `.dalpha` of α `b2.alpha`
pub(super) fn paretoq(checks: &mut Checks) -> Result<()> {
    let (w, dy) = (checks.input("w")?, checks.input("dy")?);
    for prefix in checks.prefixes(".seen") {
        let bits = u32::try_from(number_behind(&prefix, "b")?).map_err(|_| unknown(&prefix))?;
        let quantizer = ParetoQ::new(bits)?;
        let alpha = checks.input(&format!("{prefix}.alpha"))?;
        let name = |part: &str| format!("{prefix}.{part}");
        checks.exact(name("begin"), &quantizer.initial_clip_val(&w)?)?;
        let tape = Tape::new(&checks.cpu);
        let (w, alpha) = (tape.leaf(w.clone()), tape.leaf(alpha));
        let seen = quantizer.quantize(&tape, &w, &alpha)?;
        checks.exact(name("seen"), seen.value())?;
        let mut gradients = tape.backward_from(&seen, dy.clone())?;
        checks.exact(name("dw"), &taken(&mut gradients, &w)?)?;
        // A sum over a row of terms of up to 8 · |dy|, in torch's own order.
        let near = of_each(&checks.golden(&name("dalpha"))?, 2.0_f64.powi(-18), 1.0);
        checks.near(name("dalpha"), &taken(&mut gradients, &alpha)?, &near)?;
    }
    Ok(())
}
