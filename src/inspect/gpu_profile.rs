//! The profiler on a GPU (U04): when each kernel ran, as a table and as a Chrome trace.

use aolab_kernels::cuda::{Device, KernelRun};
use indexmap::IndexMap;
use serde_json::{Value as Json, json};

use crate::error::Result;
use crate::table::{Cell, Table};

/// What a device ran while it was watched.
#[derive(Clone, Debug)]
pub struct GpuProfile {
    runs: Vec<KernelRun>,
    /// The GPU's name.
    device: String,
}

impl GpuProfile {
    /// Does `work` with each kernel of `device` timed by itself.
    pub fn of<T>(device: &Device, work: impl FnOnce() -> Result<T>) -> Result<(T, GpuProfile)> {
        let (result, runs) = device.record(work)?;
        Ok((result?, GpuProfile { runs, device: device.name().to_owned() }))
    }

    /// From the first kernel's start to the last one's end, in microseconds.
    fn span(&self) -> f64 {
        let first = self.runs.first().map_or(0.0, |run| run.start_us);
        let last = self.runs.iter().map(|run| run.start_us + run.us).fold(0.0, f64::max);
        (last - first).max(0.0)
    }

    /// Which kernels took the time.
    #[expect(clippy::cast_precision_loss, reason = "calls are far below 2⁵³")]
    pub fn table(&self) -> Result<Table> {
        let mut kernels: IndexMap<&str, (usize, f64)> = IndexMap::new();
        for run in &self.runs {
            let sum = kernels.entry(&run.name).or_default();
            sum.0 += 1;
            sum.1 += run.us;
        }
        kernels.sort_by(|_, a, _, b| b.1.total_cmp(&a.1));
        let mut table = Table::new("Time of kernels on the GPU")
            .column("kernel")
            .column("calls")
            .column_unit("time", "ms")
            .column_unit("of all", "%")
            .column_unit("a call", "µs");
        let all = self.span();
        let share = |us: f64| Cell::Float(if all > 0.0 { 100.0 * us / all } else { 0.0 });
        let mut busy = 0.0;
        for (name, (calls, us)) in kernels {
            busy += us;
            let each = us / calls as f64;
            table.push([
                name.into(),
                calls.into(),
                Cell::Float(us * 1e-3),
                share(us),
                Cell::Float(each),
            ])?;
        }
        let idle = (all - busy).max(0.0);
        let rest = ["between kernels".into(), Cell::Missing, Cell::Float(idle * 1e-3), share(idle)];
        table.push(rest.into_iter().chain([Cell::Missing]))?;
        table.note(format!(
            "on {}; each kernel between two events, one behind the other: replayed as a graph, as generate and bench decode do, \
             they overlap and nothing lies between them",
            self.device
        ));
        Ok(table)
    }

    /// The trace in Chrome's format: complete events in microseconds.
    pub fn to_chrome_trace(&self) -> Json {
        let name = json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": self.device}});
        let event = |run: &KernelRun| {
            let arguments = match run.blocks {
                0 => json!({}),
                blocks => json!({"blocks": blocks, "threads": run.threads}),
            };
            json!({
                "name": run.name, "cat": "kernel", "ph": "X", "pid": 1, "tid": 1,
                "ts": run.start_us, "dur": run.us, "args": arguments,
            })
        };
        let events: Vec<Json> = std::iter::once(name).chain(self.runs.iter().map(event)).collect();
        json!({"traceEvents": events, "displayTimeUnit": "ms"})
    }
}

#[cfg(test)]
mod tests {
    use super::{GpuProfile, KernelRun};

    #[test]
    fn shares_are_of_the_whole_span() {
        let run = |name: &str, start_us: f64, us: f64| KernelRun {
            name: name.to_owned(),
            start_us,
            us,
            blocks: 8,
            threads: 128,
        };
        let runs = vec![run("a", 5.0, 2.0), run("b", 8.0, 6.0), run("a", 14.0, 1.0)];
        let profile = GpuProfile { runs, device: "a GPU".to_owned() };
        let text = profile.table().expect("rows").to_string();
        let line = |name: &str| {
            let found = text.lines().find(|line| line.trim_start().starts_with(name));
            found.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line("b"), ["b", "1", "0.006", "60", "6.0"]);
        assert_eq!(line("a "), ["a", "2", "0.003", "30", "1.5"]);
        let trace = profile.to_chrome_trace();
        assert_eq!(trace["traceEvents"].as_array().map(Vec::len), Some(4));
        assert_eq!(trace["traceEvents"][2]["dur"], 6.0);
    }
}
