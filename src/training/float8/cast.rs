//! Numbers as float8 holds them: scaled, rounded, scaled back.

use crate::kernels::{Cpu, float8_round};

/// Which float8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 448 at most.
    E4m3,
    /// 57344 at most.
    E5m2,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// All numbers.
    All,
    /// A row.
    Row,
    /// A column.
    Column,
    /// 128 neighbours of a row; what is left at its end shares one, too.
    RowBlock,
    /// 128 neighbours of a column.
    ColumnBlock,
    /// A square of 128 × 128.
    Square,
}

/// Numbers along a side of a block.
const BLOCK: usize = 128;

/// How numbers are cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    /// Which float8.
    pub format: Format,
    /// What shares a scale.
    pub axis: Axis,
    /// Whether scales are rounded down to powers of two.
    pub power_of_two: bool,
}

/// The least amax.
const EPS: f64 = 1e-12;

impl Format {
    fn max(self) -> f64 {
        match self {
            Format::E4m3 => 448.0,
            Format::E5m2 => 57344.0,
        }
    }

    /// Rounded to float8, saturating.
    #[inline]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Format::E4m3 => float8_round::e4m3(x),
            Format::E5m2 => float8_round::e5m2(x),
        }
    }
}

impl Cast {
    /// What numbers whose largest is `amax` are multiplied by: in f64, rounded to f32, as torchao's `amax_to_scale`.
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as torchao does")]
    pub fn scale(&self, amax: f32) -> f32 {
        let amax = f64::from(amax);
        let scale = (self.format.max() / if amax < EPS { EPS } else { amax }) as f32;
        if self.power_of_two {
            // The mantissa is cut off; a NaN becomes an infinity of no use, as there.
            return f32::from_bits(scale.to_bits() & 0xFF80_0000);
        }
        scale
    }

    /// The scales of a matrix with rows of `k`: a row of them for each row of blocks, see [`Axis`].
    pub fn scales(&self, x: &[f32], k: usize) -> Vec<f32> {
        let larger = |most: f32, x: f32| if x.abs() > most || x.is_nan() { x.abs() } else { most };
        let (rows, columns) = self.axis.block();
        let mut amaxes = Vec::new();
        for rows in x.chunks(rows.saturating_mul(k).max(1)) {
            let first = amaxes.len();
            amaxes.resize(first + k.div_ceil(columns), 0.0);
            let all = &mut amaxes[first..];
            for row in rows.chunks(k.max(1)) {
                if columns == 1 {
                    all.iter_mut().zip(row).for_each(|(most, x)| *most = larger(*most, *x));
                    continue;
                }
                for (most, block) in all.iter_mut().zip(row.chunks(columns)) {
                    *most = block.iter().fold(*most, |most, x| larger(most, *x));
                }
            }
        }
        amaxes.into_iter().map(|amax| self.scale(amax)).collect()
    }
}

impl Axis {
    /// The rows and columns that share a scale; what is left at an edge is a smaller block.
    fn block(self) -> (usize, usize) {
        match self {
            Axis::All => (usize::MAX, usize::MAX),
            Axis::Row => (1, usize::MAX),
            Axis::Column => (usize::MAX, 1),
            Axis::RowBlock => (1, BLOCK),
            Axis::ColumnBlock => (BLOCK, 1),
            Axis::Square => (BLOCK, BLOCK),
        }
    }

    /// Whether numbers are scaled back by a reciprocal that was rounded, as torchao's blocks are, and not by division.
    fn is_block(self) -> bool {
        matches!(self, Axis::RowBlock | Axis::ColumnBlock | Axis::Square)
    }
}

/// A matrix with rows of `k` as float8 holds it.
pub fn cast_to_float8(cpu: &Cpu, x: &[f32], k: usize, cast: Cast) -> Vec<f32> {
    let scales = cast.scales(x, k);
    let (block_rows, block_columns) = cast.axis.block();
    let blocks = k.div_ceil(block_columns);
    let mut y = vec![0.0; x.len()];
    let rows = cpu.threads().share(x.len().checked_div(k).unwrap_or(0), 1);
    cpu.threads().chunks_mut(&mut y, rows * k.max(1), |part, y| {
        let first = part * rows;
        for (i, y) in y.chunks_mut(k.max(1)).enumerate() {
            let x = &x[(first + i) * k..][..y.len()];
            let scales = &scales[(first + i) / block_rows * blocks..][..blocks];
            if block_columns == 1 {
                y.iter_mut().zip(x).zip(scales).for_each(|((y, x), scale)| {
                    *y = cast.through(*x, *scale);
                });
                continue;
            }
            let parts = y.chunks_mut(block_columns).zip(x.chunks(block_columns));
            for ((y, x), scale) in parts.zip(scales) {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = cast.through(*x, *scale));
            }
        }
    });
    y
}

impl Cast {
    /// One number, there and back.
    #[inline]
    fn through(&self, x: f32, scale: f32) -> f32 {
        let code = self.format.round(x * scale);
        if self.axis.is_block() { code * (1.0 / scale) } else { code / scale }
    }
}
