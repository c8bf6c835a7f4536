//! `profile`

use std::path::PathBuf;

use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::inspect::Profile;
use crate::io::files;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Run a pipeline on a model, and say which kernels took the time.
///
/// The trace holds every call of a linear layer with its kernel, bytes and rates; chrome://tracing and ui.perfetto.dev show it. Only what
/// the CPU computes is recorded.
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
        if session.device().is_some() {
            return Err(Error::usage(
                "profile records what the CPU computes; `set device cpu` first",
            ));
        }
        let profile = Profile::default();
        let model = profile.watch(&input.into_model()?)?;
        let mut own = session.fork(session.cpu().threads().count());
        own.bind_latest(model);
        // Times of a recorded model are no measurements to keep.
        own.set_store(None);
        profile.stage(&self.pipeline, || own.run(&self.pipeline))?;
        let mut table = profile.table()?;
        if let Some(path) = &self.trace {
            let trace = profile.to_chrome_trace().to_string();
            files::write_atomically(path, |out| out.write_all(trace.as_bytes()))?;
            table.note(format!("the time line is in {}; ui.perfetto.dev shows it", path.display()));
        }
        Ok(Value::Table(table))
    }
}
