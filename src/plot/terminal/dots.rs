//! Lines and points in braille: each character is 2 × 4 dots.

use super::{Pen, legend, whole};
use crate::plot::axis::Axis;
use crate::plot::data::{Chart, Points, count};
use crate::plot::palette;
use crate::table::words::{pad_left, shorten_middle, width};

/// The size of the whole chart in characters, and its pen.
pub(super) struct Frame {
    pub(super) columns: usize,
    pub(super) lines: usize,
    pub(super) pen: Pen,
}

/// A character of the drawing: its braille dots, or a mark, and which series came last.
#[derive(Clone, Copy, Default)]
struct Spot {
    dots: u8,
    mark: Option<char>,
    series: usize,
}

/// A drawing of `columns` × `lines` characters.
struct Canvas {
    columns: usize,
    lines: usize,
    spots: Vec<Spot>,
}

pub(super) fn dots(
    chart: &Chart,
    series: &[Points],
    joined: bool,
    names: Option<&[String]>,
    frame: &Frame,
) -> Vec<String> {
    let pen = frame.pen;
    let (x, y) = axes(chart, series, names, frame);
    let mut out = Vec::new();
    if series.len() > 1 {
        out.extend(legend(series.iter().map(|one| one.name.as_str()), frame.columns, pen));
    }
    let log = if chart.y.log { " (logarithmic)" } else { "" };
    out.extend(pen.dim_lines(&format!("{}{log}", chart.y.label), frame.columns));
    let widest = y.ticks.iter().map(|(_, text)| width(text)).max().unwrap_or(0);
    let margin = widest.min(frame.columns / 3);
    let mut canvas = Canvas::new(frame.columns - margin - 2, frame.lines);
    for pair in chart.rules.iter().flat_map(|rule| rule.windows(2)) {
        let place = |(px, py): (f64, f64)| Some((x.fraction(px)?, y.fraction(py)?));
        if let (Some(from), Some(to)) = (place(pair[0]), place(pair[1])) {
            canvas.line(from, to, series.len());
        }
    }
    for (s, one) in series.iter().enumerate() {
        let places: Vec<Option<(f64, f64)>> =
            one.points.iter().map(|&(px, py)| Some((x.fraction(px)?, y.fraction(py)?))).collect();
        if joined {
            for pair in places.windows(2) {
                if let [Some(a), Some(b)] = pair {
                    canvas.line(*a, *b, s);
                }
            }
        }
        // Several series need marks to be told apart; on a line of many points, some marks do.
        let few = one.points.len() * if joined { 4 } else { 1 } <= canvas.columns;
        let has_marks = few || series.len() > 1;
        let every = if joined { (one.points.len() * 8 / canvas.columns).max(1) } else { 1 };
        for (i, place) in places.iter().copied().enumerate() {
            match place {
                Some(place) if has_marks && i % every == 0 => {
                    canvas.mark(place, palette::mark(s), s);
                }
                Some(place) => canvas.dot(place, s),
                None => {}
            }
        }
    }
    for (s, one) in series.iter().enumerate() {
        for (label, (px, py)) in one.labels.iter().zip(&one.points) {
            if let (Some(px), Some(py)) = (x.fraction(*px), y.fraction(*py)) {
                canvas.label((px, py), label, s);
            }
        }
    }
    let mut tick_of_line = vec![""; canvas.lines];
    for (value, text) in &y.ticks {
        let line = y.fraction(*value).map(|at| canvas.line_of(at));
        if let Some(slot) = line.and_then(|line| tick_of_line.get_mut(line)) {
            *slot = text;
        }
    }
    for (line, tick) in tick_of_line.into_iter().enumerate() {
        let label = pad_left(&shorten_middle(tick, margin), margin);
        let rule = if tick.is_empty() { '│' } else { '┤' };
        let drawn = canvas.write(line, pen);
        out.push(format!("{}{}", pen.dim(&format!("{label} {rule}")), drawn.trim_end()));
    }
    out.extend(below(chart, &x, margin, canvas.columns, pen));
    out
}

fn axes(chart: &Chart, series: &[Points], names: Option<&[String]>, frame: &Frame) -> (Axis, Axis) {
    let points =
        || series.iter().flat_map(|one| one.points.iter()).chain(chart.rules.iter().flatten());
    let x = match names {
        Some(names) => Axis::of_names(names),
        None => {
            let xs: Vec<f64> = points().map(|p| p.0).collect();
            let mut axis = Axis::holding(xs.iter().copied(), &chart.x, frame.columns / 14);
            axis.mark_values(&xs, chart.x.kind);
            axis
        }
    };
    (x, Axis::holding(points().map(|p| p.1), &chart.y, frame.lines / 4))
}

