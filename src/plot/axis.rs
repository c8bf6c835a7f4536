//! Where a number stands on an axis, and which numbers are written beside it.

use super::data::{Scale, can_draw, count};
use crate::table::Kind;
use crate::table::number::{self, FloatStyle};

/// An axis from `min` to `max`; `min < max`, both positive if logarithmic.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) log: bool,
    /// Where marks stand and what they say, in rising order.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis that holds all `values` and ends at its outermost marks.
    /// `target` is about how many marks there should be.
    pub(super) fn holding(values: impl Iterator<Item = f64>, scale: &Scale, target: usize) -> Self {
        let (min, max) = extent(values.filter(|v| can_draw(*v, scale.log)), scale.log);
        // Within a factor of three, powers of ten would stand far outside the data.
        let places = match scale.log && max / 3.0 > min {
            true => log_ticks(min, max),
            false => linear_ticks(min, max, target),
        };
        let places: Vec<f64> = places.into_iter().filter(|v| can_draw(*v, scale.log)).collect();
        let (first, last) = (places.first().unwrap_or(&min), places.last().unwrap_or(&max));
        let (min, max) = if scale.log {
            // The next power of ten may be far: go there only if it adds less than a third.
            let third = (max / min).powf(1.0 / 3.0);
            let air = (max / min).powf(0.03).min(1.1);
            (
                if min / first <= third { min.min(*first) } else { min / air },
                if last / max <= third { max.max(*last) } else { (max * air).min(f64::MAX) },
            )
        } else {
            (min.min(*first), max.max(*last))
        };
        let places: Vec<f64> =
            places.into_iter().filter(|place| (min..=max).contains(place)).collect();
        Self { min, max, log: scale.log, ticks: label(&places, scale.kind, scale.log) }
    }

    /// The axis of bars: it holds 0, where they begin; a logarithmic one begins a power of ten
    /// below the smallest.
    pub(super) fn of_bars(values: impl Iterator<Item = f64>, scale: &Scale, target: usize) -> Self {
        if !scale.log {
            return Self::holding(values.chain([0.0]), scale, target);
        }
        let values: Vec<f64> = values.filter(|v| can_draw(*v, true)).collect();
        let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let decade = 10_f64.powf((smallest.log10() - 0.1).floor()).max(f64::MIN_POSITIVE);
        Self::holding(values.into_iter().chain([decade]), scale, target)
    }

    /// An axis of `names`, each one unit wide, the first in the middle of −0.5 .. 0.5.
    pub(super) fn of_names(names: &[String]) -> Self {
        let ticks = names.iter().enumerate().map(|(i, name)| (count(i), name.clone()));
        Self { min: -0.5, max: count(names.len()) - 0.5, log: false, ticks: ticks.collect() }
    }

    /// Marks at the values themselves, where those are few: 32, 64, 128.
    pub(super) fn mark_values(&mut self, values: &[f64], kind: Kind) {
        let mut places: Vec<f64> =
            values.iter().copied().filter(|v| can_draw(*v, self.log)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        if (2..=8).contains(&places.len()) && (self.log || kind == Kind::Int) {
            // Round ends are for round marks; a little air is enough beside the data's own.
            let air = if self.log {
                (places[places.len() - 1] / places[0]).powf(0.03)
            } else {
                (places[places.len() - 1] - places[0]) * 0.03
            };
            (self.min, self.max) = match self.log {
                true => (places[0] / air, places[places.len() - 1] * air),
                false => (places[0] - air, places[places.len() - 1] + air),
            };
            self.ticks = label(&places, kind, self.log);
        }
    }

    /// 0 at `min`, 1 at `max`; `None` for what has no place on this axis.
    pub(super) fn fraction(&self, value: f64) -> Option<f64> {
        if !can_draw(value, self.log) {
            return None;
        }
        if self.log {
            let low = self.min.log10();
            return Some((value.log10() - low) / (self.max.log10() - low));
        }
        // Halves, because max − min of extreme numbers overflows.
        Some((value / 2.0 - self.min / 2.0) / (self.max / 2.0 - self.min / 2.0))
    }
}

/// One number of a column of `kind`, as a label.
pub(super) fn number_text(value: f64, kind: Kind) -> String {
    texts(&[value], kind).remove(0)
}

