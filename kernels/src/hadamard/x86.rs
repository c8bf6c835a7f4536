//! The same body, compiled for wider vectors.

use super::{Plan, rows};
use crate::isa::{Avx2, Avx512};

pub(super) fn rows_avx2(_: Avx2, plan: &Plan, x: &mut [f32]) {
    // SAFETY: the `Avx2` token is made only after AVX2 and FMA were detected.
    unsafe { avx2(plan, x) }
}

pub(super) fn rows_avx512(_: Avx512, plan: &Plan, x: &mut [f32]) {
    // SAFETY: the `Avx512` token is made only after AVX-512 F, BW, DQ and VL were detected.
    unsafe { avx512(plan, x) }
}

#[target_feature(enable = "avx2")]
fn avx2(plan: &Plan, x: &mut [f32]) {
    rows(plan, x);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(plan: &Plan, x: &mut [f32]) {
    rows(plan, x);
}
