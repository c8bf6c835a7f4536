//! f32 to bf16 up or down at random, so that the mean is exact (O13): away from zero with the probability of the 16
//! bits that are cut off, counted in 2⁻¹⁶.
//! The random bits are SplitMix64 of a seed and the number's place: threads do not change them. NaN stays NaN.
//! Source: Croci et al. 2022 (doi 10.1098/rsos.211631).

use half::bf16;

use crate::Cpu;

/// Numbers that a thread takes at a time; a multiple of the four draws in 64 bits.
const SHARE: usize = 1 << 14;

/// Rounds `x` into `to`.
pub fn to_bf16(cpu: &Cpu, x: &[f32], seed: u64, to: &mut [bf16]) {
    assert_eq!(x.len(), to.len(), "stochastic_round: one result a number");
    cpu.threads().chunks_mut(to, SHARE, |part, to| {
        let x = &x[part * SHARE..][..to.len()];
        for (i, (to, x)) in to.chunks_mut(4).zip(x.chunks(4)).enumerate() {
            let draws = mix(seed.wrapping_add((part * SHARE / 4 + i) as u64));
            for (j, (to, x)) in to.iter_mut().zip(x).enumerate() {
                *to = round(*x, draws >> (16 * j) & 0xFFFF);
            }
        }
    });
}

/// Away from zero where `draw`, of 16 bits, is below the bits that are cut off.
#[expect(clippy::cast_possible_truncation, reason = "shifted right by 16, it has 16 bits")]
fn round(x: f32, draw: u64) -> bf16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return bf16::from_bits((bits >> 16) as u16 | 0x40);
    }
    let away = u32::from(draw < u64::from(bits & 0xFFFF));
    bf16::from_bits(((bits >> 16) + away) as u16)
}

/// A draw in [0, 1) of 23 bits for the number at `place`.
#[inline]
pub fn uniform(seed: u64, place: u64) -> f32 {
    let bits = u32::try_from(mix(seed.wrapping_add(place)) >> 41).unwrap_or(0);
    f32::from_bits(0x3F80_0000 | bits) - 1.0
}

/// SplitMix64.
#[inline]
fn mix(x: u64) -> u64 {
    let z = x.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_the_number_and_neighbours_are_the_only_results() {
        let cpu = Cpu::new(Some(2));
        for x in [1.001_f32, -3.3, 1e-40, 0.1, -7e30] {
            let all = vec![x; 40_000];
            let mut to = vec![bf16::NAN; all.len()];
            to_bf16(&cpu, &all, 5, &mut to);
            let low = f64::from(f32::from_bits(x.to_bits() & 0xFFFF_0000));
            let high = f64::from(f32::from_bits((x.to_bits() & 0xFFFF_0000) + 0x1_0000));
            let seen = to.iter().map(|v| f64::from(v.to_f32()));
            assert!(seen.clone().all(|v| (v - low) * (v - high) == 0.0), "{x}");
            let mean = seen.sum::<f64>() / 40_000.0;
            let error = (mean - f64::from(x)).abs() / (high - low).abs();
            assert!(error < 0.01, "{x}: mean {mean}");
            let mut alone = vec![bf16::NAN; all.len()];
            to_bf16(&Cpu::new(Some(1)), &all, 5, &mut alone);
            assert!(to == alone);
        }
        let edges = [f32::NAN, f32::INFINITY, 1.0, -0.0, f32::MAX];
        let mut to = [bf16::ZERO; 5];
        to_bf16(&cpu, &edges, 9, &mut to);
        assert!(to[0].is_nan() && to[1] == bf16::INFINITY && to[2] == bf16::ONE);
        assert_eq!(to[3].to_bits(), 0x8000);
        assert!(to[4] == bf16::MAX || to[4] == bf16::INFINITY);
    }
}
