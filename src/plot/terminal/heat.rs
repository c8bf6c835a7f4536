//! Heat maps: a line a row, a shade a cell, and the number in it where there is room.

use super::{Pen, whole};
use crate::plot::axis::{Axis, number_text, texts};
use crate::plot::data::Chart;
use crate::plot::palette;
use crate::table::words::{pad_right, shorten_end, shorten_middle, width};

/// Four, as a blank would look like a missing value.
const SHADES: [char; 4] = ['░', '▒', '▓', '█'];

pub(super) fn heat(
    chart: &Chart,
    rows: &[String],
    names: &[String],
    values: &[Vec<f64>],
    columns: usize,
    pen: Pen,
) -> Vec<String> {
    let axis = extent_axis(chart, values);
    let label_width = rows.iter().map(|row| width(row)).max().unwrap_or(0).min(columns * 2 / 5);
    let room = columns - label_width - 1;
    let shown = names.len().min(room);
    let longest = names.iter().map(|name| width(name) + 1).max().unwrap_or(0);
    let cell = (room / shown.max(1)).clamp(1, longest.clamp(10, 16));
    // A number needs a space on both sides; without color it would hide the shade.
    let flat: Vec<f64> = values.iter().flatten().copied().collect();
    let numbers = texts(&flat, chart.y.kind);
    let widest = numbers.iter().map(|text| width(text)).max().unwrap_or(0);
    let has_numbers = pen.color && widest + 2 <= cell;
    let mut out = Vec::new();
    out.push(header(names, shown, cell, label_width));
    for ((row, values), texts) in rows.iter().zip(values).zip(numbers.chunks(names.len())) {
        let mut line = pad_right(&shorten_middle(row, label_width), label_width);
        line.push(' ');
        for (value, text) in values[..shown].iter().zip(texts) {
            let text = match has_numbers {
                true => format!("{text:^cell$}"),
                false => " ".repeat(cell),
            };
            line.push_str(&shaded(&axis, *value, &text, pen));
        }
        out.push(line.trim_end().to_owned());
    }
    out.push(scale(chart, &axis, columns, pen));
    if shown < names.len() {
        let said = format!("the first {shown} of {} columns", names.len());
        out.extend(pen.dim_lines(&said, columns));
    }
    out
}

fn extent_axis(chart: &Chart, values: &[Vec<f64>]) -> Axis {
    let mut axis = Axis::holding(values.iter().flatten().copied(), &chart.y, 5);
    let fits = |v: &&f64| axis.fraction(**v).is_some();
    let drawn = values.iter().flatten().filter(fits);
    let (low, high) = drawn.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    // From the smallest to the largest: round ends would waste shades.
    if low < high {
        (axis.min, axis.max) = (low, high);
    }
    axis
}

/// `text` on the shade of `value`; what cannot be drawn is `·`.
fn shaded(axis: &Axis, value: f64, text: &str, pen: Pen) -> String {
    let Some(fraction) = axis.fraction(value) else {
        return if text.trim().is_empty() {
            format!("{:^1$}", "·", text.len())
        } else {
            text.into()
        };
    };
    if pen.color {
        let shade = palette::shade(fraction);
        let ink = if palette::is_light(shade) { 16 } else { 231 };
        return pen.with(&format!("38;5;{ink};48;5;{}", palette::ansi(shade)), text);
    }
    let level = whole(fraction * 4.0).min(3);
    SHADES[level].to_string().repeat(text.len())
}

/// The columns' names: shortened to their cells, every second or third where cells are narrow.
fn header(names: &[String], shown: usize, cell: usize, label_width: usize) -> String {
    // Four characters are the least that tells names apart.
    let every = (1..=shown).find(|every| every * cell >= 5).unwrap_or(shown.max(1));
    let mut line = " ".repeat(label_width + 1);
    for name in names[..shown].iter().step_by(every) {
        let room = every * cell;
        line.push_str(&pad_right(&shorten_end(name, room - 1), room));
    }
    let limit = label_width + 1 + shown * cell;
    shorten_end(line.trim_end(), limit)
}

fn scale(chart: &Chart, axis: &Axis, columns: usize, pen: Pen) -> String {
    let steps = [0.0, 0.3, 0.6, 1.0].map(|fraction| {
        let value = match axis.log {
            true => axis.min * (axis.max / axis.min).powf(fraction),
            false => axis.min * (1.0 - fraction) + axis.max * fraction,
        };
        shaded(axis, value.clamp(axis.min, axis.max), "  ", pen)
    });
    let [low, high] = [axis.min, axis.max].map(|value| number_text(value, chart.y.kind));
    let log = if axis.log { " (logarithmic)" } else { "" };
    let name = format!("{}{log}", chart.y.label);
    let room = columns.saturating_sub(width(&low) + width(&high) + 12);
    format!("{low} {} {high}  {}", steps.concat(), shorten_end(&name, room)).trim_end().to_owned()
}
