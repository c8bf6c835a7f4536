//! Charts as a person meets them: refused in words, drawn in characters, laid out, written.

use super::scene::{Anchor, Shape};
use super::*;
use crate::table::Cell;
use crate::table::words::width;

/// A small generator (xorshift64*) of numbers from 0 to 1.
fn random(state: &mut u64) -> f64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let high = u32::try_from(state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32).unwrap();
    f64::from(high) / f64::from(u32::MAX)
}

fn models() -> Table {
    let mut table =
        Table::new("Four ways").column("model").column("perplexity").column_unit("time", "ms");
    let rows = [("tiny", 44.33, 4.25), ("int8", 44.41, 2.2), ("int4", 47.81, 1.31)];
    for (model, perplexity, time) in rows {
        table.push([model.into(), perplexity.into(), time.into()]).unwrap();
    }
    table.mark_baseline("tiny");
    table
}

/// `layers` × 7 projections, with a NaN and an infinity.
fn layers(layers: usize) -> Table {
    let mut state = 0x5EED_u64 + 1;
    let mut table = Table::new("Error of every layer, a title that is longer than most")
        .column("layer")
        .column("projection")
        .column_unit("sqnr", "dB")
        .column("size")
        .with_note("convention: weights against bf16");
    for layer in 0..layers {
        for projection in ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "up", "down_proj"] {
            let sqnr = match random(&mut state) {
                draw if draw < 0.02 => f64::NAN,
                draw if draw < 0.04 => f64::INFINITY,
                draw => 20.0 + 30.0 * draw,
            };
            let name = format!("model.layers.{layer}.{projection}.weight");
            let nbytes = Cell::bytes(1000 + layer * 1_000_000);
            table.push([name.into(), projection.into(), sqnr.into(), nbytes]).unwrap();
        }
    }
    table
}

fn config(kind: PlotKind) -> PlotConfig {
    PlotConfig { kind, ..PlotConfig::default() }
}

/// One figure of each kind, and of the kinds' special cases.
fn figures() -> Vec<Figure> {
    let by_projection = |kind| PlotConfig {
        kind,
        x: Some("layer".into()),
        y: vec!["sqnr".into()],
        by: Some("projection".into()),
        ..PlotConfig::default()
    };
    let both = PlotConfig {
        y: vec!["perplexity".into(), "time".into()],
        log_y: true,
        ..config(PlotKind::Bars)
    };
    let mut uncertain = Table::new("").column("model").column("perplexity").column("± error");
    uncertain.push(["a".into(), 40.0.into(), 2.0.into()]).unwrap();
    uncertain.push(["b".into(), (-3.0).into(), 1.5.into()]).unwrap();
    let mut figures = vec![
        figure(&uncertain, &config(PlotKind::Bars)).unwrap(),
        figure(&models(), &config(PlotKind::Bars)).unwrap(),
        figure(&models(), &both).unwrap(),
        figure(&models(), &config(PlotKind::Lines)).unwrap(),
        figure(&layers(30), &PlotConfig { y: vec!["size".into()], ..config(PlotKind::Bars) })
            .unwrap(),
        figure(&layers(4), &by_projection(PlotKind::Bars)).unwrap(),
        figure(&layers(4), &by_projection(PlotKind::Lines)).unwrap(),
        figure(&layers(4), &by_projection(PlotKind::HeatMap)).unwrap(),
    ];
    for kind in [PlotKind::Lines, PlotKind::Scatter, PlotKind::Histogram, PlotKind::HeatMap] {
        figures.push(figure(&layers(30), &config(kind)).unwrap());
        figures.push(figure(&layers(1), &PlotConfig { log_y: true, ..config(kind) }).unwrap());
    }
    let map = PlotConfig {
        x: Some("layer".into()),
        y: vec!["sqnr".into()],
        ..config(PlotKind::LayerMap)
    };
    figures.push(figure(&layers(300), &PlotConfig { theme: Theme::Dark, ..map.clone() }).unwrap());
    figures.push(figure(&layers(2), &map).unwrap());
    let marks = vec![20.0, 25.5, 49.0, 1e9];
    let marked = PlotConfig { y: vec!["sqnr".into()], marks, ..config(PlotKind::Histogram) };
    figures.push(figure(&layers(30), &marked).unwrap());
    figures.push(figure(&spans(), &config(PlotKind::Timeline)).unwrap());
    figures
}

