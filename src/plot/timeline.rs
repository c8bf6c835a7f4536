//! What ran when: a row a name, a bar a span of time.

use super::choose::Choice;
use super::data::{Content, Span, can_draw, distinct, labels, numbers, position};
use crate::error::{Error, Result};
use crate::table::Table;

/// Reads names, starts and durations. Rows without a start or a duration are left out, and counted by the caller.
pub(super) fn timeline(table: &Table, choice: &Choice) -> Result<Content> {
    let (&[starts, durations], Some(_)) = (choice.y.as_slice(), choice.x) else {
        return Err(Error::invalid("a timeline wants a start and a duration for each name"));
    };
    let columns = table.columns();
    if columns[starts].unit != columns[durations].unit {
        return Err(Error::invalid(format!(
            "starts are in {:?} and durations in {:?}; a timeline wants one unit",
            columns[starts].unit, columns[durations].unit
        )));
    }
    let names = labels(table, choice.x);
    let rows = distinct(&names);
    let mut spans = Vec::new();
    for ((name, start), length) in
        names.iter().zip(numbers(table, starts)).zip(numbers(table, durations))
    {
        if length < 0.0 {
            return Err(Error::invalid(format!(
                "{name} at {start} lasts {length}; durations are positive"
            )));
        }
        if can_draw(start, false) && can_draw(start + length, false) {
            spans.push(Span { row: position(&rows, name), start, end: start + length });
        }
    }
    Ok(Content::Timeline { rows, spans })
}
