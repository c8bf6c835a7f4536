//! Bars lie, because names of layers and models are long: each has its label to its left and its
//! value at its end.

use super::{Anchor, Area, Scene, TEXT_SIZE, axis_name, widest};
use crate::plot::axis::Axis;
use crate::plot::data::{Chart, Series, count};
use crate::plot::font::fit;
use crate::plot::palette::Rgb;

pub(super) struct Rows<'a> {
    pub(super) labels: &'a [String],
    pub(super) series: &'a [Series],
    pub(super) baseline: Option<usize>,
}

/// One bar in pixels; `end` is `None` for what cannot be drawn.
struct Bar {
    end: Option<f64>,
    whisker: Option<(f64, f64)>,
    zero: f64,
    top: f64,
    thickness: f64,
    color: Rgb,
}

/// Pixels from one label to the next.
pub(super) fn natural_pitch(series: usize) -> f64 {
    if series > 1 { count(series) * 17.0 + 12.0 } else { 28.0 }
}

impl Scene {
    pub(super) fn bars(&mut self, chart: &Chart, rows: &Rows, area: Area) {
        let all = || rows.series.iter().flat_map(Series::ends);
        let values: Vec<Vec<String>> =
            rows.series.iter().map(|one| one.texts(chart.y.kind)).collect();
        let pitch = (area.height() - 44.0) / count(rows.labels.len());
        let thickness = (pitch * 0.74 / count(rows.series.len())).min(26.0);
        let has_values = thickness >= 10.0;
        let room_for_value = if has_values {
            widest(values.iter().flatten().map(String::as_str)) + 10.0
        } else {
            6.0
        };
        let label_room = widest(rows.labels.iter().map(String::as_str)).min(area.width() * 0.36);
        let has_negative = all().any(|value| value < 0.0);
        let mut plot = Area { bottom: area.bottom - 44.0, ..area };
        plot.left += label_room + 10.0 + if has_negative { room_for_value } else { 0.0 };
        plot.right -= room_for_value;
        let axis = Axis::of_bars(all(), &chart.y, 6);
        self.x_axis(&axis, &axis_name(&chart.y.label, chart.y.log), plot, true);
        self.baseline_rule(&axis, rows, plot);
        let zero = plot.x(axis.fraction(0.0).unwrap_or(0.0));
        let every = (13.0 / pitch).ceil().max(1.0);
        let mut next_label = 0.0;
        for (i, label) in rows.labels.iter().enumerate() {
            let middle = plot.top + pitch * (count(i) + 0.5);
            if count(i) >= next_label {
                let text = fit(label, TEXT_SIZE, label_room + 0.5);
                self.text((area.left + label_room, middle), text, self.colors.ink, Anchor::Right);
                next_label = count(i) + every;
            }
            for (s, one) in rows.series.iter().enumerate() {
                let top = middle + thickness * (count(s) - count(rows.series.len()) / 2.0);
                let is_gray = Some(i) == rows.baseline && rows.series.len() == 1;
                let at = |value: f64| axis.fraction(value).map(|at| plot.x(at));
                let value = one.values[i];
                let error = one.errors.get(i).copied().filter(|error| error.is_finite());
                let bar = Bar {
                    end: at(value),
                    whisker: error.and_then(|error| Some((at(value - error)?, at(value + error)?))),
                    zero,
                    top,
                    thickness,
                    color: if is_gray { self.colors.baseline } else { self.colors.series(s) },
                };
                self.bar(&bar, has_values.then_some(values[s][i].as_str()));
            }
        }
        self.line(vec![(zero, plot.top), (zero, plot.bottom)], self.colors.rule, 1.0);
    }

    fn bar(&mut self, bar: &Bar, value: Option<&str>) {
        if let Some(end) = bar.end {
            let gap = if bar.thickness > 4.0 { 1.0 } else { 0.0 };
            let (left, right) = (bar.zero.min(end), bar.zero.max(end));
            let bottom = bar.top + bar.thickness - gap;
            self.rect(Area { left, right, top: bar.top, bottom }, bar.color);
        }
        let middle = bar.top + bar.thickness / 2.0;
        if let Some((low, high)) = bar.whisker {
            self.line(vec![(low, middle), (high, middle)], self.colors.ink, 1.0);
            let tick = (bar.thickness / 5.0).min(4.0);
            for x in [low, high] {
                self.line(vec![(x, middle - tick), (x, middle + tick)], self.colors.ink, 1.0);
            }
        }
        if let Some(value) = value {
            let (low, high) = bar.whisker.unwrap_or((bar.zero, bar.zero));
            let (x, anchor) = match bar.end {
                Some(end) if end < bar.zero => (end.min(low) - 6.0, Anchor::Right),
                end => (end.unwrap_or(bar.zero).max(high) + 6.0, Anchor::Left),
            };
            self.text((x, middle), value, self.colors.ink, anchor);
        }
    }

    /// A dashed rule at the value that the others are compared with.
    fn baseline_rule(&mut self, axis: &Axis, rows: &Rows, plot: Area) {
        let (Some(row), [only]) = (rows.baseline, rows.series) else { return };
        let Some(at) = axis.fraction(only.values[row]) else { return };
        let x = plot.x(at);
        let mut y = plot.top;
        while y < plot.bottom {
            self.line(vec![(x, y), (x, (y + 4.0).min(plot.bottom))], self.colors.gray, 1.0);
            y += 8.0;
        }
    }
}