/// Two kernels in turn, one of them too short to see, one without a start.
fn spans() -> Table {
    let mut table =
        Table::new("A token").column("kernel").column_unit("start", "µs").column_unit("time", "µs");
    for i in 0..8_u32 {
        let start = f64::from(i) * 10.0;
        table.push(["x86-int4xint16-avx512vnni-gemv".into(), start.into(), 8.0.into()]).unwrap();
        table.push(["rms norm".into(), (start + 8.0).into(), 0.001.into()]).unwrap();
    }
    table.push(["rms norm".into(), Cell::Missing, 1.0.into()]).unwrap();
    table
}

#[test]
fn a_layer_map_puts_kinds_down_and_blocks_across() {
    let mut table = Table::new("S").column("layer").column_unit("sqnr", "dB");
    for (name, sqnr) in
        [("m.1.up", 3.0), ("m.0.up", 1.0), ("m.10.up", 9.0), ("m.0.down", 5.0), ("lm_head", 7.0)]
    {
        table.push([name.into(), sqnr.into()]).unwrap();
    }
    let found = figure(&table, &config(PlotKind::LayerMap)).unwrap();
    let data::Content::Heat { rows, columns, values } = &found.chart.content else {
        panic!("no heat map")
    };
    assert_eq!((rows.join(" "), columns.join(" ")), ("up down".into(), "0 1 10".into()));
    assert_eq!(values[0], [1.0, 3.0, 9.0]);
    assert!(values[1][0] > 4.0 && values[1][1].is_nan(), "{values:?}");
    assert!(found.to_text(80, 20, false).contains("not on the map: lm_head"));
}

#[test]
fn a_timeline_shades_the_time_that_was_taken() {
    let text = figure(&spans(), &config(PlotKind::Timeline)).unwrap().to_text(40, 20, false);
    assert!(text.contains("not drawn: 1 of 17 values"), "{text}");
    let rows: Vec<&str> =
        text.lines().filter(|l| l.contains('█') || l.starts_with("rms norm")).collect();
    assert_eq!(rows.len(), 2, "{text}");
    assert_eq!(rows[1].matches('░').count(), 8, "a trace each\n{text}");
}

#[test]
fn marks_are_drawn_where_they_lie_on_the_axis() {
    let marked = figures().into_iter().find(|f| !f.config.marks.is_empty()).unwrap();
    let color = palette::Colors::of(Theme::Light).series(3);
    let scene = scene::layout(&marked.chart, Theme::Light, 800.0, 400.0).unwrap();
    let lines =
        scene.shapes.iter().filter(|s| matches!(s, Shape::Line { color: c, .. } if *c == color));
    assert_eq!(lines.count(), 3, "one of four is outside");
    assert!(marked.to_text(80, 20, false).contains("◆1"));
}

#[test]
fn a_dark_figure_is_dark() {
    let dark = PlotConfig { theme: Theme::Dark, ..config(PlotKind::Bars) };
    let figure = figure(&models(), &dark).unwrap();
    assert!(figure.to_svg().unwrap().contains("fill=\"#16181c\""));
    let png = figure.to_png(320, 200).unwrap();
    let mut reader = png::Decoder::new(png.as_slice()).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size()];
    reader.next_frame(&mut pixels).unwrap();
    assert_eq!(&pixels[..3], [22, 24, 28]);
}

#[test]
fn a_bar_chart_in_characters() {
    let figure = figure(&models(), &PlotConfig::default()).unwrap();
    let want = "\
Four ways
perplexity
tiny ██████████████████████▎ 44.33 ◂
int8 ██████████████████████▎ 44.41
int4 ████████████████████████ 47.81
◂ baseline
baseline: tiny";
    assert_eq!(figure.to_text(37, 20, false), want);
}