/// The x axis: its rule, the labels that have room, and its name.
fn below(chart: &Chart, x: &Axis, margin: usize, columns: usize, pen: Pen) -> Vec<String> {
    let mut rule = vec!['─'; columns];
    let mut labels = String::new();
    let mut free_from = 0;
    let total = margin + 2 + columns;
    let limit = (columns / x.ticks.len().max(1)).max(12).saturating_sub(2);
    for (value, text) in &x.ticks {
        let Some(at) = x.fraction(*value) else { continue };
        let column = whole(at * count(columns)).min(columns.saturating_sub(1));
        let text = shorten_middle(text, limit);
        let middle = margin + 2 + column;
        let start = middle.saturating_sub(width(&text) / 2).min(total.saturating_sub(width(&text)));
        if start < free_from {
            continue;
        }
        rule[column] = '┴';
        labels.push_str(&" ".repeat(start - width(&labels)));
        labels.push_str(&text);
        free_from = start + width(&text) + 2;
    }
    let rule: String = rule.into_iter().collect();
    let log = if chart.x.log { " (logarithmic)" } else { "" };
    let name = format!("{}{log}", chart.x.label);
    let indent = (margin + 2 + columns / 2).saturating_sub(width(&name) / 2);
    let indent = indent.min(total.saturating_sub(width(&name)));
    vec![
        pen.dim(&format!("{} └{rule}", " ".repeat(margin))),
        pen.dim(&labels),
        pen.dim(&format!("{}{}", " ".repeat(indent), shorten_middle(&name, total))),
    ]
}

impl Canvas {
    fn new(columns: usize, lines: usize) -> Self {
        Self { columns, lines, spots: vec![Spot::default(); columns * lines] }
    }

    /// The dot at a place (0,0 is bottom left, 1,1 top right), counted from the top left.
    fn dot_at(&self, (x, y): (f64, f64)) -> (usize, usize) {
        let (right, bottom) = (self.columns * 2 - 1, self.lines * 4 - 1);
        let column = whole((x * count(right)).round_ties_even()).min(right);
        let line = whole(((1.0 - y) * count(bottom)).round_ties_even()).min(bottom);
        (column, line)
    }

    fn line_of(&self, y: f64) -> usize {
        self.dot_at((0.0, y)).1 / 4
    }

    fn spot(&mut self, (column, line): (usize, usize)) -> &mut Spot {
        &mut self.spots[line / 4 * self.columns + column / 2]
    }

    fn dot(&mut self, place: (f64, f64), series: usize) {
        let at = self.dot_at(place);
        self.set(at, series);
    }

    fn set(&mut self, at: (usize, usize), series: usize) {
        // Unicode numbers the dots of the upper three lines first, column by column.
        const BITS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        let bit = BITS[at.1 % 4][at.0 % 2];
        let spot = self.spot(at);
        spot.dots |= bit;
        spot.series = series;
    }

    fn mark(&mut self, place: (f64, f64), mark: char, series: usize) {
        let at = self.dot_at(place);
        let spot = self.spot(at);
        spot.mark = Some(mark);
        spot.series = series;
    }

    /// A text right of a place or else left, where nothing else is drawn; else nowhere.
    fn label(&mut self, place: (f64, f64), label: &str, series: usize) {
        let at = self.dot_at(place);
        let (column, line) = (at.0 / 2, at.1 / 4);
        let text = shorten_middle(label, 24);
        // A wide character would need two places.
        if width(&text) != text.chars().count() {
            return;
        }
        let long = text.chars().count();
        let free = |from: usize| {
            let spots =
                self.spots.get(line * self.columns + from..line * self.columns + from + long);
            from + long <= self.columns
                && spots.is_some_and(|spots| spots.iter().all(|s| s.dots == 0 && s.mark.is_none()))
        };
        let right = Some(column + 2).filter(|from| free(*from));
        let left = || column.checked_sub(long + 1).filter(|from| free(*from));
        let Some(from) = right.or_else(left) else { return };
        for (i, mark) in text.chars().enumerate() {
            self.spots[line * self.columns + from + i] = Spot { dots: 0, mark: Some(mark), series };
        }
    }

    /// A straight line, as many steps as it is dots long.
    fn line(&mut self, from: (f64, f64), to: (f64, f64), series: usize) {
        let (a, b) = (self.dot_at(from), self.dot_at(to));
        let steps = a.0.abs_diff(b.0).max(a.1.abs_diff(b.1)).max(1);
        for step in 0..=steps {
            let mix = |a: usize, b: usize| {
                let t = count(step) / count(steps);
                whole((count(a) * (1.0 - t) + count(b) * t).round_ties_even())
            };
            self.set((mix(a.0, b.0), mix(a.1, b.1)), series);
        }
    }

    fn write(&self, line: usize, pen: Pen) -> String {
        let spots = &self.spots[line * self.columns..(line + 1) * self.columns];
        let text = |spot: &Spot| match (spot.mark, spot.dots) {
            (Some(mark), _) => pen.series(spot.series, &mark.to_string()),
            (None, 0) => " ".to_owned(),
            (None, dots) => {
                let braille = char::from_u32(0x2800 + u32::from(dots)).unwrap_or(' ');
                pen.series(spot.series, &braille.to_string())
            }
        };
        spots.iter().map(text).collect()
    }
}
