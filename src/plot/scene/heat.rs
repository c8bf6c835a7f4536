//! A heat map: a grid of shades with its scale at the right.

use super::{Anchor, Area, Scene, TEXT_SIZE, axis_name, widest};
use crate::plot::axis::{Axis, number_text, texts};
use crate::plot::data::{Chart, count};
use crate::plot::font::{fit, text_width};
use crate::plot::palette;

pub(super) struct Grid<'a> {
    pub(super) rows: &'a [String],
    pub(super) columns: &'a [String],
    pub(super) values: &'a [Vec<f64>],
}

impl Scene {
    pub(super) fn heat(&mut self, chart: &Chart, grid: &Grid, area: Area) {
        let axis = shade_axis(chart, grid);
        let mut plot = Area { bottom: area.bottom - 26.0, ..area };
        let label_room = widest(grid.rows.iter().map(String::as_str)).min(area.width() * 0.3);
        plot.left += label_room + 10.0;
        plot.right -= self.shade_scale(chart, &axis, area);
        let (width, height) =
            (plot.width() / count(grid.columns.len()), plot.height() / count(grid.rows.len()));
        let flat: Vec<f64> = grid.values.iter().flatten().copied().collect();
        let mut numbers = texts(&flat, chart.y.kind).into_iter();
        let mut free_from = f64::MIN;
        for (r, (label, values)) in grid.rows.iter().zip(grid.values).enumerate() {
            let top = plot.top + height * count(r);
            let middle = top + height / 2.0;
            if middle - 6.5 >= free_from {
                let text = fit(label, TEXT_SIZE, label_room + 0.5);
                self.text((area.left + label_room, middle), text, self.colors.ink, Anchor::Right);
                free_from = middle + 6.5;
            }
            for (c, value) in values.iter().enumerate() {
                let left = plot.left + width * count(c);
                let gap = if width.min(height) > 6.0 { 1.0 } else { 0.0 };
                let cell =
                    Area { left, top, right: left + width - gap, bottom: top + height - gap };
                self.cell(axis.fraction(*value), numbers.next().unwrap_or_default(), cell);
            }
        }
        self.column_names(grid.columns, plot, width);
    }

    fn cell(&mut self, fraction: Option<f64>, text: String, cell: Area) {
        let shade = fraction.map(palette::shade);
        self.rect(cell, shade.unwrap_or(self.colors.nothing));
        if cell.height() >= 15.0 && text_width(&text, TEXT_SIZE) + 6.0 <= cell.width() {
            let ink = match shade {
                Some(shade) if palette::is_light(shade) => (34, 34, 34),
                Some(_) => (255, 255, 255),
                None => self.colors.gray,
            };
            self.text((cell.x(0.5), cell.y(0.5)), text, ink, Anchor::Center);
        }
    }

    fn column_names(&mut self, names: &[String], plot: Area, width: f64) {
        let every = (34.0 / width).ceil().max(1.0);
        let mut next = 0.0;
        for (c, name) in names.iter().enumerate() {
            if count(c) >= next {
                next = count(c) + every;
                let center = plot.left + width * (count(c) + 0.5);
                let text = fit(name, TEXT_SIZE, width * every - 6.0);
                self.text((center, plot.bottom + 14.0), text, self.colors.ink, Anchor::Center);
            }
        }
    }

    /// Draws the scale and returns how much room it takes at the right.
    fn shade_scale(&mut self, chart: &Chart, axis: &Axis, area: Area) -> f64 {
        let ends = [axis.min, axis.max].map(|value| number_text(value, chart.y.kind));
        let name = fit(&axis_name(&chart.y.label, axis.log), TEXT_SIZE, area.width() * 0.2);
        let widest = widest(ends.iter().map(String::as_str).chain([name.as_str()]));
        let room = widest.max(14.0) + 16.0;
        let bar = Area {
            left: area.right - room + 16.0,
            right: area.right - room + 30.0,
            top: area.top + if name.is_empty() { 22.0 } else { 40.0 },
            bottom: area.bottom - 48.0,
        };
        const STEPS: usize = 64; // more than the eye tells apart in a bar of some 300 pixels
        for step in 0..STEPS {
            let (low, high) = (count(step) / count(STEPS), count(step + 1) / count(STEPS));
            // One pixel more hides the seams of rounding; the next step covers it.
            let part = Area { top: bar.y(high), bottom: bar.y(low) + 1.0, ..bar };
            self.rect(part, palette::shade((low + high) / 2.0));
        }
        let [low, high] = ends;
        if !name.is_empty() {
            self.text((bar.left, area.top + 8.0), name, self.colors.ink, Anchor::Left);
        }
        self.text((bar.left, bar.top - 12.0), high, self.colors.gray, Anchor::Left);
        self.text((bar.left, bar.bottom + 12.0), low, self.colors.gray, Anchor::Left);
        room
    }
}

fn shade_axis(chart: &Chart, grid: &Grid) -> Axis {
    let mut axis = Axis::holding(grid.values.iter().flatten().copied(), &chart.y, 5);
    let drawn = grid.values.iter().flatten().filter(|v| axis.fraction(**v).is_some());
    let (low, high) = drawn.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    if low < high {
        (axis.min, axis.max) = (low, high);
    }
    axis
}
