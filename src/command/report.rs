//! `report`

use std::path::PathBuf;

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::io::files;
use crate::report::report;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Write everything this session showed into one HTML page.
///
/// It needs no other file and no network: tables sort by their headings, figures zoom, and it follows a dark or light screen.
#[derive(Debug, clap::Args)]
pub(super) struct Report {
    /// The page, such as report.html
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Its title
    #[arg(long, default_value = "A session of aolab")]
    title: String,
}

impl Command for Report {
    const NAME: &'static str = "report";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Nothing);
    const REPLAYS: bool = false;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "load tiny; size; plot --y bytes; report session.html",
        about: "a page to send to somebody",
        expect: "saved session.html",
    }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        let page = report(session, &self.title)?;
        files::write_atomically(&self.file, |out| out.write_all(page.as_bytes()))?;
        session.note(&format!("saved {}", self.file.display()));
        Ok(Value::Nothing)
    }
}
