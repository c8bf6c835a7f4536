//! Rows of a cache, borrowed: what attention reads.

use super::CacheFormat;
use super::format::dequantize;
#[cfg(target_arch = "x86_64")]
use crate::{dtypes, isa::Avx2};
use half::{bf16, f16};
use std::ops::Range;

/// Keys or values `(rows, head_dim)` in some format.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    head_dim: usize,
    inner: Inner<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Inner<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    Quantized(CacheFormat, &'a [u8], &'a [bf16]),
}

impl<'a> Rows<'a> {
    /// Rows of f32.
    pub fn f32(numbers: &'a [f32], head_dim: usize) -> Rows<'a> {
        Rows { head_dim, inner: Inner::F32(numbers) }
    }

    pub(super) fn f16(numbers: &'a [f16], head_dim: usize) -> Rows<'a> {
        Rows { head_dim, inner: Inner::F16(numbers) }
    }

    pub(super) fn bf16(numbers: &'a [bf16], head_dim: usize) -> Rows<'a> {
        Rows { head_dim, inner: Inner::Bf16(numbers) }
    }

    pub(super) fn quantized(
        format: CacheFormat,
        codes: &'a [u8],
        scales: &'a [bf16],
        head_dim: usize,
    ) -> Rows<'a> {
        Rows { head_dim, inner: Inner::Quantized(format, codes, scales) }
    }

    /// How numbers are kept.
    pub fn format(&self) -> CacheFormat {
        match self.inner {
            Inner::F32(_) => CacheFormat::F32,
            Inner::F16(_) => CacheFormat::F16,
            Inner::Bf16(_) => CacheFormat::Bf16,
            Inner::Quantized(format, ..) => format,
        }
    }

    /// The scales, one a row; none in the float formats without.
    pub(crate) fn scales(&self) -> &'a [bf16] {
        match self.inner {
            Inner::Quantized(_, _, scales) => scales,
            _ => &[],
        }
    }

    /// Writes rows `rows` as f32. This function defines the formats.
    pub fn dequantize(&self, rows: Range<usize>, out: &mut [f32]) {
        let d = self.head_dim;
        assert!(out.len() == rows.len() * d, "kv cache: room for the rows' numbers is wanted");
        let range = rows.start * d..rows.end * d;
        match self.inner {
            Inner::F32(numbers) => out.copy_from_slice(&numbers[range]),
            Inner::F16(numbers) => {
                out.iter_mut().zip(&numbers[range]).for_each(|(y, x)| *y = x.to_f32());
            }
            Inner::Bf16(numbers) => {
                out.iter_mut().zip(&numbers[range]).for_each(|(y, x)| *y = x.to_f32());
            }
            Inner::Quantized(..) => self.dequantize_codes(rows, out),
        }
    }

    #[inline(always)]
    fn dequantize_codes(&self, rows: Range<usize>, out: &mut [f32]) {
        let Inner::Quantized(format, codes, scales) = self.inner else { return };
        let nbytes = format.codes_nbytes(self.head_dim);
        for (row, out) in rows.zip(out.chunks_exact_mut(self.head_dim)) {
            dequantize(format, &codes[row * nbytes..][..nbytes], scales[row].to_f32(), out);
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl<'a> Rows<'a> {
    /// Rows `rows` as f32: in `room`, or where they are.
    pub(crate) fn widen<'r>(
        &self,
        avx2: Avx2,
        rows: Range<usize>,
        room: &'r mut Vec<f32>,
    ) -> &'r [f32]
    where
        'a: 'r,
    {
        let range = rows.start * self.head_dim..rows.end * self.head_dim;
        if let Inner::F32(numbers) = self.inner {
            return &numbers[range];
        }
        room.resize(range.len(), 0.0);
        match self.inner {
            Inner::F16(numbers) => dtypes::float16::x86::f16_to_f32(avx2, &numbers[range], room),
            Inner::Bf16(numbers) => dtypes::float16::x86::bf16_to_f32(avx2, &numbers[range], room),
            // SAFETY: the token is made only after AVX2, FMA and F16C were detected.
            _ => unsafe { self.widen_codes(rows, room) },
        }
        room
    }

    /// [`Rows::dequantize`], compiled for AVX2.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen_codes(&self, rows: Range<usize>, out: &mut [f32]) {
        self.dequantize_codes(rows, out);
    }

    /// The bytes of all rows, without scales.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        match self.inner {
            Inner::F32(numbers) => bytes_of(numbers),
            Inner::F16(numbers) => bytes_of(numbers),
            Inner::Bf16(numbers) => bytes_of(numbers),
            Inner::Quantized(_, codes, _) => codes,
        }
    }
}

/// f32, f16 and bf16 only: numbers without padding.
#[cfg(target_arch = "x86_64")]
fn bytes_of<T: Copy>(numbers: &[T]) -> &[u8] {
    // SAFETY: numbers of 2 or 4 bytes have no padding, and every byte of a slice of them is initialized and
    // borrowed for as long as the result.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}
