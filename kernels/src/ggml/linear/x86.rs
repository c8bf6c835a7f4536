//! From tokens and types to the vector functions: the one place that lists the types.

use super::activation::Block;
use super::decoded::Decoded;
use super::panels::{LANES, Panels, STEP};
use super::{avx2, avx512vnni, avx512vnni_tile};
use crate::ggml::BlockType;
use crate::isa::{Avx2, Avx512Vnni};

/// Steps of 32 columns that are decoded at a time: 8 × 1.25 KiB of each of two panels stay in the first-level cache while all rows
/// of activations pass. A multiple of the 8 steps of the longest unit.
const DECODED_STEPS: usize = 8;

type Stream = unsafe fn(&[u8], &[Block], &mut [[f32; LANES]]);
type Decode = unsafe fn(&[u8], &mut [Decoded]);

macro_rules! for_type {
    ($ty:expr, $arch:ident :: $function:ident $(, $m:literal)?) => {
        match $ty {
            BlockType::Q4_0 => $arch::$function::<{ BlockType::Q4_0 as u8 } $(, $m)?>,
            BlockType::Q4_1 => $arch::$function::<{ BlockType::Q4_1 as u8 } $(, $m)?>,
            BlockType::Q5_0 => $arch::$function::<{ BlockType::Q5_0 as u8 } $(, $m)?>,
            BlockType::Q5_1 => $arch::$function::<{ BlockType::Q5_1 as u8 } $(, $m)?>,
            BlockType::Q2K => $arch::$function::<{ BlockType::Q2K as u8 } $(, $m)?>,
            BlockType::Q3K => $arch::$function::<{ BlockType::Q3K as u8 } $(, $m)?>,
            BlockType::Q4K => $arch::$function::<{ BlockType::Q4K as u8 } $(, $m)?>,
            BlockType::Q5K => $arch::$function::<{ BlockType::Q5K as u8 } $(, $m)?>,
            BlockType::Q6K => $arch::$function::<{ BlockType::Q6K as u8 } $(, $m)?>,
            _ => $arch::$function::<{ BlockType::Q8_0 as u8 } $(, $m)?>,
        }
    };
}

/// One panel times one or two rows of activations.
pub(super) fn stream_avx2(
    _: Avx2,
    ty: BlockType,
    panel: &[u8],
    x: &[Block],
    y: &mut [[f32; LANES]],
) {
    let stream: Stream = match y.len() {
        1 => for_type!(ty, avx2::stream, 1),
        _ => for_type!(ty, avx2::stream, 2),
    };
    // SAFETY: the token proves the instructions of `avx2::stream`.
    unsafe { stream(panel, x, y) }
}

/// One panel times one or two rows of activations.
pub(super) fn stream_avx512vnni(
    _: Avx512Vnni,
    ty: BlockType,
    panel: &[u8],
    x: &[Block],
    y: &mut [[f32; LANES]],
) {
    let stream: Stream = match y.len() {
        1 => for_type!(ty, avx512vnni::stream, 1),
        _ => for_type!(ty, avx512vnni::stream, 2),
    };
    // SAFETY: the token proves the instructions of `avx512vnni::stream`.
    unsafe { stream(panel, x, y) }
}

/// One panel times many rows of activations; adds to `y`.
pub(super) fn tiles_avx2(
    _: Avx2,
    (w, panel): (&Panels, usize),
    x: &[Block],
    y: &mut [[f32; LANES]],
    scratch: &mut Vec<Decoded>,
) {
    let decode: Decode = for_type!(w.ty(), avx2::decode);
    for_each_part((w, panel), scratch, |first, [units], [decoded]| {
        // SAFETY: the token proves the instructions of `avx2::decode`.
        unsafe { decode(units, decoded) };
        let decoded = &*decoded;
        let x = Rows { x, steps: w.k() / STEP, first, ty: w.ty() };
        tiles(y, avx2::TILE_ROWS, |row, y| match y.len() {
            // SAFETY: the token proves the instructions of every `avx2::tile`.
            6.. => unsafe { tile_avx2::<6>(decoded, &x, row, y) },
            // SAFETY: as above.
            4 | 5 => unsafe { tile_avx2::<4>(decoded, &x, row, y) },
            // SAFETY: as above.
            2 | 3 => unsafe { tile_avx2::<2>(decoded, &x, row, y) },
            // SAFETY: as above.
            _ => unsafe { tile_avx2::<1>(decoded, &x, row, y) },
        });
    });
}

