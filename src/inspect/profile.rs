//! The profiler (U04): when each linear layer ran and with which kernel, as a Chrome trace that chrome://tracing and
//! ui.perfetto.dev open.

use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aolab_kernels::{Cost, Cpu};
use serde_json::{Value as Json, json};

use crate::error::Result;
use crate::model::{DeviceForm, InputTransform, Job, Model, Weight};
use crate::table::{Cell, Table};
use crate::tensor::{DType, Tensor};

/// Something that took time.
#[derive(Clone, Debug)]
struct Event {
    name: String,
    category: &'static str,
    begin_us: f64,
    took_us: f64,
    kernel: String,
    rows: usize,
    cost: Cost,
}

/// A recording under way. Clones record into the same.
#[derive(Clone, Debug)]
pub struct Profile {
    begin: Instant,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Default for Profile {
    fn default() -> Profile {
        Profile { begin: Instant::now(), events: Arc::default() }
    }
}

/// A weight that says when it works. What it computes is what the weight inside computes.
#[derive(Debug)]
struct Timed {
    fqn: String,
    inner: Arc<dyn Weight>,
    profile: Profile,
}

impl Profile {
    /// `model` with every linear layer recorded.
    pub fn watch(&self, model: &Model) -> Result<Model> {
        let mut watched = model.clone();
        for (fqn, linear) in model.linears() {
            let (name, inner) = (fqn.clone(), linear.weight);
            watched
                .set_weight(&fqn, Arc::new(Timed { fqn: name, inner, profile: self.clone() }))?;
        }
        Ok(watched)
    }

    fn record(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records `work` as an event around what happens in it.
    pub fn stage<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = work();
        self.record(Event {
            name: name.to_owned(),
            category: "command",
            begin_us: (begin - self.begin).as_secs_f64() * 1e6,
            took_us: begin.elapsed().as_secs_f64() * 1e6,
            kernel: String::new(),
            rows: 0,
            cost: Cost { bytes: 0, flops: 0 },
        });
        result
    }

    /// The trace in Chrome's format: complete events, microseconds, the command in one row and its layers in the next.
    pub fn to_chrome_trace(&self) -> Json {
        let event = |event: Event| {
            let mut arguments = json!({});
            if event.category == "linear" {
                let seconds = event.took_us * 1e-6;
                arguments = json!({
                    "kernel": event.kernel,
                    "M": event.rows,
                    "bytes": event.cost.bytes,
                    "flops": event.cost.flops,
                    "GB/s": event.cost.gb_per_s(seconds),
                    "GFLOP/s": event.cost.gflop_per_s(seconds),
                });
            }
            json!({
                "name": event.name, "cat": event.category, "ph": "X", "pid": 1,
                "tid": if event.category == "command" { 1 } else { 2 },
                "ts": event.begin_us, "dur": event.took_us, "args": arguments,
            })
        };
        let name = |tid: u32, name: &str| json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": name}});
        let mut events = vec![name(1, "commands"), name(2, "linear layers")];
        events.extend(self.events().into_iter().map(event));
        json!({"traceEvents": events, "displayTimeUnit": "ms"})
    }

