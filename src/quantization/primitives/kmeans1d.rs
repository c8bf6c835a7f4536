//! The best `k` values for a list of numbers: k-means in one dimension, solved exactly.
//!
//! Sorted, the numbers of a cluster are neighbours. `D[c, j]` is the least error of the first j numbers in c clusters, and the
//! best last cluster begins no earlier for a longer list (Wu 1991; Grønlund et al. 2017): divide and conquer finds
//! each row of D in `O(n log n)`. CoreML's tools solve the same problem the same way for large weights.

/// Numbers are gathered in at most as many kinds: bf16 weights have no more, and of others the ends of 2¹⁶ equal steps suffice.
const MOST_KINDS: usize = 1 << 14;

/// Distinct numbers, ascending, with sums before each: of counts, of values, of squares.
struct Sorted {
    values: Vec<f32>,
    counts: Vec<f64>,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Sorted {
    fn new(numbers: &[f32]) -> Sorted {
        let mut sorted: Vec<f32> = numbers.to_vec();
        sorted.sort_unstable_by(f32::total_cmp);
        let mut kinds: Vec<(f32, f64)> = Vec::new();
        // Too many kinds: neighbours closer than a step are counted as one, at their mean.
        let spread = sorted.last().copied().unwrap_or(0.0) - sorted.first().copied().unwrap_or(0.0);
        let step = if distinct(&sorted) > MOST_KINDS { spread / MOST_KINDS as f32 } else { 0.0 };
        let mut first = f32::NAN;
        for v in sorted {
            match kinds.last_mut() {
                Some((mean, count)) if v - first <= step => {
                    *count += 1.0;
                    #[expect(clippy::cast_possible_truncation, reason = "a mean of f32 numbers")]
                    let moved =
                        (f64::from(*mean) + (f64::from(v) - f64::from(*mean)) / *count) as f32;
                    *mean = moved;
                }
                _ => {
                    kinds.push((v, 1.0));
                    first = v;
                }
            }
        }
        let running = |of: &dyn Fn(&(f32, f64)) -> f64| {
            let mut total = 0.0;
            let mut sums = vec![0.0];
            sums.extend(kinds.iter().map(|kind| {
                total += of(kind);
                total
            }));
            sums
        };
        Sorted {
            counts: running(&|(_, count)| *count),
            sums: running(&|(v, count)| f64::from(*v) * count),
            squares: running(&|(v, count)| f64::from(*v).powi(2) * count),
            values: kinds.into_iter().map(|(v, _)| v).collect(),
        }
    }

    /// The squared error of kinds `from .. to` about their mean.
    fn error(&self, from: usize, to: usize) -> f64 {
        let count = self.counts[to] - self.counts[from];
        let sum = self.sums[to] - self.sums[from];
        (self.squares[to] - self.squares[from] - sum * sum / count.max(1.0)).max(0.0)
    }

    #[expect(clippy::cast_possible_truncation, reason = "a mean of f32 numbers")]
    fn mean(&self, from: usize, to: usize) -> f32 {
        let count = self.counts[to] - self.counts[from];
        ((self.sums[to] - self.sums[from]) / count) as f32
    }
}

fn distinct(sorted: &[f32]) -> usize {
    1 + sorted.windows(2).filter(|pair| pair[0].to_bits() != pair[1].to_bits()).count()
}

/// The `k` values that stand for `numbers` with the least squared error, ascending; what they lack repeats the last. Numbers
/// that are NaN or infinite are left out of the search.
pub fn kmeans1d(numbers: &[f32], k: usize) -> Vec<f32> {
    let finite: Vec<f32> = numbers.iter().copied().filter(|v| v.is_finite()).collect();
    if finite.is_empty() || k == 0 {
        return vec![0.0; k];
    }
    let sorted = Sorted::new(&finite);
    let n = sorted.values.len();
    if n <= k {
        let mut values = sorted.values.clone();
        values.resize(k, values[n - 1]);
        return values;
    }
    let mut least: Vec<f64> = (0..=n).map(|to| sorted.error(0, to)).collect();
    // starts[c][to]: where the last of c + 1 clusters of the first `to` kinds begins.
    let mut starts: Vec<Vec<usize>> = vec![vec![0; n + 1]];
    for _ in 1..k {
        let mut next = vec![f64::INFINITY; n + 1];
        let mut begins = vec![0; n + 1];
        next[0] = 0.0;
        let mut row =
            Row { sorted: &sorted, before: &least, least: &mut next, begins: &mut begins };
        row.solve(1, n, 0, n - 1);
        least = next;
        starts.push(begins);
    }
    let mut values = Vec::with_capacity(k);
    let mut to = n;
    for begins in starts.iter().rev() {
        let from = begins[to];
        if from < to {
            values.push(sorted.mean(from, to));
        }
        to = from;
    }
    values.reverse();
    values.resize(k, values[values.len() - 1]);
    values
}

struct Row<'a> {
    sorted: &'a Sorted,
    before: &'a [f64],
    least: &'a mut [f64],
    begins: &'a mut [usize],
}

