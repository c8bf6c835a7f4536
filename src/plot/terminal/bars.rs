//! Bars, one a line: label, bar, value.

use super::{Pen, whole};
use crate::plot::axis::{Axis, number_text, texts};
use crate::plot::bins::Bins;
use crate::plot::data::{Chart, Series, count};
use crate::table::words::{pad_left, pad_right, shorten_middle, width};

/// Bars that end within a character: one to seven eighths of it.
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// One line of the chart.
struct Bar {
    label: String,
    /// The series' name, where there are several.
    name: String,
    /// Where the bar ends, in characters to the right (or left) of its beginning.
    length: f64,
    value: String,
    series: usize,
    is_baseline: bool,
}

pub(super) fn bars(
    chart: &Chart,
    labels: &[String],
    series: &[Series],
    baseline: Option<usize>,
    columns: usize,
    pen: Pen,
) -> Vec<String> {
    let all = || series.iter().flat_map(|one| one.values.iter().copied());
    let axis = bar_axis(chart, all());
    let values: Vec<Vec<String>> = series.iter().map(|one| one.texts(chart.y.kind)).collect();
    let mut lines = Vec::new();
    for (i, label) in labels.iter().enumerate() {
        for (s, one) in series.iter().enumerate() {
            lines.push(Bar {
                label: if s == 0 { label.clone() } else { String::new() },
                name: if series.len() > 1 { one.name.clone() } else { String::new() },
                length: axis.fraction(one.values[i]).unwrap_or(f64::NAN),
                value: values[s][i].clone(),
                series: s,
                is_baseline: Some(i) == baseline,
            });
        }
    }
    let zero = axis.fraction(0.0).unwrap_or(0.0);
    let mut out = heading(chart, &axis, columns, pen);
    out.extend(write(&lines, zero, columns, pen));
    out
}

pub(super) fn histogram(chart: &Chart, bins: &Bins, columns: usize, pen: Pen) -> Vec<String> {
    let most = bins.counts.iter().copied().max().unwrap_or(1).max(1);
    let edges = texts(&bins.edges, chart.x.kind);
    let widest = edges.iter().map(|edge| width(edge)).max().unwrap_or(0);
    let lines = bins.counts.iter().enumerate().map(|(i, &n)| Bar {
        label: format!("{} … {}", pad_left(&edges[i], widest), pad_left(&edges[i + 1], widest)),
        name: String::new(),
        length: count(n) / count(most),
        value: match marks_in(&chart.marks, bins, i) {
            0 => n.to_string(),
            marks => format!("{n} ◆{marks}"),
        },
        series: 0,
        is_baseline: false,
    });
    let mut out = pen.dim_lines(&format!("{}: how many values", chart.x.label), columns);
    if !chart.marks.is_empty() {
        out.extend(pen.dim_lines("◆ how many marks are in the bin", columns));
    }
    out.extend(write(&lines.collect::<Vec<_>>(), 0.0, columns, pen));
    out
}

/// How many marks lie in bin `i`; the last bin holds its upper edge too.
fn marks_in(marks: &[f64], bins: &Bins, i: usize) -> usize {
    let is_last = i + 1 == bins.counts.len();
    let (low, high) = (bins.edges[i], bins.edges[i + 1]);
    marks.iter().filter(|m| **m >= low && (**m < high || is_last && **m <= high)).count()
}

