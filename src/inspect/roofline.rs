//! The roofline (U09): how fast each linear layer can be on this machine, and how fast it is.

use std::sync::Arc;

use aolab_kernels::Cpu;

use crate::bench::{self, LinearCase, Peaks};
use crate::error::{Error, Result};
use crate::eval::Progress;
use crate::model::{Model, Weight};
use crate::table::{Cell, Table};

/// A layer shape, and how many layers have it.
struct Group {
    weight: Arc<dyn Weight>,
    layers: usize,
}

/// Each distinct shape and workflow of `model` with each M: the time that its bytes at the read bandwidth and its operations at the
/// peak of its kernel's arithmetic predict (the larger of both), and the time that it takes with cold caches.
#[expect(clippy::cast_precision_loss, reason = "costs are far below 2⁵³")]
pub fn roofline(
    model: &Model,
    cpu: &Cpu,
    rows: &[usize],
    seconds: f64,
    progress: Progress,
) -> Result<Table> {
    let mut groups: Vec<Group> = Vec::new();
    for (_, linear) in model.linears() {
        let weight = linear.weight;
        let same = |group: &&mut Group| {
            group.weight.shape() == weight.shape()
                && group.weight.workflow() == weight.workflow()
                && group.weight.details() == weight.details()
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.layers += 1,
            None => groups.push(Group { weight, layers: 1 }),
        }
    }
    let total = groups.len() * rows.len();
    if !progress(0, total) {
        return Err(Error::Cancelled);
    }
    let peaks = Peaks::measure(cpu, 0.3);
    let mut table = new_table(model, &peaks);
    let cases = groups.iter().flat_map(|group| rows.iter().map(move |m| (group, *m)));
    for (done, (group, m)) in cases.enumerate() {
        if !progress(done, total) {
            return Err(Error::Cancelled);
        }
        let weight = &*group.weight;
        let found = bench::linear(cpu, &LinearCase { weight, m, cold: true, seconds })?;
        let (cost, (n, k)) = (weight.cost(m), weight.shape());
        let (peak, of) = peak_of(&found.kernel, &peaks);
        let memory_us = cost.bytes as f64 / peaks.read_gb_per_s * 1e-3;
        let compute_us = cost.flops as f64 / peak * 1e-3;
        let bound =
            if memory_us >= compute_us { "memory".to_owned() } else { format!("{of} arithmetic") };
        let predicted = memory_us.max(compute_us);
        table.push([
            format!("{} ({n}, {k})", weight.workflow()).into(),
            group.layers.into(),
            m.into(),
            found.kernel.into(),
            Cell::Float(cost.flops as f64 / cost.bytes as f64),
            bound.into(),
            predicted.into(),
            found.us.into(),
            Cell::Float(100.0 * predicted / found.us),
            Cell::Float(found.gflop_per_s),
        ])?;
    }
    progress(total, total);
    Ok(table)
}

fn new_table(model: &Model, peaks: &Peaks) -> Table {
    Table::new(format!("Roofline of {}", model.name))
        .column("layer")
        .column("how many")
        .column("M")
        .column("kernel")
        .column_unit("intensity", "FLOP/byte")
        .column("bound by")
        .column_unit("predicted", "µs")
        .column_unit("measured", "µs")
        .column_unit("of the roof", "%")
        .column_unit("rate", "GFLOP/s")
        .with_note(format!(
            "ceilings measured in this run: read bandwidth {:.1} GB/s; peaks of f32 {:.1} GFLOP/s, bf16 {:.1}, int8 {:.1} GOP/s",
            peaks.read_gb_per_s, peaks.f32_gflop_per_s, peaks.bf16_gflop_per_s, peaks.int8_gop_per_s
        ))
        .with_note(
            "predicted: bytes at the read bandwidth or operations at the peak of the kernel's arithmetic, whichever takes longer; \
             measured with cold caches",
        )
}

/// The peak of the arithmetic that a kernel's name tells: `x86-int8xint8-…` multiplies integers.
fn peak_of(kernel: &str, peaks: &Peaks) -> (f64, &'static str) {
    if kernel.contains("xint8") || kernel.contains("xint16") {
        (peaks.int8_gop_per_s, "int8")
    } else if kernel.contains("xbf16") {
        (peaks.bf16_gflop_per_s, "bf16")
    } else {
        (peaks.f32_gflop_per_s, "f32")
    }
}
