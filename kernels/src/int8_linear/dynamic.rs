//! Products of int8 activations, quantized just before, with int8 weights; see the head of this folder.

use crate::{Cost, Cpu, Isa, Shape};

use super::GEMV_MAX_M;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512vnni_dynamic};

/// The longest row whose sum of products surely fits 32 bits: 128 · 128 · 131071 < 2³¹.
pub const ROW_SUM_MAX_K: usize = 131_071;

/// A weight (N, K) with one scale a row or one for all.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// The codes, (N, K).
    pub qdata: &'a [i8],
    /// (N) or (1).
    pub scale: &'a [f32],
    /// The sum of each row's codes, (N); needed when activations have zero points. See [`row_sums`].
    pub row_sums: Option<&'a [i32]>,
}

/// Activations quantized by rows; see [`crate::int8_activation`].
#[derive(Clone, Copy, Debug)]
pub struct Activation<'a> {
    /// The codes, (M, K).
    pub q: &'a [i8],
    /// (M).
    pub scale: &'a [f32],
    /// (M), or none when the rows were quantized about zero.
    pub zero_point: Option<&'a [i32]>,
}

/// `y[m, n] = (acc · s_x[m] − (zp[m] · s_x[m]) · row_sum[n]) · s_w[n]`, `acc = Σ_k a[m, k] · q[n, k]`.
pub fn dynamic(cpu: &Cpu, w: Weight<'_>, act: Activation<'_>, y: &mut [f32], shape: Shape) {
    let Shape { m, n, k } = shape;
    assert!(k <= ROW_SUM_MAX_K, "sums of {k} int8 products may not fit 32 bits");
    assert!(w.qdata.len() == n * k, "{} codes are not a weight of {n} × {k}", w.qdata.len());
    assert!([1, n].contains(&w.scale.len()), "{} scales are not 1 or {n}", w.scale.len());
    assert!(
        w.row_sums.is_none_or(|sums| sums.len() == n),
        "row sums must be one for each of {n} rows"
    );
    assert!(act.q.len() == m * k, "{} activations are not {m} × {k}", act.q.len());
    assert!(act.scale.len() == m, "{} activation scales are not {m}", act.scale.len());
    assert!(
        act.zero_point.is_none_or(|zp| zp.len() == m),
        "zero points must be one for each of {m} rows"
    );
    assert!(
        act.zero_point.is_none() || w.row_sums.is_some(),
        "zero points need the weight's row sums"
    );
    assert!(y.len() == m * n, "{} results are not {m} × {n}", y.len());
    match cpu.isa() {
        Isa::Scalar => scalar(w, act, y, shape),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(neon) => super::aarch64::dynamic(neon, cpu, (w, act), y, shape),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => avx2::dynamic(avx2, cpu, (w, act), y, shape),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => avx2::dynamic(avx512.avx2(), cpu, (w, act), y, shape),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => avx512vnni_dynamic::dynamic(vnni, cpu, (w, act), y, shape),
        // A token of a processor of another kind cannot be made.
        _ => scalar(w, act, y, shape),
    }
}

/// What a dynamic call of `shape` moves and computes.
pub fn dynamic_cost(shape: Shape) -> Cost {
    let (m, n, k) = (shape.m as u64, shape.n as u64, shape.k as u64);
    Cost { bytes: n * k + m * k + 4 * (n + m + m * n), flops: 2 * m * n * k }
}

/// The kernel that multiplies `m` rows on `isa`.
pub fn dynamic_kernel_name(isa: Isa, m: usize) -> &'static str {
    match (isa, m) {
        (Isa::Avx512Vnni(_), ..=GEMV_MAX_M) => "x86-int8xint8-avx512vnni-gemv",
        (Isa::Avx512Vnni(_), _) => "x86-int8xint8-avx512vnni-gemm",
        (Isa::Avx2(_) | Isa::Avx512(_), ..=GEMV_MAX_M) => "x86-int8xint8-avx2-gemv",
        (Isa::Avx2(_) | Isa::Avx512(_), _) => "x86-int8xint8-avx2-gemm",
        (Isa::Neon(_), _) => "aarch64-int8xint8-neondot",
        (Isa::Scalar, _) => "scalar-int8xint8",
    }
}

/// The sum of the codes of each row of `qdata` (N, K).
pub fn row_sums(qdata: &[i8], k: usize) -> Vec<i32> {
    assert!(k <= ROW_SUM_MAX_K, "rows of {k} codes are too long");
    qdata.chunks_exact(k.max(1)).map(|row| row.iter().map(|&q| i32::from(q)).sum()).collect()
}

/// What turns an exact sum into a result.
#[derive(Clone, Copy)]
pub(super) struct Epilogue<'a> {
    w: Weight<'a>,
    act: Activation<'a>,
}

impl<'a> Epilogue<'a> {
    pub(super) fn new(w: Weight<'a>, act: Activation<'a>) -> Epilogue<'a> {
        Epilogue { w, act }
    }

    /// The results of token `m` and rows `n` on.
    pub(super) fn results(&self, m: usize, n: usize, accs: &[i32], y: &mut [f32]) {
        let scale = self.act.scale[m];
        match (self.act.zero_point, self.w.row_sums) {
            (Some(zero_point), Some(row_sums)) => {
                let shift = zero_point[m] as f32 * scale;
                for ((y, &acc), &row_sum) in y.iter_mut().zip(accs).zip(&row_sums[n..]) {
                    *y = acc as f32 * scale - shift * row_sum as f32;
                }
            }
            _ => y.iter_mut().zip(accs).for_each(|(y, &acc)| *y = acc as f32 * scale),
        }
        match self.w.scale {
            [one] => y.iter_mut().for_each(|y| *y *= one),
            all => y.iter_mut().zip(&all[n..]).for_each(|(y, scale)| *y *= scale),
        }
    }

    /// In this order, each step rounded to f32, as torchao does.
    #[inline]
    pub(super) fn result(&self, m: usize, n: usize, acc: i32) -> f32 {
        let scale = self.act.scale[m];
        let mut sum = acc as f32 * scale;
        if let (Some(zero_point), Some(row_sums)) = (self.act.zero_point, self.w.row_sums) {
            sum -= zero_point[m] as f32 * scale * row_sums[n] as f32;
        }
        sum * if let [one] = self.w.scale { *one } else { self.w.scale[n] }
    }
}

/// Scalar oracle.
fn scalar(w: Weight<'_>, act: Activation<'_>, y: &mut [f32], Shape { n, k, .. }: Shape) {
    let epilogue = Epilogue::new(w, act);
    for (m, y) in y.chunks_exact_mut(n.max(1)).enumerate() {
        let a = &act.q[m * k..][..k];
        for (n, y) in y.iter_mut().enumerate() {
            let q = &w.qdata[n * k..][..k];
            let acc = a.iter().zip(q).map(|(&a, &q)| i32::from(a) * i32::from(q)).sum();
            *y = epilogue.result(m, n, acc);
        }
    }
}
