//! Which numbers of a weight are kept, and weights that know it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Weight;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// A bit for each number of a weight `(N, K)`: 1 keeps it. Bit `j % 8` of a row's byte `j / 8` is column j.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    bits: Vec<u8>,
    shape: (usize, usize),
}

impl Mask {
    /// Of one bool a number, row-major.
    pub fn of(keep: &[bool], shape: (usize, usize)) -> Result<Mask> {
        if keep.len() != shape.0 * shape.1 {
            let got = keep.len();
            return Err(Error::invalid(format!(
                "a mask of {} × {} has {} values; got {got}",
                shape.0,
                shape.1,
                shape.0 * shape.1
            )));
        }
        let byte = |bits: &[bool]| {
            bits.iter().enumerate().fold(0, |byte, (i, keep)| byte | u8::from(*keep) << i)
        };
        let rows = keep.chunks_exact(shape.1.max(1));
        Ok(Mask { bits: rows.flat_map(|row| row.chunks(8).map(byte)).collect(), shape })
    }

    /// What is not zero stays; NaN stays.
    pub fn of_nonzero(values: &[f32], shape: (usize, usize)) -> Result<Mask> {
        let keep: Vec<bool> = values.iter().map(|value| *value != 0.0).collect();
        Mask::of(&keep, shape)
    }

    /// From its bytes as [`Mask::tensor`] gives them; bits behind a row's end must be 0.
    pub fn from_tensor(tensor: &Tensor, shape: (usize, usize)) -> Result<Mask> {
        let (rows, wide) = tensor.dims2()?;
        if tensor.dtype() != DType::U8 || (rows, wide) != (shape.0, shape.1.div_ceil(8)) {
            return Err(Error::invalid(format!(
                "a mask of {shape:?} is uint8 ({}, {}); got {} {:?}",
                shape.0,
                shape.1.div_ceil(8),
                tensor.dtype(),
                tensor.shape()
            )));
        }
        let bits = tensor.as_slice::<u8>()?.to_vec();
        let spare = shape.1 % 8;
        let dirty = |row: &[u8]| spare > 0 && row.last().is_some_and(|last| last >> spare != 0);
        if bits.chunks_exact(wide.max(1)).any(dirty) {
            return Err(Error::invalid("a mask keeps columns behind the row's end"));
        }
        Ok(Mask { bits, shape })
    }

    /// uint8 `(N, ⌈K / 8⌉)`.
    pub fn tensor(&self) -> Result<Tensor> {
        Tensor::new(self.bits.clone(), &[self.shape.0, self.shape.1.div_ceil(8)])
    }

    /// `(N, K)`.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The bytes of row `n`.
    pub fn row(&self, n: usize) -> &[u8] {
        let wide = self.shape.1.div_ceil(8);
        &self.bits[n * wide..][..wide]
    }

    /// Whether the number at `(n, k)` stays.
    pub fn keeps(&self, n: usize, k: usize) -> bool {
        self.row(n)[k / 8] >> (k % 8) & 1 == 1
    }

