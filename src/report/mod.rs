//! A session as one HTML page that needs nothing else: tables that sort, figures that zoom, dark and light.
//!
//! Everything a person typed or measured is escaped. The page's own script is the only one that may run: a content security
//! policy with a nonce forbids any other, and everything from elsewhere.

use std::fmt::Write as _;

use crate::error::Result;
use crate::plot::Figure;
use crate::session::{Logged, Session};
use crate::store::{utc, utc_now_ms};
use crate::table::{Cell, Table, escape_html};
use crate::value::Value;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page of everything that `session` did.
pub fn report(session: &Session, title: &str) -> Result<String> {
    let cpu = session.cpu();
    let about = format!(
        "aolab {} · {} {}, {} threads · seed {} · {} UTC",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        cpu.isa().name(),
        cpu.threads().count(),
        session.seed(),
        utc(utc_now_ms()),
    );
    let mut body = format!(
        "<h1>{}</h1>\n<p class=\"about\">{}</p>\n",
        escape_html(title),
        escape_html(&about)
    );
    for logged in session.log_of_results() {
        body.push_str(&section(logged)?);
    }
    let script = format!(
        "<details><summary>The session as a script</summary><pre>{}</pre></details>",
        escape_html(&session.script())
    );
    body.push_str(&script);
    page(title, STYLE, &body, SCRIPT)
}

/// A whole page. `body` is HTML; `style` and `script` are ours.
pub(crate) fn page(title: &str, style: &str, body: &str, script: &str) -> Result<String> {
    let nonce = random_token()?;
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; script-src 'nonce-{nonce}'"
    );
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>{}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n<script nonce=\"{nonce}\">\n{script}</script>\n</body>\n</html>\n",
        escape_html(title)
    ))
}

/// 128 random bits from the operating system, in hexadecimal.
pub(crate) fn random_token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        crate::Error::invalid(format!("the system gives no random bytes: {error}"))
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn section(logged: &Logged) -> Result<String> {
    let took = logged.took.as_secs_f64();
    let took = if took < 1.0 { format!("{:.0} ms", took * 1e3) } else { format!("{took:.1} s") };
    let mut html = format!(
        "<section>\n<pre class=\"line\">› {}</pre><span class=\"took\">{took}</span>\n",
        escape_html(&logged.source)
    );
    match &logged.result {
        Err(why) => {
            let _ = writeln!(html, "<pre class=\"error\">{}</pre>", escape_html(why));
        }
        Ok(Value::Table(found)) => html.push_str(&table(found)),
        Ok(Value::Figure(found)) => html.push_str(&figure(found)?),
        Ok(Value::Nothing) => {}
        Ok(other) => {
            let _ = writeln!(html, "<pre>{}</pre>", escape_html(&other.to_text(None, false)));
        }
    }
    html.push_str("</section>\n");
    Ok(html)
}

/// A table whose headings sort it: each cell carries its whole value beside what is shown.
fn table(table: &Table) -> String {
    let mut html = format!(
        "<table class=\"sorts\"><caption>{}</caption>\n<thead><tr>",
        escape_html(table.title())
    );
    for column in table.columns() {
        let _ = write!(html, "<th tabindex=\"0\">{}</th>", escape_html(&column.heading()));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    let shown: Vec<Vec<String>> = table
        .columns()
        .iter()
        .map(|column| table.column_text(&column.name).unwrap_or_default())
        .collect();
    for (r, row) in table.rows().iter().enumerate() {
        html.push_str("<tr>");
        for (cell, texts) in row.iter().zip(&shown) {
            let text = escape_html(&texts[r]);
            let _ = match cell {
                Cell::Missing => write!(html, "<td class=\"none\">{text}</td>"),
                Cell::Text(_) => write!(html, "<td>{text}</td>"),
                number => {
                    let value = number.as_f64().unwrap_or(f64::NAN);
                    write!(html, "<td class=\"number\" data-value=\"{value}\">{text}</td>")
                }
            };
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table>\n");
    for note in table.notes() {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escape_html(note));
    }
    html
}

fn figure(figure: &Figure) -> Result<String> {
    Ok(format!(
        "<figure class=\"zooms\" title=\"wheel: zoom; drag: move; double click: as before\">{}</figure>\n",
        figure.to_svg()?
    ))
}
