//! Speed on a GPU. Buffers rotate through more memory than its cache holds, calls run in one captured graph, and the median of
//! the replays is told; ceilings and cuBLASLt are measured in the same run.

mod anchors;
mod decode;
mod ladder;
mod linear;
mod llama;
mod quantize;
mod train;

pub use anchors::anchors;
pub use decode::{decode, prefill};
pub use ladder::ladder;
pub use linear::{Baselines, GpuRival, LinearBench, linear};
pub use quantize::quantize;
pub use train::{TrainBench, train};

use aolab_kernels::Shape;
use aolab_kernels::cuda::{Buffer, CudaResult, DenseType, Device, ops};

use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::table::{Cell, Table};

/// Replays whose median is taken.
const REPLAYS: usize = 15;

/// Bytes that the copies of what is read take together: several times an L2 cache.
const ROTATED: usize = 160 << 20;

/// The most copies of one thing.
const MOST_COPIES: usize = 40;

/// What this GPU can do at most.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes read, 1 GiB.
    pub read_gb_per_s: f64,
    /// Bytes read plus bytes written, 512 MiB copied.
    pub copy_gb_per_s: f64,
    /// cuBLASLt, 8192 cubed.
    pub bf16_tflop_per_s: f64,
    /// The same in int8.
    pub int8_top_per_s: f64,
    /// The same in e4m3, where the GPU has it.
    pub float8_tflop_per_s: Option<f64>,
}

/// How many copies of `nbytes` it takes so that nothing is still in the cache when it is used again.
fn copies_of(nbytes: usize) -> usize {
    ROTATED.div_ceil(nbytes.max(1)).clamp(2, MOST_COPIES)
}

/// Microseconds of one of `copies` calls in a graph.
fn graph_us(
    device: &Device,
    copies: usize,
    call: impl Fn(usize) -> CudaResult<()>,
) -> CudaResult<f64> {
    // Once without a graph: kernels are compiled and libraries make their plans; the pool then has every buffer.
    call(0)?;
    device.synchronize()?;
    #[expect(clippy::cast_precision_loss, reason = "a few copies")]
    let count = copies as f64;
    let captured = device.capture(|| (0..copies).try_for_each(&call));
    // What allocates cannot be captured: it is timed as it is launched.
    match captured {
        Ok(mut graph) => Ok(device.time_us(REPLAYS, || graph.launch())? / count),
        Err(_) => Ok(device.time_us(REPLAYS, || (0..copies).try_for_each(&call))? / count),
    }
}

/// `len` numbers that repeat `draws`; copied in pieces, since weights have many.
fn repeated<T: Copy>(draws: &[T], len: usize) -> Vec<T> {
    let mut all = Vec::with_capacity(len + draws.len());
    while all.len() < len {
        all.extend_from_slice(draws);
    }
    all.truncate(len);
    all
}

/// Normal numbers in bf16, the same for the same seed. They repeat a prime number of draws, so that rows differ.
fn normal_bf16(len: usize, seed: u64) -> Vec<u16> {
    let mut rng = Rng::new(seed);
    let draws: Vec<u16> =
        (0..65_521).map(|_| half::bf16::from_f32(rng.normal()).to_bits()).collect();
    repeated(&draws, len)
}

/// Random bytes, the same for the same seed, likewise.
fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let draws: Vec<u8> = (0..65_521).map(|_| rng.next_u64().to_le_bytes()[7]).collect();
    repeated(&draws, len)
}

/// Measures them.
pub fn measure_ceilings(device: &Device) -> Result<Ceilings> {
    let whole = device.upload(&random_bytes(1 << 30, 1))?;
    let out = device.zeros::<u32>(1)?;
    let read_us = device.time_us(REPLAYS, || ops::read_memory(device, &whole, &out))?;
    let (from, to) = (whole.part(0..1 << 29), whole.part(1 << 29..1 << 30));
    let copy_us = device.time_us(REPLAYS, || ops::copy_memory(device, &from, &to))?;
    let shape = Shape { m: 8192, n: 8192, k: 8192 };
    let rate = |kind: DenseType, bytes: [usize; 2]| -> Result<f64> {
        let us = dense_us(device, kind, shape, bytes)?;
        Ok(2.0 * 8192_f64.powi(3) / us * 1e-6)
    };
    let float8 = device.capability() >= (8, 9);
    Ok(Ceilings {
        read_gb_per_s: f64::from(1 << 30) / read_us * 1e-3,
        copy_gb_per_s: f64::from(1 << 30) / copy_us * 1e-3,
        bf16_tflop_per_s: rate(DenseType::Bf16, [2, 2])?,
        int8_top_per_s: rate(DenseType::Int8, [1, 4])?,
        float8_tflop_per_s: if float8 {
            Some(rate(DenseType::Float8Tensor, [1, 2])?)
        } else {
            None
        },
    })
}

