//! How numbers are written for people: four significant digits, thousands, bytes in powers of ten.

/// Digits that a measured number is shown with. Timings and perplexities repeat to three or four.
const DIGITS: i32 = 4;

/// `1234567` → `1,234,567`. Four digits stay together, so that 4096 reads as usual.
pub fn int(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let sign = if value < 0 { "-" } else { "" };
    format!("{sign}{}", thousands(&digits))
}

/// `13_600_000` → `13.6 MB` (powers of 1000, three digits).
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if value < 1000 {
        return format!("{value} B");
    }
    // u128 keeps `value * 10` exact; 999.5 kB is already 1.00 MB.
    let mut unit = 0;
    let mut scale: u128 = 1000;
    while unit + 1 < UNITS.len() && (u128::from(value) * 1000 + scale / 2) / scale >= 999_500 {
        scale *= 1000;
        unit += 1;
    }
    let thousandths = (u128::from(value) * 1000 + scale / 2) / scale;
    let decimals = match thousandths {
        0..10_000 => 2,
        10_000..100_000 => 1,
        _ => 0,
    };
    let step = [1000, 100, 10][decimals];
    let rounded = (thousandths + step / 2) / step;
    let per_unit = 1000 / step;
    match decimals {
        0 => format!("{rounded} {}", UNITS[unit]),
        _ => format!("{}.{:0decimals$} {}", rounded / per_unit, rounded % per_unit, UNITS[unit]),
    }
}

/// One number alone: `44.33`, `12,345`, `1.234e-5`, `NaN`, `inf`.
pub fn float(value: f64) -> String {
    let text = FloatStyle::Each.write(value);
    match text.split_once('e') {
        Some((digits, exponent)) => format!("{}e{exponent}", trim_zeros(digits)),
        None => trim_zeros(&text).to_owned(),
    }
}

/// How all numbers of one column are written, so that their points stand below each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatStyle {
    /// So many digits after the point.
    Fixed(usize),
    /// `1.234e-5`, with so many digits after the point.
    Scientific(usize),
    /// The column spans too many magnitudes: each number has its own point.
    Each,
}

impl FloatStyle {
    /// The style in which every number of a column keeps its digits and none gets a long tail.
    pub fn of_column(values: impl Iterator<Item = f64> + Clone) -> Self {
        let nonzero = values.clone().filter(|v| v.is_finite() && v.abs() > 0.0);
        let exponents = nonzero.map(exponent);
        let (Some(small), Some(large)) = (exponents.clone().min(), exponents.max()) else {
            return Self::Fixed(0);
        };
        if large < -3 || small >= 9 {
            let needed = values.filter(|v| v.is_finite()).map(|v| {
                let text = format!("{v:.3e}");
                decimals(text.split_once('e').map_or("", |(digits, _)| digits))
            });
            return Self::Scientific(needed.max().unwrap_or(0));
        }
        // Over more than four magnitudes, digits that suit the smallest are noise in the largest.
        if large - small > 4 || large >= 9 {
            return Self::Each;
        }
        let digits_of_small = if large - small <= 2 { DIGITS } else { DIGITS - 1 };
        let places = (digits_of_small - 1 - small).max(DIGITS - 1 - large).clamp(0, 8);
        let places = usize::try_from(places).expect("clamped to be positive");
        // Zeros that stand at the end of every number say nothing.
        let needed = values.filter(|v| v.is_finite()).map(|v| decimals(&format!("{v:.places$}")));
        Self::Fixed(needed.max().unwrap_or(0))
    }

