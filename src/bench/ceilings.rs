//! What this machine can do at most, as a table.

use aolab_kernels::{Cpu, machine};

use crate::error::Result;
use crate::table::{Cell, Table};

/// What a linear layer is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// Read bandwidth in GB/s.
    pub read_gb_per_s: f64,
    /// f32 multiply-adds in GFLOP/s.
    pub f32_gflop_per_s: f64,
    /// bf16 dot products in GFLOP/s.
    pub bf16_gflop_per_s: f64,
    /// int8 dot products in GOP/s.
    pub int8_gop_per_s: f64,
}

impl Peaks {
    /// Measures them, `seconds` each.
    pub fn measure(cpu: &Cpu, seconds: f64) -> Peaks {
        Peaks {
            read_gb_per_s: machine::read_bandwidth(cpu, seconds),
            f32_gflop_per_s: machine::f32_peak(cpu, seconds),
            bf16_gflop_per_s: machine::bf16_peak(cpu, seconds),
            int8_gop_per_s: machine::int8_peak(cpu, seconds),
        }
    }
}

/// Measures the ceilings that every other bench is compared with, `seconds` each.
pub fn ceilings(cpu: &Cpu, seconds: f64) -> Result<Table> {
    let mut table = Table::new(format!(
        "this machine: {} threads, {}",
        cpu.threads().count(),
        cpu.isa().name()
    ))
    .column("ceiling")
    .column("value")
    .column("unit")
    .column("what is counted");
    let rows = [
        ("read", machine::read_bandwidth(cpu, seconds), "GB/s", "256 MiB read once"),
        ("copy", machine::copy_bandwidth(cpu, seconds), "GB/s", "bytes read + bytes written"),
        ("f32", machine::f32_peak(cpu, seconds), "GFLOP/s", "multiply-adds in registers, 2 each"),
        ("bf16", machine::bf16_peak(cpu, seconds), "GFLOP/s", "bf16 dot products, else f32"),
        ("int8", machine::int8_peak(cpu, seconds), "GOP/s", "int8 dot products, 2 a product"),
        ("loop", machine::loop_start_us(cpu), "µs", "starting and ending a parallel loop"),
    ];
    for (name, value, unit, what) in rows {
        let text = |s: &str| Cell::Text(s.to_owned());
        table.push([text(name), Cell::Float(value), text(unit), text(what)])?;
    }
    Ok(table)
}
