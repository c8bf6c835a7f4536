//! Two runs side by side.

use super::run::Run;
use super::time::utc;
use crate::error::Result;
use crate::table::{Cell, Table};

/// What differs between two runs and what does not: their fields, then their metrics with the change.
pub fn diff(a: (i64, &Run), b: (i64, &Run)) -> Result<Table> {
    let (left, right) = (format!("run {}", a.0), format!("run {}", b.0));
    let right = if a.0 == b.0 { format!("{right} again") } else { right };
    let mut table = Table::new(format!("{left} and {right}"))
        .column("what")
        .column(left)
        .column(right)
        .column_unit("change", "%");
    for ((what, x), (_, y)) in fields(a.1).into_iter().zip(fields(b.1)) {
        let what = if x == y { what.to_owned() } else { format!("{what} ≠") };
        table.push([what.into(), x.into(), y.into(), Cell::Missing])?;
    }
    let mut names: Vec<(&str, &str)> = Vec::new();
    for metric in a.1.metrics.iter().chain(&b.1.metrics) {
        let name = (metric.name.as_str(), metric.unit.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for (name, unit) in names {
        let value = |run: &Run| {
            let found =
                run.metrics.iter().find(|metric| (&*metric.name, &*metric.unit) == (name, unit));
            found.map(|metric| metric.value)
        };
        let (x, y) = (value(a.1), value(b.1));
        let change =
            x.zip(y).map(|(x, y)| 100.0 * (y / x - 1.0)).filter(|change| change.is_finite());
        let shown =
            |value: Option<f64>| value.map_or("–".to_owned(), |v| Cell::Float(v).to_string());
        let heading = if unit.is_empty() { name.to_owned() } else { format!("{name} ({unit})") };
        table.push([heading.into(), shown(x).into(), shown(y).into(), change.into()])?;
    }
    table.note("≠ marks what differs; numbers differ as the change says");
    Ok(table)
}

fn fields(run: &Run) -> [(&'static str, String); 12] {
    [
        ("started", utc(run.started)),
        ("line", run.line.clone()),
        ("command", run.command.clone()),
        ("model", run.subject.clone()),
        ("model hash", run.model_hash.clone()),
        ("data", run.data.clone()),
        ("seed", run.seed.to_string()),
        ("version", run.version.clone()),
        ("device", run.device.clone()),
        ("kernels", run.kernels.clone()),
        ("baseline", run.baseline.clone()),
        ("status", run.status.clone()),
    ]
}
