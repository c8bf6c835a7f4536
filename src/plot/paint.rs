//! A scene as PNG, through plotters.

use plotters::backend::BitMapBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, RGBColor, ShapeStyle, TextStyle};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, DrawingBackend, DrawingErrorKind,
};

use super::font;
use super::palette::Rgb;
use super::scene::{Anchor, Scene, Shape};
use crate::error::{Error, Result};

/// plotters' bitmaps have a text's middle a tenth of its size above the place asked for.
const BITMAP_TEXT_DROP: f64 = 0.1;

/// Drawn so many times as large and averaged, because plotters draws lines with hard edges.
const ZOOM: u32 = 3;

/// Rows of the figure that are drawn at once: their pixels, nine for each, stay in the processor's caches.
const BAND: u32 = 48;

pub(super) fn png(scene: &Scene) -> Result<Vec<u8>> {
    encode(&drawn(scene, BAND)?, pixels(scene.width), pixels(scene.height))
}

/// The pixels of a scene, three bytes each, drawn `band` rows at a time.
pub(super) fn drawn(scene: &Scene, band: u32) -> Result<Vec<u8>> {
    let (width, height) = (pixels(scene.width), pixels(scene.height));
    let bytes = |rows: u32, zoom: u32| {
        let pixels = u64::from(width * zoom) * u64::from(rows * zoom);
        usize::try_from(pixels * 3).map_err(|_| Error::invalid("the figure does not fit in memory"))
    };
    let mut small = Vec::with_capacity(bytes(height, 1)?);
    let mut large = vec![0; bytes(band.min(height), ZOOM)?];
    let mut sums = Vec::new();
    let mut top = 0;
    while top < height {
        let rows = band.min(height - top);
        let part = &mut large[..bytes(rows, ZOOM)?];
        {
            let bitmap = BitMapBackend::with_buffer(part, (width * ZOOM, rows * ZOOM));
            let above = i32::try_from(top * ZOOM).unwrap_or(i32::MAX);
            let band = Band { bitmap, above, size: (width * ZOOM, height * ZOOM) };
            paint(scene, &band.into_drawing_area(), top, rows)?;
        }
        average(part, bytes(1, ZOOM)? / 3, &mut sums, &mut small);
        top += rows;
    }
    Ok(small)
}

/// Appends the mean of every 3 × 3 pixels; `row` is the bytes of a row of `large`. `sums` is kept from call to call.
fn average(large: &[u8], row: usize, sums: &mut Vec<u16>, small: &mut Vec<u8>) {
    for lines in large.chunks_exact(row * 3) {
        let (first, rest) = lines.split_at(row);
        let (second, third) = rest.split_at(row);
        sums.clear();
        let columns = first.iter().zip(second).zip(third);
        sums.extend(columns.map(|((a, b), c)| u16::from(*a) + u16::from(*b) + u16::from(*c)));
        for triple in sums.chunks_exact(9) {
            for channel in 0..3 {
                let sum = triple[channel] + triple[channel + 3] + triple[channel + 6];
                small.push(u8::try_from((sum + 4) / 9).unwrap_or(u8::MAX));
            }
        }
    }
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

/// Some rows of a bitmap, in the coordinates of the whole: plotters cuts fractions off towards zero, so that shapes that were moved
/// above it would be drawn otherwise.
struct Band<'a> {
    bitmap: BitMapBackend<'a>,
    /// Rows above these.
    above: i32,
    size: (u32, u32),
}

impl Band<'_> {
    fn here(&self, (x, y): BackendCoord) -> BackendCoord {
        (x, y - self.above)
    }
}

impl<'a> DrawingBackend for Band<'a> {
    type ErrorType = BitmapError<'a>;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Drawn<'a> {
        self.bitmap.ensure_prepared()
    }

    fn present(&mut self) -> Drawn<'a> {
        self.bitmap.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn<'a> {
        self.bitmap.draw_pixel(self.here(point), color)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn<'a> {
        self.bitmap.draw_rect(self.here(from), self.here(to), style, fill)
    }
}

type BitmapError<'a> = <BitMapBackend<'a> as DrawingBackend>::ErrorType;

/// What plotters gives for each stroke.
type Drawn<'a> = Result<(), DrawingErrorKind<BitmapError<'a>>>;

/// Draws the shapes that reach into the `rows` rows from `top` on.
fn paint<B: DrawingBackend>(
    scene: &Scene,
    root: &DrawingArea<B, Shift>,
    top: u32,
    rows: u32,
) -> Result<()> {
    let zoom = f64::from(ZOOM);
    let failed = |error: String| Error::invalid(format!("the figure cannot be drawn: {error}"));
    font::register()?;
    root.fill(&rgb(scene.colors.background)).map_err(|error| failed(error.to_string()))?;
    let at = |(x, y): (f64, f64)| (place(x * zoom), place(y * zoom));
    let (begin, end) = (f64::from(top), f64::from(top + rows));
    let in_band = scene.shapes.iter().filter(|shape| {
        let (high, low) = extent(shape);
        low >= begin && high <= end
    });
    for shape in in_band {
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
                root.draw_text(text, &style, at((origin.0, origin.1 + size * BITMAP_TEXT_DROP)))
            }
        };
        drawn.map_err(|error| failed(error.to_string()))?;
    }
    root.present().map_err(|error| failed(error.to_string()))
}

/// The highest and the lowest row that a shape may touch.
fn extent(shape: &Shape) -> (f64, f64) {
    let around = |y: f64, reach: f64| (y - reach - 1.0, y + reach + 1.0);
    match shape {
        Shape::Rect { area, .. } => (area.top - 1.0, area.bottom + 1.0),
        Shape::Line { points, width, .. } => {
            let ys = || points.iter().map(|(_, y)| *y);
            let (high, _) = around(ys().fold(f64::INFINITY, f64::min), *width);
            let (_, low) = around(ys().fold(f64::NEG_INFINITY, f64::max), *width);
            (high, low)
        }
        Shape::Circle { center, radius, .. } => around(center.1, *radius),
        Shape::Text { at, size, .. } => around(at.1, 2.0 * size),
    }
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
