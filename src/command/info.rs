//! `info`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::kernels::Isa;
use crate::kernels::cuda::Device;
use crate::quantization::WORKFLOWS;
use crate::session::Session;
use crate::table::Table;
use crate::value::{Kind, Value};

/// Say what this aolab is and can use: build, instruction sets, GPU, run store.
#[derive(Debug, clap::Args)]
pub(super) struct Info {}

impl Command for Info {
    const NAME: &'static str = "info";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] =
        &[Example { line: "info", about: "for a report of a fault", expect: "instruction sets" }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        let names = |isas: Vec<Isa>| isas.into_iter().map(Isa::name).collect::<Vec<_>>().join(", ");
        let mut table = Table::new("aolab").column("what").column("value");
        let build = if cfg!(debug_assertions) { "debug: slow" } else { "release" };
        let platform = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
        let cpu = session.cpu();
        let rows = [
            ("version", format!("{} ({build}) on {platform}", env!("CARGO_PKG_VERSION"))),
            ("instruction sets", names(Isa::available())),
            (
                "in use",
                format!(
                    "{}, {} threads, compute {}",
                    cpu.isa().name(),
                    cpu.threads().count(),
                    cpu.compute().name()
                ),
            ),
            (
                "cores",
                std::thread::available_parallelism()
                    .map_or("unknown".to_owned(), |n| n.to_string()),
            ),
            ("GPU", gpu(session)),
            (
                "kernels",
                format!(
                    "built in for CPU; CUDA sources are compiled when first used; {} workflows (`quantize --help`)",
                    WORKFLOWS.len()
                ),
            ),
            (
                "run store",
                session.store_path().map_or("none".to_owned(), |path| path.display().to_string()),
            ),
            ("seed", session.seed().to_string()),
        ];
        for (what, value) in rows {
            table.push([what.into(), value.into()])?;
        }
        Ok(Value::Table(table))
    }
}

/// The GPU in use, or what would be used, or why there is none.
fn gpu(session: &Session) -> String {
    let described = |device: &Device| {
        let memory = device
            .memory()
            .map_or(String::new(), |(_, all)| format!(", {:.1} GB", all as f64 * 1e-9));
        format!("{} ({}{memory})", device.name(), device.arch())
    };
    if let Some(device) = session.device() {
        return format!("{}, in use", described(device));
    }
    match Device::open(session.cuda_options()) {
        Ok(device) => format!("{}; `set device cuda` uses it", described(&device)),
        Err(error) => format!("none: {error}"),
    }
}
