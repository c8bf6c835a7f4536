//! `profile`

use std::path::PathBuf;

use aolab_kernels::cuda::Device;
use serde_json::Value as Json;

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::inspect::{GpuProfile, Profile};
use crate::io::files;
use crate::session::Session;
use crate::table::Table;
use crate::value::{Kind, Value};

/// Run a pipeline on a model, and say which kernels took the time.
///
/// On the CPU the trace holds every call of a linear layer with its kernel, bytes and rates, on a GPU every kernel;
/// chrome://tracing and ui.perfetto.dev show it.
#[derive(Debug, clap::Args)]
pub(super) struct ProfileArgs {
    /// The pipeline in quotes, such as "generate Hello" or "eval perplexity --windows 1"
    #[arg(value_name = "PIPELINE")]
    pipeline: String,
    /// Write a Chrome trace
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

impl Command for ProfileArgs {
    const NAME: &'static str = "profile";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[Example {
        line: "load tiny | quantize int8-weight-only | profile \"generate 'My fellow citizens,' --max-new-tokens 4\" --trace trace.json",
        about: "kernel by kernel, and as a time line",
        expect: "everything else",
    }];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        if let Some(device) = session.device().cloned() {
            return self.on_gpu(session, &device, input);
        }
        let profile = Profile::default();
        let model = profile.watch(&input.into_model()?)?;
        let mut own = session.fork(session.cpu().threads().count());
        own.bind_latest(model);
        // Times of a recorded model are no measurements to keep.
        own.set_store(None);
        profile.stage(&self.pipeline, || own.run(&self.pipeline))?;
        self.told(profile.table()?, || profile.to_chrome_trace())
    }
}

impl ProfileArgs {
    fn on_gpu(&self, session: &Session, device: &Device, input: Value) -> Result<Value> {
        let mut own = session.fork(session.cpu().threads().count());
        own.bind_latest(input.into_model()?);
        own.set_store(None);
        let (_, profile) = GpuProfile::of(device, || own.run(&self.pipeline))?;
        self.told(profile.table()?, || profile.to_chrome_trace())
    }

    fn told(&self, mut table: Table, trace: impl Fn() -> Json) -> Result<Value> {
        if let Some(path) = &self.trace {
            let trace = trace().to_string();
            files::write_atomically(path, |out| out.write_all(trace.as_bytes()))?;
            table.note(format!("the time line is in {}; ui.perfetto.dev shows it", path.display()));
        }
        Ok(Value::Table(table))
    }
}
