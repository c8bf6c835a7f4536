//! A table as text for a terminal: numbers to the right, never wider than asked.

use comfy_table::{CellAlignment, LineStyle, Table as Grid, TableStyle};

use super::words::{one_line, pad_left, pad_right, shorten_middle, width, wrap};
use super::{BASELINE_NOTE, Table};

/// Spaces between two columns.
const GAP: usize = 2;
/// A shortened text column keeps this much: fewer characters no longer tell layers apart.
const MIN_TEXT_WIDTH: usize = 12;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const CYAN: &str = "\x1b[36m";
const RESET: &str = "\x1b[0m";

/// One column as it will stand there.
struct Strip {
    name: String,
    unit: String,
    cells: Vec<String>,
    right: bool,
    width: usize,
    floor: usize,
}

impl Table {
    /// The table as text of at most `columns` terminal columns; `None` is as wide as it needs.
    ///
    /// What does not fit is shortened (texts, in their middle) or left out (columns, from the
    /// right), and a last line says so. With `color`, ANSI codes mark title, header and baseline.
    pub fn to_text(&self, columns: Option<usize>, color: bool) -> String {
        let limit = columns.unwrap_or(usize::MAX).max(1);
        let mut strips: Vec<Strip> = (0..self.columns().len()).map(|i| self.strip(i)).collect();
        let dropped = fit(&mut strips, limit);
        let paint = |line: &str, code: &str| match color && !line.is_empty() {
            true => format!("{code}{line}{RESET}\n"),
            false => format!("{line}\n"),
        };
        let mut out = String::new();
        if !self.title().is_empty() {
            for line in wrap(&one_line(self.title()), limit) {
                out.push_str(&paint(&line, BOLD));
            }
        }
        if !strips.is_empty() {
            let (header_lines, grid) = grid(&strips);
            let baseline = self.baseline_row();
            for (i, line) in grid.lines().map(str::trim_end).enumerate() {
                let code = match i.checked_sub(header_lines) {
                    None => BOLD,
                    Some(0) => DIM,
                    Some(row) if Some(row - 1) == baseline => CYAN,
                    Some(_) => "",
                };
                out.push_str(&if code.is_empty() {
                    format!("{line}\n")
                } else {
                    paint(line, code)
                });
            }
        }
        let shortened = strips.iter().any(|s| s.cells.iter().any(|cell| width(cell) > s.width));
        for note in self.closing_lines(&dropped, shortened) {
            for line in wrap(&note, limit) {
                out.push_str(&paint(&line, DIM));
            }
        }
        out.truncate(out.trim_end_matches('\n').len());
        out
    }

    fn strip(&self, index: usize) -> Strip {
        let column = &self.columns()[index];
        let cells: Vec<String> =
            self.column_strings(index).iter().map(|cell| one_line(cell)).collect();
        let (name, unit) = (one_line(&column.name), one_line(&column.unit));
        let widest = cells.iter().map(|cell| width(cell)).max().unwrap_or(0);
        let longest_word = name.split_whitespace().map(width).max().unwrap_or(0);
        let narrow = widest.max(longest_word).max(width(&unit));
        let right = column.kind.is_number();
        // Digits are never cut to make room, only the words above them are broken into lines.
        let floor = if right { narrow } else { narrow.min(MIN_TEXT_WIDTH) };
        Strip { width: narrow.max(width(&name)), name, unit, cells, right, floor }
    }

    fn closing_lines(&self, dropped: &[String], shortened: bool) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_empty() {
            lines.push("(no rows)".to_owned());
        }
        for note in self.notes() {
            match note.strip_prefix(BASELINE_NOTE) {
                Some(label) => lines.push(format!("baseline: {}", one_line(label))),
                None => lines.push(one_line(note)),
            }
        }
        if !dropped.is_empty() {
            lines.push(format!("not shown for lack of width: {}", dropped.join(", ")));
        }
        if shortened {
            lines.push("texts with … are shortened for lack of width".to_owned());
        }
        lines
    }
}

/// Narrows the columns until they fit, and drops those at the right that cannot; says which.
fn fit(strips: &mut Vec<Strip>, limit: usize) -> Vec<String> {
    let mut used = 0;
    let fitting = strips.iter().take_while(|strip| {
        used += strip.floor + GAP;
        used - GAP <= limit
    });
    let kept = fitting.count().max(1).min(strips.len());
    let dropped = strips.drain(kept..).map(|strip| strip.name).collect();
    if let [only] = strips.as_mut_slice() {
        only.floor = only.floor.min(limit);
    }
    let total =
        |strips: &[Strip]| strips.iter().map(|s| s.width + GAP).sum::<usize>().saturating_sub(GAP);
    while total(strips) > limit {
        let widest = strips.iter_mut().filter(|s| s.width > s.floor).max_by_key(|s| s.width);
        let Some(strip) = widest else { break };
        strip.width -= 1;
    }
    dropped
}

/// The header's number of lines, and the text of header, rule and rows.
fn grid(strips: &[Strip]) -> (usize, String) {
    let names: Vec<Vec<String>> = strips.iter().map(|s| wrap(&s.name, s.width)).collect();
    let name_lines = names.iter().map(Vec::len).max().unwrap_or(1);
    let has_units = strips.iter().any(|s| !s.unit.is_empty());
    let align = |strip: &Strip, text: &str| match strip.right {
        true => pad_left(text, strip.width),
        false => pad_right(text, strip.width),
    };
    // The last lines of all names stand on one line, above the units.
    let header = strips.iter().zip(&names).map(|(strip, name)| {
        let blank = name_lines - name.len();
        let mut lines: Vec<&str> = std::iter::repeat_n(" ", blank).collect();
        lines.extend(name.iter().map(String::as_str));
        let unit = shorten_middle(&strip.unit, strip.width);
        if has_units {
            lines.push(&unit);
        }
        lines.iter().map(|line| align(strip, line)).collect::<Vec<_>>().join("\n")
    });
    let rule = LineStyle::none().fill('─').junction('─');
    let mut grid = Grid::new();
    grid.load_style(TableStyle::new().header_separator(rule));
    grid.set_header(header.collect::<Vec<_>>());
    let rows = strips.iter().map(|strip| strip.cells.len()).max().unwrap_or(0);
    for row in 0..rows {
        let cells = strips.iter().map(|s| align(s, &shorten_middle(&s.cells[row], s.width)));
        grid.add_row(cells.collect::<Vec<_>>());
    }
    let last = strips.len().saturating_sub(1);
    for (i, column) in grid.column_iter_mut().enumerate() {
        // The grid puts the other space of the gap between columns itself.
        column.set_padding((0, if i == last { 0 } else { 1 }));
        column.set_cell_alignment(CellAlignment::Left);
    }
    (name_lines + usize::from(has_units), grid.to_string())
}
