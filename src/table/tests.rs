//! Tables as a person meets them: built, refused, shown, written and read back.

use super::*;

fn sample() -> Table {
    let mut table = Table::new("Decode")
        .column("model")
        .column_unit("time per token", "ms")
        .column("size")
        .column("kernel");
    table
        .push(["tiny".into(), 44.3299.into(), Cell::Bytes(13_600_000), "f32-avx2".into()])
        .unwrap();
    table
        .push(["tiny, int4".into(), 7.1.into(), Cell::Bytes(1_900_000), "x86-int4xf32-avx2".into()])
        .unwrap();
    table.push(["broken".into(), f64::NAN.into(), Cell::Missing, Cell::Missing]).unwrap();
    table.mark_baseline("tiny");
    table
}

#[test]
fn text_aligns_numbers_and_names_units() {
    let want = "\
Decode
model       time per token     size  kernel
                        ms
──────────────────────────────────────────────────────
tiny                 44.33  13.6 MB  f32-avx2
tiny, int4            7.10  1.90 MB  x86-int4xf32-avx2
broken                 NaN        –  –
baseline: tiny";
    assert_eq!(sample().to_text(None, false), want);
    assert_eq!(sample().to_string(), want);
}

#[test]
fn text_never_exceeds_the_terminal_and_says_what_it_left_out() {
    let table = sample();
    for limit in 1..80 {
        let text = table.to_text(Some(limit), false);
        for line in text.lines() {
            assert!(words::width(line) <= limit, "{limit}: {line:?}");
        }
        let whole = ["13.6 MB", "x86-int4xf32-avx2"].iter().all(|cell| text.contains(cell));
        let said = text.contains("not shown") || text.contains("shortened");
        assert!(whole || said || limit < 12, "{limit}:\n{text}");
    }
    assert!(!table.to_text(Some(54), false).contains("shortened"));
    assert!(table.to_text(Some(30), false).contains("not shown for lack of"));
}

#[test]
fn color_adds_only_codes() {
    let plain = sample().to_text(Some(60), false);
    let mut colored = sample().to_text(Some(60), true);
    assert!(colored.contains("\x1b[36mtiny"), "the baseline row is marked");
    for code in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[36m"] {
        colored = colored.replace(code, "");
    }
    assert_eq!(colored, plain);
}

#[test]
fn wrong_rows_and_columns_are_refused_in_words() {
    let mut table = Table::new("T").column("name").column_unit("time", "ms");
    let short = table.push(["a".into()]).unwrap_err().to_string();
    assert_eq!(short, "table \"T\": a row of 1 cells for 2 columns (name, time (ms))");
    table.push(["a".into(), 1.0.into()]).unwrap();
    let kind = table.push(["b".into(), "slow".into()]).unwrap_err().to_string();
    assert_eq!(kind, "table \"T\": column \"time\" holds numbers, so it cannot take the text slow");
    assert_eq!(table.len(), 1, "a refused row leaves nothing behind");
    let near = table.column_f64("tine").unwrap_err().to_string();
    assert_eq!(near, "table \"T\" has no column \"tine\"; did you mean \"time\"?");
    let text = table.column_f64("name").unwrap_err().to_string();
    assert!(text.ends_with("columns of numbers: time"), "{text}");
    let mut twice = Table::new("T").column("a").column("a");
    assert!(twice.push([1.into(), 2.into()]).unwrap_err().to_string().contains("two columns"));
    let other = Table::new("U").column("x");
    assert!(table.append(other).unwrap_err().to_string().contains("cannot be joined"));
}

#[test]
fn integers_become_floats_beside_floats() {
    let mut table = Table::new("").column("v");
    table.push([1.into()]).unwrap();
    assert_eq!(table.columns()[0].kind, Kind::Int);
    table.push([0.5.into()]).unwrap();
    table.push([3_usize.into()]).unwrap();
    assert_eq!(table.columns()[0].kind, Kind::Float);
    assert_eq!(table.rows(), [[Cell::Float(1.0)], [Cell::Float(0.5)], [Cell::Float(3.0)]]);
}

