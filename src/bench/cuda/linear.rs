//! One linear layer on the GPU beside cuBLASLt in bf16.

use std::collections::HashMap;
use std::sync::Arc;

use aolab_kernels::Shape;
use aolab_kernels::cuda::linear::{Linear, Output};
use aolab_kernels::cuda::{DenseType, Device};

use super::{Ceilings, copies_of, dense_us, graph_us, normal_bf16};
use crate::error::Result;
use crate::model::{Weight, to_device};
use crate::table::{Cell, Table};

/// What is timed.
#[derive(Clone, Debug)]
pub struct LinearBench {
    /// The weight under test.
    pub weight: Arc<dyn Weight>,
    /// Numbers of tokens.
    pub m: Vec<usize>,
}

/// What cuBLASLt takes in bf16 for a shape, measured once a run.
pub type Baselines = HashMap<Shape, f64>;

/// Another library's layer for so many tokens: its name and the microseconds of a call.
pub type GpuRival<'a> = &'a dyn Fn(&dyn Weight, usize) -> Result<(String, f64)>;

/// Times a layer for each number of tokens: `x · Wᵀ` with whatever quantization of x belongs to it, results in bf16. With a
/// rival, its time and the ratio stand beside ours.
pub fn linear(
    device: &Device,
    ceilings: &Ceilings,
    bench: &LinearBench,
    baselines: &mut Baselines,
    rival: Option<GpuRival<'_>>,
) -> Result<Table> {
    let mut table = empty()?;
    if rival.is_some() {
        table = table.column("against").column_unit("its time", "µs").column_unit("its time ÷ ours", "×").with_note(
            "against: another library on the same GPU in the same run, calls queued one behind the other over rotating \
             weights, without a graph",
        );
    }
    let (first, fallback) = to_device(device, &bench.weight)?;
    let copies = copies_of(first.nbytes());
    let mut layers = vec![first];
    for _ in 1..copies {
        layers.push(to_device(device, &bench.weight)?.0);
    }
    let workflow = bench.weight.workflow();
    let two_of_four = workflow.strip_prefix("2:4·");
    let blocks = workflow.starts_with("block:64·");
    let kind = match two_of_four.unwrap_or(&workflow) {
        "int8-dynamic-activation-int8-weight" => DenseType::Int8,
        "float8-dynamic-activation-float8-weight" | "float8-dynamic-activation-int4-weight" => {
            DenseType::Float8Rows
        }
        _ => DenseType::Bf16,
    };
    for m in &bench.m {
        let us = layers_us(device, &layers, *m)?;
        let (n, k) = layers[0].shape();
        let shape = Shape { m: *m, n, k };
        let baseline = match baselines.get(&shape) {
            Some(us) => *us,
            None => dense_us(device, DenseType::Bf16, shape, [2, 2])?,
        };
        baselines.insert(shape, baseline);
        let bytes = layers[0].nbytes() + 2 * m * (n + k);
        // Sparse tensor cores skip the zeros, and blocks of zeros are not there; these are stored in bf16.
        let products = match (two_of_four.is_some(), blocks && fallback.is_none()) {
            (true, _) => n * k / 2,
            (_, true) => layers[0].nbytes() / 2,
            _ => n * k,
        };
        let limit = ceilings.limit_us(bytes, 2 * m * products, kind);
        let kernel = match &fallback {
            Some(_) => format!("{} (dequantized)", layers[0].kernel_name(*m)),
            None => layers[0].kernel_name(*m),
        };
        let (gb, tflop) = rates(bytes, 2 * m * n * k, us);
        let mut cells: Vec<Cell> = vec![
            workflow.as_str().into(),
            n.into(),
            k.into(),
            (*m).into(),
            kernel.into(),
            Cell::Float(us),
            Cell::Float(gb),
            Cell::Float(tflop),
            Cell::Float(100.0 * limit / us),
            Cell::Float(baseline),
            Cell::Float(baseline / us),
        ];
        if let Some(rival) = rival {
            device.synchronize()?;
            let (name, its) = rival(&*bench.weight, *m)?;
            cells.extend([name.as_str().into(), Cell::Float(its), Cell::Float(its / us)]);
        }
        table.push(cells)?;
    }
    Ok(table)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
fn rates(bytes: usize, flops: usize, us: f64) -> (f64, f64) {
    (bytes as f64 / us * 1e-3, flops as f64 / us * 1e-6)
}

fn layers_us(device: &Device, layers: &[Linear], m: usize) -> Result<f64> {
    let x = device.upload(&normal_bf16(m * layers[0].k_padded(), 5))?;
    let y = device.uninit::<u16>(m * layers[0].outputs())?;
    Ok(graph_us(device, layers.len(), |i| layers[i].run(&x, m, &Output::Bf16(&y)))?)
}

/// The table without rows.
pub(super) fn empty() -> Result<Table> {
    Ok(Table::new("linear layers on the GPU")
        .column("format")
        .column("N")
        .column("K")
        .column("M")
        .column("kernel")
        .column_unit("median", "µs")
        .column_unit("bandwidth", "GB/s")
        .column_unit("speed", "TFLOP/s")
        .column_unit("of the limit", "%")
        .column_unit("cuBLASLt bf16", "µs")
        .column_unit("against it", "×")
        .with_note(
            "a graph over rotating weights, 160 MB and more; bytes: weight, x and y once; limit: the larger of bytes over \
             the read ceiling and operations over cuBLASLt's 8192-cubed rate, both of this run; speed counts a sparse weight's \
             zeros, its limit does not",
        ))
}
