//! GaLore (X26): Adam on the gradient's projection to a few directions, so that moments are small and weights full.
//!
//! Every `update_proj_gap` steps the first `rank` singular vectors of the gradient `G (N, K)` become the projection P; Adam runs on
//! `R = G · Pᵀ` (or `Pᵀ · G`), and its step goes back through P, `scale` times. The decay comes last, on the whole weight.
//! As torchao's `galore_torch.AdamW`: its eps is added to the root before the root's correction; moments in few bits follow
//! bitsandbytes, which corrects the root first. Source: Zhao et al. 2024, GaLore (arXiv 2403.03507).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::matmul::{Matrix, Precision, multiply};
use crate::quantization::primitives::symmetric_eigen;
use crate::tensor::Tensor;

/// From which side the gradient is projected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ProjType {
    /// So that the longer dimension stays.
    #[default]
    Std,
    /// So that the shorter dimension stays.
    ReverseStd,
    /// The columns.
    Right,
    /// The rows.
    Left,
    /// Both.
    Full,
}

/// How gradients of matrices are projected; embeddings, the output layer and vectors are not.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaloreConfig {
    /// Directions that are kept.
    pub rank: usize,
    /// Steps with the same directions.
    pub update_proj_gap: u32,
    /// What the step is multiplied by.
    pub scale: f32,
    /// From which side.
    pub proj_type: ProjType,
}

impl Default for GaloreConfig {
    fn default() -> GaloreConfig {
        GaloreConfig { rank: 128, update_proj_gap: 200, scale: 0.25, proj_type: ProjType::Std }
    }
}

impl GaloreConfig {
    pub(super) fn check(&self) -> Result<()> {
        if self.rank == 0 || self.update_proj_gap == 0 {
            return Err(Error::invalid("GaLore: a rank and a gap of 0; wanted 1 or more"));
        }
        if !(self.scale.is_finite() && self.scale > 0.0) {
            let scale = self.scale;
            return Err(Error::invalid(format!("GaLore: scale is {scale}; wanted more than 0")));
        }
        Ok(())
    }

    /// The matrix that `name` is, where its gradient is projected.
    pub(super) fn matrix(&self, name: &str, shape: &[usize]) -> Option<(usize, usize)> {
        let left_alone = name.contains("embed") || name.starts_with("lm_head");
        match *shape {
            [n, k] if !left_alone && n > 0 && k > 0 => Some((n, k)),
            _ => None,
        }
    }

    /// Whether rows and columns of an `(N, K)` gradient are projected.
    fn sides(&self, (n, k): (usize, usize)) -> (bool, bool) {
        match self.proj_type {
            ProjType::Std => (n < k, n >= k),
            ProjType::ReverseStd => (n >= k, n < k),
            ProjType::Right => (false, true),
            ProjType::Left => (true, false),
            ProjType::Full => (true, true),
        }
    }

    /// The shape of what Adam sees.
    pub(super) fn low(&self, (n, k): (usize, usize)) -> (usize, usize) {
        let rank = self.rank.min(n).min(k);
        let (left, right) = self.sides((n, k));
        (if left { rank } else { n }, if right { rank } else { k })
    }
}

impl fmt::Display for GaloreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GaLore of rank {}", self.rank)
    }
}

/// The directions of one parameter: `(R, N)` for its rows, `(R, K)` for its columns.
#[derive(Clone, Debug, Default)]
pub(super) struct Projection {
    left: Option<Vec<f32>>,
    right: Option<Vec<f32>>,
}

impl Projection {
    /// The first singular vectors of `g`.
    pub(super) fn of(
        cpu: &Cpu,
        config: &GaloreConfig,
        g: &[f32],
        (n, k): (usize, usize),
    ) -> Result<Projection> {
        let rank = config.rank.min(n).min(k);
        let (left, right) = config.sides((n, k));
        let first = |gram: Vec<f64>, size: usize| -> Result<Vec<f32>> {
            let vectors = symmetric_eigen(&gram, size)?.vectors;
            #[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to even")]
            Ok(vectors[..rank * size].iter().map(|x| *x as f32).collect())
        };
        let left = if left { Some(first(gram_of_rows(cpu, g, (n, k)), n)?) } else { None };
        let right = if right { Some(first(gram_of_columns(cpu, g, (n, k)), k)?) } else { None };
        Ok(Projection { left, right })
    }