#[test]
fn sorting_puts_what_is_no_number_last() {
    let mut table = Table::new("").column("v");
    for cell in [Cell::Float(2.0), f64::NAN.into(), 1.0.into(), Cell::Missing, 3.0.into()] {
        table.push([cell]).unwrap();
    }
    let order = |table: &Table| table.column_text("v").unwrap().join(" ");
    table.sort_by("v").unwrap();
    assert_eq!(order(&table), "1 2 3 NaN –");
    table.sort_by_descending("v").unwrap();
    assert_eq!(order(&table), "3 2 1 NaN –");
    let small = table.filter("v", |cell| cell.as_f64().is_some_and(|v| v < 2.5)).unwrap();
    assert_eq!(order(&small), "2 1");
    assert_eq!(table.head(2).notes(), ["the first 2 of 5 rows"]);
}

#[test]
fn json_reads_back_with_every_digit_and_nan() {
    let mut table = sample().with_note("convention: window");
    let values = [0.1 + 0.2, f64::MAX, 5e-324, -0.0, f64::INFINITY, f64::NEG_INFINITY];
    for (i, value) in values.into_iter().enumerate() {
        let size = Cell::Bytes(u64::MAX - 1);
        table.push([i.to_string().into(), value.into(), size, "π < \"4\"".into()]).unwrap();
    }
    let text = serde_json::to_string(&table).unwrap();
    let back: Table = serde_json::from_str(&text).unwrap();
    assert_eq!(back.columns(), table.columns());
    assert_eq!(back.notes(), table.notes());
    // NaN ≠ NaN, so rows are compared as they would be written.
    assert_eq!(format!("{:?}", back.rows()), format!("{:?}", table.rows()));
    assert_eq!(table.to_json()["rows"][2]["time per token"], "NaN");
    assert!(table.to_json()["rows"][2]["size"].is_null());
}

#[test]
fn json_that_is_no_table_is_refused() {
    let column = r#"[{"name": "v", "unit": "", "kind": "int"}]"#;
    for (rows, want) in [
        (r#"[{"v": "x"}]"#, "holds integers, and the JSON has \"x\""),
        (r#"[{"v": 1.5}]"#, "holds integers, and the JSON has 1.5"),
        (r#"[{"w": 1}]"#, "no column \"w\""),
        (r#"[3]"#, "no table"),
    ] {
        let text = format!(r#"{{"title": "t", "columns": {column}, "rows": {rows}}}"#);
        let value = serde_json::from_str(&text).unwrap();
        let error = Table::from_json(value).unwrap_err().to_string();
        assert!(error.contains(want), "{rows}: {error}");
    }
}

#[test]
fn exports_escape_what_they_must() {
    let mut table = Table::new("a < b & \"c\"").column("x|y").column_unit("n", "µs");
    table.push(["<b>, \"q\"\nnext_line".into(), 1.5e-7.into()]).unwrap();
    table.push([Cell::Missing, f64::NAN.into()]).unwrap();
    assert_eq!(table.to_csv(), "x|y,n (µs)\r\n\"<b>, \"\"q\"\"\nnext_line\",1.5e-7\r\n,NaN\r\n");
    let html = table.to_html();
    let mut tree = Table::new("").column("layer");
    tree.push(["  wq".into()]).unwrap();
    for text in [tree.to_html(), tree.to_markdown()] {
        assert!(text.contains("&nbsp;&nbsp;wq"), "{text}");
    }
    assert!(html.contains("a &lt; b &amp; &quot;c&quot;") && !html.contains("<b>,"), "{html}");
    let markdown = table.to_markdown();
    assert!(markdown.contains("| &lt;b>, \"q\" next\\_line | 1.5e-7 |"), "{markdown}");
    assert!(markdown.contains("| x\\|y | n (µs) |\n| --- | ---: |"), "{markdown}");
}

#[test]
fn a_table_without_rows_or_columns_can_be_shown() {
    let empty = Table::new("Nothing").column("a");
    assert_eq!(empty.to_text(Some(20), false), "Nothing\na\n─\n(no rows)");
    assert_eq!(Table::new("").to_text(None, false), "(no rows)");
    assert_eq!(Table::new("").to_csv(), "\r\n");
    assert!(empty.to_html().contains("<caption"));
}
