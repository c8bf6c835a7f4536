//! The searches behind the K types and behind importance: which scale, and which minimum, lose least.
//!
//! The order of the f32 operations is llama.cpp's, because the choice between two candidates may hang on the last bit.

/// Numbers below this are taken for zeros (`GROUP_MAX_EPS`).
pub(super) const TINY: f32 = 1e-15;

/// The nearest integer, ties to even, as the low bits of `v + 1.5 · 2²³` have it; right for |v| < 2²².
pub(super) fn nearest(v: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    ((v + MAGIC).to_bits() & 0x007f_ffff).cast_signed() - 0x0040_0000
}

/// An `i32` as the code that it is.
#[expect(clippy::cast_possible_truncation, reason = "callers have clamped it to the codes' range")]
pub(super) fn code(value: i32) -> i8 {
    value as i8
}

/// The element of largest magnitude.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0_f32, |e, v| if v.abs() > e.abs() { *v } else { e })
}

/// Sums of a least-squares fit of one factor: `Σ w·x·l` and `Σ w·l²`.
fn sums(x: &[f32], weights: &[f32], mut code: impl FnMut(f32) -> i32) -> (f32, f32) {
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for (x, w) in x.iter().zip(weights) {
        let l = code(*x) as f32;
        sum_lx += w * x * l;
        sum_l2 += w * l * l;
    }
    (sum_lx, sum_l2)
}

/// The scale d of least Σ w (x − d·l)² among 19 candidates, `l` in −`half_range` .. `half_range`; writes l + `half_range`.
/// (`make_qx_quants` with its `rmse_type` 1.)
pub(super) fn fit_scale(half_range: i8, x: &[f32], weights: &[f32], codes: &mut [i8]) -> f32 {
    let max = extreme(x);
    if max.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let range = i32::from(half_range);
    let clamped = |inv_scale: f32, x: f32| nearest(inv_scale * x).clamp(-range, range - 1);
    let inv_scale = -f32::from(half_range) / max;
    let (sum_lx, sum_l2) = sums(x, weights, |x| clamped(inv_scale, x));
    let mut chosen = inv_scale;
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_lx / sum_l2 };
    let mut best = scale * sum_lx;
    for step in (-9_i8..=9).filter(|step| *step != 0) {
        let inv_scale = -(f32::from(half_range) + 0.1 * f32::from(step)) / max;
        let (sum_lx, sum_l2) = sums(x, weights, |x| clamped(inv_scale, x));
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            chosen = inv_scale;
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    for (to, x) in codes.iter_mut().zip(x) {
        *to = code(range + clamped(chosen, *x));
    }
    scale
}

/// The scale for 3-bit codes, each number weighed by its square: from the plain codes, single codes are moved while that
/// lowers the error, five rounds at most (`make_q3_quants`). Writes l + 4.
pub(super) fn fit_3bit(x: &[f32], codes: &mut [i8]) -> f32 {
    let max = extreme(x);
    if max.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let inv_scale = -4.0 / max;
    for (to, x) in codes.iter_mut().zip(x) {
        *to = code(nearest(inv_scale * x).clamp(-4, 3));
    }
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for (x, l) in x.iter().zip(&*codes) {
        let (w, l) = (x * x, f32::from(*l));
        sum_lx += w * x * l;
        sum_l2 += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (x, to) in x.iter().zip(codes.iter_mut()) {
            let (w, l) = (x * x, f32::from(*to));
            let mut rest_lx = sum_lx - w * x * l;
            if rest_lx > 0.0 {
                let mut rest_l2 = sum_l2 - w * l * l;
                let moved = code(nearest(x * rest_l2 / rest_lx).clamp(-4, 3));
                let new = f32::from(moved);
                rest_lx += w * x * new;
                rest_l2 += w * new * new;
                let better = rest_lx * rest_lx * sum_l2 > sum_lx * sum_lx * rest_l2;
                if moved != *to && rest_l2 > 0.0 && better {
                    (*to, sum_lx, sum_l2, changed) = (moved, rest_lx, rest_l2, true);
                }
            }
        }
        if !changed {
            break;
        }
    }
    codes.iter_mut().for_each(|to| *to += 4);
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// Which scales [`fit_scale_min`] tries: those of `most + from + i·by` steps over the range, i = 0 ..= `count`.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) from: f32,
    pub(super) by: f32,
    pub(super) count: u8,
    /// Whether errors count by their size instead of their square.
    pub(super) absolute: bool,
}

