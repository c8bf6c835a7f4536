//! A scene as SVG.
//!
//! A viewer has its own fonts. Each text therefore says how wide it is in the bundled one, and the
//! viewer fits it into that width (`textLength`), so that what was laid out does not overlap.

use std::fmt::{Display, Write as _};

use super::font::text_width;
use super::palette::Rgb;
use super::scene::{Anchor, Scene, Shape};
use crate::table::escape_html;

/// The bundled font first, then those with nearly its widths.
const FONTS: &str = "DejaVu Sans, Bitstream Vera Sans, Verdana, Geneva, sans-serif";
/// Half of what capitals and digits reach above the baseline, in sizes: 0.729 in DejaVu Sans.
const HALF_CAPITAL: f64 = 0.365;

pub(super) fn svg(scene: &Scene) -> String {
    let (width, height) = (Number(scene.width), Number(scene.height));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"{FONTS}\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"{}\"/>\n",
        Color(scene.colors.background)
    );
    for shape in &scene.shapes {
        // Writing into a String cannot fail.
        let _ = draw(&mut out, shape);
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, shape: &Shape) -> std::fmt::Result {
    match shape {
        Shape::Rect { area, color } => {
            // Whole pixels, as neighbours must touch and not overlap.
            let [left, top, right, bottom] =
                [area.left, area.top, area.right, area.bottom].map(f64::round_ties_even);
            let (width, height) = ((right - left).max(1.0), (bottom - top).max(1.0));
            writeln!(
                out,
                "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"{}\"/>",
                Color(*color)
            )
        }
        Shape::Line { points, color, width } => {
            write!(
                out,
                "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"",
                Color(*color),
                Number(*width)
            )?;
            out.push_str(" stroke-linejoin=\"round\" points=\"");
            for (i, (x, y)) in points.iter().map(|point| crisp(points, *point)).enumerate() {
                write!(out, "{}{},{}", if i == 0 { "" } else { " " }, Number(x), Number(y))?;
            }
            out.push_str("\"/>\n");
            Ok(())
        }
        Shape::Circle { center: (x, y), radius, color } => writeln!(
            out,
            "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" fill=\"{}\"/>",
            Number(*x),
            Number(*y),
            Number(*radius),
            Color(*color)
        ),
        Shape::Text { at: (x, y), text, size, color, anchor } => {
            let anchor = match anchor {
                Anchor::Left => "start",
                Anchor::Center => "middle",
                Anchor::Right => "end",
            };
            write!(
                out,
                "<text x=\"{}\" y=\"{}\" font-size=\"{}\" fill=\"{}\" text-anchor=\"{anchor}\"",
                Number(*x),
                Number(y + HALF_CAPITAL * size),
                Number(*size),
                Color(*color)
            )?;
            let width = text_width(text, *size);
            if width > 0.0 {
                write!(out, " textLength=\"{}\" lengthAdjust=\"spacingAndGlyphs\"", Number(width))?;
            }
            writeln!(out, ">{}</text>", escape_html(&visible(text)))
        }
    }
}

/// A straight line along an axis is drawn on the middle of a pixel, where it is sharp.
fn crisp(line: &[(f64, f64)], (x, y): (f64, f64)) -> (f64, f64) {
    let middle = |v: f64| v.floor() + 0.5;
    match line {
        [a, b] if (a.0 - b.0).abs() < 1e-9 => (middle(x), y),
        [a, b] if (a.1 - b.1).abs() < 1e-9 => (x, middle(y)),
        _ => (x, y),
    }
}

/// XML has no control characters, not even escaped ones.
fn visible(text: &str) -> String {
    let is_bad = |c: char| c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}');
    text.chars().map(|c| if is_bad(c) { '\u{FFFD}' } else { c }).collect()
}

/// At most two digits behind the point, and none where none are needed.
struct Number(f64);

impl Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.2}", self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

struct Color(Rgb);

impl Display for Color {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (r, g, b) = self.0;
        write!(f, "#{r:02x}{g:02x}{b:02x}")
    }
}
