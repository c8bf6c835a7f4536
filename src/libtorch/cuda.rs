//! libtorch on a GPU: linear layers timed beside ours.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::network::int;
use super::{open_cuda, prepare, wrong};
use crate::bench::Times;
use crate::error::{Error, Result};
use crate::kernels::Cpu;

/// Weights that are timed in turn take at least so much memory together, so that none lies in a cache.
const ROTATED: usize = 160 << 20;
/// Calls that are queued between two looks at the clock take at least as long, in seconds.
const LEAST: f64 = 5e-3;
const SAMPLES: usize = 9;

/// A GPU that libtorch uses, with its CUDA half loaded.
#[derive(Clone, Copy, Debug)]
pub struct TorchGpu {
    ordinal: usize,
}

impl TorchGpu {
    /// The GPU of this number, or why libtorch cannot use it.
    pub fn open(cpu: &Cpu, ordinal: usize) -> Result<TorchGpu> {
        open_cuda().map_err(|why| {
            Error::invalid(format!(
                "libtorch has no CUDA half here ({why}); put the lib folder of a PyTorch with CUDA into LD_LIBRARY_PATH"
            ))
        })?;
        prepare(cpu)?;
        if !tch::Cuda::is_available() {
            return Err(Error::invalid("libtorch's CUDA half is loaded, but it finds no GPU"));
        }
        let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        if ordinal >= count {
            return Err(Error::invalid(format!(
                "libtorch sees {count} GPUs, number {ordinal} is none"
            )));
        }
        Ok(TorchGpu { ordinal })
    }

    pub(super) fn device(self) -> Device {
        Device::Cuda(self.ordinal)
    }

    /// The function that does what a layer of `workflow` does, and the microseconds of one call for `m` rows: the median of
    /// several runs of calls that are queued one behind the other, over rotating weights.
    pub fn linear_us(
        self,
        workflow: &str,
        (m, n, k): (usize, usize, usize),
        group_size: usize,
    ) -> Result<(String, f64)> {
        let _guard = tch::no_grad_guard();
        let layer = self.layer(workflow, (m, n, k), group_size)?;
        // Once each: libraries make their plans.
        (0..layer.weights.len()).try_for_each(|i| layer.run(i))?;
        let mut rounds = 1;
        let mut taken = self.seconds(&layer, rounds)?;
        while taken < LEAST && rounds < 1 << 16 {
            rounds *= 2;
            taken = self.seconds(&layer, rounds)?;
        }
        let samples = (0..SAMPLES).map(|_| self.seconds(&layer, rounds));
        let times = Times::from_samples(samples.collect::<Result<_>>()?);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand calls")]
        let calls = (rounds * layer.weights.len()) as f64;
        Ok((layer.name.to_owned(), 1e6 * times.median() / calls))
    }

    fn seconds(self, layer: &Layer, rounds: usize) -> Result<f64> {
        let index = int(self.ordinal);
        tch::Cuda::synchronize(index);
        let start = Instant::now();
        for _ in 0..rounds {
            (0..layer.weights.len()).try_for_each(|i| layer.run(i))?;
        }
        tch::Cuda::synchronize(index);
        Ok(start.elapsed().as_secs_f64())
    }

    fn layer(
        self,
        workflow: &str,
        (m, n, k): (usize, usize, usize),
        group_size: usize,
    ) -> Result<Layer> {
        let random = |rows: usize, cols: usize, kind: Kind| -> Result<Tensor> {
            let x = Tensor::f_randn([int(rows), int(cols)], (Kind::Float, self.device()));
            x.and_then(|x| x.f_to_kind(kind)).map_err(wrong)
        };
        let codes = |rows: usize, cols: usize, low: i64, high: i64, kind: Kind| -> Result<Tensor> {
            Tensor::f_randint_low(low, high, [int(rows), int(cols)], (kind, self.device()))
                .map_err(wrong)
        };
        let copies = |nbytes: usize| ROTATED.div_ceil(nbytes.max(1)).clamp(2, 64);
        let eights = n.is_multiple_of(8) && k.is_multiple_of(8);
        let sixteens = n.is_multiple_of(16) && k.is_multiple_of(16);
        let whole = k.is_multiple_of(128) && k.is_multiple_of(group_size.max(1));
        Ok(match workflow {
            "int4-weight-only" if eights && whole && [32, 64, 128, 256].contains(&group_size) => {
                let pack = |_| {
                    codes(n, k / 2, 0, 256, Kind::Uint8)?
                        .f_internal_convert_weight_to_int4pack(8)
                        .map_err(wrong)
                };
                let weights = (0..copies(n * k / 2)).map(pack).collect::<Result<_>>()?;
                let scales = random(k / group_size * n, 2, Kind::BFloat16)?.view([
                    int(k / group_size),
                    int(n),
                    2,
                ]);
                let kind = Product::Int4 { scales, group_size: int(group_size) };
                Layer {
                    name: "_weight_int4pack_mm, bf16",
                    x: random(m, k, Kind::BFloat16)?,
                    weights,
                    kind,
                }
            }
            // cuBLAS multiplies integers from 17 rows on.
            "int8-dynamic-activation-int8-weight" if m > 16 && eights => {
                let one = |_| Ok(codes(n, k, -128, 128, Kind::Int8)?.transpose(0, 1));
                let weights = (0..copies(n * k)).map(one).collect::<Result<_>>()?;
                let x = codes(m, k, -128, 128, Kind::Int8)?;
                Layer { name: "_int_mm, x quantized before", x, weights, kind: Product::Int8 }
            }
            "float8-dynamic-activation-float8-weight" if sixteens => {
                let one = |_| Ok(random(n, k, Kind::Float8e4m3fn)?.transpose(0, 1));
                let weights = (0..copies(n * k)).map(one).collect::<Result<_>>()?;
                let ones = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, self.device()));
                let kind = Product::Float8 { sx: ones([int(m), 1]), sw: ones([1, int(n)]) };
                let x = random(m, k, Kind::Float8e4m3fn)?;
                Layer { name: "_scaled_mm, row-wise, x quantized before", x, weights, kind }
            }
            _ => {
                let one = |_| random(n, k, Kind::BFloat16);
                let weights = (0..copies(2 * n * k)).map(one).collect::<Result<_>>()?;
                let x = random(m, k, Kind::BFloat16)?;
                Layer { name: "linear, bf16", x, weights, kind: Product::Dense }
            }
        })
    }
}

struct Layer {
    name: &'static str,
    x: Tensor,
    weights: Vec<Tensor>,
    kind: Product,
}

enum Product {
    Dense,
    Int4 { scales: Tensor, group_size: i64 },
    Int8,
    Float8 { sx: Tensor, sw: Tensor },
}

impl Layer {
    fn run(&self, i: usize) -> Result<()> {
        let (x, w) = (&self.x, &self.weights[i]);
        let none = None::<&Tensor>;
        let y = match &self.kind {
            Product::Dense => x.f_linear(w, none),
            Product::Int4 { scales, group_size } => {
                x.f_internal_weight_int4pack_mm(w, *group_size, scales)
            }
            Product::Int8 => x.f_internal_int_mm(w),
            Product::Float8 { sx, sw } => {
                x.f_internal_scaled_mm(w, sx, sw, none, none, Kind::BFloat16, true)
            }
        };
        y.map(drop).map_err(wrong)
    }
}