    /// What Adam sees of `g (N, K)`.
    pub(super) fn project(&self, cpu: &Cpu, g: &[f32], (n, k): (usize, usize)) -> Vec<f32> {
        let (mut values, mut rows) = (g.to_vec(), n);
        if let Some(left) = &self.left {
            rows = left.len() / n;
            // (r, n) · (n, k)
            values = product(cpu, Matrix::new(left, rows, n), Matrix::new(&values, n, k));
        }
        match &self.right {
            // (rows, k) · (k, r)
            Some(right) => {
                let right = Matrix::new(right, right.len() / k, k).transposed();
                product(cpu, Matrix::new(&values, rows, k), right)
            }
            None => values,
        }
    }

    /// What `low` stands for in all directions.
    pub(super) fn back(&self, cpu: &Cpu, low: &[f32], (n, k): (usize, usize)) -> Vec<f32> {
        let rows = self.left.as_ref().map_or(n, |left| left.len() / n);
        let mut values = low.to_vec();
        if let Some(right) = &self.right {
            // (rows, r) · (r, k)
            let rank = right.len() / k;
            values = product(cpu, Matrix::new(&values, rows, rank), Matrix::new(right, rank, k));
        }
        match &self.left {
            // (n, r) · (r, k)
            Some(left) => {
                let left = Matrix::new(left, rows, n).transposed();
                product(cpu, left, Matrix::new(&values, rows, k))
            }
            None => values,
        }
    }

    pub(super) fn nbytes(&self) -> usize {
        [&self.left, &self.right].into_iter().flatten().map(|side| 4 * side.len()).sum()
    }

    /// As a checkpoint holds it.
    pub(super) fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let sides = [("projection_left", &self.left), ("projection_right", &self.right)];
        let known = sides.into_iter().filter_map(|(name, side)| Some((name, side.clone()?)));
        known
            .map(|(name, side)| {
                let len = side.len();
                Ok((name.to_owned(), Tensor::new(side, &[len])?))
            })
            .collect()
    }

    /// What [`Projection::tensors`] gave for an `(N, K)` parameter.
    pub(super) fn restored(
        config: &GaloreConfig,
        (n, k): (usize, usize),
        find: &dyn Fn(&str) -> Option<Tensor>,
    ) -> Result<Projection> {
        let rank = config.rank.min(n).min(k);
        let (left, right) = config.sides((n, k));
        let get = |wanted: bool, name: &str, size: usize| -> Result<Option<Vec<f32>>> {
            if !wanted {
                return Ok(None);
            }
            let tensor = find(name).filter(|tensor| tensor.numel() == rank * size);
            let tensor = tensor.ok_or_else(|| {
                Error::invalid(format!("{name} of {rank} × {size} numbers is missing"))
            })?;
            tensor.into_vec().map(Some)
        };
        let left = get(left, "projection_left", n)?;
        Ok(Projection { left, right: get(right, "projection_right", k)? })
    }
}

fn product(cpu: &Cpu, a: Matrix<'_, f32>, b: Matrix<'_, f32>) -> Vec<f32> {
    let mut c = vec![0.0; a.rows() * b.cols()];
    multiply(cpu, Precision::F32, a, b, &mut c);
    c
}

/// `G · Gᵀ` in f64.
fn gram_of_rows(cpu: &Cpu, g: &[f32], (n, k): (usize, usize)) -> Vec<f64> {
    let wide: Vec<f64> = g.iter().map(|x| f64::from(*x)).collect();
    let mut gram = vec![0.0; n * n];
    cpu.threads().chunks_mut(&mut gram, n, |i, row| {
        let own = &wide[i * k..][..k];
        for (sum, other) in row.iter_mut().zip(wide.chunks_exact(k)) {
            *sum = own.iter().zip(other).map(|(a, b)| a * b).sum();
        }
    });
    gram
}

