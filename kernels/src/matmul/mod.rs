//! `c[i, j] = Σ_k a[i, k] · b[k, j]`, or that added to c: the three products of training.
//! a (M, K) f32 · b (K, N) f32, any strides → c (M, N) f32, row-major.
//! Both are packed once: a in panels of some rows, b in panels of some columns, `DEPTH` deep, in which one
//! k's numbers lie side by side. A tile of c is multiplied from panels that stay in the caches.
//! Error: |c − f64 result| ≤ 2⁻²² · K · Σ|a·b|; in [`Precision::Bf16`] of both rounded to bf16 first.
//! Every number is summed by one thread in the order of k, so that threads do not change it.
//! Source: Goto and van de Geijn 2008 (doi 10.1145/1356052.1356053); strides as in BLIS, Van Zee and
//! van de Geijn 2015 (doi 10.1145/2764454).

mod number;
mod pack;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::bf16;

pub use number::Multiply;
use number::Packed;

use crate::parallel::Tile;
use crate::{Cost, Cpu, Isa, Shape};
pub use scalar::oracle;

/// How the factors are rounded before they are multiplied; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To bf16, ties to even: twice as fast where the processor has the instruction, which takes
    /// subnormal numbers as zero.
    Bf16,
}

/// A matrix of `rows` by `cols` in `data`, whose element (i, j) lies at `i · row_stride + j · col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<T: Copy> Matrix<'_, T> {
    /// Element (i, j).
    pub fn at(&self, i: usize, j: usize) -> T {
        self.data[i * self.row_stride + j * self.col_stride]
    }
}

impl<'a, T> Matrix<'a, T> {
    /// A dense, row-major matrix.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Matrix<'a, T> {
        assert_eq!(data.len(), rows * cols, "a matrix of {rows} × {cols}");
        Matrix { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// `cols` side by side in each of `rows` that lie `row_stride` apart.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Matrix<'a, T> {
        let end = rows.saturating_sub(1) * row_stride + cols;
        assert!(rows == 0 || end <= data.len(), "{rows} rows {row_stride} apart end at {end}");
        Matrix { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The same numbers with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Matrix<'a, T> {
        Matrix {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Shapes that tests and benches share: the layers of a small model, whose K becomes M in the weight's gradient.
pub const SHAPES: [Shape; 7] = [
    Shape { m: 1, n: 1, k: 1 },
    Shape { m: 7, n: 5, k: 3 },
    Shape { m: 12, n: 32, k: 256 },
    Shape { m: 97, n: 130, k: 301 },
    Shape { m: 256, n: 256, k: 32 },
    Shape { m: 256, n: 768, k: 513 },
    Shape { m: 2048, n: 768, k: 256 },
];

/// `c = a · b`, whatever c held.
pub fn multiply(
    cpu: &Cpu,
    precision: Precision,
    a: Matrix<'_, f32>,
    b: Matrix<'_, f32>,
    c: &mut [f32],
) {
    if a.cols == 0 {
        c.fill(0.0);
    }
    choose(cpu, precision, a, b, (c, First::Stores));
}

/// `c += a · b`.
pub fn multiply_add(
    cpu: &Cpu,
    precision: Precision,
    a: Matrix<'_, f32>,
    b: Matrix<'_, f32>,
    c: &mut [f32],
) {
    choose(cpu, precision, a, b, (c, First::Adds));
}

/// What the first sums of a number of c do to what it holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Stores,
    Adds,
}

fn choose(
    cpu: &Cpu,
    precision: Precision,
    a: Matrix<'_, f32>,
    b: Matrix<'_, f32>,
    (c, first): (&mut [f32], First),
) {
    assert!(
        a.cols == b.rows && c.len() == a.rows * b.cols,
        "({}, {}) · ({}, {}) does not give {} numbers",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        c.len()
    );
    match (cpu.isa(), precision) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Vnni(isa), Precision::Bf16) => run(cpu, &x86::bf16(&isa), a, b, (c, first)),
        (isa, Precision::Bf16) => f32_engine(isa, nearest_bf16, cpu, (a, b), (c, first)),
        (isa, Precision::F32) => f32_engine(isa, |x| x, cpu, (a, b), (c, first)),
    }
}

/// Compiled for each rounding, so that packing is a loop of vectors.
fn f32_engine(
    isa: Isa,
    round: impl Fn(f32) -> f32 + Copy + Sync,
    cpu: &Cpu,
    (a, b): (Matrix<'_, f32>, Matrix<'_, f32>),
    c: (&mut [f32], First),
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => run(cpu, &x86::avx2(&isa, round), a, b, c),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => run(cpu, &x86::avx512(&isa, round), a, b, c),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(isa) => run(cpu, &x86::avx512(&isa.avx512(), round), a, b, c),
        _ => run(cpu, &scalar::engine(round), a, b, c),
    }
}

