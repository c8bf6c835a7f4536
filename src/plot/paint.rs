//! A scene as PNG, through plotters.

use plotters::backend::{BitMapBackend, DrawingBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, RGBColor, ShapeStyle, TextStyle};

use super::font;
use super::palette::Rgb;
use super::scene::{Anchor, Scene, Shape};
use crate::error::{Error, Result};

/// plotters' bitmaps have a text's middle a tenth of its size above the place asked for.
const BITMAP_TEXT_DROP: f64 = 0.1;

/// Drawn three times as large and averaged, because plotters draws lines with hard edges.
pub(super) fn png(scene: &Scene) -> Result<Vec<u8>> {
    const ZOOM: u32 = 3;
    let (width, height) = (pixels(scene.width), pixels(scene.height));
    let bytes = |zoom: u32| {
        let pixels = u64::from(width * zoom) * u64::from(height * zoom);
        usize::try_from(pixels * 3).map_err(|_| Error::invalid("the figure does not fit in memory"))
    };
    let mut large = vec![0; bytes(ZOOM)?];
    {
        let size = (width * ZOOM, height * ZOOM);
        let root = BitMapBackend::with_buffer(&mut large, size).into_drawing_area();
        paint(scene, &root, f64::from(ZOOM), BITMAP_TEXT_DROP)?;
    }
    let small = averaged(&large, usize::try_from(width).unwrap_or(0) * 3);
    encode(&small, width, height)
}

/// The mean of every 3 × 3 pixels; `row` is the bytes of a row of the result.
fn averaged(large: &[u8], row: usize) -> Vec<u8> {
    let mut small = Vec::with_capacity(large.len() / 9);
    for lines in large.chunks_exact(row * 9) {
        for at in 0..row {
            let (pixel, channel) = (at / 3, at % 3);
            let mut sum = 0_u32;
            for line in lines.chunks_exact(row * 3) {
                for x in 0..3 {
                    sum += u32::from(line[(pixel * 3 + x) * 3 + channel]);
                }
            }
            small.push(u8::try_from((sum + 4) / 9).unwrap_or(u8::MAX));
        }
    }
    small
}

fn encode(rgb: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let failed = |error| Error::invalid(format!("the PNG cannot be written: {error}"));
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(rgb).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(file)
}

/// Draws all shapes `zoom` times as large, texts lower by `text_drop` of their size.
fn paint<B: DrawingBackend>(
    scene: &Scene,
    root: &DrawingArea<B, Shift>,
    zoom: f64,
    text_drop: f64,
) -> Result<()> {
    let failed = |error: String| Error::invalid(format!("the figure cannot be drawn: {error}"));
    font::register()?;
    root.fill(&rgb(scene.colors.background)).map_err(|error| failed(error.to_string()))?;
    let at = |(x, y): (f64, f64)| (place(x * zoom), place(y * zoom));
    for shape in &scene.shapes {
        let drawn = match shape {
            Shape::Rect { area, color } => {
                // plotters draws both edges; the right and lower one belong to the neighbour.
                let (left, top) = at((area.left, area.top));
                let (right, bottom) = at((area.right, area.bottom));
                let corner = ((right - 1).max(left), (bottom - 1).max(top));
                root.draw(&Rectangle::new([(left, top), corner], rgb(*color).filled()))
            }
            Shape::Line { points, color, width } => {
                let style = ShapeStyle {
                    color: rgb(*color).to_rgba(),
                    filled: false,
                    stroke_width: pixels(width * zoom),
                };
                root.draw(&PathElement::new(
                    points.iter().map(|p| at(*p)).collect::<Vec<_>>(),
                    style,
                ))
            }
            Shape::Circle { center, radius, color } => {
                root.draw(&Circle::new(at(*center), place(radius * zoom), rgb(*color).filled()))
            }
            Shape::Text { at: origin, text, size, color, anchor } => {
                let h = match anchor {
                    Anchor::Left => HPos::Left,
                    Anchor::Center => HPos::Center,
                    Anchor::Right => HPos::Right,
                };
                let ink = rgb(*color);
                let style = TextStyle::from(font::font(size * zoom))
                    .color(&ink)
                    .pos(Pos::new(h, VPos::Center));
                root.draw_text(text, &style, at((origin.0, origin.1 + size * text_drop)))
            }
        };
        drawn.map_err(|error| failed(error.to_string()))?;
    }
    root.present().map_err(|error| failed(error.to_string()))
}

fn rgb((r, g, b): Rgb) -> RGBColor {
    RGBColor(r, g, b)
}

#[expect(clippy::cast_possible_truncation, reason = "figures are at most 8000 pixels large")]
fn place(length: f64) -> i32 {
    length.round_ties_even() as i32
}

fn pixels(length: f64) -> u32 {
    u32::try_from(place(length).max(1)).unwrap_or(1)
}