#[test]
fn a_column_of_errors_becomes_whiskers() {
    let mut table = Table::new("").column("model").column("perplexity").column("± standard error");
    table.push(["a".into(), 40.0.into(), 2.0.into()]).unwrap();
    table.push(["b".into(), 44.5.into(), Cell::Missing]).unwrap();
    let figure = figure(&table, &PlotConfig::default()).unwrap();
    let text = figure.to_text(40, 10, false);
    assert!(text.contains("40.0 ± 2") && text.contains("44.5"), "{text}");
    assert_eq!(text.matches('±').count(), 1, "{text}");
    let ink = |scene: &scene::Scene| {
        let lines =
            scene.shapes.iter().filter(|s| matches!(s, Shape::Line { color: (34, 34, 34), .. }));
        lines.count()
    };
    let scene = scene::layout(&figure.chart, Theme::Light, 600.0, 300.0).unwrap();
    assert_eq!(ink(&scene), 3, "one whisker with its two ends");
}

#[test]
fn a_line_chart_in_characters() {
    let mut table = Table::new("Sweep").column("group size").column("perplexity");
    for (size, perplexity) in [(32, 1.0), (64, 2.0), (128, 4.0)] {
        table.push([size.into(), perplexity.into()]).unwrap();
    }
    let config = PlotConfig { log_x: true, log_y: true, ..config(PlotKind::Lines) };
    let text = figure(&table, &config).unwrap().to_text(30, 8, false);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["Sweep", "perplexity (logarithmic)"]);
    let marks: Vec<(usize, usize)> = lines
        .iter()
        .enumerate()
        .flat_map(|(l, line)| {
            line.chars().enumerate().filter(|(_, c)| *c == '●').map(move |(c, _)| (l, c))
        })
        .collect();
    // Doubling on both logarithmic axes is a straight line upwards.
    let [(top, right), (middle, center), (bottom, left)] = marks[..] else {
        panic!("three marks, not {marks:?}:\n{text}")
    };
    assert!((middle - top).abs_diff(bottom - middle) <= 1, "{text}");
    assert!((right - center).abs_diff(center - left) <= 1, "{text}");
    assert!(lines[10].starts_with("  └"), "{text}");
    assert!(["32", "64", "128"].iter().all(|size| lines[11].contains(size)), "{text}");
    assert_eq!(lines[12].trim(), "group size (logarithmic)");
}

#[test]
fn text_stays_within_its_width() {
    for figure in figures() {
        for columns in [24, 40, 60, 80, 120] {
            let text = figure.to_text(columns, 16, false);
            for line in text.lines() {
                assert!(width(line) <= columns, "{columns}: {line:?}\n{text}");
            }
        }
        let mut colored = figure.to_text(80, 16, true);
        while let Some(start) = colored.find("\x1b[") {
            let end = start + colored[start..].find('m').expect("codes end in m");
            colored.replace_range(start..=end, "");
        }
        assert!(colored.lines().all(|line| width(line) <= 80), "{colored}");
    }
}

/// Left, top, right and bottom of a text.
fn text_box(shape: &Shape) -> Option<[f64; 4]> {
    let Shape::Text { at: (x, y), text, size, anchor, .. } = shape else { return None };
    let length = font::text_width(text, *size);
    let left = match anchor {
        Anchor::Left => *x,
        Anchor::Center => x - length / 2.0,
        Anchor::Right => x - length,
    };
    Some([left, y - size * 0.45, left + length, y + size * 0.45])
}

fn is_finite(shape: &Shape) -> bool {
    let fits = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    match shape {
        Shape::Rect { area, .. } => {
            fits(&(area.left, area.top)) && fits(&(area.right, area.bottom))
        }
        Shape::Line { points, .. } => points.iter().all(fits),
        Shape::Circle { center, .. } => fits(center),
        Shape::Text { at, .. } => fits(at),
    }
}

