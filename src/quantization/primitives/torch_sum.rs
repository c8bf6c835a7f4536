//! Sums in the order in which PyTorch adds them on a processor with AVX2.
//!
//! f32 addition is not associative, so a mean that decides a scale is bit-exact only in torch's own order. A contiguous
//! row is read as vectors of eight; four of them side by side have an accumulator each, and accumulators
//! are cascaded every 2⁴ steps (aten/native/cpu/SumKernel.cpp, which also AVX-512 machines run with eight lanes).

/// Lanes of torch's vectors.
const LANES: usize = 8;
/// Accumulators side by side.
const ROWS: usize = 4;
/// Steps of the cascade.
const LEVELS: usize = 4;

/// `Σ values`, as `torch.sum` over a contiguous dimension gives it.
pub(super) fn torch_sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        return row_sum::<1>(values)[0];
    }
    let (vectors, tail) = values.split_at(values.len() / LANES * LANES);
    let lanes = row_sum::<LANES>(vectors);
    let tail = tail.iter().fold(0.0, |sum, value| sum + value);
    lanes.iter().fold(tail, |sum, lane| sum + lane)
}

/// `torch.mean` over a contiguous dimension.
#[expect(clippy::cast_precision_loss, reason = "torch divides by the length in f32 too")]
pub(crate) fn torch_mean(values: &[f32]) -> f32 {
    torch_sum(values) / values.len() as f32
}

/// `torch.mean` over the rows of `x (M, K)`: the mean of each column. Columns are read 32 at a time, in order of their rows; what is
/// left of them by eights and one by one, as rows are.
#[expect(clippy::cast_precision_loss, reason = "torch divides by the length in f32 too")]
pub(crate) fn torch_column_means(x: &[f32], k: usize) -> Vec<f32> {
    let rows = x.len().checked_div(k).unwrap_or(0);
    let mut sums: Vec<f32> = Vec::with_capacity(k);
    while k - sums.len() >= ROWS * LANES {
        let first = sums.len();
        let quad = |row: &[f32]| -> [[f32; LANES]; ROWS] {
            std::array::from_fn(|i| std::array::from_fn(|j| row[first + i * LANES + j]))
        };
        let quads: Vec<_> = x.chunks_exact(k).map(quad).collect();
        sums.extend(cascade(&quads).as_flattened());
    }
    while k - sums.len() >= LANES {
        let first = sums.len();
        let block: Vec<f32> =
            x.chunks_exact(k).flat_map(|row| row[first..first + LANES].iter().copied()).collect();
        sums.extend(row_sum::<LANES>(&block));
    }
    while sums.len() < k {
        let column: Vec<f32> = x.chunks_exact(k).map(|row| row[sums.len()]).collect();
        sums.extend(row_sum::<1>(&column));
    }
    sums.into_iter().map(|sum| sum / rows as f32).collect()
}

fn row_sum<const N: usize>(values: &[f32]) -> [f32; N] {
    let (vectors, _) = values.as_chunks::<N>();
    let (quads, rest) = vectors.as_chunks::<ROWS>();
    let mut rows = cascade(quads);
    for vector in rest {
        add(&mut rows[0], vector);
    }
    let [mut sum, others @ ..] = rows;
    others.iter().for_each(|row| add(&mut sum, row));
    sum
}

fn cascade<const N: usize>(quads: &[[[f32; N]; ROWS]]) -> [[f32; N]; ROWS] {
    let size = quads.len();
    let power = (ceil_log2(size) / LEVELS).max(4);
    let (step, mask) = (1_usize << power, (1_usize << power) - 1);
    let mut levels = [[[0.0_f32; N]; ROWS]; LEVELS];
    let mut i = 0;
    while i + step <= size {
        for quad in &quads[i..i + step] {
            add_all(&mut levels[0], quad);
        }
        i += step;
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; N]; ROWS]);
            add_all(&mut levels[level], &below);
            if i & (mask << (level * power)) != 0 {
                break;
            }
        }
    }
    for quad in &quads[i..] {
        add_all(&mut levels[0], quad);
    }
    let [mut sum, others @ ..] = levels;
    others.iter().for_each(|level| add_all(&mut sum, level));
    sum
}

fn add_all<const N: usize>(to: &mut [[f32; N]; ROWS], from: &[[f32; N]; ROWS]) {
    to.iter_mut().zip(from).for_each(|(to, from)| add(to, from));
}

fn add<const N: usize>(to: &mut [f32; N], from: &[f32; N]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

fn ceil_log2(size: usize) -> usize {
    if size <= 2 { 1 } else { (size - 1).ilog2() as usize + 1 }
}

#[cfg(test)]
mod tests {
    use super::{torch_column_means, torch_sum};
    use crate::rng::Rng;

    #[test]
    fn sums_of_random_numbers_are_near_the_exact_one() {
        let mut rng = Rng::new(7);
        for len in [0, 1, 7, 8, 9, 31, 32, 33, 256, 1000, 4096, 100_003] {
            let values: Vec<f32> = (0..len).map(|_| rng.normal()).collect();
            let exact: f64 = values.iter().map(|v| f64::from(*v)).sum();
            let amount: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
            let off = (f64::from(torch_sum(&values)) - exact).abs();
            assert!(off <= amount * 2.0_f64.powi(-20), "{len}: off by {off}");
        }
    }

    #[test]
    fn means_of_columns_are_near_the_exact_ones() {
        let mut rng = Rng::new(8);
        for (m, k) in [(1, 1), (3, 45), (24, 64), (100, 33), (4099, 40)] {
            let x: Vec<f32> = (0..m * k).map(|_| rng.normal().abs()).collect();
            for (column, mean) in torch_column_means(&x, k).into_iter().enumerate() {
                let sum: f64 = x.chunks_exact(k).map(|row| f64::from(row[column])).sum();
                let off = (f64::from(mean) - sum / m as f64).abs();
                assert!(off <= 1e-6 * f64::from(mean), "{m} × {k}, {column}: off by {off}");
            }
        }
    }

    #[test]
    fn sums_of_whole_numbers_are_exact_at_every_length() {
        for len in [0_u16, 1, 7, 8, 9, 31, 32, 33, 512, 513, 2047, 4099] {
            let values: Vec<f32> = (0..len).map(f32::from).collect();
            let wanted: f64 = (0..len).map(f64::from).sum();
            let got = f64::from(torch_sum(&values));
            assert!((got - wanted).abs() <= wanted * 1e-7, "{len}: {got} {wanted}");
        }
    }
}
