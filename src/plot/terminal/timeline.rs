//! A timeline: a row a line, shaded by how much of a character's time it took.

use super::{Pen, whole};
use crate::plot::axis::Axis;
use crate::plot::data::{Chart, Span, count};
use crate::table::words::{pad_right, shorten_middle, width};

/// None, up to a quarter, half, three quarters, and all of the time.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];

pub(super) fn timeline(
    chart: &Chart,
    rows: &[String],
    spans: &[Span],
    columns: usize,
    pen: Pen,
) -> Vec<String> {
    let longest = rows.iter().map(|row| width(row)).max().unwrap_or(0);
    let label_width = longest.min(columns * 2 / 5);
    let room = columns.saturating_sub(label_width + 2).max(1);
    let ends = spans.iter().flat_map(|span| [span.start, span.end]);
    let mut axis = Axis::holding(ends.clone(), &chart.x, room / 14);
    let (low, high) = ends.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    if low < high {
        (axis.min, axis.max) = (low, high);
    }
    let mut busy = vec![vec![0.0_f64; room]; rows.len()];
    for span in spans {
        let (Some(start), Some(end)) = (axis.fraction(span.start), axis.fraction(span.end)) else {
            continue;
        };
        let (start, end) = (start * count(room), end * count(room));
        let first = whole(start).min(room - 1);
        let last = whole(end).min(room - 1);
        for (cell, busy) in busy[span.row].iter_mut().enumerate().take(last + 1).skip(first) {
            let inside = end.min(count(cell + 1)) - start.max(count(cell));
            // What is short leaves a trace.
            *busy += inside.max(1e-6);
        }
    }
    let mut out = pen.dim_lines(&chart.x.label, columns);
    for (r, (name, cells)) in rows.iter().zip(&busy).enumerate() {
        let label = pad_right(&shorten_middle(name, label_width), label_width);
        let drawn: String =
            cells.iter().map(|share| SHADES[whole((share * 4.0).ceil()).min(4)]).collect();
        out.push(format!("{label} {}", pen.series(r, drawn.trim_end())));
    }
    let [first, last] =
        [axis.min, axis.max].map(|v| crate::plot::axis::number_text(v, chart.x.kind));
    let gap = room.saturating_sub(width(&first) + width(&last)).max(1);
    let ends = format!("{} {first}{}{last}", " ".repeat(label_width), " ".repeat(gap));
    out.push(pen.dim(&shorten_middle(&ends, columns)));
    out
}
