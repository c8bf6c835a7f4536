//! The op and shape of every linear layer (U05): what a micro-benchmark should time.

use aolab_kernels::Cpu;

use crate::error::Result;
use crate::model::Model;
use crate::table::{Cell, Table};

/// One row a linear layer and M, in the order in which they run: `fqn, M, K, N`, the kernel, the bits of a weight
/// and what one call moves.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn shapes(model: &Model, cpu: &Cpu, rows: &[usize]) -> Result<Table> {
    let mut table = Table::new(format!("Linear layers of {}", model.name))
        .column("fqn")
        .column("M")
        .column("K")
        .column("N")
        .column("workflow")
        .column("kernel")
        .column_unit("stored", "bits/weight")
        .column("bytes")
        .column_unit("operations", "MFLOP");
    let mut layers = model.linears();
    if model.lm_head.is_none() {
        let weight = std::sync::Arc::clone(&model.embed_tokens);
        layers.push((
            "model.embed_tokens (as output layer)".to_owned(),
            crate::model::Linear { weight, bias: None },
        ));
    }
    for (fqn, linear) in &layers {
        for &m in rows {
            let (n, k) = linear.weight.shape();
            let cost = linear.weight.cost(m);
            table.push([
                fqn.into(),
                m.into(),
                k.into(),
                n.into(),
                linear.weight.workflow().into(),
                linear.weight.kernel(cpu, m).into(),
                Cell::Float(8.0 * linear.weight.nbytes() as f64 / (n * k) as f64),
                Cell::Bytes(cost.bytes),
                Cell::Float(cost.flops as f64 * 1e-6),
            ])?;
        }
    }
    table.note(
        "y (M, N) = x (M, K) · W transposed, W (N, K); bytes: weights, scales, activations and results once",
    );
    Ok(table)
}
