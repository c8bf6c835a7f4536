//! What one code of a small float is worth.

use crate::dtypes::{e4m3fn_decode, e5m2_decode, floatx_decode};

/// The number formats that a weight's codes may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// fp8 with NaN and without inf, ±448 the largest.
    E4m3,
    /// fp8 with NaN and inf, ±57344 the largest finite.
    E5m2,
    /// fp6, ±28.
    E3m2,
    /// fp6, ±7.5.
    E2m3,
    /// fp5, ±24.
    E3m1,
    /// fp5, ±7.
    E2m2,
    /// fp4, ±6.
    E2m1,
    /// MX's int8: q / 64, so ±2.
    Int8,
}

/// How a kernel multiplies an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// Every value is a small multiple of the smallest: one byte, times two byte planes of x.
    Bytes,
    /// The same with 16 bits, times x as 16-bit integers.
    Words,
    /// As bf16, times x in two bf16 parts.
    Bf16,
}

impl Element {
    /// All of them.
    pub const ALL: [Element; 8] = [
        Element::E4m3,
        Element::E5m2,
        Element::E3m2,
        Element::E2m3,
        Element::E3m1,
        Element::E2m2,
        Element::E2m1,
        Element::Int8,
    ];

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Element::E4m3 | Element::E5m2 | Element::Int8 => 8,
            Element::E3m2 | Element::E2m3 => 6,
            Element::E3m1 | Element::E2m2 => 5,
            Element::E2m1 => 4,
        }
    }

    /// `e4m3`, `e2m1` …
    pub const fn name(self) -> &'static str {
        match self {
            Element::E4m3 => "e4m3",
            Element::E5m2 => "e5m2",
            Element::E3m2 => "e3m2",
            Element::E2m3 => "e2m3",
            Element::E3m1 => "e3m1",
            Element::E2m2 => "e2m2",
            Element::E2m1 => "e2m1",
            Element::Int8 => "int8",
        }
    }

    /// The value of a code.
    pub fn decode(self, code: u8) -> f32 {
        match self {
            Element::E4m3 => e4m3fn_decode(code),
            Element::E5m2 => e5m2_decode(code),
            Element::E3m2 => floatx_decode(code, 3, 2),
            Element::E2m3 => floatx_decode(code, 2, 3),
            Element::E3m1 => floatx_decode(code, 3, 1),
            Element::E2m2 => floatx_decode(code, 2, 2),
            Element::E2m1 => floatx_decode(code, 2, 1),
            Element::Int8 => f32::from(code.cast_signed()) / 64.0,
        }
    }

    /// The values of all codes that a byte can hold; bits above the code do not matter.
    pub(super) fn table(self) -> [f32; 256] {
        let mut table = [0.0; 256];
        for (code, value) in (0..=255).zip(&mut table) {
            *value = self.decode(code);
        }
        table
    }

    /// The code of 0.
    pub(super) const ZERO: u8 = 0;

    pub(super) const fn arithmetic(self) -> Arithmetic {
        match self {
            Element::E4m3 | Element::E5m2 => Arithmetic::Bf16,
            Element::E3m2 | Element::E3m1 => Arithmetic::Words,
            Element::E2m3 | Element::E2m2 | Element::E2m1 | Element::Int8 => Arithmetic::Bytes,
        }
    }

    /// The smallest positive value; each value is a whole multiple of it.
    pub(super) const fn step(self) -> f32 {
        match self {
            Element::E4m3 => 1.0 / 512.0,
            Element::E5m2 => 1.0 / 65536.0,
            Element::E3m2 => 1.0 / 16.0,
            Element::E2m3 | Element::E3m1 => 1.0 / 8.0,
            Element::E2m2 => 1.0 / 4.0,
            Element::E2m1 => 1.0 / 2.0,
            Element::Int8 => 1.0 / 64.0,
        }
    }

    /// What makes the multiples of [`Element::step`] positive, for [`Arithmetic::Bytes`].
    pub(super) const fn bias(self) -> u8 {
        match self {
            Element::E2m3 => 60,
            Element::E2m2 => 28,
            Element::E2m1 => 12,
            Element::Int8 => 128,
            _ => 0,
        }
    }

    /// Whether the code is NaN or infinite.
    pub(super) const fn is_special(self, code: u8) -> bool {
        match self {
            Element::E4m3 => code & 0x7F == 0x7F,
            Element::E5m2 => code & 0x7F >= 0x7C,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_whole_steps_within_the_arithmetic() {
        for element in Element::ALL {
            let codes = 0..=u8::MAX >> (8 - element.bits());
            for code in codes.filter(|code| !element.is_special(*code)) {
                let steps = element.decode(code) / element.step();
                assert!(steps.fract() == 0.0, "{element:?} {code}");
                let biased = steps + f32::from(element.bias());
                match element.arithmetic() {
                    Arithmetic::Bytes => assert!((0.0..=255.0).contains(&biased), "{element:?}"),
                    Arithmetic::Words => assert!(steps.abs() <= 448.0, "{element:?} {code}"),
                    Arithmetic::Bf16 => {
                        assert!(element.decode(code).to_bits().trailing_zeros() >= 16);
                    }
                }
            }
            assert!(element.decode(Element::ZERO) == 0.0, "{element:?}");
        }
    }
}