#[test]
fn no_two_texts_overlap_and_none_leaves_the_figure() {
    for figure in figures() {
        let (natural_width, natural_height) = figure.size();
        for (width, height) in [(natural_width, natural_height), (480, 320), (1200, 400)] {
            let scene = scene::layout(
                &figure.chart,
                figure.config.theme,
                f64::from(width),
                f64::from(height),
            )
            .unwrap();
            assert!(scene.shapes.iter().all(is_finite), "{:?}", scene.shapes);
            let boxes: Vec<[f64; 4]> = scene.shapes.iter().filter_map(text_box).collect();
            let what = |i: usize| {
                let texts = scene.shapes.iter().filter(|s| matches!(s, Shape::Text { .. }));
                format!("{} {width}×{height}: {:?}", figure.config.kind, texts.clone().nth(i))
            };
            for (i, a) in boxes.iter().enumerate() {
                let inside = a[0] >= -0.5
                    && a[1] >= -0.5
                    && a[2] <= f64::from(width) + 0.5
                    && a[3] <= f64::from(height) + 0.5;
                assert!(inside, "{} leaves the figure: {a:?}", what(i));
                for (j, b) in boxes.iter().enumerate().skip(i + 1) {
                    let apart = a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1];
                    assert!(apart, "{}\noverlaps\n{}", what(i), what(j));
                }
            }
        }
    }
}

#[test]
fn svg_escapes_names_and_png_has_the_size_asked_for() {
    let mut table = Table::new("a < b & c").column("model").column("v");
    table.push(["<script>".into(), 1.0.into()]).unwrap();
    let figure = figure(&table, &PlotConfig::default()).unwrap();
    let svg = figure.to_svg().unwrap();
    assert!(svg.contains("a &lt; b &amp; c") && svg.contains("&lt;script&gt;"), "{svg}");
    assert!(!svg.contains("<script>"));
    // A viewer with another font keeps to the width that was laid out.
    let texts: Vec<&str> = svg.lines().filter(|line| line.starts_with("<text")).collect();
    assert!(texts.len() > 4 && texts.iter().all(|t| t.contains("textLength=\"")), "{svg}");
    let mut odd = Table::new("bell \u{7} and \u{1b}[1m").column("m").column("v");
    odd.push(["\u{0}".into(), 1.0.into()]).unwrap();
    let odd = super::figure(&odd, &PlotConfig::default()).unwrap().to_svg().unwrap();
    assert!(!odd.contains(|c: char| c.is_control() && c != '\n'), "XML has no control characters");
    let png = figure.to_png(321, 200).unwrap();
    let mut reader = png::Decoder::new(png.as_slice()).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (321, 200));
    let blue = pixels.chunks_exact(3).filter(|p| *p == [0, 114, 178]).count();
    // The bar of the largest value fills about half of the figure's width and a few lines.
    assert!(blue > 1000, "{blue} pixels of the bar");
    assert_eq!(&pixels[..3], [255, 255, 255], "light background");
    let text = figure.to_png(10, 10).unwrap_err().to_string();
    assert!(text.contains("from 160 to 8000"), "{text}");
}

#[test]
fn every_figure_can_be_written() {
    for figure in figures() {
        let (width, height) = figure.size();
        let svg = figure.to_svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        if width * height < 500_000 {
            assert!(figure.to_png(width, height).unwrap().starts_with(b"\x89PNG"));
            // Drawn a few rows at a time: what crosses a border is whole all the same.
            let (wide, high) = (f64::from(width), f64::from(height));
            let scene = scene::layout(&figure.chart, figure.config.theme, wide, high).unwrap();
            let whole = paint::drawn(&scene, height).unwrap();
            let parts = paint::drawn(&scene, 11).unwrap();
            assert!(whole == parts, "{}", figure.to_text(80, 20, false));
        }
    }
}

