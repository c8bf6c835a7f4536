//! The int4 product of one token in steps, from the simplest kernel to the fastest.

use aolab_kernels::cuda::linear::{
    HostWeight, Input, Linear, Output, PlainInt4, Rows, Rung, Streaming, Tiling, run_rung,
};
use aolab_kernels::cuda::{Buffer, CudaResult, Device, ops};

use super::{copies_of, graph_us, normal_bf16, random_bytes};
use crate::error::{Error, Result};
use crate::table::{Cell, Table};

/// 2⁻⁸, a bf16 number, and its bits.
const SCALE: (f32, u16) = (0.003_906_25, 0x3b80);

/// A step: its name, what it does, and the microseconds that an H100 took for 4096×14336 on 2026-11-25.
struct Step {
    name: &'static str,
    what: &'static str,
    recorded_us: f64,
}

const STEPS: [Step; 6] = [
    Step {
        name: "a thread a row",
        what: "a byte at a time; neighbours read rows apart",
        recorded_us: RECORDED[0],
    },
    Step { name: "a warp a row", what: "lanes read bytes side by side", recorded_us: RECORDED[1] },
    Step {
        name: "wide loads",
        what: "16 bytes a lane, asked for a round ahead; x in shared memory",
        recorded_us: RECORDED[2],
    },
    Step {
        name: "tensor cores",
        what: "codes in the order of their fragments, a ring of copies",
        recorded_us: RECORDED[3],
    },
    Step {
        name: "streamed",
        what: "one block a multiprocessor that stays; scales taken eight at once",
        recorded_us: RECORDED[4],
    },
    Step {
        name: "reading alone",
        what: "as many bytes, nothing computed: the limit",
        recorded_us: RECORDED[5],
    },
];

/// Measured by this bench: see benches/record/h100.md.
const RECORDED: [f64; 6] = [694.9, 53.6, 23.0, 16.4, 15.0, 10.6];

/// Times every step for a weight `(N, K)` on `device`; without one it tells what was recorded.
pub fn ladder(device: Option<&Device>, (n, k): (usize, usize)) -> Result<Table> {
    let measured = match device {
        Some(device) => Some(measure(device, (n, k))?),
        None => None,
    };
    let mut table = Table::new("the ladder of the int4 product")
        .column("step")
        .column("what it does")
        .column_unit("median", "µs")
        .column_unit("bandwidth", "GB/s")
        .column_unit("recorded, 4096x14336 on an H100", "µs");
    table.note(match device {
        Some(device) => format!(
            "{n} × {k}, one token, groups of 128, on {}; a graph over rotating weights, 160 MB and more",
            device.name()
        ),
        None => "no GPU here: with --device cuda each step runs and is timed".to_owned(),
    });
    for (i, step) in STEPS.iter().enumerate() {
        let us = measured.as_ref().map(|all| all[i]);
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
        let gb = us.map(|us| (n * k / 2 + n * k / 64) as f64 / us * 1e-3);
        table.push([
            step.name.into(),
            step.what.into(),
            us.map_or(Cell::Missing, Cell::Float),
            gb.map_or(Cell::Missing, Cell::Float),
            Cell::Float(step.recorded_us),
        ])?;
    }
    Ok(table)
}

fn measure(device: &Device, (n, k): (usize, usize)) -> Result<[f64; 6]> {
    if n == 0 || !k.is_multiple_of(1024) || k == 0 {
        return Err(Error::invalid(format!(
            "the ladder's first steps want K to be a multiple of 1024, got {n}x{k}"
        )));
    }
    let copies = copies_of(n * k / 2);
    let codes = random_bytes(n * k / 2, 9);
    let x = device.upload(&normal_bf16(k, 5))?;
    let y = device.uninit::<f32>(n)?;
    let plain = |_| -> CudaResult<PlainInt4> {
        let scale = device.upload(&vec![SCALE.1; n * k / 128])?;
        Ok(PlainInt4 { q: device.upload(&codes)?, scale, n, k })
    };
    let plains: Vec<PlainInt4> = (0..copies).map(plain).collect::<CudaResult<_>>()?;
    let (scale, zero) = (vec![SCALE.0; n * k / 128], vec![0.0; n * k / 128]);
    let packed = |_| -> CudaResult<Linear> {
        let (scale, zero) = (scale.as_slice(), zero.as_slice());
        let weight = HostWeight::Int4 { q: &codes, scale, zero, group_size: 128, bf16: true };
        Linear::new(device, &[(weight, n)], k, Rows::Plain, None)
    };
    let layers: Vec<Linear> = (0..copies).map(packed).collect::<CudaResult<_>>()?;
    let rung = |rung| graph_us(device, copies, |i| run_rung(device, rung, &plains[i], &x, &y));
    let out = Output::F32(&y);
    let tiling = Tiling::choose(4, 1, n, k);
    let bytes = layers[0].nbytes().next_multiple_of(16);
    let whole: Buffer<u8> = device.uninit(bytes * copies)?;
    whole.fill_bytes(1)?;
    let first = device.zeros::<u32>(1)?;
    let part = |i: usize| whole.part(i * bytes..(i + 1) * bytes);
    Ok([
        rung(Rung::ThreadARow)?,
        rung(Rung::WarpARow)?,
        rung(Rung::WideLoads)?,
        graph_us(device, copies, |i| layers[i].run_few(&x, 1, &out, tiling))?,
        graph_us(device, copies, |i| {
            layers[i].run_streaming(&Input::Bf16(&x), &out, Streaming::choose())
        })?,
        graph_us(device, copies, |i| ops::read_memory(device, &part(i), &first))?,
    ])
}