/// Numbers of a column of `kind`, with common decimals.
pub(super) fn texts(values: &[f64], kind: Kind) -> Vec<String> {
    if kind == Kind::Bytes {
        return values.iter().map(|v| bytes_text(*v)).collect();
    }
    let style = FloatStyle::of_column(values.iter().copied());
    values
        .iter()
        .map(|v| match style {
            FloatStyle::Each => number::float(*v),
            style => style.write(*v),
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rounded label")]
fn bytes_text(value: f64) -> String {
    if !value.is_finite() {
        return number::float(value);
    }
    let sign = if value < 0.0 { "−" } else { "" };
    format!("{sign}{}", number::bytes(value.abs() as u64))
}

fn label(places: &[f64], kind: Kind, log: bool) -> Vec<(f64, String)> {
    // On a logarithmic axis common decimals would write 1 as 1.0000.
    let texts = match log {
        true => places.iter().map(|place| number_text(*place, kind)).collect(),
        false => texts(places, kind),
    };
    places.iter().copied().zip(texts).collect()
}

/// Smallest and largest value; apart from each other even where all values are equal.
fn extent(values: impl Iterator<Item = f64>, log: bool) -> (f64, f64) {
    let mut range: Option<(f64, f64)> = None;
    for value in values {
        let (low, high) = range.unwrap_or((value, value));
        range = Some((low.min(value), high.max(value)));
    }
    match range {
        None => (if log { 1.0 } else { 0.0 }, if log { 10.0 } else { 1.0 }),
        // Below the smallest normal number, halves and quotients lose their digits.
        Some((low, high)) if high / 2.0 - low / 2.0 >= f64::MIN_POSITIVE => (low, high),
        Some((low, _)) if log => (low / 2.0, (low * 2.0).min(f64::MAX)),
        Some((low, _)) if low.abs() > 0.0 => {
            let margin = (low.abs() * 0.1).max(f64::MIN_POSITIVE * 4.0);
            ((low - margin).max(f64::MIN), (low + margin).min(f64::MAX))
        }
        Some(_) => (-1.0, 1.0),
    }
}

/// Multiples of 1, 2 or 5 times a power of ten, from below `min` to above `max`.
pub(super) fn linear_ticks(min: f64, max: f64, target: usize) -> Vec<f64> {
    let rough = (max / 2.0 - min / 2.0) / count(target.max(1)) * 2.0;
    let power = 10_f64.powf(rough.log10().floor());
    // A little slack: 0.2 / 0.1 may be 2.0000000000000004.
    let step = [1.0, 2.0, 5.0].into_iter().find(|m| m * power >= rough * 0.999).unwrap_or(10.0);
    let step = step * power;
    if !step.is_normal() {
        return vec![min, max];
    }
    let first = (min / step + 1e-9).floor();
    let steps = ((max - min) / step).ceil() + 2.0;
    let mut ticks = Vec::new();
    let mut index = 0.0;
    while index <= steps {
        let tick = (first + index) * step;
        if tick.is_finite() {
            // `+ 0.0` turns −0 into 0.
            ticks.push(tick + 0.0);
        }
        if tick >= max - step * 1e-9 {
            break;
        }
        index += 1.0;
    }
    ticks
}

/// Powers of ten; with 2 and 5 between them where the axis is short, thinned where it is long.
fn log_ticks(min: f64, max: f64) -> Vec<f64> {
    let decades = max.log10() - min.log10();
    let inner: &[f64] = match decades {
        d if d <= 1.5 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let every = (decades / 7.0).ceil().max(1.0);
    let mut ticks = Vec::new();
    let mut exponent = (min.log10() / every).floor() * every;
    while exponent <= max.log10() + every {
        for multiple in inner {
            let tick = multiple * 10_f64.powf(exponent);
            if tick.is_normal() {
                ticks.push(tick);
            }
        }
        exponent += every;
    }
    // From the last mark not above `min` to the first not below `max`.
    let start = ticks.partition_point(|t| *t <= min * (1.0 + 1e-9)).saturating_sub(1);
    let end = ticks.partition_point(|t| *t < max * (1.0 - 1e-9)) + 1;
    ticks.truncate(end);
    ticks.drain(..start);
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(kind: Kind, log: bool) -> Scale {
        Scale { label: String::new(), kind, log }
    }

    #[test]
    fn marks_are_round_numbers() {
        let cases: [(f64, f64, &[&str]); 5] = [
            (0.0, 44.33, &["0", "10", "20", "30", "40", "50"]),
            (0.1, 0.5, &["0.1", "0.2", "0.3", "0.4", "0.5"]),
            (-3.0, 7.0, &["-4", "-2", "0", "2", "4", "6", "8"]),
            (44.3, 44.8, &["44.3", "44.4", "44.5", "44.6", "44.7", "44.8"]),
            (0.0, 60_000.0, &["0", "20,000", "40,000", "60,000"]),
        ];
        for (min, max, want) in cases {
            let axis = Axis::holding([min, max].into_iter(), &scale(Kind::Float, false), 5);
            let got: Vec<_> = axis.ticks.iter().map(|(_, text)| text.as_str()).collect();
            assert_eq!(got, want, "{min}..{max}");
        }
    }

    #[test]
    fn every_drawable_value_has_a_place_from_0_to_1() {
        let values = [f64::MAX, f64::MIN, 5e-324, 1e-300, 1e300, 0.0, -0.0, 1.0, -7.5];
        let pairs = values.iter().flat_map(|a| values.iter().map(move |b| [*a, *b]));
        for (pair, log) in pairs.flat_map(|pair| [(pair, false), (pair, true)]) {
            let axis = Axis::holding(pair.into_iter(), &scale(Kind::Float, log), 5);
            for value in pair.into_iter().filter(|v| can_draw(*v, log)) {
                let at = axis.fraction(value).unwrap();
                assert!((-1e-9..=1.0 + 1e-9).contains(&at), "{value:e} at {at} of {axis:?}");
            }
            assert!(axis.ticks.len() < 40, "{axis:?}");
        }
        let axis = Axis::holding([1.0, 2.0].into_iter(), &scale(Kind::Float, true), 5);
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(axis.fraction(value), None);
        }
    }

    #[test]
    fn logarithmic_bars_begin_below_the_smallest() {
        let axis = Axis::of_bars([0.01, 30.0].into_iter(), &scale(Kind::Float, true), 5);
        assert!(axis.fraction(0.01).unwrap() > 0.0, "{axis:?}");
        let linear = Axis::of_bars([3.0, 30.0].into_iter(), &scale(Kind::Float, false), 5);
        assert_eq!(linear.fraction(0.0), Some(0.0));
    }

    #[test]
    fn few_counts_are_their_own_marks() {
        let sizes = [32.0, 64.0, 128.0, 256.0];
        let mut axis = Axis::holding(sizes.into_iter(), &scale(Kind::Int, true), 5);
        axis.mark_values(&sizes, Kind::Int);
        let got: Vec<_> = axis.ticks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(got, ["32", "64", "128", "256"]);
        assert_eq!(texts(&[0.0, 5e6, 1e7], Kind::Bytes), ["0 B", "5.00 MB", "10.0 MB"]);
    }
}
