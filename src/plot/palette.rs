//! Colors that people with any kind of color vision can tell apart.

use super::Theme;

/// Red, green and blue, 0–255.
pub(super) type Rgb = (u8, u8, u8);

/// Series, in order: Okabe and Ito (2008), "Color universal design", without its yellow, which is
/// too pale for lines on white.
const SERIES: [Rgb; 7] = [
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (86, 180, 233),
    (60, 60, 60),
];

/// The same on a dark background: the first brighter, the last light.
const SERIES_DARK: [Rgb; 7] = [
    (64, 158, 222),
    (230, 159, 0),
    (0, 178, 132),
    (232, 112, 30),
    (214, 142, 182),
    (120, 200, 240),
    (190, 190, 190),
];

/// What a theme draws everything but data with.
#[derive(Debug)]
pub(super) struct Colors {
    pub(super) background: Rgb,
    /// Titles and names.
    pub(super) ink: Rgb,
    /// Numbers and notes.
    pub(super) gray: Rgb,
    pub(super) grid: Rgb,
    pub(super) rule: Rgb,
    /// The bar that others are compared with.
    pub(super) baseline: Rgb,
    /// A cell of a heat map without a number.
    pub(super) nothing: Rgb,
    series: [Rgb; 7],
}

const LIGHT: Colors = Colors {
    background: (255, 255, 255),
    ink: (34, 34, 34),
    gray: (105, 105, 105),
    grid: (226, 226, 226),
    rule: (150, 150, 150),
    baseline: (140, 140, 140),
    nothing: (240, 240, 240),
    series: SERIES,
};

const DARK: Colors = Colors {
    background: (22, 24, 28),
    ink: (232, 232, 232),
    gray: (164, 164, 164),
    grid: (52, 55, 61),
    rule: (120, 120, 120),
    baseline: (130, 130, 130),
    nothing: (40, 42, 47),
    series: SERIES_DARK,
};

impl Colors {
    pub(super) const fn of(theme: Theme) -> &'static Colors {
        match theme {
            Theme::Light => &LIGHT,
            Theme::Dark => &DARK,
        }
    }

    pub(super) fn series(&self, index: usize) -> Rgb {
        self.series[index % self.series.len()]
    }
}

/// The same in the 256 colors of terminals, brighter, as their background is often dark.
const SERIES_ANSI: [u8; 7] = [33, 214, 36, 166, 175, 117, 245];

/// What each series is drawn with where there is no color.
const MARKS: [char; 7] = ['●', '▲', '■', '◆', '○', '△', '□'];

/// Viridis (van der Walt and Smith 2015), every eighth of it: dark violet to yellow.
const VIRIDIS: [Rgb; 9] = [
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
];

pub(super) fn series_ansi(index: usize) -> u8 {
    SERIES_ANSI[index % SERIES_ANSI.len()]
}

pub(super) fn mark(index: usize) -> char {
    MARKS[index % MARKS.len()]
}

/// The shade of a heat map at `fraction` from 0 to 1.
pub(super) fn shade(fraction: f64) -> Rgb {
    let place = fraction.clamp(0.0, 1.0) * 8.0;
    let low = (0..8_u8).rev().find(|i| f64::from(*i) <= place).unwrap_or(0);
    let (a, b) = (VIRIDIS[usize::from(low)], VIRIDIS[usize::from(low) + 1]);
    let t = place - f64::from(low);
    let mix = |a: u8, b: u8| byte(f64::from(a) + (f64::from(b) - f64::from(a)) * t);
    (mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// Whether black text is easier to read on it than white.
pub(super) fn is_light((r, g, b): Rgb) -> bool {
    // Luma of ITU-R BT.601.
    0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b) > 140.0
}

/// The nearest of a terminal's 6 × 6 × 6 colors.
pub(super) fn ansi((r, g, b): Rgb) -> u8 {
    let level = |v: u8| byte((f64::from(v.max(55)) - 55.0) / 40.0);
    16 + 36 * level(r) + 6 * level(g) + level(b)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0–255")]
fn byte(value: f64) -> u8 {
    value.round_ties_even().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_go_from_dark_to_light_and_stay_inside() {
        assert_eq!(shade(0.0), VIRIDIS[0]);
        assert_eq!(shade(1.0), VIRIDIS[8]);
        assert_eq!(shade(-1.0), VIRIDIS[0]);
        assert_eq!(shade(2.0), VIRIDIS[8]);
        assert_eq!(shade(0.5), VIRIDIS[4]);
        assert!(!is_light(shade(0.1)) && is_light(shade(0.95)));
    }

    #[test]
    fn terminal_colors_are_the_nearest_of_the_cube() {
        for (rgb, want) in [((0, 0, 0), 16), ((255, 255, 255), 231), ((0, 135, 255), 33)] {
            assert_eq!(ansi(rgb), want, "{rgb:?}");
        }
    }
}