/// What a call moves and computes.
pub fn cost(shape: Shape) -> Cost {
    let (m, n, k) = (shape.m as u64, shape.n as u64, shape.k as u64);
    Cost { bytes: 4 * (m * k + k * n + m * n), flops: 2 * m * n * k }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa, precision: Precision) -> &'static str {
    match (isa, precision) {
        (Isa::Scalar | Isa::Neon(_), Precision::F32) => "any-matmul-f32-scalar",
        (Isa::Scalar | Isa::Neon(_), Precision::Bf16) => "any-matmul-bf16-scalar",
        (Isa::Avx2(_), Precision::F32) => "x86-matmul-f32-avx2",
        (Isa::Avx2(_), Precision::Bf16) => "x86-matmul-bf16-avx2",
        (_, Precision::F32) => "x86-matmul-f32-avx512",
        (Isa::Avx512(_), Precision::Bf16) => "x86-matmul-bf16-avx512",
        (Isa::Avx512Vnni(_), Precision::Bf16) => "x86-matmul-bf16-avx512bf16",
    }
}

/// k of one packed slab: a panel of 12 rows takes 12 KiB of a first-level cache, and 8 panels of 32
/// columns 256 KiB of a second-level one.
const DEPTH: usize = 256;

/// Most rows and columns of a tile of c; see [`DEPTH`].
const TILE: (usize, usize) = (96, 256);

/// `tile(a, b, c)` writes a packed panel of `mr` rows times one of `nr` columns to `c (mr, nr)`.
type TileOf<'a, P> = dyn Fn(&[P], &[P], &mut [f32]) + Sync + 'a;

/// How an instruction set multiplies.
struct Engine<'a, P, R> {
    mr: usize,
    nr: usize,
    /// So many k of one row lie side by side in a panel.
    pair: usize,
    round: R,
    tile: Box<TileOf<'a, P>>,
}

/// The largest `mr · nr` of all engines.
const MOST: usize = 12 * 32;

fn run<P: Packed>(
    cpu: &Cpu,
    engine: &Engine<'_, P, impl Fn(f32) -> P + Copy + Sync>,
    a: Matrix<'_, f32>,
    b: Matrix<'_, f32>,
    (c, first): (&mut [f32], First),
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let threads = cpu.threads();
    let most = |rows: usize, width: usize| {
        rows.next_multiple_of(width) * k.min(DEPTH).next_multiple_of(engine.pair)
    };
    let mut packed_a = P::room(cpu, most(m, engine.mr));
    let mut packed_b = P::room(cpu, most(n, engine.nr));
    // Three shares of each a thread, so that none waits long for the last.
    let rows = threads.share(m.div_ceil(3), engine.mr).min(TILE.0.next_multiple_of(engine.mr));
    let cols = n.next_multiple_of(engine.nr).min(TILE.1);
    for start in (0..k).step_by(DEPTH) {
        let slab = start..k.min(start + DEPTH);
        let stores = start == 0 && first == First::Stores;
        let depth = slab.len().next_multiple_of(engine.pair);
        pack::panels(cpu, engine, a, (engine.mr, slab.clone()), &mut packed_a);
        pack::panels(cpu, engine, b.transposed(), (engine.nr, slab), &mut packed_b);
        threads.tiles_mut(c, n, (rows, cols), |_, mut tile| {
            let (rows, cols) = (tile.rows(), tile.cols());
            let mut sums = [0.0; MOST];
            let sums = &mut sums[..engine.mr * engine.nr];
            for row in rows.clone().step_by(engine.mr) {
                let a = &packed_a[row * depth..][..engine.mr * depth];
                for col in cols.clone().step_by(engine.nr) {
                    let b = &packed_b[col * depth..][..engine.nr * depth];
                    (engine.tile)(a, b, sums);
                    let height = engine.mr.min(rows.end - row);
                    let sums = sums.chunks_exact(engine.nr).take(height);
                    let at = (row - rows.start, col - cols.start);
                    put(&mut tile, at, sums, stores);
                }
            }
        });
    }
}

/// Writes rows of sums to a tile of c from `(row, col)` on, as far as the tile goes, or adds them.
fn put<'a>(
    tile: &mut Tile<'_, f32>,
    (row, col): (usize, usize),
    sums: impl Iterator<Item = &'a [f32]>,
    stores: bool,
) {
    for (i, sums) in sums.enumerate() {
        let c = &mut tile.row(row + i)[col..];
        let len = c.len().min(sums.len());
        if stores {
            c[..len].copy_from_slice(&sums[..len]);
        } else {
            c.iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
        }
    }
}

/// As the hardware rounds: to nearest, ties to even, and NaN to a quiet NaN.
fn to_bf16(v: f32) -> bf16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let bits = if v.is_nan() { bits >> 16 | 0x40 } else { rounded };
    #[expect(clippy::cast_possible_truncation, reason = "shifted right by 16, it has 16 bits")]
    bf16::from_bits(bits as u16)
}

fn nearest_bf16(v: f32) -> f32 {
    f32::from_bits(u32::from(to_bf16(v).to_bits()) << 16)
}
