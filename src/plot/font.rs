//! The bundled font: DejaVu Sans 2.37, reduced to Latin, Greek, punctuation, mathematics, arrows
//! and blocks (its licence is beside it). No font of the system is ever searched.

use plotters::style::{FontDesc, FontFamily, FontStyle, register_font};

use crate::error::{Error, Result};

static FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");

/// plotters measures fonts from the lowest to the highest stroke, which is 1.24 of the usual size.
pub(super) const PLOTTERS_SIZE: f64 = 1.24;

/// Gives plotters the font. It is cheap, and where each notebook cell has its own statics a cell
/// may meet a plotters that does not know it yet, so every drawing does this.
pub(super) fn register() -> Result<()> {
    register_font("sans-serif", FontStyle::Normal, FONT)
        .map_err(|_| Error::invalid("the bundled font cannot be read"))
}

/// The font at a size in pixels.
pub(super) fn font(size: f64) -> FontDesc<'static> {
    FontDesc::new(FontFamily::SansSerif, size * PLOTTERS_SIZE, FontStyle::Normal)
}

/// How wide a text is in pixels.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    // Measured large, because plotters rounds to whole pixels.
    const ZOOM: f64 = 16.0;
    font(size * ZOOM)
        .layout_box(text)
        .map_or(0.0, |((left, _), (right, _))| f64::from(right - left) / ZOOM)
}

/// A text in at most `limit` pixels: what stands in the middle gives way to `…`.
pub(super) fn fit(text: &str, size: f64, limit: f64) -> String {
    if text_width(text, size) <= limit {
        return text.to_owned();
    }
    let columns = crate::table::words::width(text);
    let shorter = (1..columns).rev().map(|n| crate::table::words::shorten_middle(text, n));
    shorter.into_iter().find(|short| text_width(short, size) <= limit).unwrap_or_default()
}
