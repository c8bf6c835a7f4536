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
}

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

    /// The scales of a matrix with rows of `k`: one, one a row, or one a column.
    pub fn scales(&self, x: &[f32], k: usize) -> Vec<f32> {
        let larger = |most: f32, x: f32| if x.abs() > most || x.is_nan() { x.abs() } else { most };
        let largest = |x: &[f32]| x.iter().fold(0.0, |most, x| larger(most, *x));
        let amaxes: Vec<f32> = match self.axis {
            Axis::All => vec![largest(x)],
            Axis::Row => x.chunks(k.max(1)).map(largest).collect(),
            Axis::Column => {
                let mut all = vec![0.0; k];
                for row in x.chunks_exact(k.max(1)) {
                    all.iter_mut().zip(row).for_each(|(most, x)| *most = larger(*most, *x));
                }
                all
            }
        };
        amaxes.into_iter().map(|amax| self.scale(amax)).collect()
    }
}

/// A matrix with rows of `k` as float8 holds it.
pub fn cast_to_float8(cpu: &Cpu, x: &[f32], k: usize, cast: Cast) -> Vec<f32> {
    let scales = cast.scales(x, k);
    let mut y = vec![0.0; x.len()];
    let rows = cpu.threads().share(x.len().checked_div(k).unwrap_or(0), 1);
    cpu.threads().chunks_mut(&mut y, rows * k.max(1), |part, y| {
        let first = part * rows;
        for (i, y) in y.chunks_mut(k.max(1)).enumerate() {
            let x = &x[(first + i) * k..][..y.len()];
            let scale_of = |column: usize| match cast.axis {
                Axis::All => scales[0],
                Axis::Row => scales[first + i],
                Axis::Column => scales[column],
            };
            for (column, (y, x)) in y.iter_mut().zip(x).enumerate() {
                let scale = scale_of(column);
                *y = cast.format.round(x * scale) / scale;
            }
        }
    });
    y
}
