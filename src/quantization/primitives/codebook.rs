//! Codebooks by k-means over blocks of a weight, after AQLM, as torchao's `codebook_ops` has them (P10), in f32.

use crate::kernels::Cpu;

/// How often centroids are moved at most.
const MAX_ITER: usize = 200;
/// Every so many iterations, whether they still move is looked at.
const CHECK_EVERY: usize = 10;
/// Centroids that move by no more than `ATOL + RTOL · |c|` stand still.
const RTOL: f32 = 1e-6;
const ATOL: f32 = 1e-8;
/// The least scale.
const LEAST_SCALE: f32 = 1e-9;

/// Blocks of `(rows, columns)` numbers of a weight `(N, K)`, one after the other, each as a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// `(N, K)`, of which `block` is a divisor.
    pub shape: (usize, usize),
    /// `(rows, columns)` of a block.
    pub block: (usize, usize),
}

impl Blocks {
    /// How many numbers a block has.
    pub fn dim(self) -> usize {
        self.block.0 * self.block.1
    }

    /// Where number `j` of block `i` lies in the weight.
    pub fn place(self, i: usize, j: usize) -> usize {
        let (rows, columns) = self.block;
        let across = self.shape.1 / columns;
        let (row, column) = (i / across * rows + j / columns, i % across * columns + j % columns);
        row * self.shape.1 + column
    }

    /// The numbers of the weight `w`, block after block.
    pub fn gather(self, w: &[f32]) -> Vec<f32> {
        let dim = self.dim();
        (0..w.len()).map(|at| w[self.place(at / dim, at % dim)]).collect()
    }
}

/// The scale of every `scale_block` neighbours in a row: their signed maximum for single numbers, which is torchao's choice,
/// else their Euclidean norm; at least 1e-9.
pub fn codebook_scales(w: &[f32], scale_block: usize, single: bool) -> Vec<f32> {
    let scale = |block: &[f32]| {
        let scale = if single {
            block
                .iter()
                .fold(f32::NEG_INFINITY, |max, v| if *v > max || v.is_nan() { *v } else { max })
        } else {
            block.iter().map(|v| v * v).sum::<f32>().sqrt()
        };
        // A NaN stays: it compares unequal to everything.
        if scale < LEAST_SCALE { LEAST_SCALE } else { scale }
    };
    w.chunks(scale_block.max(1)).map(scale).collect()
}

/// The `k` centroids of `data`, vectors of `dim` numbers: begun at the first vector and then each at the one farthest from
/// those before, moved until they stand still or 200 times.
pub fn fit_kmeans(cpu: &Cpu, data: &[f32], dim: usize, k: usize) -> Vec<f32> {
    let mut clusters = greedy_start(data, dim, k);
    for iteration in 0..MAX_ITER {
        let nearest = nearest_codes(cpu, data, dim, &clusters);
        let moved = means(data, dim, &nearest, &clusters);
        let still = |(new, old): (&f32, &f32)| (new - old).abs() <= ATOL + RTOL * old.abs();
        if iteration % CHECK_EVERY == 0 && moved.iter().zip(&clusters).all(still) {
            break;
        }
        clusters = moved;
    }
    clusters
}

fn greedy_start(data: &[f32], dim: usize, k: usize) -> Vec<f32> {
    let vectors = || data.chunks_exact(dim);
    // torch takes the norm and squares it again.
    let squared = |v: &[f32]| {
        let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
        norm * norm
    };
    let squares: Vec<f32> = vectors().map(squared).collect();
    let mut distances = vec![f32::INFINITY; squares.len()];
    let mut clusters = Vec::with_capacity(k * dim);
    for _ in 0..k {
        let farthest = first_largest(&distances);
        let cluster = &data[farthest * dim..][..dim];
        let own = squared(cluster);
        for ((v, square), distance) in vectors().zip(&squares).zip(&mut distances) {
            let new = square - 2.0 * inner(v, cluster) + own;
            *distance = if new < *distance || new.is_nan() { new } else { *distance };
        }
        clusters.extend_from_slice(cluster);
    }
    clusters
}

fn inner(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The index of the largest, the first of equals; the first NaN if there is one.
fn first_largest(values: &[f32]) -> usize {
    let (mut best, mut most) = (0, f32::NEG_INFINITY);
    for (i, &value) in values.iter().enumerate() {
        if value.is_nan() {
            return i;
        }
        if value > most {
            (best, most) = (i, value);
        }
    }
    best
}

/// The centroid nearest to each vector of `data`: the largest `x · c − ½‖c‖²`, the first of equals.
#[expect(clippy::cast_possible_truncation, reason = "a codebook has at most 256 entries")]
pub fn nearest_codes(cpu: &Cpu, data: &[f32], dim: usize, clusters: &[f32]) -> Vec<u8> {
    let halves: Vec<f32> = clusters.chunks_exact(dim).map(|c| -0.5 * inner(c, c)).collect();
    let mut codes = vec![0; data.len() / dim];
    let share = cpu.threads().share(codes.len(), 4096);
    cpu.threads().chunks_mut(&mut codes, share, |i, codes| {
        let data = &data[i * share * dim..][..codes.len() * dim];
        let mut scores = vec![0.0; halves.len()];
        for (code, v) in codes.iter_mut().zip(data.chunks_exact(dim)) {
            for ((score, half), c) in scores.iter_mut().zip(&halves).zip(clusters.chunks_exact(dim))
            {
                *score = inner(v, c) + half;
            }
            *code = first_largest(&scores) as u8;
        }
    });
    codes
}

/// The mean of the vectors of each centroid; one that has none stays.
fn means(data: &[f32], dim: usize, nearest: &[u8], old: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0; old.len()];
    let mut counts = vec![0_u32; old.len() / dim];
    for (v, &code) in data.chunks_exact(dim).zip(nearest) {
        let sum = &mut sums[usize::from(code) * dim..][..dim];
        sum.iter_mut().zip(v).for_each(|(sum, x)| *sum += x);
        counts[usize::from(code)] += 1;
    }
    for ((sum, old), &count) in sums.chunks_exact_mut(dim).zip(old.chunks_exact(dim)).zip(&counts) {
        for (sum, old) in sum.iter_mut().zip(old) {
            *sum = if count == 0 { *old } else { *sum / count as f32 };
        }
    }
    sums
}
