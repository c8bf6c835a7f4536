//! What a notebook shows of a value: the same content under several MIME types, of which the notebook takes the
//! richest that it can draw. Plain text is always among them.
//!
//! Our own Jupyter kernel sends these parts as they are; evcxr's takes them from standard output, in the frame that
//! [`evcxr_content`] puts around them.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::bench::{DecodeResult, PrefillResult};
use crate::error::Result;
use crate::eval::{KlResult, PerplexityResult, SqnrResult};
use crate::generate::Generated;
use crate::model::Model;
use crate::plot::Figure;
use crate::quantization::QuantizeReport;
use crate::session::Session;
use crate::summary;
use crate::table::{Cell, Table, escape_html, number};
use crate::tensor::Tensor;
use crate::value::Value;

/// Content under one MIME type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `text/plain`, `text/html`, `image/svg+xml` or `image/png`.
    pub mime: &'static str,
    /// The content: text, and a PNG in base64.
    pub content: String,
}

impl Part {
    fn plain(content: String) -> Part {
        Part { mime: "text/plain", content }
    }

    fn html(content: String) -> Part {
        Part { mime: "text/html", content }
    }
}

/// The parts of any value; [`Value::Nothing`] has none.
pub fn parts(value: &Value) -> Vec<Part> {
    match value {
        Value::Nothing => Vec::new(),
        Value::Text(text) => vec![Part::plain(text.clone())],
        Value::Model(model) => model_parts(model),
        Value::Table(table) => table_parts(table),
        Value::Figure(figure) => figure_parts(figure),
        Value::Tensor(tensor) => tensor_parts(tensor),
    }
}

/// A table in HTML and as text.
pub fn table_parts(table: &Table) -> Vec<Part> {
    vec![Part::html(table.to_html()), Part::plain(table.to_text(None, false))]
}

/// A figure of more pixels is shown as SVG alone: its PNG would take longer than its cell.
const MOST_PIXELS: u32 = 1 << 21;

