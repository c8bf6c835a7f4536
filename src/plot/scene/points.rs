//! Lines, points and histograms: two axes and what stands between them.

use super::{Anchor, Area, Scene, Shape, TEXT_SIZE, axis_name, widest};
use crate::plot::axis::Axis;
use crate::plot::bins::Bins;
use crate::plot::data::{Chart, Points, count};
use crate::plot::font::{fit, text_width};

impl Scene {
    pub(super) fn points(
        &mut self,
        chart: &Chart,
        series: &[Points],
        joined: bool,
        names: Option<&[String]>,
        area: Area,
    ) {
        let points =
            || series.iter().flat_map(|one| one.points.iter()).chain(chart.rules.iter().flatten());
        let x = match names {
            Some(names) => Axis::of_names(names),
            None => {
                let xs: Vec<f64> = points().map(|p| p.0).collect();
                let mut axis = Axis::holding(xs.iter().copied(), &chart.x, 8);
                axis.mark_values(&xs, chart.x.kind);
                axis
            }
        };
        let y = Axis::holding(points().map(|p| p.1), &chart.y, 6);
        let plot = self.frame(chart, &x, &y, area);
        self.marks(chart, &x, plot);
        for rule in &chart.rules {
            let place =
                |&(px, py): &(f64, f64)| Some((plot.x(x.fraction(px)?), plot.y(y.fraction(py)?)));
            self.line(rule.iter().filter_map(place).collect(), self.colors.ink, 1.5);
        }
        let mut taken: Vec<Area> = Vec::new();
        for (s, one) in series.iter().enumerate() {
            let color = self.colors.series(s);
            let places: Vec<Option<(f64, f64)>> = one
                .points
                .iter()
                .map(|&(px, py)| Some((plot.x(x.fraction(px)?), plot.y(y.fraction(py)?))))
                .collect();
            if joined {
                // A value that cannot be drawn is a gap in the line.
                for run in places.split(Option::is_none).filter(|run| run.len() > 1) {
                    self.line(run.iter().flatten().copied().collect(), color, 2.0);
                }
            }
            let is_crowded = count(places.len()) > plot.width() / 10.0;
            let radius = match (joined, is_crowded) {
                (true, true) => continue,
                (false, true) => 2.5,
                (_, false) => 4.0,
            };
            for center in places.iter().flatten() {
                self.shapes.push(Shape::Circle { center: *center, radius, color });
            }
            for (label, center) in one.labels.iter().zip(places) {
                if let Some(center) = center {
                    self.label(label, center, plot, &mut taken);
                }
            }
        }
    }

    /// A point's text, right of it or else left, where no other text stands; else nowhere.
    fn label(&mut self, label: &str, (x, y): (f64, f64), plot: Area, taken: &mut Vec<Area>) {
        let label = fit(label, TEXT_SIZE, 180.0);
        let width = text_width(&label, TEXT_SIZE);
        for (left, anchor) in [(x + 8.0, Anchor::Left), (x - 8.0 - width, Anchor::Right)] {
            let place = Area { left, top: y - 8.0, right: left + width, bottom: y + 8.0 };
            let inside = place.left >= plot.left && place.right <= plot.right + 8.0;
            let meets = |other: &Area| {
                other.left < place.right
                    && place.left < other.right
                    && other.top < place.bottom
                    && place.top < other.bottom
            };
            if inside && !taken.iter().any(meets) {
                taken.push(place);
                let at = if anchor == Anchor::Left { x + 8.0 } else { x - 8.0 };
                let ink = self.colors.ink;
                self.text((at, y), label, ink, anchor);
                return;
            }
        }
    }

    pub(super) fn histogram(&mut self, chart: &Chart, bins: &Bins, area: Area) {
        let x = Axis::holding(bins.edges.iter().copied(), &chart.x, 8);
        let most = bins.counts.iter().copied().max().unwrap_or(0);
        let y = Axis::holding([0.0, count(most)].into_iter(), &chart.y, 6);
        let plot = self.frame(chart, &x, &y, area);
        for (i, &n) in bins.counts.iter().enumerate() {
            let edges = (x.fraction(bins.edges[i]), x.fraction(bins.edges[i + 1]));
            if let ((Some(left), Some(right)), Some(top)) = (edges, y.fraction(count(n))) {
                let (left, right) = (plot.x(left), plot.x(right));
                let gap = if right - left > 4.0 { 1.0 } else { 0.0 };
                let bar = Area { left, right: right - gap, top: plot.y(top), bottom: plot.bottom };
                if n > 0 {
                    self.rect(bar, self.colors.series(0));
                }
            }
        }
        self.marks(chart, &x, plot);
        self.line(vec![(plot.left, plot.bottom), (plot.right, plot.bottom)], self.colors.rule, 1.0);
    }

    /// A rule through the chart at each mark that lies on its axis.
    fn marks(&mut self, chart: &Chart, x: &Axis, plot: Area) {
        for mark in &chart.marks {
            if let Some(at) = x.fraction(*mark).filter(|at| (0.0..=1.0).contains(at)) {
                let at = plot.x(at);
                self.line(vec![(at, plot.top), (at, plot.bottom)], self.colors.series(3), 1.0);
            }
        }
    }

    /// Both axes with their names; what is left is where the data goes.
    fn frame(&mut self, chart: &Chart, x: &Axis, y: &Axis, area: Area) -> Area {
        let mut plot = Area { bottom: area.bottom - 44.0, ..area };
        let name = axis_name(&chart.y.label, chart.y.log);
        if !name.is_empty() {
            // Upright above its axis: a turned text is slow to read.
            let name = fit(&name, TEXT_SIZE, area.width());
            self.text((area.left, area.top + 6.0), name, self.colors.ink, Anchor::Left);
            plot.top += 24.0;
        }
        plot.left += widest(y.ticks.iter().map(|(_, text)| text.as_str())) + 10.0;
        plot.right -= 8.0;
        self.y_axis(y, plot);
        self.x_axis(x, &axis_name(&chart.x.label, chart.x.log), plot, false);
        self.line(vec![(plot.left, plot.bottom), (plot.right, plot.bottom)], self.colors.rule, 1.0);
        plot
    }
}