impl Row<'_> {
    /// Solves for lists of `low ..= high` kinds, whose last cluster begins in `first ..= last`.
    fn solve(&mut self, low: usize, high: usize, first: usize, last: usize) {
        if low > high {
            return;
        }
        let to = usize::midpoint(low, high);
        let (mut best, mut begin) = (f64::INFINITY, first);
        for from in first..=last.min(to - 1) {
            let error = self.before[from] + self.sorted.error(from, to);
            if error < best {
                (best, begin) = (error, from);
            }
        }
        (self.least[to], self.begins[to]) = (best, begin);
        self.solve(low, to - 1, first, begin);
        self.solve(to + 1, high, begin, last);
    }
}

/// The code of the nearest of `values`, ascending, the lower of two as near; 0 for NaN.
#[expect(clippy::cast_possible_truncation, reason = "tables have at most 256 values")]
pub fn nearest_of_ascending(values: &[f32], x: f32) -> u8 {
    let above = values.partition_point(|v| *v < x);
    if above == 0 {
        return 0;
    }
    if above == values.len() || x - values[above - 1] <= values[above] - x {
        // Of equal values the first.
        return values.partition_point(|v| *v < values[above - 1]) as u8;
    }
    above as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn error(numbers: &[f32], values: &[f32]) -> f64 {
        let off =
            |v: &f32| f64::from(v - values[usize::from(nearest_of_ascending(values, *v))]).powi(2);
        numbers.iter().map(off).sum()
    }

    /// The least error over all ways to cut the sorted numbers into k runs.
    fn by_trying_all(sorted: &[f32], k: usize) -> f64 {
        if sorted.is_empty() {
            return 0.0;
        }
        if k == 0 {
            return f64::INFINITY;
        }
        let about_mean = |run: &[f32]| {
            let mean = run.iter().map(|v| f64::from(*v)).sum::<f64>() / run.len() as f64;
            run.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>()
        };
        let cut = |at: usize| about_mean(&sorted[at..]) + by_trying_all(&sorted[..at], k - 1);
        (0..sorted.len()).map(cut).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn no_other_values_are_better() {
        let mut rng = Rng::new(5);
        for (n, k) in [(1, 1), (5, 2), (9, 3), (11, 4), (12, 2), (6, 8)] {
            let mut numbers: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
            let values = kmeans1d(&numbers, k);
            assert_eq!(values.len(), k);
            assert!(values.is_sorted(), "{values:?}");
            numbers.sort_unstable_by(f32::total_cmp);
            let (got, best) = (error(&numbers, &values), by_trying_all(&numbers, k));
            assert!(got <= best + 1e-6, "{n} numbers, {k} values: {got}, best {best}");
        }
    }

    #[test]
    fn hard_lists_are_stood_for() {
        assert_eq!(kmeans1d(&[], 4), [0.0; 4]);
        assert_eq!(kmeans1d(&[f32::NAN, f32::INFINITY], 2), [0.0; 2]);
        assert_eq!(kmeans1d(&[3.0; 100], 4), [3.0; 4]);
        assert_eq!(kmeans1d(&[1.0, f32::NAN, 2.0], 2), [1.0, 2.0]);
        let many: Vec<f32> = (0..100_000_u32).map(|i| i as f32).collect();
        let values = kmeans1d(&many, 4);
        for (value, wanted) in values.iter().zip([12_499.5, 37_499.5, 62_499.5, 87_499.5]) {
            assert!((value - wanted).abs() < 20.0, "{value}, wanted {wanted}");
        }
        assert_eq!(nearest_of_ascending(&[0.0, 1.0, 1.0, 2.0], 5.0), 3);
        assert_eq!(nearest_of_ascending(&[0.0, 1.0, 1.0, 1.0], 5.0), 1);
        assert_eq!(nearest_of_ascending(&[0.0, 1.0], 0.5), 0);
        assert_eq!(nearest_of_ascending(&[0.0, 1.0], f32::NAN), 0);
    }
}
