//! `cache`

use super::{Command, Example, Group, Output};
use crate::error::{AtPath as _, Error, Result};
use crate::kernels::cuda::Cache as Kernels;
use crate::session::Session;
use crate::table::{Cell, Table};
use crate::value::{Kind, Value};

/// List the compiled CUDA kernels that are kept on disk, or clear them.
///
/// They are compiled when first used and found again by the hash of their source, flags, compiler and GPU.
#[derive(Debug, clap::Args)]
pub(super) struct Cache {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Delete them; they are compiled again when they are needed
    Clear,
}

impl Command for Cache {
    const NAME: &'static str = "cache";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] =
        &[Example { line: "cache", about: "what is kept, and how large it is", expect: "kernel" }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        let folder = session.cuda_options().cache.clone();
        let cache = folder.as_ref().map(Kernels::new);
        let (entries, what) = match (&cache, self.action) {
            (None, Some(Action::Clear)) => {
                return Err(Error::invalid("this session keeps no compiled kernels"));
            }
            (None, None) => (Vec::new(), "kept"),
            (Some(cache), None) => (cache.entries().at(cache.folder())?, "kept"),
            (Some(cache), Some(Action::Clear)) => (cache.clear().at(cache.folder())?, "deleted"),
        };
        let mut table = Table::new(format!("compiled kernels, {what}"))
            .column("kernel")
            .column_unit("size", "bytes");
        for entry in entries {
            table.push([entry.name.as_str().into(), Cell::from(entry.nbytes)])?;
        }
        Ok(Value::Table(table))
    }
}