    /// How many numbers stay.
    pub fn kept(&self) -> usize {
        self.bits.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// The share of numbers that do not stay, 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
    pub fn sparsity(&self) -> f64 {
        let all = self.shape.0 * self.shape.1;
        if all == 0 { 0.0 } else { 1.0 - self.kept() as f64 / all as f64 }
    }

    /// Zeros what does not stay in rows of `values` from row `first` on.
    pub fn apply_rows(&self, first: usize, values: &mut [f32]) {
        for (i, row) in values.chunks_exact_mut(self.shape.1.max(1)).enumerate() {
            let bits = self.row(first + i);
            for (k, value) in row.iter_mut().enumerate() {
                if bits[k / 8] >> (k % 8) & 1 == 0 {
                    *value = 0.0;
                }
            }
        }
    }

    /// Whether of each m neighbours of a row at most n stay, or of each block none or some.
    pub fn holds(&self, pattern: Pattern) -> bool {
        let (rows, k) = self.shape;
        match pattern {
            Pattern::Unstructured => true,
            Pattern::NOfM { n, m } => (0..rows).all(|row| {
                let count = |start: usize| {
                    (start..k.min(start + m)).filter(|k| self.keeps(row, *k)).count()
                };
                (0..k).step_by(m).all(|start| count(start) <= n)
            }),
            // Any mask is one of blocks; what counts is how many blocks are empty.
            Pattern::Block { .. } => true,
        }
    }

    /// How many of the `size × size` blocks are empty, and how many there are; blocks at the edges may be smaller.
    pub fn empty_blocks(&self, size: usize) -> (usize, usize) {
        let (rows, k) = self.shape;
        let mut empty = 0;
        for top in (0..rows).step_by(size) {
            for left in (0..k).step_by(size) {
                let some = (top..rows.min(top + size))
                    .any(|row| (left..k.min(left + size)).any(|k| self.keeps(row, k)));
                empty += usize::from(!some);
            }
        }
        (empty, rows.div_ceil(size) * k.div_ceil(size))
    }
}

/// Where zeros may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Anywhere.
    Unstructured,
    /// Of each `m` neighbours of a row, `n` stay.
    NOfM {
        /// How many stay.
        n: usize,
        /// Of how many.
        m: usize,
    },
    /// Whole square blocks are zero.
    Block {
        /// Rows and columns of a block.
        size: usize,
    },
}

impl Pattern {
    /// The pattern that GPUs multiply.
    pub const TWO_OF_FOUR: Pattern = Pattern::NOfM { n: 2, m: 4 };

    /// Whether it fits a weight `(N, K)`; if not, says what would.
    pub fn check(self, (rows, k): (usize, usize)) -> Result<()> {
        match self {
            Pattern::Unstructured => Ok(()),
            Pattern::NOfM { n, m } if m == 0 || n == 0 || n > m => {
                Err(Error::invalid(format!("pattern {n}:{m}; wanted N:M with 1 ≤ N ≤ M")))
            }
            Pattern::NOfM { n, m } if !k.is_multiple_of(m) => {
                Err(Error::invalid(format!("K = {k} is not a multiple of {m}, as {n}:{m} wants")))
            }
            Pattern::Block { size: 0 } => Err(Error::invalid("blocks of 0; wanted 1 or more")),
            Pattern::Block { size } if !k.is_multiple_of(size) || !rows.is_multiple_of(size) => {
                Err(Error::invalid(format!(
                    "a weight of {rows} × {k} has no whole blocks of {size}; take a size that divides both"
                )))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured => f.pad("unstructured"),
            Pattern::NOfM { n, m } => f.pad(&format!("{n}:{m}")),
            Pattern::Block { size } => f.pad(&format!("block:{size}")),
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(word: &str) -> Result<Pattern> {
        let wrong = || {
            Error::usage(format!(
                "{word} is no pattern; wanted unstructured, N:M (2:4) or block:SIZE"
            ))
        };
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| (1..=1 << 20).contains(n));
        match word.split_once(':') {
            None if word == "unstructured" => Ok(Pattern::Unstructured),
            Some(("block", size)) => {
                number(size).map(|size| Pattern::Block { size }).ok_or_else(wrong)
            }
            Some((n, m)) => match (number(n), number(m)) {
                (Some(n), Some(m)) if n <= m => Ok(Pattern::NOfM { n, m }),
                _ => Err(wrong()),
            },
            None => Err(wrong()),
        }
    }
}

impl serde::Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Pattern {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Pattern, D::Error> {
        let word = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        word.parse().map_err(serde::de::Error::custom)
    }
}

/// A weight of which some numbers are zero and have to stay so, whatever is done to it.
pub trait Sparse: Weight {
    /// Which numbers are kept.
    fn mask(&self) -> Result<Mask>;

    /// Where zeros may be.
    fn pattern(&self) -> Pattern;

    /// The same zeros in `weight`, which took this one's place: quantized from it, or trained.
    fn around(&self, weight: Arc<dyn Weight>) -> Result<Arc<dyn Weight>>;
}

/// The sparse weight that `weight` is, or that multiplies behind its transforms.
pub fn sparse_of(weight: &Arc<dyn Weight>) -> Option<&dyn Sparse> {
    match weight.as_transform() {
        Some(transform) => sparse_of(transform.inner()),
        None => weight.as_sparse(),
    }
}
