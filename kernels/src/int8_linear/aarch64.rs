//! NEON body of the dynamic product, with the dot-product instruction. Tested under an emulator where
//! no such processor is at hand (see the head of the crate); not timed.

use std::arch::aarch64::{int8x16_t, int32x4_t, vaddvq_s32, vdupq_n_s32, vld1q_s8};

use super::dynamic::{Activation, Epilogue, Weight};
use crate::isa::Neon;
use crate::{Cpu, Shape};

const LANES: usize = 16;
/// Rows of the weight and tokens that go together: 8 sums, 6 operands.
const ROWS: usize = 4;
const TOKENS: usize = 2;
/// Rows of the weight in a part of the work.
const PART: usize = 4 * ROWS;

/// See [`super::dynamic()`]; the caller has checked all lengths.
pub(super) fn dynamic(
    _isa: Neon,
    cpu: &Cpu,
    (w, act): (Weight<'_>, Activation<'_>),
    y: &mut [f32],
    Shape { m, n, k }: Shape,
) {
    let epilogue = Epilogue::new(w, act);
    let row = |n: usize| &w.qdata[n * k..(n + 1) * k];
    let token = |m: usize| &act.q[m * k..(m + 1) * k];
    cpu.threads().tiles_mut(y, n, (m, PART), |_, mut tile| {
        let cols = tile.cols();
        for n in cols.clone().step_by(ROWS) {
            for m in (0..m).step_by(TOKENS) {
                // Where fewer are left the last one is multiplied again, and dropped.
                let last = (cols.end - 1, act.scale.len() - 1);
                let rows = std::array::from_fn(|r| row((n + r).min(last.0)));
                let tokens = std::array::from_fn(|t| token((m + t).min(last.1)));
                // SAFETY: the token is made only after neon and dotprod were detected.
                let sums = unsafe { dots(rows, tokens) };
                for (t, sums) in sums.iter().enumerate().take(act.scale.len() - m) {
                    let y = tile.row(m + t);
                    for (r, &sum) in sums.iter().enumerate().take(cols.end - n) {
                        y[n + r - cols.start] = epilogue.result(m + t, n + r, sum);
                    }
                }
            }
        }
    });
}

/// The exact sums of products of some tokens with some rows.
#[target_feature(enable = "neon,dotprod")]
fn dots(w: [&[i8]; ROWS], x: [&[i8]; TOKENS]) -> [[i32; ROWS]; TOKENS] {
    let mut sums = [[vdupq_n_s32(0); ROWS]; TOKENS];
    let (ws, xs) = (w.map(|w| w.as_chunks::<LANES>()), x.map(|x| x.as_chunks::<LANES>()));
    for i in 0..ws[0].0.len() {
        step(&mut sums, ws.map(|w| &w.0[i]), xs.map(|x| &x.0[i]));
    }
    // The last, short step is padded with zeros.
    let (ws, xs) = (ws.map(|w| padded(w.1)), xs.map(|x| padded(x.1)));
    step(&mut sums, ws.each_ref(), xs.each_ref());
    let mut dots = [[0; ROWS]; TOKENS];
    for t in 0..TOKENS {
        for r in 0..ROWS {
            dots[t][r] = vaddvq_s32(sums[t][r]);
        }
    }
    dots
}

#[target_feature(enable = "neon,dotprod")]
#[inline]
fn step(
    sums: &mut [[int32x4_t; ROWS]; TOKENS],
    w: [&[i8; LANES]; ROWS],
    x: [&[i8; LANES]; TOKENS],
) {
    for t in 0..TOKENS {
        let x = load(x[t]);
        for r in 0..ROWS {
            sums[t][r] = sdot(sums[t][r], load(w[r]), x);
        }
    }
}

fn padded(tail: &[i8]) -> [i8; LANES] {
    let mut all = [0; LANES];
    all[..tail.len()].copy_from_slice(tail);
    all
}

#[target_feature(enable = "neon")]
#[inline]
fn load(v: &[i8; LANES]) -> int8x16_t {
    // SAFETY: `v` is 16 readable bytes; the load has no alignment need.
    unsafe { vld1q_s8(v.as_ptr()) }
}

/// Adds to each of four sums the products of four pairs of codes; the intrinsic is not stable yet.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: `sdot` works on registers only, and whoever has a `Neon` token has the instruction.
    unsafe {
        std::arch::asm!("sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a,
            b = in(vreg) b, options(pure, nomem, nostack, preserves_flags));
    }
    sum
}
