//! Which of the bodies of `avx2.rs` and `avx512.rs` runs: one is compiled for each element and number of rows.

use super::activation::{Bytes, Prepared};
use super::element::Element;
use super::panels::{LANES, Panels, STEP, Scales};
use super::view::View;
use super::{avx2, avx2_bytes, avx512};
use crate::Cpu;
use crate::isa::{Avx2, Avx512Vbmi};
use crate::parallel::Tile;

/// Bytes of weights that are worth a share of their own: two microseconds' reading, and four times what is prefetched
/// in vain behind its end.
const SHARE_NBYTES: usize = 32 << 10;

/// Rows of activations that one pass over a panel multiplies: their sums stay in registers.
const ROWS: usize = 4;

/// Gives every thread some panels. `one(panel, rows, out)` multiplies a panel with up to [`ROWS`] rows of activations.
fn over_panels(
    cpu: &Cpu,
    w: &Panels,
    (y, m): (&mut [f32], usize),
    one: impl Fn(View<'_>, std::ops::Range<usize>, &mut [[f32; LANES]; ROWS]) + Sync,
    step: f32,
) {
    let panels = w.count();
    let wanted = (w.nbytes() / (8 * cpu.threads().count())).max(SHARE_NBYTES);
    let share = (wanted * panels / w.nbytes().max(1)).clamp(1, panels);
    cpu.threads().tiles_mut(y, w.n(), (m, share * LANES), |_, mut tile| {
        let first = tile.cols().start / LANES;
        for p in 0..tile.cols().len().div_ceil(LANES) {
            let view = w.view(first + p, step);
            for start in (0..m).step_by(ROWS) {
                let rows = start..m.min(start + ROWS);
                let mut out = [[0.0; LANES]; ROWS];
                one(view, rows.clone(), &mut out);
                write(&mut tile, p, rows, &out);
            }
        }
    });
}

fn write(
    tile: &mut Tile<'_, f32>,
    p: usize,
    rows: std::ops::Range<usize>,
    out: &[[f32; LANES]; ROWS],
) {
    for (row, out) in rows.zip(out) {
        let y = &mut tile.row(row)[p * LANES..];
        let len = y.len().min(LANES);
        y[..len].copy_from_slice(&out[..len]);
    }
}

/// Calls `body` with the rows of activations as an array and as many results: compiled for 1 to 4 rows.
macro_rules! by_rows {
    ($x:expr, $steps:expr, $out:expr, $file:ident :: $body:ident :: < $($constant:literal),+ >, $($first:expr),+) => {{
        let x = $x;
        let row = |m: usize| &x[m * $steps..][..$steps];
        let [a, b, c, d] = $out;
        match x.len() / $steps {
            1 => $file::$body::<$($constant),+, 1>($($first),+, [row(0)], std::array::from_mut(a)),
            2 => {
                let mut y = [*a, *b];
                $file::$body::<$($constant),+, 2>($($first),+, [row(0), row(1)], &mut y);
                [*a, *b] = y;
            }
            3 => {
                let mut y = [*a, *b, *c];
                $file::$body::<$($constant),+, 3>($($first),+, [row(0), row(1), row(2)], &mut y);
                [*a, *b, *c] = y;
            }
            _ => {
                let mut y = [*a, *b, *c, *d];
                let rows = [row(0), row(1), row(2), row(3)];
                $file::$body::<$($constant),+, 4>($($first),+, rows, &mut y);
                [*a, *b, *c, *d] = y;
            }
        }
    }};
}

/// Codes through f32, with x as it is.
pub(super) fn stream_avx2(_: Avx2, cpu: &Cpu, w: &Panels, x: &[f32], y: &mut [f32]) {
    let steps = w.k().div_ceil(STEP);
    let m = x.len() / w.k();
    let mut padded = vec![[0.0; STEP]; m * steps];
    for (row, to) in x.chunks_exact(w.k()).zip(padded.chunks_exact_mut(steps)) {
        to.as_flattened_mut()[..w.k()].copy_from_slice(row);
    }
    let one = |view: View<'_>, rows: std::ops::Range<usize>, out: &mut [[f32; LANES]; ROWS]| {
        let x = &padded[rows.start * steps..rows.end * steps];
        // SAFETY: the `Avx2` token is made only after avx2, fma and f16c were detected.
        unsafe { avx2_element(w, view, x, out) }
    };
    over_panels(cpu, w, (y, m), one, 1.0);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn avx2_element(w: &Panels, view: View<'_>, x: &[[f32; STEP]], out: &mut [[f32; LANES]; ROWS]) {
    let steps = w.k().div_ceil(STEP);
    let halves = matches!(w.lanes(), Scales::E4m3 { .. });
    match (w.element(), halves) {
        (Element::E4m3, _) => by_rows!(x, steps, out, avx2::stream::<0, 1>, view),
        (Element::E5m2, _) => by_rows!(x, steps, out, avx2::stream::<1, 1>, view),
        (Element::E3m2, _) => by_rows!(x, steps, out, avx2::stream::<2, 1>, view),
        (Element::E2m3, _) => by_rows!(x, steps, out, avx2::stream::<3, 1>, view),
        (Element::E3m1, _) => by_rows!(x, steps, out, avx2::stream::<4, 1>, view),
        (Element::E2m2, _) => by_rows!(x, steps, out, avx2::stream::<5, 1>, view),
        (Element::E2m1, false) => by_rows!(x, steps, out, avx2::stream::<6, 1>, view),
        (Element::E2m1, true) => by_rows!(x, steps, out, avx2::stream::<6, 2>, view),
        (Element::Int8, _) => by_rows!(x, steps, out, avx2::stream::<7, 1>, view),
    }
}

/// Whether [`stream_avx2_bytes`] has a body for the element.
pub(super) fn has_avx2_bytes(element: Element) -> bool {
    matches!(element, Element::E2m3 | Element::E2m2 | Element::E2m1)
}

/// Values of a byte, with x in two planes of bytes.
pub(super) fn stream_avx2_bytes(
    _: Avx2,
    cpu: &Cpu,
    w: &Panels,
    x: &[Bytes],
    (y, m): (&mut [f32], usize),
) {
    let steps = w.k().div_ceil(STEP);
    let one = |view: View<'_>, rows: std::ops::Range<usize>, out: &mut [[f32; LANES]; ROWS]| {
        let x = &x[rows.start * steps..rows.end * steps];
        // SAFETY: the `Avx2` token is made only after avx2, fma and f16c were detected.
        unsafe { avx2_bytes_element(w, view, x, out) }
    };
    over_panels(cpu, w, (y, m), one, w.element().step());
}

