//! Packing: panels of `width` rows of a matrix, in which one k's numbers lie side by side.

use std::ops::Range;

use super::{Engine, Matrix};
use crate::Cpu;

/// Packs the columns `slab` of `m`, `width` rows a panel, padded with zeros.
pub(super) fn panels<P: Copy + Default + Send + Sync>(
    cpu: &Cpu,
    engine: &Engine<'_, P>,
    m: Matrix<'_, f32>,
    (width, slab): (usize, Range<usize>),
    packed: &mut Vec<P>,
) {
    let pair = engine.pair;
    let size = width * slab.len().next_multiple_of(pair);
    let count = m.rows.div_ceil(width);
    packed.resize(count * size, P::default());
    // A share is several panels: a loop costs a microsecond to start.
    let share = cpu.threads().share(count, 1);
    cpu.threads().chunks_mut(packed, share * size, |first, panels| {
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
    engine: &Engine<'_, P>,
    m: Matrix<'_, f32>,
    (rows, slab): (Range<usize>, Range<usize>),
    panel: &mut [P],
    width: usize,
) {
    let pair = engine.pair;
    for (at, k) in slab.enumerate() {
        let from = &m.data[rows.start + k * m.col_stride..][..rows.len()];
        let to = &mut panel[at / pair * width * pair + at % pair..];
        if pair == 1 {
            to[..from.len()].iter_mut().zip(from).for_each(|(to, x)| *to = (engine.round)(*x));
        } else {
            let to = to.iter_mut().step_by(pair);
            to.zip(from).for_each(|(to, x)| *to = (engine.round)(*x));
        }
    }
}

/// Row after row is read.
fn one_by_one<P: Copy>(
    engine: &Engine<'_, P>,
    m: Matrix<'_, f32>,
    (rows, slab): (Range<usize>, Range<usize>),
    panel: &mut [P],
    width: usize,
) {
    let pair = engine.pair;
    for (at, row) in rows.enumerate() {
        let from = &m.data[row * m.row_stride + slab.start * m.col_stride..];
        let from = from.iter().step_by(m.col_stride).take(slab.len());
        if pair == 1 {
            let to = panel[at..].iter_mut().step_by(width);
            to.zip(from).for_each(|(to, x)| *to = (engine.round)(*x));
        } else {
            for (k, x) in from.enumerate() {
                panel[(k / pair * width + at) * pair + k % pair] = (engine.round)(*x);
            }
        }
    }
}
