//! The trials that no other trial beats in both numbers.

use crate::error::{Error, Result};
use crate::table::{Cell, Table};

/// The rows of `table` sorted by `x`, with a column that says which are on the Pareto front: no other row is at least as
/// good in both numbers and better in one. Smaller is better, or larger where `larger` says so (for x, for y). Rows that lack a number are left
/// out, and a note says how many.
pub fn pareto(table: &Table, x: &str, y: &str, larger: (bool, bool)) -> Result<Table> {
    let (xs, ys) = (table.column_f64(x)?, table.column_f64(y)?);
    let mut order: Vec<usize> =
        (0..table.len()).filter(|i| !xs[*i].is_nan() && !ys[*i].is_nan()).collect();
    if order.is_empty() {
        return Err(Error::invalid(format!("no row has both {x} and {y}")));
    }
    let cost = |i: usize| {
        let sign = |value: f64, larger: bool| if larger { -value } else { value };
        (sign(xs[i], larger.0), sign(ys[i], larger.1))
    };
    order.sort_by(|a, b| cost(*a).0.total_cmp(&cost(*b).0).then(cost(*a).1.total_cmp(&cost(*b).1)));
    let title = format!("Pareto front of {}: {x} against {y}", table.title());
    let mut out = Table::new(title);
    for column in table.columns() {
        out = out.column_unit(&column.name, &column.unit);
    }
    let mut name = "front".to_owned();
    while table.columns().iter().any(|column| column.name == name) {
        name.push('\'');
    }
    out = out.column(name);
    let (mut best, mut at) = (f64::INFINITY, f64::INFINITY);
    let mut count = 0;
    for i in &order {
        let (a, b) = cost(*i);
        // An equal of the last one on the front is on it too.
        let same = a.total_cmp(&at).is_eq() && b.total_cmp(&best).is_eq();
        let on = b < best || same;
        if on {
            (best, at) = (b, a);
            count += 1;
        }
        let mark = Cell::from(if on { "on the front" } else { "beaten" });
        out.push(table.rows()[*i].iter().cloned().chain([mark]))?;
    }
    let way = |larger| if larger { "larger" } else { "smaller" };
    out.note(format!(
        "{count} of {} rows are on the front: {} {x} and {} {y} are better",
        order.len(),
        way(larger.0),
        way(larger.1)
    ));
    if order.len() < table.len() {
        out.note(format!("{} rows lack a number and are left out", table.len() - order.len()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(points: &[(f64, f64)], larger: (bool, bool)) -> Vec<(f64, f64)> {
        let mut table = Table::new("t").column("x").column("y");
        for (x, y) in points {
            table.push([(*x).into(), (*y).into()]).expect("a row");
        }
        let found = pareto(&table, "x", "y", larger).expect("a front");
        let marks = found.column_text("front").expect("marks");
        let (xs, ys) = (found.column_f64("x").expect("x"), found.column_f64("y").expect("y"));
        (0..marks.len()).filter(|i| marks[*i] == "on the front").map(|i| (xs[i], ys[i])).collect()
    }

    #[test]
    fn what_is_beaten_is_not_on_the_front() {
        let points = [
            (4.0, 40.0),
            (8.0, 39.0),
            (2.0, 90.0),
            (4.0, 41.0),
            (16.0, 39.0),
            (8.0, 39.0),
            (3.0, f64::NAN),
        ];
        assert_eq!(
            front(&points, (false, false)),
            [(2.0, 90.0), (4.0, 40.0), (8.0, 39.0), (8.0, 39.0)]
        );
        assert_eq!(front(&points, (true, true)), [(16.0, 39.0), (4.0, 41.0), (2.0, 90.0)]);
        // Every point of a front is beaten by none, and every other point by some: by the definition, on random points.
        let mut rng = crate::rng::Rng::new(1);
        let points: Vec<(f64, f64)> = (0..200)
            .map(|_| ((rng.uniform() * 20.0).floor(), (rng.uniform() * 20.0).floor()))
            .collect();
        let on = front(&points, (false, false));
        let beats =
            |a: &(f64, f64), b: &(f64, f64)| a.0 <= b.0 && a.1 <= b.1 && (a.0 < b.0 || a.1 < b.1);
        for point in &points {
            let beaten = points.iter().any(|other| beats(other, point));
            assert_eq!(!beaten, on.contains(point), "{point:?}");
        }
    }
}
