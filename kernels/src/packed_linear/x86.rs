//! From bits, tables and tokens to the vector functions: the one place that lists them.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::ops::Range;

use super::activation::{Block, Bytes};
use super::codes::{LANES, STEP, step_nbytes};
use super::weight::{Panel, Weight};
use super::{avx2, avx512, avx512_stream};
use crate::isa::{Avx2, Avx512Vnni};
use crate::rows::side_by_side;

/// A step as 16-bit numbers: sixteen pairs of columns, each the even and the odd one of sixteen rows in turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoded(pub(super) [[i16; 2 * LANES]; STEP / 2]);

/// Steps that are decoded at a time: 64 KiB stay in the second-level cache, beside the activations.
const DECODED_STEPS: usize = 64;

type Stream = unsafe fn(&Panel<'_>, &[Block], &mut [[f32; LANES]]);
type ByBytes = unsafe fn(&[Panel<'_>], &[Bytes], &mut [[f32; LANES]]);
type ByWords = unsafe fn(&[Panel<'_>], &[Block], &mut [[f32; LANES]]);
type Decode = unsafe fn(&Panel<'_>, &[u8], &mut [Decoded]);

/// Asks for what lies 2 KiB behind `step`: the processor's own prefetching stops at the end of each page.
#[inline(always)]
pub(super) fn prefetch(step: &[u8]) {
    const AHEAD: usize = 2 << 10;
    for line in (0..step.len()).step_by(64) {
        let ahead = step.as_ptr().wrapping_add(AHEAD + line);
        // SAFETY: prefetching reads nothing and cannot fault, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
    }
}

macro_rules! for_bits {
    ($panel:expr, $arch:ident :: $function:ident $(, $m:literal)?) => {
        match ($panel.weight.bits(), $panel.weight.is_table()) {
            (1, false) => $arch::$function::<1, false $(, $m)?>,
            (2, false) => $arch::$function::<2, false $(, $m)?>,
            (3, false) => $arch::$function::<3, false $(, $m)?>,
            (4, false) => $arch::$function::<4, false $(, $m)?>,
            (5, false) => $arch::$function::<5, false $(, $m)?>,
            (6, false) => $arch::$function::<6, false $(, $m)?>,
            (7, false) => $arch::$function::<7, false $(, $m)?>,
            (_, false) => $arch::$function::<8, false $(, $m)?>,
            (1, true) => $arch::$function::<1, true $(, $m)?>,
            (2, true) => $arch::$function::<2, true $(, $m)?>,
            (3, true) => $arch::$function::<3, true $(, $m)?>,
            (4, true) => $arch::$function::<4, true $(, $m)?>,
            (_, true) => $arch::$function::<5, true $(, $m)?>,
        }
    };
}

macro_rules! for_words {
    ($w:expr, $p:ident, $m:ident) => {
        match ($w.bits(), $w.is_table()) {
            (1, true) => avx512_stream::words::<1, true, $p, $m>,
            (2, true) => avx512_stream::words::<2, true, $p, $m>,
            (3, true) => avx512_stream::words::<3, true, $p, $m>,
            (4, true) => avx512_stream::words::<4, true, $p, $m>,
            (_, true) => avx512_stream::words::<5, true, $p, $m>,
            _ => avx512_stream::words::<1, false, $p, $m>,
        }
    };
}

macro_rules! for_bytes {
    ($w:expr, $p:ident, $m:ident) => {
        match $w.bits() {
            2 => avx512_stream::bytes::<2, $p, $m>,
            3 => avx512_stream::bytes::<3, $p, $m>,
            4 => avx512_stream::bytes::<4, $p, $m>,
            5 => avx512_stream::bytes::<5, $p, $m>,
            6 => avx512_stream::bytes::<6, $p, $m>,
            7 => avx512_stream::bytes::<7, $p, $m>,
            _ => avx512_stream::bytes::<8, $p, $m>,
        }
    };
}

/// One panel times one or two rows of activations.
pub(super) fn stream_avx2(_: Avx2, panel: &Panel<'_>, x: &[Block], y: &mut [[f32; LANES]]) {
    let stream: Stream = match y.len() {
        1 => for_bits!(panel, avx2::stream, 1),
        _ => for_bits!(panel, avx2::stream, 2),
    };
    // SAFETY: the token proves the instructions of `avx2::stream`.
    unsafe { stream(panel, x, y) }
}

/// One or two rows of activations as [`stream_avx512`] reads them, made once a call.
#[derive(Debug)]
pub(super) enum Streamed {
    Bytes(Vec<Bytes>),
    /// Chained, if integers of one bit are to be multiplied.
    Words(Vec<Block>),
}

impl Streamed {
    pub(super) fn new(w: &Weight, x: &[Block]) -> Streamed {
        match (w.is_table(), w.bits()) {
            (true, _) => Streamed::Words(x.to_vec()),
            (_, 1) => Streamed::Words(x.iter().map(Block::chained).collect()),
            _ => Streamed::Bytes(x.iter().map(Bytes::new).collect()),
        }
    }
}

/// Bytes from which on a stream is worth its own place beside others: eight pages.
const LONG_NBYTES: usize = 32 << 10;

/// All of `panels` times `m` = 1 or 2 rows of activations; `out(panel, token, sixteen results)`.
pub(super) fn stream_avx512(
    isa: Avx512Vnni,
    w: &Weight,
    panels: Range<usize>,
    (x, m): (&Streamed, usize),
    mut out: impl FnMut(usize, usize, &[f32; LANES]),
) {
    // Short streams lie close together and end before the processor follows them: one panel after the other, then.
    let panel_nbytes = w.codes().nbytes() / w.n().div_ceil(LANES);
    let rest = match m {
        1 if panels.len() / 4 * panel_nbytes >= LONG_NBYTES => {
            side_by_side_avx512::<4, 1>(isa, w, panels, (x, 0), &mut out)
        }
        2 if panels.len() / 2 * panel_nbytes >= LONG_NBYTES => {
            side_by_side_avx512::<2, 2>(isa, w, panels, (x, 0), &mut out)
        }
        _ => panels,
    };
    for token in 0..m {
        side_by_side_avx512::<1, 1>(isa, w, rest.clone(), (x, token), &mut out);
    }
}

/// P panels at a time times M tokens from `first` on; says which panels are left over.
fn side_by_side_avx512<const P: usize, const M: usize>(
    _: Avx512Vnni,
    w: &Weight,
    panels: Range<usize>,
    (x, first): (&Streamed, usize),
    out: &mut impl FnMut(usize, usize, &[f32; LANES]),
) -> Range<usize> {
    let mut y = [[[0.0; LANES]; M]; P];
    let (together, rest) = side_by_side::<P>(panels);
    for indices in together {
        let panels = indices.map(|p| w.panel(p));
        let steps = panels[0].groups * panels[0].steps_per_group;
        let blocks = first * steps..(first + M) * steps;
        match x {
            Streamed::Bytes(bytes) => {
                let kernel: ByBytes = for_bytes!(w, P, M);
                // SAFETY: the token proves the instructions of `avx512_stream::bytes`.
                unsafe { kernel(&panels, &bytes[blocks], y.as_flattened_mut()) };
            }
            Streamed::Words(words) => {
                let kernel: ByWords = for_words!(w, P, M);
                // SAFETY: the token proves the instructions of `avx512_stream::words`.
                unsafe { kernel(&panels, &words[blocks], y.as_flattened_mut()) };
            }
        }
        for (p, y) in indices.iter().zip(&y) {
            y.iter().enumerate().for_each(|(m, y)| out(*p, first + m, y));
        }
    }
    rest
}

/// One panel times many rows of activations; adds to `y`.
pub(super) fn tiles_avx2(
    _: Avx2,
    panel: &Panel<'_>,
    x: &[Block],
    y: &mut [[f32; LANES]],
    scratch: &mut Vec<Decoded>,
) {
    let decode: Decode = for_bits!(panel, avx2::decode);
    for_each_part(panel, scratch, |first, codes, w| {
        // SAFETY: the token proves the instructions of `avx2::decode`.
        unsafe { decode(panel, codes, w) };
        let x = Rows { x, panel, first };
        tiles(
            y,
            avx2::TILE_ROWS,
            |row, y| match y.len() {
                // SAFETY: the token proves the instructions of every `avx2::tile`.
                6.. => unsafe { avx2::tile::<6>((panel, first), w, x.take(row, w.len()), y) },
                // SAFETY: as above.
                4 | 5 => unsafe { avx2::tile::<4>((panel, first), w, x.take(row, w.len()), y) },
                // SAFETY: as above.
                2 | 3 => unsafe { avx2::tile::<2>((panel, first), w, x.take(row, w.len()), y) },
                // SAFETY: as above.
                _ => unsafe { avx2::tile::<1>((panel, first), w, x.take(row, w.len()), y) },
            },
            |len| match len {
                6.. => 6,
                4 | 5 => 4,
                2 | 3 => 2,
                _ => 1,
            },
        );
    });
}

/// One panel times many rows of activations; adds to `y`.
pub(super) fn tiles_avx512(
    _: Avx512Vnni,
    panel: &Panel<'_>,
    x: &[Block],
    y: &mut [[f32; LANES]],
    scratch: &mut Vec<Decoded>,
) {
    let decode: Decode = for_bits!(panel, avx512::decode);
    for_each_part(panel, scratch, |first, codes, w| {
        // SAFETY: the token proves the instructions of `avx512::decode`.
        unsafe { decode(panel, codes, w) };
        let x = Rows { x, panel, first };
        tiles(
            y,
            avx512::TILE_ROWS,
            |row, y| match y.len() {
                // SAFETY: the token proves the instructions of every `avx512::tile`.
                12.. => unsafe { avx512::tile::<12>((panel, first), w, x.take(row, w.len()), y) },
                // SAFETY: as above.
                6.. => unsafe { avx512::tile::<6>((panel, first), w, x.take(row, w.len()), y) },
                // SAFETY: as above.
                3..6 => unsafe { avx512::tile::<3>((panel, first), w, x.take(row, w.len()), y) },
                // SAFETY: as above.
                _ => unsafe { avx512::tile::<1>((panel, first), w, x.take(row, w.len()), y) },
            },
            |len| match len {
                12.. => 12,
                6.. => 6,
                3..6 => 3,
                _ => 1,
            },
        );
    });
}

/// Runs `f(first step, codes, room for their decoded form)` over a panel.
fn for_each_part(
    panel: &Panel<'_>,
    scratch: &mut Vec<Decoded>,
    mut f: impl FnMut(usize, &[u8], &mut [Decoded]),
) {
    let nbytes = step_nbytes(panel.weight.bits());
    let steps = panel.codes.len() / nbytes;
    scratch.resize(DECODED_STEPS.min(steps), Decoded([[0; 2 * LANES]; STEP / 2]));
    for (i, codes) in panel.codes.chunks(DECODED_STEPS * nbytes).enumerate() {
        f(i * DECODED_STEPS, codes, &mut scratch[..codes.len() / nbytes]);
    }
}

/// Walks over the rows of `y`, `count(rows left)` at a time.
fn tiles(
    y: &mut [[f32; LANES]],
    most: usize,
    f: impl Fn(usize, &mut [[f32; LANES]]),
    count: impl Fn(usize) -> usize,
) {
    let mut row = 0;
    while row < y.len() {
        let end = y.len().min(row + most);
        f(row, &mut y[row..end]);
        row += count(end - row);
    }
}

/// Rows of activations from step `first` on.
struct Rows<'a> {
    x: &'a [Block],
    panel: &'a Panel<'a>,
    first: usize,
}

impl<'a> Rows<'a> {
    fn take<const M: usize>(&self, row: usize, count: usize) -> [&'a [Block]; M] {
        let steps = self.panel.groups * self.panel.steps_per_group;
        let start = |m: usize| (row + m) * steps + self.first;
        std::array::from_fn(|m| &self.x[start(m)..start(m) + count])
    }
}
