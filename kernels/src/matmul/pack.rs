//! Packing: panels of `width` rows of a matrix, in which one k's numbers lie side by side.

use std::ops::Range;

use super::{Engine, Matrix};
use crate::Cpu;

/// Packs the columns `slab` of `m`, `width` rows a panel, padded with zeros.
pub(super) fn panels<P: Copy + Default + Send + Sync>(
    cpu: &Cpu,
    engine: &Engine<'_, P, impl Fn(f32) -> P + Copy + Sync>,
    m: Matrix<'_, f32>,
    (width, slab): (usize, Range<usize>),
    packed: &mut [P],
) {
    let pair = engine.pair;
    let size = width * slab.len().next_multiple_of(pair);
    let count = m.rows.div_ceil(width);
    // A share is several panels: a loop costs a microsecond to start.
    let share = cpu.threads().share(count, 1);
    cpu.threads().chunks_mut(&mut packed[..count * size], share * size, |first, panels| {
        for (p, panel) in panels.chunks_exact_mut(size).enumerate() {
            let start = (first * share + p) * width;
            let rows = start..m.rows.min(start + width);
            if rows.len() < width || slab.len() % pair != 0 {
                panel.fill(P::default());
            }
            if m.row_stride == 1 {
                side_by_side(engine, m, (rows, slab.clone()), panel, width);
            } else {
                one_by_one(engine, m, (rows, slab.clone()), panel, width);
            }
        }
    });
}

/// The rows of one k lie side by side already.
fn side_by_side<P: Copy>(
    engine: &Engine<'_, P, impl Fn(f32) -> P + Copy + Sync>,
    m: Matrix<'_, f32>,
    (rows, slab): (Range<usize>, Range<usize>),
    panel: &mut [P],
    width: usize,
) {
    let (pair, round) = (engine.pair, engine.round);
    for (at, k) in slab.enumerate() {
        let from = &m.data[rows.start + k * m.col_stride..][..rows.len()];
        let to = &mut panel[at / pair * width * pair + at % pair..];
        if pair == 1 {
            to[..from.len()].iter_mut().zip(from).for_each(|(to, x)| *to = round(*x));
        } else {
            let to = to.iter_mut().step_by(pair);
            to.zip(from).for_each(|(to, x)| *to = round(*x));
        }
    }
}

/// Numbers of a row that are packed before the next row is read: two cache lines of it, and of the panel what the first level
/// of cache holds.
const RUN: usize = 32;

/// Row after row is read, a run at a time.
fn one_by_one<P: Copy>(
    engine: &Engine<'_, P, impl Fn(f32) -> P + Copy + Sync>,
    m: Matrix<'_, f32>,
    (rows, slab): (Range<usize>, Range<usize>),
    panel: &mut [P],
    width: usize,
) {
    let (pair, round) = (engine.pair, engine.round);
    let first = slab.start;
    for start in slab.clone().step_by(RUN) {
        let run = start..slab.end.min(start + RUN);
        for (at, row) in rows.clone().enumerate() {
            let from = &m.data[row * m.row_stride + start * m.col_stride..];
            let from = from.iter().step_by(m.col_stride).take(run.len());
            if pair == 1 {
                let to = panel[(start - first) * width + at..].iter_mut().step_by(width);
                to.zip(from).for_each(|(to, x)| *to = round(*x));
            } else {
                for (k, x) in (start - first..).zip(from) {
                    panel[(k / pair * width + at) * pair + k % pair] = round(*x);
                }
            }
        }
    }
}
