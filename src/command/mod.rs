//! The commands: one file each, from which the command line, the REPL, the reference page and the tests come.
//!
//! # How to add a command
//!
//! 1. `src/command/NAME.rs` with a `#[derive(Debug, clap::Args)]` struct. Its doc comment is the help: the first
//!    paragraph is the line in `aolab --help`, the rest is shown by `help NAME`. The fields' doc comments
//!    are the help of flags. A subcommand is a field `#[command(subcommand)]` of an enum that derives
//!    `clap::Subcommand`. `value_name` says what the REPL completes: `MODEL` (variables, `tiny`, paths),
//!    `LAYER`, `FILE`, `DIR`, `PATH`, `COMMAND`; enum values come from `clap::ValueEnum`.
//! 2. `impl Command for …`: its name, what it takes from a pipe ([`Command::INPUT`]), what it gives
//!    ([`Command::OUTPUT`]), [`Command::EXAMPLES`], and `run`, which calls the library and holds no logic that a
//!    library user would miss. Results are returned, never printed; remarks go to `session.note`,
//!    long loops call `session.task("reading")` and pass `&mut |done, total| task.progress(done, total)` on: it shows a bar and hears Ctrl-C.
//! 3. Two lines here: `mod NAME;` and `Entry::of::<NAME::Struct>(),` in [`COMMANDS`].
//! 4. `AOLAB_BLESS=1 cargo test --test examples` runs every example and writes `tutorials/reference.md`.

mod clap_faults;
mod complete;
mod entry;
mod kv_cache_format;
mod pipeline;
mod reference;

mod bench;
mod bench_format;
mod cache;
mod calibrate;
mod compare;
mod dashboard;
mod distribution;
mod echo;
mod eval;
mod formats;
mod generate;
mod help;
mod history;
mod imatrix;
mod info;
mod load;
mod mix;
mod outliers;
mod pareto;
mod pat_args;
mod plot;
mod profile;
mod quantize;
mod quit;
mod recipe_words;
mod redo;
mod report;
mod roofline;
mod run;
mod runs;
mod save;
mod script;
mod set;
mod shapes;
mod show;
mod size;
mod sparsify;
mod spinquant;
mod stats;
mod sweep;
mod tensors;
mod train;
mod undo;
mod vars;
mod verify;
mod watch;

pub use complete::{Completions, Names, complete, help_at, usage_hint};
pub use entry::{Command, Entry, Example, Group, Output};
pub use pipeline::usage_line;
pub use reference::{overview, reference_page};

/// Every command, in the order in which help lists them.
pub static COMMANDS: &[Entry] = &[
    Entry::of::<load::Load>(),
    Entry::of::<quantize::Quantize>(),
    Entry::of::<sparsify::Sparsify>(),
    Entry::of::<spinquant::SpinQuant>(),
    Entry::of::<imatrix::Imatrix>(),
    Entry::of::<train::Train>(),
    Entry::of::<show::Show>(),
    Entry::of::<size::Size>(),
    Entry::of::<tensors::Tensors>(),
    Entry::of::<eval::Eval>(),
    Entry::of::<compare::Compare>(),
    Entry::of::<distribution::Distribution>(),
    Entry::of::<outliers::Outliers>(),
    Entry::of::<formats::Formats>(),
    Entry::of::<bench::Bench>(),
    Entry::of::<verify::Verify>(),
    Entry::of::<generate::Generate>(),
    Entry::of::<shapes::Shapes>(),
    Entry::of::<stats::Stats>(),
    Entry::of::<profile::ProfileArgs>(),
    Entry::of::<roofline::Roofline>(),
    Entry::of::<plot::Plot>(),
    Entry::of::<sweep::Sweeping>(),
    Entry::of::<pareto::Pareto>(),
    Entry::of::<runs::Runs>(),
    Entry::of::<report::Report>(),
    Entry::of::<dashboard::Dashboard>(),
    Entry::of::<save::Save>(),
    Entry::of::<vars::Vars>(),
    Entry::of::<undo::Undo>(),
    Entry::of::<redo::Redo>(),
    Entry::of::<history::History>(),
    Entry::of::<run::Run>(),
    Entry::of::<watch::Watch>(),
    Entry::of::<info::Info>(),
    Entry::of::<set::Set>(),
    Entry::of::<cache::Cache>(),
    Entry::of::<echo::Echo>(),
    Entry::of::<help::Help>(),
    Entry::of::<quit::Quit>(),
];

/// What a program without the feature `torch` says when it is asked for libtorch.
#[cfg(not(feature = "torch"))]
const NO_LIBTORCH: &str = "this build has no libtorch: build it with `--features torch` (tests/libtorch.sh fetches what that needs)";

/// The command called `name`.
pub fn find(name: &str) -> Option<&'static Entry> {
    let name = if name == "exit" { "quit" } else { name };
    COMMANDS.iter().find(|entry| entry.name == name)
}
