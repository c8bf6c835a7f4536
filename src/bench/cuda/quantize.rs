//! Quantizing activations on the GPU.

use aolab_kernels::cuda::ops::{self, MxRounding};
use aolab_kernels::cuda::{Buffer, CudaResult, Device};

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
        // The results' buffers are made once: a graph cannot allocate.
        let (q, bytes) = (device.uninit::<u8>(m * k)?, device.uninit::<u8>(m * k / 16)?);
        let (half, scale) = (q.part(0..m * k / 2), device.uninit::<f32>(m)?);
        let blocks = bytes.part(0..m * k / 32);
        for kind in Kind::ALL {
            let us = graph_us(device, copies, |i| match kind {
                Kind::Float8 => ops::quantize_float8_rows_into(device, &x[i], k, (&q, &scale)),
                Kind::Int8 => ops::quantize_int8_rows_into(device, &x[i], k, (&q, &scale)),
                Kind::Mxfp8 => {
                    ops::quantize_mxfp8_into(device, &x[i], MxRounding::Floor, (&q, &blocks))
                }
                Kind::Nvfp4 => ops::quantize_nvfp4_into(device, &x[i], None, (&half, &bytes)),
            })?;
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
            let gb = (2 * m * k + kind.written(m, k)) as f64 / us * 1e-3;
            table.push([
                kind.name().into(),
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

/// What is timed.
#[derive(Clone, Copy)]
enum Kind {
    Float8,
    Int8,
    Mxfp8,
    Nvfp4,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Float8, Kind::Int8, Kind::Mxfp8, Kind::Nvfp4];

    fn name(self) -> &'static str {
        match self {
            Kind::Float8 => "bf16 to float8 e4m3 by row",
            Kind::Int8 => "bf16 to int8 by token",
            Kind::Mxfp8 => "bf16 to mxfp8 e4m3",
            Kind::Nvfp4 => "bf16 to nvfp4",
        }
    }

    /// Bytes of codes and scales.
    fn written(self, m: usize, k: usize) -> usize {
        match self {
            Kind::Float8 | Kind::Int8 => m * k + 4 * m,
            Kind::Mxfp8 => m * k + m * k / 32,
            Kind::Nvfp4 => m * k / 2 + m * k / 16,
        }
    }
}
