//! `verify`

use std::path::PathBuf;

use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::table::Table;
use crate::value::{Kind, Value};
use crate::verify::{golden, table};

/// Compute what other programs compute, and compare.
#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// A row a family of golden vectors: tensors equal to the bit, the largest difference, a verdict.
    /// The folder holds FAMILY.safetensors files and MANIFEST.md, as tests/golden of the sources does
    Golden(Golden),
    /// Our arithmetic against libtorch's, on random and adversarial numbers: a table of largest differences. With
    /// --device cuda the GPU's linear layers. Needs a build with `--features torch`
    Torch(Torch),
}

#[derive(Debug, clap::Args)]
struct Golden {
    /// The folder [default: tests/golden, where the program is run in its sources]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Only these families, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "FAMILY")]
    family: Vec<String>,
    /// End with an error unless every family holds
    #[arg(long)]
    strict: bool,
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
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "verify golden --family nf4,mx_fp8",
            about: "two families of the sources' own vectors",
            expect: "2 of 2 families hold",
        },
        Example { line: "help verify", about: "what can be verified", expect: "libtorch" },
    ];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        match self.what {
            What::Golden(golden) => against_golden(session, golden).map(Value::Table),
            What::Torch(torch) => against_torch(session, &torch).map(Value::Table),
        }
    }
}

fn against_golden(session: &mut Session, given: Golden) -> Result<Table> {
    let folder = match given.folder {
        Some(folder) => folder,
        None => own_vectors()?,
    };
    let cpu = session.cpu().clone();
    let task = session.task("verifying");
    let progress = &mut |done, total| task.progress(done, total);
    let reports = golden(&cpu, &folder, &given.family, progress)?;
    drop(task);
    let found = table(&reports)?;
    let off: Vec<&str> = reports.iter().filter(|r| !r.holds()).map(|r| r.family.as_str()).collect();
    if given.strict && !off.is_empty() {
        return Err(Error::invalid(format!("{found}\nthese do not hold: {}", off.join(", "))));
    }
    Ok(found)
}

/// tests/golden of the sources: below the folder at work, else where this program was built.
fn own_vectors() -> Result<PathBuf> {
    let here = PathBuf::from("tests/golden");
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(&here);
    [here, built].into_iter().find(|folder| folder.is_dir()).ok_or_else(|| {
        Error::usage(
            "which folder? tests/golden of the sources is neither here nor where this was built",
        )
    })
}

#[cfg(feature = "torch")]
fn against_torch(session: &mut Session, torch: &Torch) -> Result<Table> {
    let cpu = session.cpu().clone();
    if let Some(device) = session.device().cloned() {
        let task = session.task("verifying");
        let progress = &mut |done, total| task.progress(done, total);
        let how = (torch.seed, torch.strict);
        return crate::libtorch::verify_gpu(&cpu, &device, device.ordinal(), how, progress);
    }
    let model = session.model_called(&torch.model)?;
    let task = session.task("verifying");
    let progress = &mut |done, total| task.progress(done, total);
    crate::libtorch::verify(&cpu, &model, torch.seed, torch.strict, progress)
}

#[cfg(not(feature = "torch"))]
fn against_torch(_session: &mut Session, torch: &Torch) -> Result<Table> {
    let Torch { seed: _, strict: _, model: _ } = torch;
    Err(Error::invalid(super::NO_LIBTORCH))
}
