//! A table as CSV, HTML and Markdown.

use std::fmt::Write as _;

use super::json::non_finite;
use super::{Cell, Table};

impl Table {
    /// RFC 4180: a header line, CRLF, fields quoted where they must be. Numbers have all their
    /// digits, bytes are plain integers, a missing value is empty. Title and notes are left out.
    pub fn to_csv(&self) -> String {
        let line = |fields: Vec<String>| format!("{}\r\n", fields.join(","));
        let mut out = line(self.columns().iter().map(|c| csv_field(&c.heading())).collect());
        for row in self.rows() {
            out.push_str(&line(row.iter().map(|cell| csv_field(&exact(cell))).collect()));
        }
        out
    }

    /// An HTML fragment: one `<table>` with its title as caption and its notes below.
    pub fn to_html(&self) -> String {
        let side = |index: usize| match self.columns()[index].kind.is_number() {
            true => "right",
            false => "left",
        };
        let mut out = String::from("<table class=\"aolab\">\n");
        if !self.title().is_empty() {
            let title = escape_html(self.title());
            let _ = writeln!(out, "<caption style=\"text-align:left\"><b>{title}</b></caption>");
        }
        out.push_str("<thead><tr>");
        for (i, column) in self.columns().iter().enumerate() {
            let heading = escape_html(&column.heading());
            let _ = write!(out, "<th style=\"text-align:{}\">{heading}</th>", side(i));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        let strings: Vec<_> = (0..self.columns().len()).map(|i| self.column_strings(i)).collect();
        let baseline = self.baseline_row();
        for row in 0..self.len() {
            let mark = if Some(row) == baseline { " class=\"baseline\"" } else { "" };
            let _ = write!(out, "<tr{mark}>");
            for (i, column) in strings.iter().enumerate() {
                let text = indented(&escape_html(&column[row]), "&nbsp;");
                let _ = write!(out, "<td style=\"text-align:{}\">{text}</td>", side(i));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table>\n");
        for note in self.notes() {
            let _ = writeln!(out, "<p><small>{}</small></p>", escape_html(note));
        }
        out
    }

    /// A GitHub-flavoured Markdown table with its title above and its notes below.
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        if !self.title().is_empty() {
            let _ = writeln!(out, "**{}**\n", escape_markdown(self.title()));
        }
        let line = |fields: Vec<String>| format!("| {} |\n", fields.join(" | "));
        let columns = self.columns().iter();
        out.push_str(&line(columns.clone().map(|c| escape_markdown(&c.heading())).collect()));
        let rules = columns.map(|c| if c.kind.is_number() { "---:" } else { "---" }.to_owned());
        out.push_str(&line(rules.collect()));
        let strings: Vec<_> = (0..self.columns().len()).map(|i| self.column_strings(i)).collect();
        for row in 0..self.len() {
            let cell = |c: &Vec<String>| indented(&escape_markdown(&c[row]), "&nbsp;");
            out.push_str(&line(strings.iter().map(cell).collect()));
        }
        for note in self.notes() {
            let _ = writeln!(out, "\n{}", escape_markdown(note));
        }
        out
    }
}

/// Text inside HTML or SVG.
pub(crate) fn escape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Spaces at the beginning show what belongs to what; HTML would drop them.
fn indented(text: &str, space: &str) -> String {
    let rest = text.trim_start_matches(' ');
    format!("{}{rest}", space.repeat(text.len() - rest.len()))
}

fn escape_markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '<' => out.push_str("&lt;"),
            '|' | '*' | '_' | '`' | '\\' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

fn exact(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => text.clone(),
        Cell::Int(value) => value.to_string(),
        Cell::Bytes(value) => value.to_string(),
        Cell::Float(value) if value.is_finite() => format!("{value:?}"),
        Cell::Float(value) => non_finite(*value).to_owned(),
        Cell::Missing => String::new(),
    }
}

fn csv_field(text: &str) -> String {
    if text.contains(['"', ',', '\r', '\n']) || text.starts_with(' ') || text.ends_with(' ') {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