#[test]
fn what_cannot_be_drawn_is_said() {
    let text = figure(&layers(30), &config(PlotKind::Scatter)).unwrap().to_text(80, 10, false);
    assert!(text.contains("not drawn: "), "{text}");
    assert!(text.contains("of 210 values (missing, NaN or infinite)"), "{text}");
    let mut bars = Table::new("").column("m").column("v");
    for (name, value) in [("a", 0.0), ("b", -1.0), ("c", 10.0)] {
        bars.push([name.into(), value.into()]).unwrap();
    }
    let log = PlotConfig { log_y: true, ..PlotConfig::default() };
    let text = figure(&bars, &log).unwrap().to_text(60, 10, false);
    assert!(text.contains("not drawn: 2 of 3 values"), "{text}");
}

#[test]
fn requests_that_make_no_chart_are_refused_in_words() {
    let named = |x: Option<&str>, y: &[&str], by: Option<&str>, kind| PlotConfig {
        x: x.map(Into::into),
        y: y.iter().map(|name| (*name).to_owned()).collect(),
        by: by.map(Into::into),
        kind,
        ..PlotConfig::default()
    };
    let mut all_nan = Table::new("N").column("m").column("v");
    all_nan.push(["a".into(), f64::NAN.into()]).unwrap();
    let mut texts = Table::new("T").column("m");
    texts.push(["a".into()]).unwrap();
    let (bars, lines) = (PlotKind::Bars, PlotKind::Lines);
    let cases = [
        (models(), named(Some("modl"), &[], None, bars), "did you mean \"model\"?"),
        (models(), named(None, &["model"], None, bars), "holds texts, and numbers are wanted"),
        (models(), named(None, &["time", "tmie"], None, lines), "no column \"tmie\""),
        (models(), named(None, &[], Some("who"), bars), "no column \"who\""),
        (Table::new("E").column("a"), named(None, &[], None, bars), "no rows"),
        (texts, named(None, &[], None, bars), "no column of numbers"),
        (all_nan, named(None, &[], None, bars), "no value of \"v\" can be drawn"),
        (
            models(),
            PlotConfig { log_x: true, ..named(Some("model"), &[], None, lines) },
            "cannot be logarithmic",
        ),
        (
            layers(2),
            named(Some("projection"), &["sqnr"], Some("projection"), PlotKind::HeatMap),
            "two rows have q_proj and q_proj",
        ),
        (models(), named(None, &["time", "perplexity"], Some("model"), lines), "name one y column"),
        (models(), named(None, &[], Some("model"), PlotKind::Histogram), "a histogram shows one"),
        (models(), PlotConfig { width: 9, ..config(bars) }, "from 160 to 8000"),
        (models(), PlotConfig { marks: vec![1.0], ..config(bars) }, "no x of numbers"),
        (models(), PlotConfig { marks: vec![f64::NAN], ..config(lines) }, "has no place"),
        (models(), config(PlotKind::LayerMap), "names a layer of a block"),
        (models(), config(PlotKind::Timeline), "two y columns"),
    ];
    for (table, config, want) in cases {
        let error = figure(&table, &config).unwrap_err().to_string();
        assert!(error.contains(want), "{config:?}: {error}");
    }
    let error = "heatmap".parse::<PlotKind>().unwrap_err().to_string();
    assert!(error.contains("did you mean heat-map?"), "{error}");
    assert_eq!("lines".parse::<PlotKind>().unwrap(), PlotKind::Lines);
}

#[test]
fn a_sparkline_has_one_block_a_value() {
    let cases: [(&[f64], &str); 5] = [
        (&[1.0, 2.0, 8.0], "▁▂█"),
        (&[0.0, f64::NAN, 1.0], "▁ █"),
        (&[3.0, 3.0], "▄▄"),
        (&[f64::MIN, f64::MAX, f64::INFINITY], "▁█ "),
        (&[], ""),
    ];
    for (values, want) in cases {
        assert_eq!(sparkline(values), want, "{values:?}");
    }
}
