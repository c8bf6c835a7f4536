//! Factors in 8 bits, along rows and turned.

use super::super::launch::int;
use super::super::linear::{Output, rows8_product};
use super::super::sources::TRAIN_CASTS;
use super::super::{Buffer, CudaError, CudaResult, Device, Grid};
use crate::Shape;

/// What codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// 448 at most.
    E4m3,
    /// 57344 at most.
    E5m2,
    /// −128 … 127.
    Int8,
}

/// Places for the largest |x|, as bits of f32; zeros before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Amax<'a> {
    /// Of all: one.
    pub all: Option<&'a Buffer<u32>>,
    /// Of each row: M.
    pub rows: Option<&'a Buffer<u32>>,
    /// Of each column: K.
    pub columns: Option<&'a Buffer<u32>>,
}

/// Codes and what they are multiplied by.
#[derive(Clone, Debug)]
pub struct Coded {
    /// Row after row.
    pub codes: Buffer<u8>,
    /// One, or one a row.
    pub scale: Buffer<f32>,
}

/// How a matrix is cast.
#[derive(Clone, Copy, Debug)]
pub struct Cast<'a> {
    /// To what.
    pub codes: Codes,
    /// Whether scales of float8 are rounded down to powers of two.
    pub power_of_two: bool,
    /// Codes as x lies, by the largest of all (one) or of each row (M).
    pub rows: Option<&'a Buffer<u32>>,
    /// Codes of the transposed, by the largest of all (one) or of each column (K).
    pub turned: Option<&'a Buffer<u32>>,
}

fn check(m: usize, k: usize, grain: usize) -> CudaResult<()> {
    if m > 0 && k > 0 && m.is_multiple_of(grain) && k.is_multiple_of(grain) {
        return Ok(());
    }
    Err(CudaError::new(format!(
        "a factor of {m} × {k} has no kernel in 8 bits; wanted multiples of {grain}"
    )))
}

/// The largest |x| of `x (M, K)`; K is a multiple of 8.
pub fn largest(
    device: &Device,
    x: &Buffer<u16>,
    (m, k): (usize, usize),
    to: &Amax<'_>,
) -> CudaResult<()> {
    check(1, k, 1)?;
    assert!(x.len() == m * k && k.is_multiple_of(8), "x must be {m} rows of {k}");
    assert!(to.rows.is_none_or(|rows| rows.len() == m), "one a row");
    assert!(to.columns.is_none_or(|columns| columns.len() == k), "one a column");
    let grid = Grid { blocks: (k.div_ceil(256), m.div_ceil(64), 1), threads: 256, shared: 0 };
    let arguments = [x.into(), to.all.into(), to.rows.into(), to.columns.into(), int(m), int(k)];
    device.kernel(&TRAIN_CASTS, &[], "largest")?.launch(grid, &arguments)
}

/// Casts `x (M, K)`, multiples of 16: its codes, and those of the transposed (K, M), as far as they were asked for.
pub fn cast(
    device: &Device,
    x: &Buffer<u16>,
    (m, k): (usize, usize),
    how: &Cast<'_>,
) -> CudaResult<[Option<Coded>; 2]> {
    check(m, k, 16)?;
    assert!(x.len() == m * k, "x must be {m} rows of {k}");
    let room = |amax: Option<&Buffer<u32>>, rows: usize| -> CudaResult<Option<Coded>> {
        let Some(amax) = amax else { return Ok(None) };
        assert!([1, rows].contains(&amax.len()), "one for all or one for each of {rows}");
        Ok(Some(Coded { codes: device.uninit(m * k)?, scale: device.uninit(amax.len())? }))
    };
    let (rows, turned) = (room(how.rows, m)?, room(how.turned, k)?);
    let name = match how.codes {
        Codes::E4m3 => "cast_e4m3",
        Codes::E5m2 => "cast_e5m2",
        Codes::Int8 => "cast_int8",
    };
    if how.codes != Codes::Int8 && device.capability() < (8, 9) {
        return Err(CudaError::new("float8 products need compute capability 8.9 or newer"));
    }
    let step = |amax: Option<&Buffer<u32>>| int(usize::from(amax.is_some_and(|a| a.len() > 1)));
    let arguments = [
        x.into(),
        rows.as_ref().map(|r| &r.codes).into(),
        how.rows.into(),
        rows.as_ref().map(|r| &r.scale).into(),
        turned.as_ref().map(|t| &t.codes).into(),
        how.turned.into(),
        turned.as_ref().map(|t| &t.scale).into(),
        int(m),
        int(k),
        step(how.rows),
        step(how.turned),
        int(usize::from(how.power_of_two)),
    ];
    let grid = Grid { blocks: (k.div_ceil(128), m.div_ceil(128), 1), threads: 256, shared: 0 };
    device.kernel(&TRAIN_CASTS, &[], name)?.launch(grid, &arguments)?;
    Ok([rows, turned])
}

/// `y (M, N) = x · Wᵀ` of codes with a scale a row, e4m3 or int8, by Hopper's warpgroup products.
pub fn rows_product(
    device: &Device,
    codes: Codes,
    Shape { m, n, k }: Shape,
    [x, w]: [&Coded; 2],
    y: &Output<'_>,
) -> CudaResult<()> {
    let lens = (x.codes.len(), w.codes.len(), y.len());
    assert!(lens == (m * k, n * k, m * n), "{lens:?} codes of {m} × {n} × {k}");
    assert!((x.scale.len(), w.scale.len()) == (m, n), "a scale a row");
    let float8 = match codes {
        Codes::E4m3 => true,
        Codes::Int8 => false,
        Codes::E5m2 => return Err(CudaError::new("e5m2 rows have no kernel; take e4m3")),
    };
    rows8_product(device, float8, (m, n, k), [(&x.codes, &x.scale), (&w.codes, &w.scale)], y)
}
