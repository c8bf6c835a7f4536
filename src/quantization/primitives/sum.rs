//! Sums in the order in which torch adds contiguous f32 numbers on x86 with one thread, so that means have the same bits.

use super::cast::round_to;
use crate::tensor::DType;

/// Lanes of the vectors that torch's sum is written in.
const LANES: usize = 8;
/// Vectors that it adds side by side.
const SIDE_BY_SIDE: usize = 4;
/// Levels of its cascade: short sums are added to longer ones, which keeps their error small.
const LEVELS: usize = 4;

/// The mean of `values`: their sum in f32, divided, then rounded to `dtype`.
pub(super) fn mean(values: &[f32], dtype: DType) -> f32 {
    round_to(dtype, sum(values) / values.len() as f32)
}

/// The sum of `values` as torch's `sum` adds them.
pub(super) fn sum(values: &[f32]) -> f32 {
    let (vectors, tail) = values.as_chunks::<LANES>();
    let lanes = row_sum(vectors);
    let tail = tail.iter().fold(0.0, |sum, value| sum + value);
    lanes.iter().fold(tail, |sum, lane| sum + lane)
}

fn add(a: [f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|lane| a[lane] + b[lane])
}

fn row_sum(vectors: &[[f32; LANES]]) -> [f32; LANES] {
    let (fours, tail) = vectors.as_chunks::<SIDE_BY_SIDE>();
    let mut parts = cascade(fours);
    for vector in tail {
        parts[0] = add(parts[0], vector);
    }
    let [first, rest @ ..] = parts;
    rest.iter().fold(first, add)
}

fn cascade(rows: &[[[f32; LANES]; SIDE_BY_SIDE]]) -> [[f32; LANES]; SIDE_BY_SIDE] {
    let power = 4.max(ceil_log2(rows.len()) / LEVELS);
    let (step, mask) = (1_usize << power, (1_usize << power) - 1);
    let mut levels = [[[0.0; LANES]; SIDE_BY_SIDE]; LEVELS];
    let whole = rows.len() / step * step;
    for (block, chunk) in rows[..whole].chunks(step).enumerate() {
        for row in chunk {
            accumulate(&mut levels[0], row);
        }
        let done = (block + 1) * step;
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; LANES]; SIDE_BY_SIDE]);
            accumulate(&mut levels[level], &below);
            if done & (mask << (level * power)) != 0 {
                break;
            }
        }
    }
    for row in &rows[whole..] {
        accumulate(&mut levels[0], row);
    }
    let [mut total, rest @ ..] = levels;
    for level in &rest {
        accumulate(&mut total, level);
    }
    total
}

fn accumulate(sums: &mut [[f32; LANES]; SIDE_BY_SIDE], row: &[[f32; LANES]; SIDE_BY_SIDE]) {
    for (sum, vector) in sums.iter_mut().zip(row) {
        *sum = add(*sum, vector);
    }
}

/// `⌈log₂ n⌉`, 0 for 0 and 1.
fn ceil_log2(n: usize) -> usize {
    if n <= 1 { 0 } else { (usize::BITS - (n - 1).leading_zeros()) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn sums_of_every_length_are_near_the_exact_one() {
        let mut rng = Rng::new(7);
        for len in [0, 1, 7, 8, 9, 31, 32, 33, 256, 1000, 4096, 100_003] {
            let values: Vec<f32> = (0..len).map(|_| rng.normal()).collect();
            let exact: f64 = values.iter().map(|v| f64::from(*v)).sum();
            let amount: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
            let off = (f64::from(sum(&values)) - exact).abs();
            assert!(off <= amount * 2.0_f64.powi(-20), "{len}: off by {off}");
        }
        assert_eq!(ceil_log2(1), 0);
        assert_eq!((ceil_log2(2), ceil_log2(3), ceil_log2(1024), ceil_log2(1025)), (1, 2, 10, 11));
    }
}
