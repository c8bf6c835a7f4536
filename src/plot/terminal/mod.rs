//! Charts in characters.

mod bars;
mod dots;
mod heat;
mod timeline;

use super::data::{Chart, Content};
use super::palette;
use crate::table::words::{shorten_end, width, wrap};

/// Narrower than this, labels and chart would take each other's place.
const MIN_WIDTH: usize = 24;

pub(super) fn to_text(chart: &Chart, columns: usize, height: usize, color: bool) -> String {
    let columns = columns.max(MIN_WIDTH);
    let pen = Pen { color };
    let mut lines: Vec<String> =
        wrap(&chart.title, columns).iter().map(|line| pen.bold(line)).collect();
    lines.retain(|line| !line.is_empty());
    lines.extend(match &chart.content {
        Content::Bars { labels, series, baseline } => {
            bars::bars(chart, labels, series, *baseline, columns, pen)
        }
        Content::Histogram(bins) => bars::histogram(chart, bins, columns, pen),
        Content::Points { series, joined, names } => {
            let frame = dots::Frame { columns, lines: height.max(8), pen };
            dots::dots(chart, series, *joined, names.as_deref(), &frame)
        }
        Content::Heat { rows, columns: names, values } => {
            heat::heat(chart, rows, names, values, columns, pen)
        }
        Content::Timeline { rows, spans } => timeline::timeline(chart, rows, spans, columns, pen),
    });
    for note in &chart.notes {
        lines.extend(pen.dim_lines(note, columns));
    }
    lines.join("\n")
}

/// Eight heights of block, one a value: ▁▂▃▄▅▆▇█ from the smallest to the largest; a space where
/// there is no number. Equal values are all ▄.
pub fn sparkline(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = finite().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    let block = |value: &f64| {
        if !value.is_finite() {
            return ' ';
        }
        // Halves, because high − low of extreme numbers overflows.
        let place = (value / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0) * 8.0;
        if place.is_nan() { BLOCKS[3] } else { BLOCKS[whole(place).min(7)] }
    };
    values.iter().map(block).collect()
}

/// The whole part of a place that is not negative.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "NaN and < 0 give 0")]
fn whole(place: f64) -> usize {
    place as usize
}

/// Writes with or without color.
#[derive(Clone, Copy)]
struct Pen {
    color: bool,
}

impl Pen {
    fn with(self, code: &str, text: &str) -> String {
        match self.color && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// A sentence beside the chart, in as many lines as it needs.
    fn dim_lines(self, text: &str, columns: usize) -> Vec<String> {
        let mut lines = wrap(text, columns);
        lines.retain(|line| !line.is_empty());
        lines.iter().map(|line| self.dim(line)).collect()
    }

    fn series(self, index: usize, text: &str) -> String {
        self.with(&format!("38;5;{}", palette::series_ansi(index)), text)
    }
}

/// `● one  ▲ two`, in as many lines as it needs.
fn legend<'a>(names: impl Iterator<Item = &'a str>, columns: usize, pen: Pen) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for (i, name) in names.enumerate() {
        let name = shorten_end(name, columns.saturating_sub(2));
        let wanted = width(&name) + 2 + if used > 0 { 2 } else { 0 };
        if used > 0 && used + wanted > columns {
            lines.push(String::new());
            used = 0;
        }
        let gap = if used > 0 { "  " } else { "" };
        let entry = format!("{gap}{} {name}", pen.series(i, &palette::mark(i).to_string()));
        used += width(&name) + 2 + gap.len();
        if let Some(line) = lines.last_mut() {
            line.push_str(&entry);
        }
    }
    lines
}
