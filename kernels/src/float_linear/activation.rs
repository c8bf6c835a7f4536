//! Activations as the kernels multiply them, in steps of 32 columns.

use half::bf16;

use super::element::Arithmetic;
use super::panels::STEP;
use crate::Isa;
use crate::block_int16::BlockInt16;

/// A step as 16-bit integers in two planes of bytes, `x ≈ (256 · high + low) · scale`: four columns to a word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    pub(super) high: [i32; STEP / 4],
    pub(super) low: [i32; STEP / 4],
    /// Σ of the integers, of either half.
    pub(super) sums: [i32; 2],
    pub(super) scale: f32,
}

/// A step as 16-bit integers: two columns to a word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) pairs: [i32; STEP / 2],
    pub(super) scale: f32,
}

/// A step as sums of two bf16: two columns to a word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halves {
    pub(super) high: [i32; STEP / 2],
    pub(super) low: [i32; STEP / 2],
}

/// `x (M, K)`, row after row of steps; K is filled up with zeros.
#[derive(Debug)]
pub(super) enum Prepared {
    Bytes(Vec<Bytes>),
    Words(Vec<Words>),
    Halves(Vec<Halves>),
}

/// Beyond this the upper bf16 of a number could round to infinity.
const LARGEST: f32 = 1e38;

impl Prepared {
    /// `None` when a number is NaN, infinite or so large or small that integers and pairs cannot stand for it.
    pub(super) fn new(isa: Isa, arithmetic: Arithmetic, x: &[f32], k: usize) -> Option<Prepared> {
        if arithmetic == Arithmetic::Bf16 {
            return halves(x, k);
        }
        let blocks = BlockInt16::new(isa, x, k, STEP)?;
        let (q, _) = blocks.q.as_chunks::<STEP>();
        let steps = q.iter().zip(&blocks.scale);
        Some(match arithmetic {
            Arithmetic::Bytes => Prepared::Bytes(steps.map(|(q, s)| bytes(q, *s)).collect()),
            _ => Prepared::Words(steps.map(|(q, s)| words(q, *s)).collect()),
        })
    }
}

fn bytes(q: &[i16; STEP], scale: f32) -> Bytes {
    let (mut high, mut low) = ([0; STEP / 4], [0; STEP / 4]);
    for (i, q) in q.as_chunks::<4>().0.iter().enumerate() {
        // Both bytes are within ±127: see `BlockInt16`.
        high[i] = i32::from_le_bytes(q.map(|q| ((i32::from(q) + 128) >> 8).to_le_bytes()[0]));
        low[i] = i32::from_le_bytes(q.map(|q| q.to_le_bytes()[0]));
    }
    let sum = |half: &[i16]| half.iter().map(|q| i32::from(*q)).sum();
    Bytes { high, low, sums: [sum(&q[..STEP / 2]), sum(&q[STEP / 2..])], scale }
}

fn words(q: &[i16; STEP], scale: f32) -> Words {
    let mut pairs = [0; STEP / 2];
    for (pair, [a, b]) in pairs.iter_mut().zip(q.as_chunks::<2>().0) {
        *pair = join(a.to_le_bytes(), b.to_le_bytes());
    }
    Words { pairs, scale }
}

fn join([a, b]: [u8; 2], [c, d]: [u8; 2]) -> i32 {
    i32::from_le_bytes([a, b, c, d])
}

fn halves(x: &[f32], k: usize) -> Option<Prepared> {
    let mut steps = Vec::with_capacity(x.len().div_ceil(STEP));
    for row in x.chunks_exact(k.max(1)) {
        for x in row.chunks(STEP) {
            // NaN is not below either.
            if !x.iter().all(|x| x.abs() < LARGEST) {
                return None;
            }
            steps.push(halves_of(x));
        }
    }
    Some(Prepared::Halves(steps))
}

fn halves_of(x: &[f32]) -> Halves {
    let mut parts = [[0_u16; STEP]; 2];
    for (i, x) in x.iter().enumerate() {
        let high = bf16::from_f32(*x);
        parts[0][i] = high.to_bits();
        parts[1][i] = bf16::from_f32(x - high.to_f32()).to_bits();
    }
    let pairs = |part: &[u16; STEP]| {
        let mut pairs = [0; STEP / 2];
        for (pair, [a, b]) in pairs.iter_mut().zip(part.as_chunks::<2>().0) {
            *pair = join(a.to_le_bytes(), b.to_le_bytes());
        }
        pairs
    };
    Halves { high: pairs(&parts[0]), low: pairs(&parts[1]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_and_halves_add_up() {
        let x: Vec<f32> = (0..70).map(|i| (i as f32 - 31.5) * 0.37).collect();
        let Some(Prepared::Bytes(steps)) = Prepared::new(Isa::Scalar, Arithmetic::Bytes, &x, 70)
        else {
            panic!("finite numbers");
        };
        let Some(Prepared::Halves(pairs)) = Prepared::new(Isa::Scalar, Arithmetic::Bf16, &x, 70)
        else {
            panic!("finite numbers");
        };
        assert_eq!((steps.len(), pairs.len()), (3, 3));
        let byte =
            |words: &[i32; 8], k: usize| f32::from(words[k / 4].to_le_bytes()[k % 4].cast_signed());
        let half = |words: &[i32; 16], k: usize| {
            let bytes = words[k / 2].to_le_bytes();
            bf16::from_le_bytes([bytes[2 * (k % 2)], bytes[2 * (k % 2) + 1]]).to_f32()
        };
        for (i, x) in x.iter().enumerate() {
            let (step, k) = (i / 32, i % 32);
            let whole = 256.0 * byte(&steps[step].high, k) + byte(&steps[step].low, k);
            assert!((whole * steps[step].scale - x).abs() <= 14.0 / 60_000.0, "{x}");
            let sum = half(&pairs[step].high, k) + half(&pairs[step].low, k);
            assert!((sum - x).abs() <= x.abs() / 131_072.0, "{x} {sum}");
        }
        for bad in [f32::NAN, f32::INFINITY, 3e38] {
            assert!(Prepared::new(Isa::Scalar, Arithmetic::Bf16, &[bad, 1.0], 2).is_none());
        }
    }
}