    /// The number in this style.
    pub fn write(self, value: f64) -> String {
        if value.is_nan() {
            return "NaN".into();
        }
        if value.is_infinite() {
            return if value > 0.0 { "inf".into() } else { "-inf".into() };
        }
        match self {
            Self::Fixed(decimals) => grouped(&format!("{value:.decimals$}")),
            Self::Scientific(decimals) => scientific(value, decimals),
            Self::Each if value.abs() <= 0.0 => "0".into(),
            Self::Each => match exponent(value) {
                e @ -3..=8 => {
                    let decimals = usize::try_from(DIGITS - 1 - e).unwrap_or(0);
                    grouped(&format!("{value:.decimals$}"))
                }
                _ => scientific(value, 3),
            },
        }
    }
}

/// The decimal exponent after rounding to four digits: 99.999 has 2, as it is written 100.0.
fn exponent(value: f64) -> i32 {
    let text = format!("{value:.3e}");
    let digits = text.split_once('e').map_or("0", |(_, e)| e);
    digits.parse().expect("`{:e}` of a finite number ends in an integer")
}

fn scientific(value: f64, decimals: usize) -> String {
    if value.abs() <= 0.0 { "0".into() } else { format!("{value:.decimals$e}") }
}

/// How many digits after the point are not zeros at the end.
fn decimals(text: &str) -> usize {
    trim_zeros(text).split_once('.').map_or(0, |(_, tail)| tail.len())
}

fn trim_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// Puts commas into the part before the point; `-0.00` loses its sign.
fn grouped(text: &str) -> String {
    let (sign, rest) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let sign = if rest.bytes().all(|b| b == b'0' || b == b'.') { "" } else { sign };
    match rest.split_once('.') {
        Some((whole, tail)) => format!("{sign}{}.{tail}", thousands(whole)),
        None => format!("{sign}{}", thousands(rest)),
    }
}

fn thousands(digits: &str) -> String {
    if digits.len() < 5 {
        return digits.to_owned();
    }
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_write_them() {
        let cases = [
            (44.3299, "44.33"),
            (1.2344e-5, "1.234e-5"),
            (0.5, "0.5"),
            (0.0, "0"),
            (-0.0, "0"),
            (99.9999, "100"),
            (0.001_234_4, "0.001234"),
            (12_345.6, "12,346"),
            (4096.0, "4096"),
            (-1e6, "-1,000,000"),
            (1e12, "1e12"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::MAX, "1.798e308"),
            (5e-324, "4.941e-324"),
        ];
        for (value, want) in cases {
            assert_eq!(float(value), want, "{value:e}");
        }
    }

    #[test]
    fn bytes_keep_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (13_600_000, "13.6 MB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (1_240_000_000, "1.24 GB"),
            (135_000_000_000, "135 GB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (value, want) in cases {
            assert_eq!(bytes(value), want, "{value}");
        }
    }

    #[test]
    fn integers_get_commas_from_five_digits() {
        let cases = [
            (0, "0"),
            (4096, "4096"),
            (11_008, "11,008"),
            (-1_234_567, "-1,234,567"),
            (i64::MIN, "-9,223,372,036,854,775,808"),
        ];
        for (value, want) in cases {
            assert_eq!(int(value), want);
        }
    }

    #[test]
    fn a_column_shares_its_decimals() {
        let cases: [(&[f64], &[&str]); 8] = [
            (&[44.33, 102.4, 7.1], &["44.33", "102.40", "7.10"]),
            (&[44.3312, 44.5], &["44.33", "44.50"]),
            (&[1.0, 2.0, 30.0], &["1", "2", "30"]),
            (&[1.2e-5, 3.456e-7], &["1.200e-5", "3.456e-7"]),
            (&[1e-5, 1.3e-4, 0.0], &["1.0e-5", "1.3e-4", "0"]),
            (&[0.001, 1e6], &["0.001000", "1,000,000"]),
            (&[0.0, f64::NAN], &["0", "NaN"]),
            (&[], &[]),
        ];
        for (values, want) in cases {
            let style = FloatStyle::of_column(values.iter().copied());
            let got: Vec<_> = values.iter().map(|v| style.write(*v)).collect();
            assert_eq!(got, want, "{style:?}");
        }
    }
}