/// Bars in characters need no round end: the longest takes all the room.
fn bar_axis(chart: &Chart, values: impl Iterator<Item = f64> + Clone) -> Axis {
    let mut axis = Axis::of_bars(values.clone(), &chart.y, 5);
    let finite = values.filter(|v| v.is_finite());
    let (low, high) = finite.fold((0.0_f64, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    let (low, high) = if chart.y.log { (axis.min, high) } else { (low, high.max(0.0)) };
    if low < high {
        (axis.min, axis.max) = (low, high);
    }
    axis
}

fn heading(chart: &Chart, axis: &Axis, columns: usize, pen: Pen) -> Vec<String> {
    let begin = match chart.y.log {
        true => format!(" (logarithmic, from {})", number_text(axis.min, chart.y.kind)),
        false => String::new(),
    };
    pen.dim_lines(&format!("{}{begin}", chart.y.label), columns)
}

/// `zero` and the bars' lengths are fractions of the room that bars get.
fn write(bars: &[Bar], zero: f64, columns: usize, pen: Pen) -> Vec<String> {
    let widest =
        |text: fn(&Bar) -> &str| bars.iter().map(|bar| width(text(bar))).max().unwrap_or(0);
    let name_width = widest(|bar| &bar.name).min(columns / 4);
    let label_width = widest(|bar| &bar.label).min(columns * 2 / 5 - name_width / 2);
    let value_width = widest(|bar| &bar.value);
    let has_baseline = bars.iter().any(|bar| bar.is_baseline);
    let sign = if has_baseline { 2 } else { 0 };
    let gaps = if name_width > 0 { 3 } else { 2 };
    let room = columns.saturating_sub(label_width + name_width + value_width + gaps + sign).max(1);
    let mut lines = Vec::new();
    for bar in bars {
        let label = pad_right(&shorten_middle(&bar.label, label_width), label_width);
        let mut line = format!("{label} ");
        if name_width > 0 {
            let name = pad_right(&shorten_middle(&bar.name, name_width), name_width);
            line.push_str(&format!("{name} "));
        }
        let drawn = blocks(bar.length, zero, room);
        line.push_str(&pen.series(bar.series, &drawn));
        // Without negative bars the value stands right behind its bar, else in a column.
        if zero > 0.0 || bar.length.is_nan() {
            line.push_str(&" ".repeat(room.saturating_sub(width(&drawn))));
        }
        line.push_str(&format!(" {}", bar.value));
        if bar.is_baseline {
            line.push_str(&pen.dim(" ◂"));
        }
        lines.push(line);
    }
    if has_baseline {
        lines.push(pen.dim("◂ baseline"));
    }
    lines
}

/// A bar from `zero` to `end` (fractions) in a room of so many characters.
fn blocks(end: f64, zero: f64, room: usize) -> String {
    if end.is_nan() {
        return String::new();
    }
    let room_f = count(room);
    // Whole characters up to the zero line, so that all bars begin on one.
    let start = whole((zero * room_f).round_ties_even()).min(room);
    if end < zero {
        let cells = (zero - end) / zero * count(start);
        let halves = whole((cells * 2.0).round_ties_even()).max(1).min(start * 2);
        let (full, half) = (halves / 2, halves % 2);
        let blank = start - full - half;
        return format!("{}{}{}", " ".repeat(blank), "▐".repeat(half), "█".repeat(full));
    }
    let share = if zero < 1.0 { (end - zero) / (1.0 - zero) } else { 0.0 };
    let eighths =
        whole((share * count(room - start) * 8.0).round_ties_even()).min((room - start) * 8);
    // What is not zero leaves a trace.
    let eighths = if share > 0.0 { eighths.max(1) } else { eighths };
    let mut bar = " ".repeat(start);
    bar.push_str(&"█".repeat(eighths / 8));
    if eighths % 8 > 0 {
        bar.push(EIGHTHS[eighths % 8]);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_end_at_the_nearest_eighth() {
        let cases = [
            (0.0, 0.0, ""),
            (1.0, 0.0, "████"),
            (0.5, 0.0, "██"),
            (0.53, 0.0, "██▏"),
            (1e-9, 0.0, "▏"),
            (0.0, 0.5, "██"),
            (0.25, 0.5, " █"),
            (0.375, 0.5, " ▐"),
            (1.0, 0.5, "  ██"),
            (f64::NAN, 0.0, ""),
        ];
        for (end, zero, want) in cases {
            assert_eq!(blocks(end, zero, 4), want, "{end} from {zero}");
        }
    }
}