/// Microseconds of cuBLASLt on rotating weights; elements of the factors and of the result take `bytes`.
fn dense_us(device: &Device, kind: DenseType, shape: Shape, [of, to]: [usize; 2]) -> Result<f64> {
    use aolab_kernels::cuda::MatmulScales;
    let Shape { m, n, k } = shape;
    let bytes = |len: usize, seed: u64| -> Vec<u8> {
        match kind {
            DenseType::Bf16 | DenseType::Bf16ToF32 => {
                let draws = normal_bf16(65_521, seed).into_iter().flat_map(u16::to_le_bytes);
                repeated(&draws.collect::<Vec<u8>>(), len)
            }
            DenseType::Int8 => random_bytes(len, seed),
            // Exponents about 1, and never a NaN.
            _ => {
                let draws = random_bytes(65_521, seed).into_iter().map(|b| b & 0x87 | 0x38);
                repeated(&draws.collect::<Vec<u8>>(), len)
            }
        }
    };
    let copies = copies_of(n * k * of);
    let host = bytes(n * k * of, 2);
    let weights: Vec<Buffer<u8>> =
        (0..copies).map(|_| device.upload(&host)).collect::<CudaResult<_>>()?;
    let x = device.upload(&bytes(m * k * of, 3))?;
    let y = device.uninit::<u8>(m * n * to)?;
    let one = device.upload(&vec![1.0_f32; m.max(n)])?;
    let scales = match kind {
        DenseType::Float8Rows | DenseType::Float8Tensor => Some(MatmulScales { x: &one, w: &one }),
        _ => None,
    };
    Ok(graph_us(device, copies, |i| device.dense(kind, shape, (&x, &weights[i], &y), scales))?)
}

impl Ceilings {
    /// As a table.
    pub fn table(&self, device: &Device) -> Result<Table> {
        let mut table = Table::new(format!("this GPU: {}", device.name()))
            .column("ceiling")
            .column("value")
            .column("unit")
            .column("what is counted");
        let mut row = |name: &str, value: Option<f64>, unit: &str, what: &str| {
            let value = value.map_or(Cell::Missing, Cell::Float);
            let text = |s: &str| Cell::Text(s.to_owned());
            table.push([text(name), value, text(unit), text(what)])
        };
        row("read", Some(self.read_gb_per_s), "GB/s", "1 GiB read once")?;
        row("copy", Some(self.copy_gb_per_s), "GB/s", "bytes read + bytes written")?;
        let cubed = "cuBLASLt, 8192 cubed, multiply-adds count 2";
        row("bf16", Some(self.bf16_tflop_per_s), "TFLOP/s", cubed)?;
        row("int8", Some(self.int8_top_per_s), "TOP/s", cubed)?;
        row("float8 e4m3", self.float8_tflop_per_s, "TFLOP/s", cubed)?;
        Ok(table)
    }

    /// The least microseconds that `bytes` and `flops` can take; activations in `bits`.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
    fn limit_us(&self, bytes: usize, flops: usize, kind: DenseType) -> f64 {
        let rate = match kind {
            DenseType::Int8 => self.int8_top_per_s,
            DenseType::Float8Rows | DenseType::Float8Tensor => {
                self.float8_tflop_per_s.unwrap_or(self.bf16_tflop_per_s)
            }
            _ => self.bf16_tflop_per_s,
        };
        (bytes as f64 / self.read_gb_per_s * 1e-3).max(flops as f64 / rate * 1e-6)
    }
}

/// The session's GPU, or an error that says how to get one.
pub fn need_device(device: Option<&Device>) -> Result<&Device> {
    device.ok_or_else(|| Error::usage("this bench runs on a GPU; add --device cuda"))
}
