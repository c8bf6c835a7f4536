//! `set`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::kernels::Compute;
use crate::session::Session;
use crate::table::Table;
use crate::value::{Kind, Value};

/// Choose threads, instruction set, compute dtype, device or seed; alone, show them.
#[derive(Debug, clap::Args)]
pub(super) struct Set {
    #[command(subcommand)]
    setting: Option<Setting>,
}

#[derive(Debug, clap::Subcommand)]
enum Setting {
    /// How many threads kernels run on
    Threads {
        /// At least 1
        #[arg(value_parser = clap::value_parser!(u16).range(1..=4096))]
        count: u16,
    },
    /// The instruction set that kernels use
    Isa {
        /// scalar, avx2, avx512, avx512vnni or neon, as far as this machine has it
        name: String,
    },
    /// What activations are rounded to where a layer's weight is bf16
    Compute {
        /// f32 keeps them; bf16 rounds them as PyTorch does in a bf16 model, for twice the speed of a prompt
        #[arg(value_enum)]
        dtype: Dtype,
    },
    /// Where models run: cpu, cuda (the first GPU) or cuda:N
    Device {
        /// cpu, cuda or cuda:N
        name: String,
    },
    /// Where random draws start
    Seed {
        /// Any number; the same seed gives the same bytes
        value: u64,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

impl Command for Set {
    const NAME: &'static str = "set";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[
        Example { line: "set threads 2", about: "use two threads", expect: "threads" },
        Example { line: "set device cpu", about: "run models on the CPU", expect: "cpu" },
        Example { line: "set isa scalar", about: "use plain code", expect: "scalar" },
        Example { line: "set compute bf16", about: "multiply bf16 layers in bf16", expect: "bf16" },
        Example { line: "set seed 7; set", about: "show the settings", expect: "7" },
    ];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        match self.setting {
            Some(Setting::Threads { count }) => session.set_threads(usize::from(count)),
            Some(Setting::Isa { name }) => session.set_isa(&name)?,
            Some(Setting::Compute { dtype: Dtype::F32 }) => session.set_compute(Compute::F32),
            Some(Setting::Compute { dtype: Dtype::Bf16 }) => session.set_compute(Compute::Bf16),
            Some(Setting::Device { name }) => session.set_device(&name)?,
            Some(Setting::Seed { value }) => session.set_seed(value),
            None => {}
        }
        let mut table = Table::new("Settings").column("setting").column("value");
        let settings = [
            ("threads", session.cpu().threads().count().to_string()),
            ("isa", session.cpu().isa().name().to_owned()),
            ("compute", session.cpu().compute().name().to_owned()),
            ("device", session.device().map_or_else(|| "cpu".to_owned(), |d| format!("{d:?}"))),
            ("seed", session.seed().to_string()),
        ];
        for (setting, value) in settings {
            table.push([setting.into(), value.into()])?;
        }
        Ok(Value::Table(table))
    }
}