/// `Gᵀ · G` in f64.
fn gram_of_columns(cpu: &Cpu, g: &[f32], (n, k): (usize, usize)) -> Vec<f64> {
    let wide: Vec<f64> = g.iter().map(|x| f64::from(*x)).collect();
    let mut gram = vec![0.0; k * k];
    cpu.threads().chunks_mut(&mut gram, k, |i, sums| {
        for row in wide.chunks_exact(k).take(n) {
            let own = row[i];
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += own * x);
        }
    });
    gram
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn a_gradient_of_low_rank_comes_back_and_else_the_best_part_of_it() {
        let mut rng = Rng::new(3);
        let cpu = Cpu::new(Some(2));
        for proj_type in
            [ProjType::Std, ProjType::ReverseStd, ProjType::Right, ProjType::Left, ProjType::Full]
        {
            for (n, k) in [(6, 9), (9, 6), (7, 7)] {
                let config = GaloreConfig { rank: 2, proj_type, ..GaloreConfig::default() };
                let (u, v): (Vec<f32>, Vec<f32>) = (
                    (0..2 * n).map(|_| rng.normal()).collect(),
                    (0..2 * k).map(|_| rng.normal()).collect(),
                );
                let low = |i: usize, j: usize| u[i] * v[j] + u[n + i] * v[k + j];
                let g: Vec<f32> = (0..n * k).map(|at| low(at / k, at % k)).collect();
                let projection = Projection::of(&cpu, &config, &g, (n, k)).expect("finite");
                let seen = projection.project(&cpu, &g, (n, k));
                let (rows, columns) = config.low((n, k));
                assert_eq!(seen.len(), rows * columns, "{proj_type:?} {n} × {k}");
                for (x, y) in projection.back(&cpu, &seen, (n, k)).iter().zip(&g) {
                    assert!((x - y).abs() < 1e-5, "{proj_type:?} {n} × {k}: {x} {y}");
                }
                // Of full rank: what is left out is the smaller part.
                let g: Vec<f32> = (0..n * k).map(|_| rng.normal()).collect();
                let projection = Projection::of(&cpu, &config, &g, (n, k)).expect("finite");
                let back = projection.back(&cpu, &projection.project(&cpu, &g, (n, k)), (n, k));
                let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>();
                let left = square(&mut g.iter().zip(&back).map(|(g, b)| g - b));
                let all = square(&mut g.iter().copied());
                assert!(left < all * 0.75 && left > 0.0, "{proj_type:?}: {left} of {all}");
                let tensors = projection.tensors().expect("vectors");
                let find = |name: &str| {
                    tensors.iter().find(|(known, _)| known == name).map(|(_, t)| t.clone())
                };
                let again = Projection::restored(&config, (n, k), &find).expect("all there");
                assert_eq!((again.left, again.right), (projection.left, projection.right));
            }
        }
    }

    #[test]
    fn what_is_projected_is_a_matrix_of_a_block() {
        let config = GaloreConfig { rank: 4, ..GaloreConfig::default() };
        let name = "model.layers.0.mlp.up_proj.weight";
        assert_eq!(config.matrix(name, &[8, 6]), Some((8, 6)));
        assert_eq!(config.low((8, 6)), (8, 4));
        assert_eq!(config.low((3, 6)), (3, 6), "no more directions than there are");
        for (name, shape) in [("lm_head.weight", &[8, 6][..]), ("model.norm.weight", &[8])] {
            assert_eq!(config.matrix(name, shape), None);
        }
        assert_eq!(config.matrix("model.embed_tokens.weight", &[8, 6]), None);
        assert!(GaloreConfig { rank: 0, ..config }.check().is_err());
        assert!(GaloreConfig { scale: f32::NAN, ..config }.check().is_err());
    }
}
