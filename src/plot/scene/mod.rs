//! A chart laid out: shapes with places in pixels, before anybody draws them.

mod bars;
mod heat;
mod points;
mod timeline;

use super::Theme;
use super::axis::Axis;
use super::data::{Chart, Content, count};
use super::font::{self, fit, text_width};
use super::palette::{Colors, Rgb};
use crate::error::Result;

const TITLE_SIZE: f64 = 17.0;
const TEXT_SIZE: f64 = 12.0;
const NOTE_SIZE: f64 = 11.0;
const LINE_HEIGHT: f64 = 18.0;
const MARGIN: f64 = 16.0;
/// More notes would take the chart's place; they are all in the table.
const MAX_NOTES: usize = 4;

/// Where a text's place is in it. Vertically it is always the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Left,
    Center,
    Right,
}

/// Something to draw.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    Rect { area: Area, color: Rgb },
    Line { points: Vec<(f64, f64)>, color: Rgb, width: f64 },
    Circle { center: (f64, f64), radius: f64, color: Rgb },
    Text { at: (f64, f64), text: String, size: f64, color: Rgb, anchor: Anchor },
}

/// A rectangle in pixels, y downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Area {
    fn width(&self) -> f64 {
        self.right - self.left
    }

    fn height(&self) -> f64 {
        self.bottom - self.top
    }

    /// The x of a fraction from 0 (left) to 1 (right).
    fn x(&self, fraction: f64) -> f64 {
        self.left + self.width() * fraction
    }

    /// The y of a fraction from 0 (bottom) to 1 (top).
    fn y(&self, fraction: f64) -> f64 {
        self.bottom - self.height() * fraction
    }
}

/// All shapes of a figure, in the order of drawing, on `colors.background`.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) colors: &'static Colors,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) shapes: Vec<Shape>,
}

