//! Quantizing activations on the GPU.

use aolab_kernels::cuda::{Buffer, CudaResult, Device, ops};

use super::{Ceilings, copies_of, graph_us, normal_bf16};
use crate::error::Result;
use crate::table::{Cell, Table};

/// Times quantizing `(rows, columns)` of bf16.
pub fn quantize(device: &Device, ceilings: &Ceilings, shapes: &[(usize, usize)]) -> Result<Table> {
    let mut table = Table::new("quantizing on the GPU")
        .column("what")
        .column("rows")
        .column("columns")
        .column_unit("median", "µs")
        .column_unit("bandwidth", "GB/s")
        .column_unit("of copying", "%")
        .with_note("bytes: x read, codes and scales written; of copying: against the copy ceiling of this run");
    for &(m, k) in shapes {
        let copies = copies_of(2 * m * k);
        let host = normal_bf16(m * k, 7);
        let x: Vec<Buffer<u16>> =
            (0..copies).map(|_| device.upload(&host)).collect::<CudaResult<_>>()?;
        type Quantizer =
            fn(&Device, &Buffer<u16>, usize, usize) -> CudaResult<(Buffer<u8>, Buffer<f32>)>;
        let kinds: [(&str, Quantizer); 2] = [
            ("bf16 to float8 e4m3 by row", ops::quantize_float8_rows),
            ("bf16 to int8 by token", ops::quantize_int8_rows),
        ];
        for (name, quantizer) in kinds {
            // The results' buffers are made once: a graph cannot allocate.
            let (q, scale) = quantizer(device, &x[0], m, k)?;
            let into = (&q, &scale);
            let us = graph_us(device, copies, |i| {
                if name.contains("int8") {
                    ops::quantize_int8_rows_into(device, &x[i], k, into)
                } else {
                    ops::quantize_float8_rows_into(device, &x[i], k, into)
                }
            })?;
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
            let gb = (3 * m * k + 4 * m) as f64 / us * 1e-3;
            table.push([
                name.into(),
                m.into(),
                k.into(),
                Cell::Float(us),
                Cell::Float(gb),
                Cell::Float(100.0 * gb / ceilings.copy_gb_per_s),
            ])?;
        }
    }
    Ok(table)
}