/// `P` neighbouring panels, one or two, times many rows of activations; adds to `y`, which has all rows of a panel after those of
/// the panel before.
pub(super) fn tiles_avx512vnni<const P: usize>(
    _: Avx512Vnni,
    (w, panel): (&Panels, usize),
    x: &[Block],
    y: &mut [[f32; LANES]],
    scratch: &mut Vec<Decoded>,
) {
    let decode: Decode = for_type!(w.ty(), avx512vnni::decode);
    let rows = y.len() / P;
    for_each_part::<P>((w, panel), scratch, |first, units, mut decoded| {
        for (units, decoded) in units.iter().zip(&mut decoded) {
            // SAFETY: the token proves the instructions of `avx512vnni::decode`.
            unsafe { decode(units, decoded) };
        }
        let w_part = decoded.each_ref().map(|decoded| &**decoded);
        let x = Rows { x, steps: w.k() / STEP, first, ty: w.ty() };
        let mut row = 0;
        while row < rows {
            let y = (&mut y[row..], rows);
            // No row is left for a tile of one that another cut could spare: two sums wait for each other.
            row += match rows - row {
                // SAFETY: the token proves the instructions of every `avx512vnni_tile::tile`.
                12.. if P == 1 => unsafe { tile_avx512vnni::<P, 12>(w_part, &x, row, y) },
                // SAFETY: as above.
                6 | 9.. => unsafe { tile_avx512vnni::<P, 6>(w_part, &x, row, y) },
                // SAFETY: as above.
                4 | 7 | 8 => unsafe { tile_avx512vnni::<P, 4>(w_part, &x, row, y) },
                // SAFETY: as above.
                3 | 5 => unsafe { tile_avx512vnni::<P, 3>(w_part, &x, row, y) },
                // SAFETY: as above.
                _ => unsafe { tile_avx512vnni::<P, 1>(w_part, &x, row, y) },
            };
        }
    });
}

/// Runs `f(first step, units of each panel, room for their decoded form)` over neighbouring panels.
fn for_each_part<const P: usize>(
    (w, panel): (&Panels, usize),
    scratch: &mut Vec<Decoded>,
    mut f: impl FnMut(usize, [&[u8]; P], [&mut [Decoded]; P]),
) {
    let unit = w.ty().unit();
    let most = DECODED_STEPS.min(w.k() / STEP);
    scratch.resize(P * most, Decoded::ZERO);
    let part_nbytes = DECODED_STEPS / unit.steps * unit.nbytes;
    let panels: [&[u8]; P] = std::array::from_fn(|p| w.panel(panel + p));
    let mut start = 0;
    while start < panels[0].len() {
        let end = panels[0].len().min(start + part_nbytes);
        let steps = (end - start) / unit.nbytes * unit.steps;
        let mut rooms = scratch.chunks_exact_mut(most);
        let rooms = [(); P].map(|()| &mut rooms.next().expect("one a panel")[..steps]);
        f(start / part_nbytes * DECODED_STEPS, panels.map(|panel| &panel[start..end]), rooms);
        start = end;
    }
}

/// Walks over the rows of `y`; `f(row, rows left)` says how many it did.
fn tiles(y: &mut [[f32; LANES]], most: usize, f: impl Fn(usize, &mut [[f32; LANES]]) -> usize) {
    let mut row = 0;
    while row < y.len() {
        let end = y.len().min(row + most);
        row += f(row, &mut y[row..end]);
    }
}

/// Rows of activations from step `first` on.
struct Rows<'a> {
    x: &'a [Block],
    steps: usize,
    first: usize,
    ty: BlockType,
}

impl Rows<'_> {
    fn take<const M: usize>(&self, row: usize, count: usize) -> [&[Block]; M] {
        let start = |m: usize| (row + m) * self.steps + self.first;
        std::array::from_fn(|m| &self.x[start(m)..start(m) + count])
    }
}

#[target_feature(enable = "avx2,fma")]
fn tile_avx2<const M: usize>(
    w: &[Decoded],
    x: &Rows<'_>,
    row: usize,
    y: &mut [[f32; LANES]],
) -> usize {
    let (y, _) = y.as_chunks_mut::<M>();
    let rows = x.take::<M>(row, w.len());
    match (x.ty.unit().subs, x.ty.has_min()) {
        (1, false) => avx2::tile::<1, false, M>(w, rows, &mut y[0]),
        (1, true) => avx2::tile::<1, true, M>(w, rows, &mut y[0]),
        (_, false) => avx2::tile::<2, false, M>(w, rows, &mut y[0]),
        (_, true) => avx2::tile::<2, true, M>(w, rows, &mut y[0]),
    }
    M
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tile_avx512vnni<const P: usize, const M: usize>(
    w: [&[Decoded]; P],
    x: &Rows<'_>,
    row: usize,
    y: (&mut [[f32; LANES]], usize),
) -> usize {
    let rows = x.take::<M>(row, w[0].len());
    match (x.ty.unit().subs, x.ty.has_min()) {
        (1, false) => avx512vnni_tile::tile::<1, false, P, M>(w, rows, y),
        (1, true) => avx512vnni_tile::tile::<1, true, P, M>(w, rows, y),
        (_, false) => avx512vnni_tile::tile::<2, false, P, M>(w, rows, y),
        (_, true) => avx512vnni_tile::tile::<2, true, P, M>(w, rows, y),
    }
    M
}