#[target_feature(enable = "avx2,fma,f16c")]
fn avx2_bytes_element(w: &Panels, view: View<'_>, x: &[Bytes], out: &mut [[f32; LANES]; ROWS]) {
    let steps = w.k().div_ceil(STEP);
    let halves = matches!(w.lanes(), Scales::E4m3 { .. });
    match (w.element(), halves) {
        (Element::E2m3, _) => by_rows!(x, steps, out, avx2_bytes::stream::<3, 1>, view),
        (Element::E2m2, _) => by_rows!(x, steps, out, avx2_bytes::stream::<5, 1>, view),
        (_, true) => by_rows!(x, steps, out, avx2_bytes::stream::<6, 2>, view),
        _ => by_rows!(x, steps, out, avx2_bytes::stream::<6, 1>, view),
    }
}

pub(super) fn stream_avx512(
    _: Avx512Vbmi,
    cpu: &Cpu,
    w: &Panels,
    x: &Prepared,
    (y, m): (&mut [f32], usize),
) {
    let tables = avx512::Tables::new(w.element());
    let steps = w.k().div_ceil(STEP);
    // bf16 holds the values themselves, integers how many steps they are.
    let step = if matches!(x, Prepared::Halves(_)) { 1.0 } else { w.element().step() };
    let one = |view: View<'_>, rows: std::ops::Range<usize>, out: &mut [[f32; LANES]; ROWS]| {
        let rows = rows.start * steps..rows.end * steps;
        // SAFETY: the `Avx512Vbmi` token is made only after AVX-512 F, BW, VNNI, BF16 and VBMI were detected.
        unsafe { avx512_element(w, &tables, view, (x, rows), out) }
    };
    over_panels(cpu, w, (y, m), one, step);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16,avx512vbmi")]
fn avx512_element(
    w: &Panels,
    tables: &avx512::Tables,
    view: View<'_>,
    (x, rows): (&Prepared, std::ops::Range<usize>),
    out: &mut [[f32; LANES]; ROWS],
) {
    let steps = w.k().div_ceil(STEP);
    let halves = matches!(w.lanes(), Scales::E4m3 { .. });
    match (x, w.element()) {
        (Prepared::Bytes(x), Element::E2m3) => {
            by_rows!(&x[rows], steps, out, avx512::bytes::<3, 1>, tables, view);
        }
        (Prepared::Bytes(x), Element::E2m2) => {
            by_rows!(&x[rows], steps, out, avx512::bytes::<5, 1>, tables, view);
        }
        (Prepared::Bytes(x), Element::E2m1) if halves => {
            by_rows!(&x[rows], steps, out, avx512::bytes::<6, 2>, tables, view);
        }
        (Prepared::Bytes(x), Element::E2m1) => {
            by_rows!(&x[rows], steps, out, avx512::bytes::<6, 1>, tables, view);
        }
        (Prepared::Bytes(x), _) => {
            by_rows!(&x[rows], steps, out, avx512::bytes::<7, 1>, tables, view)
        }
        (Prepared::Words(x), Element::E3m2) => {
            by_rows!(&x[rows], steps, out, avx512::words::<2>, tables, view);
        }
        (Prepared::Words(x), _) => by_rows!(&x[rows], steps, out, avx512::words::<4>, tables, view),
        (Prepared::Halves(x), Element::E4m3) => {
            by_rows!(&x[rows], steps, out, avx512::halves::<0>, tables, view);
        }
        (Prepared::Halves(x), _) => {
            by_rows!(&x[rows], steps, out, avx512::halves::<1>, tables, view)
        }
    }
}