    /// Which kernels took the time: calls, time, and what each reached.
    #[expect(clippy::cast_precision_loss, reason = "costs are far below 2⁵³")]
    pub fn table(&self) -> Result<Table> {
        let mut kernels: indexmap::IndexMap<String, (usize, f64, Cost)> = indexmap::IndexMap::new();
        let mut commands = 0.0;
        for event in self.events() {
            if event.category == "command" {
                commands += event.took_us;
                continue;
            }
            let name =
                if event.rows == 1 { event.kernel } else { format!("{}, many rows", event.kernel) };
            let sum = kernels.entry(name).or_insert((0, 0.0, Cost { bytes: 0, flops: 0 }));
            sum.0 += 1;
            sum.1 += event.took_us;
            sum.2.bytes += event.cost.bytes;
            sum.2.flops += event.cost.flops;
        }
        kernels.sort_by(|_, a, _, b| b.1.total_cmp(&a.1));
        let mut table = Table::new("Time of linear layers by kernel")
            .column("kernel")
            .column("calls")
            .column_unit("time", "ms")
            .column_unit("of all", "%")
            .column_unit("bandwidth", "GB/s")
            .column_unit("rate", "GFLOP/s");
        let layers: f64 = kernels.values().map(|(_, us, _)| us).sum();
        let all = commands.max(layers);
        for (kernel, (calls, us, cost)) in kernels {
            table.push([
                kernel.into(),
                calls.into(),
                Cell::Float(us * 1e-3),
                Cell::Float(100.0 * us / all),
                Cell::Float(cost.bytes as f64 / us * 1e-3),
                Cell::Float(cost.flops as f64 / us * 1e-3),
            ])?;
        }
        let rest = [Cell::Missing, Cell::Missing];
        let other = (all - layers) * 1e-3;
        let row = [
            "everything else".into(),
            Cell::Missing,
            other.into(),
            Cell::Float(100.0 * (all - layers) / all),
        ];
        table.push(row.into_iter().chain(rest))?;
        Ok(table)
    }
}

impl Timed {
    /// Runs `work` and records it as one call.
    fn timed(&self, call: Call, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        work()?;
        self.profile.record(Event {
            name: call.name,
            category: "linear",
            begin_us: (begin - self.profile.begin).as_secs_f64() * 1e6,
            took_us: begin.elapsed().as_secs_f64() * 1e6,
            kernel: call.kernel,
            rows: call.rows,
            cost: call.cost,
        });
        Ok(())
    }
}

/// What a call of one layer, or of several that read the same input, is.
struct Call {
    name: String,
    kernel: String,
    rows: usize,
    cost: Cost,
}

impl Weight for Timed {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn workflow(&self) -> String {
        self.inner.workflow()
    }

    fn details(&self) -> String {
        self.inner.details()
    }

    fn dtype(&self) -> DType {
        self.inner.dtype()
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.inner.dequantize_rows(rows, out)
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        self.inner.tensors()
    }

    fn meta(&self) -> Json {
        self.inner.meta()
    }

    fn nbytes(&self) -> usize {
        self.inner.nbytes()
    }

    fn linear(&self, cpu: &Cpu, x: &[f32], m: usize, y: &mut [f32]) -> Result<()> {
        let (kernel, cost) = (self.inner.kernel(cpu, m), self.inner.cost(m));
        let call = Call { name: self.fqn.clone(), kernel, rows: m, cost };
        self.timed(call, || self.inner.linear(cpu, x, m, y))
    }

    /// Layers that read the same input are one call of the weight inside, and one event.
    fn linear_many(&self, cpu: &Cpu, x: &[f32], m: usize, jobs: &mut [Job<'_>]) -> Result<()> {
        let mut names = Vec::new();
        let mut kernels: Vec<String> = Vec::new();
        let mut cost = Cost { bytes: 0, flops: 0 };
        let mut inner: Vec<Job<'_>> = Vec::with_capacity(jobs.len());
        for (weight, y) in jobs.iter_mut() {
            let any: &dyn Any = *weight;
            let of_job = weight.cost(m);
            let kernel = weight.kernel(cpu, m);
            if !kernels.contains(&kernel) {
                kernels.push(kernel);
            }
            cost.bytes += of_job.bytes;
            cost.flops += of_job.flops;
            match any.downcast_ref::<Timed>() {
                Some(timed) => {
                    let short = timed.fqn.rsplit('.').next().unwrap_or(&timed.fqn);
                    names.push(if names.is_empty() { timed.fqn.clone() } else { short.to_owned() });
                    inner.push((&*timed.inner, &mut **y));
                }
                None => inner.push((*weight, &mut **y)),
            }
        }
        let (name, kernel) = (names.join(" + "), kernels.join(" + "));
        self.timed(Call { name, kernel, rows: m, cost }, || {
            self.inner.linear_many(cpu, x, m, &mut inner)
        })
    }

    fn device_form(&self) -> Result<Option<DeviceForm<'_>>> {
        self.inner.device_form()
    }

    fn kernel(&self, cpu: &Cpu, m: usize) -> String {
        self.inner.kernel(cpu, m)
    }

    fn as_transform(&self) -> Option<&dyn InputTransform> {
        self.inner.as_transform()
    }

    fn cost(&self, m: usize) -> Cost {
        self.inner.cost(m)
    }
}
