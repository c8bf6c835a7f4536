//! `x ≈ code · scale`, one scale for each key or value of a head: `scale = max(amax / qmax, 1e-5)`, `code = round(x · (1 / scale))`.
//! new keys and values (M, kv_heads, head_dim) f32 → a layer's (kv_heads, capacity, head_dim) with scales (kv_heads, capacity) bf16.
//! int8: qmax 127, a byte. int4: qmax 7, `code + 8` in a nibble; of every 32 numbers the first half lies in the low nibbles of 16
//! bytes. float8: qmax 448, e4m3. The scale is rounded to bf16 after the codes were made; f32, f16 and bf16 have none.
//! Error: |x − code · scale| ≤ scale / 2 + |x| · 2⁻⁸ (float8: |x| · (2⁻⁴ + 2⁻⁸) + scale · 2⁻¹⁰). A row with a NaN or an infinity is NaN.
//! Source: torchao's `AffineQuantizedKVCache` for int8, whose codes and scales these are (X27); the other two follow it.

mod format;
mod rows;
#[cfg(test)]
mod tests;

pub use format::CacheFormat;
pub use rows::Rows;

use crate::Cost;
use half::slice::HalfBitsSliceExt as _;
use half::{bf16, f16};
use std::ops::Range;

/// The keys and values of all layers, for up to `capacity` tokens. One piece of memory for all of them: only large
/// pieces get large pages.
#[derive(Clone, Debug)]
pub struct KvCache {
    format: CacheFormat,
    layers: usize,
    kv_heads: usize,
    capacity: usize,
    head_dim: usize,
    keys: Side,
    values: Side,
}

/// Keys, or values.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) numbers: Numbers,
    /// (layers, kv_heads, capacity); empty where numbers need none.
    pub(crate) scales: Vec<bf16>,
}

#[derive(Clone, Debug)]
pub(crate) enum Numbers {
    F32(Vec<f32>),
    /// f16 as its bits: only zeros of plain integers come from the system untouched.
    F16(Vec<u16>),
    /// bf16 as its bits.
    Bf16(Vec<u16>),
    Codes(Vec<u8>),
}

/// (M, kv_heads, head_dim) of tests and benches.
pub const SHAPES: &[(usize, usize, usize)] =
    &[(1, 1, 1), (3, 2, 5), (7, 2, 20), (1, 3, 64), (512, 3, 64), (5, 4, 80), (2, 1, 128)];

impl KvCache {
    /// An empty cache of `[kv_heads, capacity, head_dim]` in each of `layers`. Its memory is taken from the
    /// system as tokens come.
    pub fn new(format: CacheFormat, layers: usize, shape: [usize; 3]) -> KvCache {
        let [kv_heads, capacity, head_dim] = shape;
        let rows = layers * kv_heads * capacity;
        let side = || Side::new(format, rows, head_dim);
        KvCache { format, layers, kv_heads, capacity, head_dim, keys: side(), values: side() }
    }

    /// How numbers are kept.
    pub fn format(&self) -> CacheFormat {
        self.format
    }

    /// `[kv_heads, capacity, head_dim]` of a layer.
    pub fn shape(&self) -> [usize; 3] {
        [self.kv_heads, self.capacity, self.head_dim]
    }

    /// The bytes of keys, values and scales of all layers for `tokens` of them.
    pub fn nbytes_of(&self, tokens: usize) -> usize {
        2 * self.layers * self.kv_heads * tokens * self.format.row_nbytes(self.head_dim)
    }

    /// The bytes of keys, values and scales when full.
    pub fn nbytes(&self) -> usize {
        self.nbytes_of(self.capacity)
    }

    /// Puts new keys and values of `layer`, `(M, kv_heads, head_dim)` each, behind the `past` ones.
    pub fn store(&mut self, layer: usize, past: usize, [keys, values]: [&[f32]; 2]) {
        let (heads, capacity) = (self.kv_heads, self.capacity);
        let width = heads * self.head_dim;
        assert!(layer < self.layers, "kv cache: layer {layer} of {}", self.layers);
        assert!(keys.len() == values.len(), "kv cache: as many values as keys are wanted");
        assert!(
            width > 0 && keys.len().is_multiple_of(width),
            "kv cache: new keys must be rows of kv_heads · head_dim numbers"
        );
        let m = keys.len() / width;
        assert!(past + m <= capacity, "kv cache: {past} + {m} tokens, room for {capacity}");
        for (side, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            for (at, row) in new.chunks_exact(self.head_dim).enumerate() {
                let head = layer * heads + at % heads;
                side.put(self.format, head * capacity + past + at / heads, row);
            }
        }
    }