/// The height in pixels at which nothing is crowded.
pub(super) fn natural_height(chart: &Chart) -> u32 {
    let body = match &chart.content {
        Content::Bars { labels, series, .. } => {
            count(labels.len()) * bars::natural_pitch(series.len()) + 40.0
        }
        Content::Heat { rows, .. } => count(rows.len()) * 24.0 + 30.0,
        Content::Timeline { rows, .. } => count(rows.len()) * 24.0 + 44.0,
        Content::Points { .. } | Content::Histogram(_) => 360.0,
    };
    let notes = count(chart.notes.len().min(MAX_NOTES)) * LINE_HEIGHT;
    let legend = if chart.series_names().is_empty() { 0.0 } else { LINE_HEIGHT + 6.0 };
    whole_pixels((body + notes + legend + 90.0).clamp(200.0, 2400.0))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 200–2400")]
fn whole_pixels(length: f64) -> u32 {
    length.ceil() as u32
}

pub(super) fn layout(chart: &Chart, theme: Theme, width: f64, height: f64) -> Result<Scene> {
    font::register()?;
    let mut scene = Scene { colors: Colors::of(theme), width, height, shapes: Vec::new() };
    let mut area =
        Area { left: MARGIN, top: MARGIN, right: width - MARGIN, bottom: height - MARGIN + 4.0 };
    scene.heading(chart, &mut area);
    scene.notes(chart, &mut area);
    match &chart.content {
        Content::Bars { labels, series, baseline } => {
            let rows = bars::Rows { labels, series, baseline: *baseline };
            scene.bars(chart, &rows, area);
        }
        Content::Histogram(bins) => scene.histogram(chart, bins, area),
        Content::Points { series, joined, names } => {
            scene.points(chart, series, *joined, names.as_deref(), area);
        }
        Content::Heat { rows, columns, values } => {
            let grid = heat::Grid { rows, columns, values };
            scene.heat(chart, &grid, area);
        }
        Content::Timeline { rows, spans } => scene.timeline(chart, rows, spans, area),
    }
    Ok(scene)
}

impl Chart {
    /// The names for a legend; none where there is one series only.
    fn series_names(&self) -> Vec<&str> {
        let names: Vec<&str> = match &self.content {
            Content::Bars { series, .. } => series.iter().map(|one| one.name.as_str()).collect(),
            Content::Points { series, .. } => series.iter().map(|one| one.name.as_str()).collect(),
            Content::Histogram(_) | Content::Heat { .. } | Content::Timeline { .. } => Vec::new(),
        };
        if names.len() > 1 { names } else { Vec::new() }
    }
}

impl Scene {
    fn rect(&mut self, area: Area, color: Rgb) {
        self.shapes.push(Shape::Rect { area, color });
    }

    fn line(&mut self, points: Vec<(f64, f64)>, color: Rgb, width: f64) {
        self.shapes.push(Shape::Line { points, color, width });
    }

    fn text(&mut self, at: (f64, f64), text: impl Into<String>, color: Rgb, anchor: Anchor) {
        let text = text.into();
        self.shapes.push(Shape::Text { at, text, size: TEXT_SIZE, color, anchor });
    }

    /// Title and legend; `area` loses their lines.
    fn heading(&mut self, chart: &Chart, area: &mut Area) {
        if !chart.title.is_empty() {
            self.shapes.push(Shape::Text {
                at: (area.left, area.top + 8.0),
                text: fit(&chart.title, TITLE_SIZE, area.width()),
                size: TITLE_SIZE,
                color: self.colors.ink,
                anchor: Anchor::Left,
            });
            area.top += 28.0;
        }
        let names = chart.series_names();
        if names.is_empty() {
            return;
        }
        let mut x = area.left;
        let last_line = area.top + area.height() / 4.0;
        for (i, name) in names.iter().enumerate() {
            let name = fit(name, TEXT_SIZE, area.width() - 20.0);
            let wanted = text_width(&name, TEXT_SIZE) + 38.0;
            if x + wanted > area.right + 20.0 && x > area.left {
                x = area.left;
                area.top += LINE_HEIGHT;
            }
            if area.top > last_line {
                self.text(
                    (x, area.top + 6.0),
                    format!("and {} more", names.len() - i),
                    self.colors.gray,
                    Anchor::Left,
                );
                break;
            }
            let y = area.top + 6.0;
            let swatch = Area { left: x, top: y - 5.0, right: x + 10.0, bottom: y + 5.0 };
            self.rect(swatch, self.colors.series(i));
            self.text((x + 16.0, y), name, self.colors.ink, Anchor::Left);
            x += wanted;
        }
        area.top += LINE_HEIGHT + 6.0;
    }

    /// The notes at the bottom; `area` loses their lines.
    fn notes(&mut self, chart: &Chart, area: &mut Area) {
        let shown = &chart.notes[..chart.notes.len().min(MAX_NOTES)];
        for note in shown.iter().rev() {
            self.shapes.push(Shape::Text {
                at: (area.left, area.bottom - 6.0),
                text: fit(note, NOTE_SIZE, area.width()),
                size: NOTE_SIZE,
                color: self.colors.gray,
                anchor: Anchor::Left,
            });
            area.bottom -= LINE_HEIGHT;
        }
    }

    /// The marks of a horizontal axis under `area`: grid lines, labels where there is room, and
    /// the axis' name below them. They take 40 pixels.
    fn x_axis(&mut self, axis: &Axis, name: &str, area: Area, has_grid: bool) {
        let mut free_from = f64::MIN;
        let pitch = area.width() / count(axis.ticks.len().max(1));
        for (value, text) in &axis.ticks {
            let Some(at) = axis.fraction(*value) else { continue };
            let x = area.x(at);
            if has_grid {
                self.line(vec![(x, area.top), (x, area.bottom)], self.colors.grid, 1.0);
            }
            let text = fit(text, TEXT_SIZE, (pitch - 6.0).max(90.0));
            let half = text_width(&text, TEXT_SIZE) / 2.0;
            let center = x.clamp(half, (self.width - half).max(half));
            if center - half >= free_from {
                self.text((center, area.bottom + 12.0), text, self.colors.gray, Anchor::Center);
                free_from = center + half + 8.0;
            }
        }
        let name = fit(name, TEXT_SIZE, area.width());
        self.text((area.x(0.5), area.bottom + 30.0), name, self.colors.ink, Anchor::Center);
    }

    /// The marks of a vertical axis at the left of `area`: grid lines and labels.
    fn y_axis(&mut self, axis: &Axis, area: Area) {
        let mut free_below = f64::MAX;
        for (value, text) in &axis.ticks {
            let Some(at) = axis.fraction(*value) else { continue };
            let y = area.y(at);
            self.line(vec![(area.left, y), (area.right, y)], self.colors.grid, 1.0);
            if y + 7.0 <= free_below {
                self.text((area.left - 8.0, y), text, self.colors.gray, Anchor::Right);
                free_below = y - 9.0;
            }
        }
    }
}

/// The axis' name, and that it is logarithmic.
fn axis_name(label: &str, log: bool) -> String {
    match (log, label.is_empty()) {
        (false, _) => label.to_owned(),
        (true, false) => format!("{label}, logarithmic"),
        (true, true) => "logarithmic".to_owned(),
    }
}

fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> f64 {
    texts.map(|text| text_width(text, TEXT_SIZE)).fold(0.0, f64::max)
}
