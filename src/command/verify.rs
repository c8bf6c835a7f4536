//! `verify`

use super::{Command, Example, Group, Output};
#[cfg(not(feature = "torch"))]
use crate::error::Error;
use crate::error::Result;
use crate::session::Session;
use crate::table::Table;
use crate::value::{Kind, Value};

/// Compute what other programs compute, and compare.
#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Our arithmetic against libtorch's, on random and adversarial numbers: a table of largest differences.
    /// Needs a build with `--features torch`
    Torch(Torch),
}

#[derive(Debug, clap::Args)]
struct Torch {
    /// Where the random numbers start
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End with an error unless every line holds
    #[arg(long)]
    strict: bool,
    /// The model whose logits and gradients are compared, too
    #[arg(long, value_name = "MODEL", default_value = "tiny")]
    model: String,
}

impl Command for Verify {
    const NAME: &'static str = "verify";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] =
        &[Example { line: "help verify", about: "what can be verified", expect: "libtorch" }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        match self.what {
            What::Torch(torch) => against_torch(session, &torch).map(Value::Table),
        }
    }
}

#[cfg(feature = "torch")]
fn against_torch(session: &mut Session, torch: &Torch) -> Result<Table> {
    let model = session.model_called(&torch.model)?;
    let cpu = session.cpu().clone();
    let task = session.task("verifying");
    let progress = &mut |done, total| task.progress(done, total);
    crate::libtorch::verify(&cpu, &model, torch.seed, torch.strict, progress)
}

#[cfg(not(feature = "torch"))]
fn against_torch(_session: &mut Session, torch: &Torch) -> Result<Table> {
    let Torch { seed: _, strict: _, model: _ } = torch;
    Err(Error::invalid(super::NO_LIBTORCH))
}
