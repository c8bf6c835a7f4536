//! Linear layers whose weights are floats of 8 bits and fewer, or MX's int8: fp8, fp6, fp5, fp4 with scales of a tensor,
//! a row, a group, a square, MX blocks (e8m0) or NVFP4 blocks (e4m3).
//!
//! `y[m, n] = Σ_k x[m, k] · value(code[n, k]) · scale[n, k]`
//! x (M, K) f32 · weight (N, K) in [`Panels`] → y (M, N) f32.
//! A panel holds sixteen rows; four neighbouring columns of one row are the bytes of a 32-bit word, 4-bit planes two to a byte.
//! Error: |y − f64 result| ≤ Σ_blocks amax(x in 32) · 2⁻¹⁵ · Σ|w| + K · 2⁻²² · Σ|x·w|, because x is rounded to 16-bit
//! integers (or, for fp8, to two bf16 parts) once a call; many tokens, NaN, infinities and extreme scales are multiplied in
//! f32 and keep only the second term.
//! Source: OCP OFP8 1.0 and MX 1.0, NVFP4; look-ups in registers (`vpermb`) and integer dot products (`vpdpbusd`).

mod activation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_bytes;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
#[cfg(target_arch = "x86_64")]
mod fill;
mod panels;
mod scalar;
mod view;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
use activation::Prepared;
pub use element::Element;
pub use panels::{Panels, Scales};

use crate::dense_linear;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Avx2, Avx512Vbmi};
use crate::{Cost, Cpu, Isa, Shape, exact_f32};

/// From this many rows on, the weight is dequantized once, a panel at a time, and multiplied in f32.
const GEMM_FROM: usize = 16;

/// The shapes that tests and benches run: panel edges, step edges, a decoder's layer.
pub const SHAPES: [Shape; 9] = [
    Shape { m: 1, n: 1, k: 32 },
    Shape { m: 2, n: 17, k: 64 },
    Shape { m: 1, n: 16, k: 96 },
    Shape { m: 3, n: 33, k: 160 },
    Shape { m: 4, n: 129, k: 256 },
    Shape { m: 5, n: 40, k: 1056 },
    Shape { m: 9, n: 31, k: 512 },
    Shape { m: 16, n: 48, k: 288 },
    Shape { m: 33, n: 67, k: 1024 },
];

/// `y = x · Wᵀ`.
pub fn linear(cpu: &Cpu, w: &Panels, x: &[f32], y: &mut [f32], shape: Shape) {
    let Shape { m, n, k } = shape;
    assert!((w.n(), w.k()) == (n, k), "a weight of {} × {} is not {n} × {k}", w.n(), w.k());
    assert!(x.len() == m * k, "{} activations are not {m} × {k}", x.len());
    assert!(y.len() == m * n, "{} results are not {m} × {n}", y.len());
    if m == 0 || n == 0 || k == 0 {
        return y.fill(0.0);
    }
    match cpu.isa() {
        Isa::Scalar | Isa::Neon(_) => scalar::linear(w, x, y, shape),
        _ if m >= GEMM_FROM => gemm(cpu, w, x, y, shape),
        _ if !w.plain() => exact(cpu, w, x, y, shape),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(avx2) => with_avx2(avx2, cpu, w, x, (y, m)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(avx512) => with_avx2(avx512.avx2(), cpu, w, x, (y, m)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(vnni) => {
            let Some(vbmi) = Avx512Vbmi::detect() else {
                return with_avx2(vnni.avx512().avx2(), cpu, w, x, (y, m));
            };
            match Prepared::new(cpu.isa(), w.element().arithmetic(), x, k) {
                Some(x) => x86::stream_avx512(vbmi, cpu, w, &x, (y, m)),
                None => x86::stream_avx2(vnni.avx512().avx2(), cpu, w, x, y),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        _ => exact(cpu, w, x, y, shape),
    }
}

/// Few tokens with AVX2: in integers where there are bodies for it and x allows it, else in f32.
#[cfg(target_arch = "x86_64")]
fn with_avx2(avx2: Avx2, cpu: &Cpu, w: &Panels, x: &[f32], (y, m): (&mut [f32], usize)) {
    if x86::has_avx2_bytes(w.element())
        && let Some(Prepared::Bytes(x)) =
            Prepared::new(cpu.isa(), w.element().arithmetic(), x, w.k())
    {
        return x86::stream_avx2_bytes(avx2, cpu, w, &x, (y, m));
    }
    x86::stream_avx2(avx2, cpu, w, x, y);
}

/// Many tokens: each weight is dequantized once, into cache.
fn gemm(cpu: &Cpu, w: &Panels, x: &[f32], y: &mut [f32], shape: Shape) {
    let stride = dense_linear::PANEL_K;
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512Vnni(_), Some(vbmi)) = (cpu.isa(), Avx512Vbmi::detect())
        && w.plain()
    {
        let tables = avx512::Tables::new(w.element());
        return dense_linear::gemm_with_panels(cpu, shape, x, y, |block, panel| {
            fill::rows(vbmi, w, &tables, (block.n, block.k), panel.as_flattened_mut(), stride);
        });
    }
    dense_linear::gemm_with_panels(cpu, shape, x, y, |block, panel| {
        w.dequantize(block.n, block.k, panel.as_flattened_mut(), stride);
    });
}

/// In f32, row by row.
fn exact(cpu: &Cpu, w: &Panels, x: &[f32], y: &mut [f32], shape: Shape) {
    exact_f32::linear(cpu, x, y, shape, |n, row| {
        w.dequantize(n..n + 1, 0..shape.k, row, shape.k);
        1.0
    });
}

/// What a call moves and computes.
pub fn cost(w: &Panels, m: usize) -> Cost {
    let (n, k) = (w.n(), w.k());
    Cost { bytes: (w.nbytes() + 4 * m * (n + k)) as u64, flops: 2 * (m * n * k) as u64 }
}

/// The kernel that multiplies `m` rows of finite activations on `isa`, such as `x86-e2m1xint16-avx512vbmi`.
pub fn kernel_name(isa: Isa, element: Element, m: usize) -> String {
    let name = element.name();
    match (isa, m) {
        (Isa::Scalar | Isa::Neon(_), _) => format!("scalar-{name}xf32"),
        (Isa::Avx2(_), GEMM_FROM..) => format!("x86-{name}xf32-avx2-gemm"),
        (Isa::Avx512(_) | Isa::Avx512Vnni(_), GEMM_FROM..) => {
            format!("x86-{name}xf32-avx512-gemm")
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Vnni(_), _) if Avx512Vbmi::detect().is_some() => {
            let x = match element.arithmetic() {
                element::Arithmetic::Bf16 => "2bf16",
                _ => "int16",
            };
            format!("x86-{name}x{x}-avx512vbmi")
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_), _) if x86::has_avx2_bytes(element) => {
            format!("x86-{name}xint16-avx2")
        }
        (Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_), _) => format!("x86-{name}xf32-avx2"),
    }
}
