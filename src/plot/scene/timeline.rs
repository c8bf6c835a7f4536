//! A timeline: each row has its name at its left and its spans on a common axis.

use super::{Anchor, Area, Scene, TEXT_SIZE, axis_name, widest};
use crate::plot::axis::Axis;
use crate::plot::data::{Chart, Span, count};
use crate::plot::font::fit;

impl Scene {
    pub(super) fn timeline(&mut self, chart: &Chart, rows: &[String], spans: &[Span], area: Area) {
        let label_room = widest(rows.iter().map(String::as_str)).min(area.width() * 0.36);
        let mut plot = Area { bottom: area.bottom - 44.0, ..area };
        plot.left += label_room + 10.0;
        plot.right -= 12.0;
        let ends = spans.iter().flat_map(|span| [span.start, span.end]);
        let axis = Axis::holding(ends, &chart.x, 8);
        self.x_axis(&axis, &axis_name(&chart.x.label, chart.x.log), plot, true);
        let pitch = plot.height() / count(rows.len().max(1));
        let thickness = (pitch * 0.7).min(20.0);
        let mut free_from = f64::MIN;
        for (r, name) in rows.iter().enumerate() {
            let middle = plot.top + pitch * (count(r) + 0.5);
            if middle - 6.5 >= free_from {
                let text = fit(name, TEXT_SIZE, label_room + 0.5);
                self.text((area.left + label_room, middle), text, self.colors.ink, Anchor::Right);
                free_from = middle + 6.5;
            }
        }
        for span in spans {
            let (Some(left), Some(right)) = (axis.fraction(span.start), axis.fraction(span.end))
            else {
                continue;
            };
            let top = plot.top + pitch * (count(span.row) + 0.5) - thickness / 2.0;
            let (left, right) = (plot.x(left), plot.x(right));
            // What lasts less than a pixel is still seen.
            let bar = Area { left, right: right.max(left + 1.0), top, bottom: top + thickness };
            self.rect(bar, self.colors.series(span.row));
        }
        self.line(vec![(plot.left, plot.bottom), (plot.right, plot.bottom)], self.colors.rule, 1.0);
    }
}
