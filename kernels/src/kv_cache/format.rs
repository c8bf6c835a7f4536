//! The formats, and one row in each.

use crate::dtypes;
use half::bf16;

/// How a cache keeps its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    /// As they come.
    #[default]
    F32,
    /// Rounded to half precision.
    F16,
    /// Rounded to bfloat16.
    Bf16,
    /// Eight bits and a scale for each token and head.
    Int8,
    /// Four bits and a scale for each token and head.
    Int4,
    /// `e4m3` and a scale for each token and head.
    Float8,
}

/// Numbers whose nibbles share 16 bytes.
pub(crate) const NIBBLES: usize = 32;

/// The smallest scale, torchao's `eps` of this cache: an all-zero row does not divide by zero.
const EPS: f32 = 1e-5;

impl CacheFormat {
    /// Every format, most bits first.
    pub const ALL: [CacheFormat; 6] = [
        CacheFormat::F32,
        CacheFormat::F16,
        CacheFormat::Bf16,
        CacheFormat::Int8,
        CacheFormat::Float8,
        CacheFormat::Int4,
    ];

    /// `f32`, `f16`, `bf16`, `int8`, `float8` or `int4`.
    pub const fn name(self) -> &'static str {
        match self {
            CacheFormat::F32 => "f32",
            CacheFormat::F16 => "f16",
            CacheFormat::Bf16 => "bf16",
            CacheFormat::Int8 => "int8",
            CacheFormat::Int4 => "int4",
            CacheFormat::Float8 => "float8",
        }
    }

    /// Whether rows have a scale.
    pub const fn is_quantized(self) -> bool {
        matches!(self, CacheFormat::Int8 | CacheFormat::Int4 | CacheFormat::Float8)
    }

    /// The bytes of `head_dim` numbers, without their scale.
    pub const fn codes_nbytes(self, head_dim: usize) -> usize {
        match self {
            CacheFormat::F32 => 4 * head_dim,
            CacheFormat::F16 | CacheFormat::Bf16 => 2 * head_dim,
            CacheFormat::Int8 | CacheFormat::Float8 => head_dim,
            CacheFormat::Int4 => {
                head_dim / NIBBLES * NIBBLES / 2 + (head_dim % NIBBLES).div_ceil(2)
            }
        }
    }

    /// The bytes of a row, its scale included.
    pub const fn row_nbytes(self, head_dim: usize) -> usize {
        self.codes_nbytes(head_dim) + if self.is_quantized() { 2 } else { 0 }
    }

    fn qmax(self) -> f32 {
        match self {
            CacheFormat::Int4 => 7.0,
            CacheFormat::Float8 => 448.0,
            _ => 127.0,
        }
    }
}

/// Writes the codes of a row and gives its scale.
pub(super) fn quantize(format: CacheFormat, x: &[f32], codes: &mut [u8]) -> bf16 {
    // As integers magnitudes are ordered with NaN on top, so that no NaN is lost.
    let amax = x.iter().fold(0, |amax, v| amax.max(v.abs().to_bits()));
    let amax = f32::from_bits(amax);
    if !amax.is_finite() {
        // The scale makes the row NaN; zeros keep NaN out of the codes, so that kernels need not look for it.
        codes.fill(zero(format));
        return bf16::NAN;
    }
    let scale = (amax / format.qmax()).max(EPS);
    let inv_scale = 1.0 / scale;
    match format {
        CacheFormat::Float8 => {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = dtypes::e4m3fn_encode_saturating(x * inv_scale);
            }
        }
        CacheFormat::Int4 => {
            for (bytes, x) in codes.chunks_mut(NIBBLES / 2).zip(x.chunks(NIBBLES)) {
                let (low, high) = x.split_at(bytes.len());
                for (j, byte) in bytes.iter_mut().enumerate() {
                    let upper = high.get(j).map_or(0.0, |x| x * inv_scale);
                    *byte = nibble(low[j] * inv_scale) | nibble(upper) << 4;
                }
            }
        }
        _ => {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = rounded(x * inv_scale, 127.0).to_le_bytes()[0];
            }
        }
    }
    bf16::from_f32(scale)
}

/// The code of 0.
fn zero(format: CacheFormat) -> u8 {
    if format == CacheFormat::Int4 { 0x88 } else { 0 }
}

/// To the nearest integer, ties to even, within ±qmax, as the low bits of the result.
fn rounded(v: f32, qmax: f32) -> u32 {
    // 1.5 · 2²³: the sum has no bits left for fractions, and its low bits are the integer's.
    const MAGIC: f32 = 12_582_912.0;
    (v.clamp(-qmax, qmax) + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits())
}

fn nibble(v: f32) -> u8 {
    rounded(v, 7.0).wrapping_add(8).to_le_bytes()[0]
}

/// The numbers of a row of codes: `code · scale`, exactly.
#[inline(always)]
pub(super) fn dequantize(format: CacheFormat, codes: &[u8], scale: f32, out: &mut [f32]) {
    match format {
        CacheFormat::Float8 => {
            // e4m3's exponent and mantissa under f32's exponent mean 2⁻¹²⁰ as much.
            let scale = scale * f32::from_bits((127 + 120) << 23);
            for (y, code) in out.iter_mut().zip(codes) {
                let code = u32::from(*code);
                *y = f32::from_bits((code & 0x80) << 24 | (code & 0x7F) << 20) * scale;
            }
        }
        CacheFormat::Int4 => {
            for (bytes, out) in codes.chunks(NIBBLES / 2).zip(out.chunks_mut(NIBBLES)) {
                let (low, high) = out.split_at_mut(bytes.len());
                for (y, byte) in low.iter_mut().zip(bytes) {
                    *y = f32::from((byte & 15).cast_signed() - 8) * scale;
                }
                for (y, byte) in high.iter_mut().zip(bytes) {
                    *y = f32::from((byte >> 4).cast_signed() - 8) * scale;
                }
            }
        }
        _ => {
            for (y, code) in out.iter_mut().zip(codes) {
                *y = f32::from(code.cast_signed()) * scale;
            }
        }
    }
}