    /// The keys of `layer`, `(kv_heads, capacity)` rows.
    pub fn keys(&self, layer: usize) -> Rows<'_> {
        self.rows(&self.keys, layer)
    }

    /// The values of `layer`, `(kv_heads, capacity)` rows.
    pub fn values(&self, layer: usize) -> Rows<'_> {
        self.rows(&self.values, layer)
    }

    fn rows<'a>(&self, side: &'a Side, layer: usize) -> Rows<'a> {
        let count = self.kv_heads * self.capacity;
        side.rows(self.format, layer * count..(layer + 1) * count, self.head_dim)
    }

    /// The inside, for tests that poison what was never stored.
    #[cfg(test)]
    pub(crate) fn sides_mut(&mut self) -> [&mut Side; 2] {
        [&mut self.keys, &mut self.values]
    }
}

impl Side {
    fn new(format: CacheFormat, rows: usize, head_dim: usize) -> Side {
        // Zeros from the system are not touched before they are written, so that an empty cache takes no memory.
        let numbers = match format {
            CacheFormat::F32 => Numbers::F32(large(vec![0.0; rows * head_dim])),
            CacheFormat::F16 => Numbers::F16(large(vec![0; rows * head_dim])),
            CacheFormat::Bf16 => Numbers::Bf16(large(vec![0; rows * head_dim])),
            _ => Numbers::Codes(large(vec![0; rows * format.codes_nbytes(head_dim)])),
        };
        let scales = if format.is_quantized() { vec![bf16::ZERO; rows] } else { Vec::new() };
        Side { numbers, scales }
    }

    fn rows(&self, format: CacheFormat, rows: Range<usize>, head_dim: usize) -> Rows<'_> {
        let range = rows.start * head_dim..rows.end * head_dim;
        match &self.numbers {
            Numbers::F32(numbers) => Rows::f32(&numbers[range], head_dim),
            Numbers::F16(numbers) => Rows::f16(numbers[range].reinterpret_cast(), head_dim),
            Numbers::Bf16(numbers) => Rows::bf16(numbers[range].reinterpret_cast(), head_dim),
            Numbers::Codes(codes) => {
                let nbytes = format.codes_nbytes(head_dim);
                let codes = &codes[rows.start * nbytes..rows.end * nbytes];
                Rows::quantized(format, codes, &self.scales[rows], head_dim)
            }
        }
    }

    fn put(&mut self, format: CacheFormat, row: usize, x: &[f32]) {
        let range = row * x.len()..(row + 1) * x.len();
        match &mut self.numbers {
            Numbers::F32(numbers) => numbers[range].copy_from_slice(x),
            Numbers::F16(numbers) => {
                numbers[range]
                    .iter_mut()
                    .zip(x)
                    .for_each(|(y, &x)| *y = f16::from_f32(x).to_bits());
            }
            Numbers::Bf16(numbers) => {
                numbers[range]
                    .iter_mut()
                    .zip(x)
                    .for_each(|(y, &x)| *y = bf16::from_f32(x).to_bits());
            }
            Numbers::Codes(codes) => {
                let nbytes = format.codes_nbytes(x.len());
                let codes = &mut codes[row * nbytes..][..nbytes];
                self.scales[row] = format::quantize(format, x, codes);
            }
        }
    }
}

fn large<T>(numbers: Vec<T>) -> Vec<T> {
    crate::pages::expect(&numbers);
    numbers
}

/// What storing `m` tokens moves: new keys and values read, their rows written.
pub fn cost(format: CacheFormat, (m, kv_heads, head_dim): (usize, usize, usize)) -> Cost {
    let rows = 2 * m * kv_heads;
    let bytes = rows * (4 * head_dim + format.row_nbytes(head_dim));
    Cost { bytes: bytes as u64, flops: (2 * rows * head_dim) as u64 }
}

/// The kernel that stores: plain Rust, in every instruction set's vectors where the compiler finds them.
pub fn kernel_name(format: CacheFormat) -> String {
    format!("scalar-kv-cache-{}", format.name())
}