/// A figure as SVG, as PNG for where no SVG is shown, and as text. One that cannot be drawn says why.
pub fn figure_parts(figure: &Figure) -> Vec<Part> {
    let text = Part::plain(figure.to_text(80, 20, false));
    match figure.to_svg() {
        Ok(svg) => {
            let mut parts = vec![Part { mime: "image/svg+xml", content: svg }];
            let (width, height) = figure.size();
            if width.saturating_mul(height) <= MOST_PIXELS
                && let Ok(png) = figure.to_png(width, height)
            {
                parts.push(Part { mime: "image/png", content: base64(&png) });
            }
            parts.push(text);
            parts
        }
        Err(error) => {
            let words = escape_html(&error.to_string());
            vec![Part::html(format!("<p>{words}</p>")), text]
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A model as a tree that opens and closes, and as one line.
pub fn model_parts(model: &Model) -> Vec<Part> {
    let line = Value::Model(model.clone()).summary();
    // A model whose table cannot be made is still named.
    let tree =
        model_tree(model, &line).unwrap_or_else(|_| format!("<p>{}</p>", escape_html(&line)));
    vec![Part::html(tree), Part::plain(line)]
}

/// A tensor with the corner of its numbers.
pub fn tensor_parts(tensor: &Tensor) -> Vec<Part> {
    vec![Part::html(tensor_corner(tensor)), Part::plain(format!("{tensor:?}"))]
}

/// What a session holds, a row for each variable.
pub fn session_parts(session: &Session) -> Vec<Part> {
    let mut table = Table::new("Session").column("variable").column("kind").column("value");
    for (name, value) in session.variables() {
        let row = [name.as_str().into(), value.kind().to_string().into(), value.summary().into()];
        if let Err(error) = table.push(row) {
            table.note(error.to_string());
        }
    }
    let cpu = session.cpu();
    let (isa, threads, seed) = (cpu.isa().name(), cpu.threads().count(), session.seed());
    table.note(format!("{isa} · {threads} threads · seed {seed}"));
    table_parts(&table)
}

fn perplexity_parts(result: &PerplexityResult) -> Vec<Part> {
    report_parts(result.table("model", "text"))
}

fn kl_parts(result: &KlResult) -> Vec<Part> {
    report_parts(result.table("model", "baseline", "text"))
}

fn sqnr_parts(result: &SqnrResult) -> Vec<Part> {
    report_parts(result.table("model", "baseline"))
}

fn decode_parts(result: &DecodeResult) -> Vec<Part> {
    report_parts(result.table("model"))
}

fn prefill_parts(result: &PrefillResult) -> Vec<Part> {
    report_parts(result.table("model"))
}

fn quantize_parts(report: &QuantizeReport) -> Vec<Part> {
    report_parts(report.table())
}

fn generated_parts(generated: &Generated) -> Vec<Part> {
    vec![Part::plain(generated.text.clone())]
}

fn report_parts(table: Result<Table>) -> Vec<Part> {
    match table {
        Ok(table) => table_parts(&table),
        Err(error) => vec![Part::plain(error.to_string())],
    }
}

/// The parts as evcxr takes them from standard output.
pub fn evcxr_content(parts: &[Part]) -> String {
    let framed = parts.iter().map(|Part { mime, content }| {
        // Inside HTML the words of an SVG can be selected and searched.
        let mime = if *mime == "image/svg+xml" { "text/html" } else { mime };
        format!("EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT")
    });
    framed.collect::<Vec<_>>().join("\n")
}

/// Shows the parts in an evcxr notebook.
#[expect(clippy::print_stdout, reason = "evcxr reads what a cell shows from standard output")]
pub fn show(parts: &[Part]) {
    println!("{}", evcxr_content(parts));
}

macro_rules! evcxr_display {
    ($($ty:ty => $parts:ident),+) => {$(
        impl $ty {
            /// Called by evcxr when a cell of a notebook ends with this value.
            pub fn evcxr_display(&self) {
                show(&$parts(self));
            }
        }
    )+};
}

evcxr_display!(
    Value => parts, Table => table_parts, Figure => figure_parts, Model => model_parts,
    Tensor => tensor_parts, Session => session_parts, PerplexityResult => perplexity_parts, KlResult => kl_parts,
    SqnrResult => sqnr_parts, DecodeResult => decode_parts, PrefillResult => prefill_parts,
    QuantizeReport => quantize_parts, Generated => generated_parts
);

/// Nested `<details>`: the model, its blocks, the parts of each. Blocks that are alike are one.
fn model_tree(model: &Model, line: &str) -> Result<String> {
    let table = summary::layers(model, false)?;
    let texts = |column: &str| table.column_text(column);
    let (layers, shapes) = (texts("layer")?, texts("shape")?);
    let (workflows, options) = (texts("workflow")?, texts("options")?);
    let (bytes, bits) = (texts("bytes")?, texts("stored")?);
    let mut html =
        format!("<details class=\"aolab-model\"><summary>{}</summary>\n<ul>\n", escape_html(line));
    let mut within = false;
    for i in 0..table.len() {
        let (name, indented) = match layers[i].strip_prefix("  ") {
            Some(name) => (name, true),
            None => (layers[i].as_str(), false),
        };
        if within && !indented {
            html.push_str("</ul></details></li>\n");
        }
        within = indented;
        let (name, shape) = (escape_html(name), escape_html(&shapes[i]));
        if *table.cell(i, "bytes")? == Cell::Missing {
            let _ =
                writeln!(html, "<li><details><summary>{name} <small>{shape}</small></summary><ul>");
            within = true;
            continue;
        }
        let _ = writeln!(
            html,
            "<li><code>{name}</code> {shape} · {} {} · {} · {} bits/weight</li>",
            escape_html(&workflows[i]),
            escape_html(&options[i]),
            bytes[i],
            bits[i],
        );
    }
    if within {
        html.push_str("</ul></details></li>\n");
    }
    html.push_str("</ul></details>\n");
    Ok(html)
}

/// How many rows and columns of a tensor are shown.
const CORNER: usize = 8;

fn tensor_corner(tensor: &Tensor) -> String {
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    let mut html = format!("<p>Tensor {dtype} {shape:?}, {}</p>\n", size_of(tensor));
    let columns = shape.last().copied().unwrap_or(1);
    let values = tensor.to_f32_vec();
    if values.is_empty() || columns == 0 {
        return html;
    }
    html.push_str("<table class=\"aolab\">\n");
    for row in values.chunks(columns).take(CORNER) {
        html.push_str("<tr>");
        for value in row.iter().take(CORNER) {
            let _ = write!(html, "<td style=\"text-align:right\">{value:.4}</td>");
        }
        html.push_str(if columns > CORNER { "<td>…</td></tr>\n" } else { "</tr>\n" });
    }
    html.push_str(if values.len() / columns > CORNER { "<tr><td>…</td></tr>\n" } else { "" });
    html.push_str("</table>\n");
    html
}

fn size_of(tensor: &Tensor) -> String {
    number::bytes(tensor.nbytes() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mimes(parts: &[Part]) -> Vec<&'static str> {
        parts.iter().map(|part| part.mime).collect()
    }

    #[test]
    fn every_value_shows_as_text_and_richer() {
        let mut lab = Session::new();
        lab.run("t = load tiny | size; f = $t | plot; m = load tiny").expect("three values");
        let cases: [(&str, &[&str]); 3] = [
            ("t", &["text/html", "text/plain"]),
            ("f", &["image/svg+xml", "image/png", "text/plain"]),
            ("m", &["text/html", "text/plain"]),
        ];
        for (name, wanted) in cases {
            let parts = parts(lab.variable(name).expect("bound"));
            assert_eq!(mimes(&parts), wanted, "{name}");
            assert!(parts.iter().all(|part| !part.content.trim().is_empty()), "{name}");
        }
        assert!(parts(&Value::Nothing).is_empty());
        assert_eq!(mimes(&parts(&Value::Text("a".into()))), ["text/plain"]);
        let session = session_parts(&lab);
        assert!(session[1].content.contains('m') && session[0].content.contains("<table"));
    }

    #[test]
    fn bytes_in_base64_are_those_of_the_standard() {
        // RFC 4648, section 10.
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn the_tree_of_a_model_opens_and_closes_as_often() {
        let parts = model_parts(&crate::load("tiny").expect("built in"));
        let tree = &parts[0].content;
        for tag in ["details", "ul", "li"] {
            let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
            assert_eq!(tree.matches(&open).count(), tree.matches(&close).count(), "{tag}: {tree}");
        }
        assert!(tree.matches("<details").count() >= 2, "{tree}");
        assert!(tree.contains("self_attn.q_proj"), "{tree}");
    }

    #[test]
    fn a_tensor_shows_its_corner() {
        let tensor = Tensor::new((0..200).map(|i| i as f32).collect(), &[10, 20]).expect("200");
        let html = &tensor_parts(&tensor)[0].content;
        assert_eq!(html.matches("<tr>").count(), CORNER + 1, "{html}");
        assert!(html.contains("147.0000") && !html.contains("148.0000"), "{html}");
        let empty = Tensor::zeros(crate::DType::F32, &[0, 4]).expect("empty");
        assert!(!tensor_parts(&empty)[0].content.contains("<table"));
    }

    #[test]
    fn evcxr_gets_each_part_in_its_frame() {
        let framed = evcxr_content(&[
            Part { mime: "image/svg+xml", content: "<svg/>".into() },
            Part::plain("text".into()),
        ]);
        assert_eq!(
            framed,
            "EVCXR_BEGIN_CONTENT text/html\n<svg/>\nEVCXR_END_CONTENT\n\
             EVCXR_BEGIN_CONTENT text/plain\ntext\nEVCXR_END_CONTENT"
        );
    }
}
