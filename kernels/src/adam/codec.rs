//! Blocks of numbers as codes and one scale.

use crate::dtypes::{e4m3fn_decode, e4m3fn_encode_saturating};

/// How a number, scaled to at most 1, becomes a code.
#[derive(Clone, Debug, PartialEq)]
pub enum Codec {
    /// The nearest of 256 rising values (O10).
    Table8(Vec<f32>),
    /// The nearest of 16 rising values, two codes a byte (O11).
    Table4(Vec<f32>),
    /// e4m3, the block's largest becoming 448 (O12).
    Float8,
}

impl Codec {
    /// The codec of `bits` 8 or 4: dynamic, signed for the mean; for the square unsigned or, in 4 bits, linear.
    pub fn table(bits: u32, signed: bool) -> Codec {
        match (bits, signed) {
            (4, true) => Codec::Table4(dynamic_map(true, 3, 4)),
            (4, false) => Codec::Table4(linear_map()),
            _ => Codec::Table8(dynamic_map(signed, 7, 8)),
        }
    }

    /// Codes in a byte.
    pub fn per_byte(&self) -> usize {
        if matches!(self, Codec::Table4(_)) { 2 } else { 1 }
    }
}

/// The dynamic map (O16): fractions of 0.1 to 1 in powers of ten, more of them the larger the power; with 0 and 1.
///
/// PyTorch makes the fractions with an f32 linspace and scales them in f32.
#[expect(clippy::cast_precision_loss, reason = "at most 129 fractions")]
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as PyTorch does")]
pub fn dynamic_map(signed: bool, exponent_bits: u32, bits: u32) -> Vec<f32> {
    let fraction_bits = bits - 1;
    let mut values = vec![0.0, 1.0];
    let mut add = |items: usize, power: i32| {
        // linspace steps from both ends: the nearer one, so that both are exact.
        let step = (1.0_f32 - 0.1) / (items - 1) as f32;
        let edge = |i: usize| match i < items / 2 {
            true => (i as f32).mul_add(step, 0.1),
            false => (-((items - 1 - i) as f32)).mul_add(step, 1.0),
        };
        let scale = 10.0_f64.powi(power) as f32;
        for i in 0..items - 1 {
            let value = scale * ((edge(i) + edge(i + 1)) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    };
    let last = exponent_bits.cast_signed() - 1;
    for i in 0..exponent_bits {
        let power = i + fraction_bits - exponent_bits + u32::from(!signed);
        add((1 << power) + 1, i.cast_signed() - last);
    }
    let additional = (1_usize << (fraction_bits - exponent_bits)) - 1;
    if additional > 0 {
        add(additional + 1, 0);
    }
    values.sort_by(f32::total_cmp);
    values
}

/// 1/16, 2/16 … 1: no zero.
pub fn linear_map() -> Vec<f32> {
    (1..=16_u8).map(|i| f32::from(i) / 16.0).collect()
}

/// Writes the codes of a block and gives its scale.
pub fn encode(codec: &Codec, x: &[f32], codes: &mut [u8]) -> f32 {
    // A NaN stays the largest, as in PyTorch's amax.
    let amax =
        x.iter().fold(0.0_f32, |most, x| if x.abs() > most || x.is_nan() { x.abs() } else { most });
    let amax = if amax < 1e-12 { 1e-12 } else { amax };
    match codec {
        Codec::Table8(table) => {
            codes.iter_mut().zip(x).for_each(|(code, x)| *code = nearest::<128>(table, x / amax));
            amax
        }
        Codec::Table4(table) => {
            for (code, x) in codes.iter_mut().zip(x.chunks_exact(2)) {
                let [high, low] = [x[0], x[1]].map(|x| nearest::<8>(table, x / amax));
                *code = high << 4 | low;
            }
            amax
        }
        Codec::Float8 => {
            let scale = amax / 448.0;
            let encode = |x: &f32| e4m3fn_encode_saturating(x / scale);
            codes.iter_mut().zip(x).for_each(|(code, x)| *code = encode(x));
            scale
        }
    }
}

/// The numbers of a block.
pub fn decode(codec: &Codec, codes: &[u8], scale: f32, x: &mut [f32]) {
    match codec {
        Codec::Table8(table) => {
            x.iter_mut().zip(codes).for_each(|(x, code)| *x = table[usize::from(*code)] * scale);
        }
        Codec::Table4(table) => {
            for (x, code) in x.chunks_exact_mut(2).zip(codes) {
                x[0] = table[usize::from(code >> 4)] * scale;
                x[1] = table[usize::from(code & 15)] * scale;
            }
        }
        Codec::Float8 => {
            x.iter_mut().zip(codes).for_each(|(x, code)| *x = e4m3fn_decode(*code) * scale);
        }
    }
}

/// The code of the value nearest to `x`: the last that is not above it, or the next from the middle on.
/// A NaN gets code 0.
#[expect(clippy::cast_possible_truncation, reason = "a table has at most 256 values")]
fn nearest<const HALF: usize>(table: &[f32], x: f32) -> u8 {
    let mut code = 0;
    let mut step = HALF;
    while step > 0 {
        code += if x >= table[code + step] { step } else { 0 };
        step /= 2;
    }
    let up = (code + 1).min(2 * HALF - 1);
    let (low, high) = (table[code], table[up]);
    (if x - low >= (high - low) * 0.5 { up } else { code }) as u8
}