impl Steps {
    pub(super) const WEIGHTED: Steps = Steps { from: -0.9, by: 0.05, count: 36, absolute: false };
}

/// The scale d and the minimum m ≤ 0 of least Σ w (x − d·l − m)², l in 0 ..= `most`, among the candidates of `steps`; each is
/// refitted by least squares to the codes that it gives. (`make_qkx2_quants` and `make_qkx3_quants`, which differ in names.)
pub(super) fn fit_scale_min(
    most: u8,
    x: &[f32],
    weights: &[f32],
    codes: &mut [i8],
    steps: Steps,
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (x, w) in x.iter().zip(weights).skip(1) {
        min = if *x < min { *x } else { min };
        max = if *x > max { *x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max <= min {
        codes.fill(0);
        return (0.0, min);
    }
    let loss = |diff: f32| if steps.absolute { diff.abs() } else { diff * diff };
    let coded = |inv_scale: f32, x: f32| nearest(inv_scale * x).clamp(0, i32::from(most));
    let inv_scale = f32::from(most) / (max - min);
    let mut scale = 1.0 / inv_scale;
    let mut best = 0.0;
    for ((to, x), w) in codes.iter_mut().zip(x).zip(weights) {
        *to = code(coded(inv_scale, x - min));
        best += w * loss(scale * f32::from(*to) + min - x);
    }
    let mut tried = [0_i8; 32];
    // A better minimum is also where the next candidates begin.
    for step in 0..=steps.count {
        let inv_scale = (steps.from + steps.by * f32::from(step) + f32::from(most)) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((to, x), w) in tried.iter_mut().zip(x).zip(weights) {
            *to = code(coded(inv_scale, x - min));
            let l = f32::from(*to);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut new_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if new_min > 0.0 {
                (new_scale, new_min) = (sum_xl / sum_l2, 0.0);
            }
            let mut error = 0.0;
            for ((l, x), w) in tried.iter().zip(x).zip(weights) {
                error += w * loss(new_scale * f32::from(*l) + new_min - x);
            }
            if error < best {
                codes.copy_from_slice(&tried[..x.len()]);
                (best, scale, min) = (error, new_scale, new_min);
            }
        }
    }
    (scale, min)
}

/// The factor of least Σ w (x − f·l)² for numbers x ≥ 0, l in 0 ..= `most`; writes l (`make_qp_quants`).
pub(super) fn fit_positive(most: u8, x: &[f32], weights: &[f32], codes: &mut [i8]) -> f32 {
    let max = x.iter().fold(0.0_f32, |max, v| if max > *v { max } else { *v });
    if max < TINY {
        codes.fill(0);
        return 0.0;
    }
    let top = i32::from(most);
    let mut inv_scale = f32::from(most) / max;
    let error = |scale: f32, code: &dyn Fn(f32) -> i32| {
        let (mut sum, pairs) = (0.0, x.iter().zip(weights));
        for (x, w) in pairs {
            let diff = x - scale * code(*x) as f32;
            sum += w * diff * diff;
        }
        sum
    };
    let mut best = error(1.0 / inv_scale, &|x| nearest(inv_scale * x));
    for step in (-4_i8..=4).filter(|step| *step != 0) {
        let inv = (0.1 * f32::from(step) + f32::from(most)) / max;
        let tried = error(1.0 / inv, &|x| nearest(inv * x).min(top));
        if tried < best {
            (best, inv_scale) = (tried, inv);
        }
    }
    let (mut sum_lx, mut sum_l2) = sums(x, weights, |x| nearest(inv_scale * x).min(top));
    for (to, x) in codes.iter_mut().zip(x) {
        *to = code(nearest(inv_scale * x).min(top));
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((x, w), to) in x.iter().zip(weights).zip(codes.iter_mut()) {
            let l = f32::from(*to);
            let (mut rest_lx, mut rest_l2) = (sum_lx - w * x * l, sum_l2 - w * l * l);
            if rest_lx > 0.0 && rest_l2 > 0.0 {
                let moved = code(nearest(x * rest_l2 / rest_lx).min(top));
                let new = f32::from(moved);
                rest_lx += w * x * new;
                rest_l2 += w * new * new;
                let better = rest_lx * rest_lx * sum_l2 > sum_lx * sum_lx * rest_l2;
                if moved != *to && better {
                    (*to, sum_lx, sum_l2, changed) = (moved, rest_lx, rest_l2, true);
                }
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}
