//! `bench`

use super::bench_format::Format;
use super::kv_cache_format::KvCacheFormat;
use super::{Command, Example, Group, Output};
use crate::bench::{
    DecodeConfig, LinearCase, Peaks, PrefillConfig, Rival, ceilings, cuda, decode, linear_against,
    prefill,
};
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::model::{Model, Weight};
use crate::session::Session;
use crate::table::Table;
use crate::value::{Kind, Value};

/// Measure speed and memory, with this machine's ceiling beside every number.
#[derive(Debug, clap::Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Write token after token with a model: tok/s, GB/s, share of the read bandwidth, memory
    Decode {
        /// Positions in the cache before the first timed token
        #[arg(long, default_value_t = 128)]
        context: usize,
        /// Timed tokens
        #[arg(long, default_value_t = 64)]
        tokens: usize,
        /// How keys and values are kept
        #[arg(long, value_enum, default_value = "f32")]
        kv_cache: KvCacheFormat,
    },
    /// Read a prompt with a model: tok/s, GFLOP/s, share of the multiply-add peak, memory
    Prefill {
        /// Tokens of the prompt
        #[arg(long, default_value_t = 256)]
        tokens: usize,
        /// Timed prompts
        #[arg(long, default_value_t = 5)]
        repeats: usize,
    },
    /// Time one linear layer in several formats, in turn with a plain read of as many bytes (takes no model)
    Linear {
        /// Shapes as NxK, separated by commas
        #[arg(long, value_delimiter = ',', default_value = "11008x4096")]
        shape: Vec<String>,
        /// Rows of the activation, separated by commas
        #[arg(long, value_delimiter = ',', default_value = "1,16,128")]
        m: Vec<usize>,
        /// Formats, separated by commas
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = Format::ALL.iter().copied())]
        format: Vec<Format>,
        /// Group size of int4 and intx
        #[arg(long, default_value_t = 128)]
        group_size: usize,
        /// Leave the caches warm between calls; otherwise 128 MB are streamed through them
        #[arg(long)]
        warm: bool,
        /// Seconds a case
        #[arg(long, default_value_t = 0.5)]
        seconds: f64,
        /// Time another library in the same run, on as many threads, and print the ratio
        #[arg(long, value_enum)]
        vs: Option<Other>,
    },
    /// Time quantizing activations on a GPU, with --device cuda (takes no model)
    Quantize {
        /// Shapes as ROWSxCOLUMNS, separated by commas
        #[arg(long, value_delimiter = ',', default_value = "16x4096,8192x4096")]
        shape: Vec<String>,
    },
    /// Time everything that others are measured by, on a GPU, with --device cuda (takes no model)
    Anchors {
        /// Leave out the model of Llama-3-8B's shape, which takes 20 GB on the GPU
        #[arg(long)]
        without_llama: bool,
    },
    /// Time training steps of a 1B network in bf16, float8 and int8, with --device cuda (takes no model)
    Train {
        /// Blocks of Llama-3.2-1B's shape
        #[arg(long, default_value_t = 16)]
        layers: usize,
        /// Tokens of the vocabulary
        #[arg(long, default_value_t = 32000)]
        vocab: usize,
        /// Sequences of a step
        #[arg(long, default_value_t = 8)]
        batch: usize,
        /// Tokens of a sequence
        #[arg(long, default_value_t = 2048)]
        sequence: usize,
        /// Timed steps
        #[arg(long, default_value_t = 5)]
        steps: usize,
    },
    /// Climb from the simplest int4 kernel to the fastest, with --device cuda (takes no model)
    Ladder {
        /// The weight as NxK
        #[arg(long, default_value = "4096x14336")]
        shape: String,
    },
    /// Measure what this machine can do at most (takes no model)
    Machine {
        /// Seconds a ceiling
        #[arg(long, default_value_t = 0.5)]
        seconds: f64,
    },
}

/// A library to be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Other {
    /// PyTorch's libtorch; needs a build with `--features torch`
    Torch,
}

impl Command for Bench {
    const NAME: &'static str = "bench";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Nothing, Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const MEASURES: bool = true;
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | bench decode --tokens 8",
            about: "tokens per second, one at a time",
            expect: "tok/s",
        },
        Example {
            line: "load tiny | bench decode --tokens 8 --kv-cache int8",
            about: "with keys and values in 8 bits",
            expect: "KV cache",
        },
        Example {
            line: "load tiny | bench prefill --tokens 32 --repeats 1",
            about: "tokens per second of a prompt",
            expect: "of f32 peak",
        },
        Example {
            line: "bench linear --shape 256x256 --m 1,8 --seconds 0.01",
            about: "one layer in every format",
            expect: "int4-weight-only",
        },
        Example {
            line: "bench machine --seconds 0.05",
            about: "the ceilings of this machine",
            expect: "GB/s",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let model = match input {
            Value::Model(model) => Ok(model),
            _ => session.model().cloned(),
        };
        if session.device().is_some() {
            return on_gpu(session, self.what, model).map(Value::Table);
        }
        let cpu = session.cpu().clone();
        let task = session.task("timing");
        let progress = &mut |done, total| task.progress(done, total);
        let table = match self.what {
            What::Decode { context, tokens, kv_cache } => {
                let model = model?.with_kv_cache(kv_cache.get());
                session.measures(&model, &[1]);
                let config = DecodeConfig { context, tokens };
                decode(&model, &cpu, &config, progress)?.table(&model.name)?
            }
            What::Prefill { tokens, repeats } => {
                let model = model?;
                session.measures(&model, &[tokens]);
                let config = PrefillConfig { tokens, repeats };
                prefill(&model, &cpu, &config, progress)?.table(&model.name)?
            }
            What::Quantize { .. } | What::Anchors { .. } | What::Train { .. } => {
                return Err(Error::usage("this bench runs on a GPU; add --device cuda"));
            }
            What::Ladder { shape } => cuda::ladder(None, one_shape(&shape)?)?,
            What::Machine { seconds } => {
                let table = ceilings(&cpu, checked(seconds)?)?;
                // Ceilings that were cut short are none.
                session.check()?;
                table
            }
            What::Linear { shape, m, format, group_size, warm, seconds, vs } => {
                let cases = Cases { m, format, group_size, warm, seconds: checked(seconds)?, vs };
                cases.run(&cpu, &shapes(&shape)?, progress)?
            }
        };
        Ok(Value::Table(table))
    }
}

/// The same benches on the session's GPU.
fn on_gpu(session: &mut Session, what: What, model: Result<Model>) -> Result<Table> {
    let device = &cuda::need_device(session.device())?.clone();
    let cpu = session.cpu().clone();
    let task = session.task("timing");
    let progress = &mut |done, total| task.progress(done, total);
    match what {
        What::Decode { context, tokens, kv_cache } => {
            let model = session.placed(model?.with_kv_cache(kv_cache.get()))?;
            session.measures(&model, &[1]);
            let ceilings = cuda::measure_ceilings(device)?;
            let (table, parts) = cuda::decode(&model, &cpu, &ceilings, (context, tokens))?;
            session.note(&parts.to_text(None, false));
            Ok(table)
        }
        What::Prefill { tokens, repeats } => {
            let model = session.placed(model?)?;
            session.measures(&model, &[tokens]);
            cuda::prefill(&model, &cpu, &cuda::measure_ceilings(device)?, (tokens, repeats))
        }
        What::Linear { shape, m, format, group_size, vs, .. } => {
            // What cannot be had is told before minutes of measuring.
            let rival = match vs {
                Some(Other::Torch) => Some(torch_on_gpu(&cpu, device.ordinal(), group_size)?),
                None => None,
            };
            let ceilings = cuda::measure_ceilings(device)?;
            let (mut table, mut baselines) = (None::<Table>, cuda::Baselines::new());
            let shapes = shapes(&shape)?;
            let total = shapes.len() * format.len();
            let cases = shapes.iter().flat_map(|shape| format.iter().map(move |f| (shape, f)));
            for (done, ((n, k), format)) in cases.enumerate() {
                if !progress(done, total) {
                    return Err(Error::Cancelled);
                }
                let weight = format.weight(&cpu, *n, *k, group_size)?;
                let bench = cuda::LinearBench { weight, m: m.clone() };
                let rows =
                    cuda::linear(device, &ceilings, &bench, &mut baselines, rival.as_deref())?;
                match &mut table {
                    Some(table) => table.append(rows)?,
                    None => table = Some(rows),
                }
            }
            table.ok_or_else(|| Error::usage("nothing to time: give a shape, a format and an M"))
        }
        What::Ladder { shape } => cuda::ladder(Some(device), one_shape(&shape)?),
        What::Machine { .. } => cuda::measure_ceilings(device)?.table(device),
        What::Train { layers, vocab, batch, sequence, steps } => {
            let bench = cuda::TrainBench { layers, vocab, batch, sequence, steps };
            let ceilings = cuda::measure_ceilings(device)?;
            device.trim()?;
            cuda::train(device, &ceilings, &bench, progress)
        }
        What::Quantize { shape } => {
            cuda::quantize(device, &cuda::measure_ceilings(device)?, &shapes(&shape)?)
        }
        What::Anchors { without_llama } => {
            // One table is the result; the others stand beside it.
            let mut tables = cuda::anchors(device, &cpu, !without_llama, progress)?;
            let layers = tables.remove(1);
            for table in tables {
                session.note(&table.to_text(None, false));
            }
            Ok(layers)
        }
    }
}

/// The grid of `bench linear`.
struct Cases {
    m: Vec<usize>,
    format: Vec<Format>,
    group_size: usize,
    warm: bool,
    seconds: f64,
    vs: Option<Other>,
}

impl Cases {
    fn run(
        &self,
        cpu: &Cpu,
        shapes: &[(usize, usize)],
        progress: crate::eval::Progress,
    ) -> Result<Table> {
        for (m, (n, k)) in self.m.iter().flat_map(|m| shapes.iter().map(move |shape| (m, shape))) {
            // 2³⁰ numbers are 4 GB in f32: more is a slip of the finger.
            if !m.checked_mul(n + k).is_some_and(|all| (1..=1 << 30).contains(&all)) {
                return Err(Error::usage(format!(
                    "--m {m} with {n}x{k}: wanted 1 or more rows, and at most 2³⁰ numbers"
                )));
            }
        }
        let peaks = Peaks::measure(cpu, 0.5);
        let total = shapes.len() * self.format.len() * self.m.len();
        let mut rows: Vec<Table> = Vec::with_capacity(total);
        for ((n, k), format) in
            shapes.iter().flat_map(|shape| self.format.iter().map(move |format| (shape, format)))
        {
            let weight = format.weight(cpu, *n, *k, self.group_size);
            let weight = weight.within(format!("shape {n}x{k}"))?;
            let cpu = cpu.clone().with_compute(format.compute());
            for m in &self.m {
                if !progress(rows.len(), total) {
                    return Err(Error::Cancelled);
                }
                let (weight, m, cold, seconds) = (&*weight, *m, !self.warm, self.seconds);
                let rival = match self.vs {
                    Some(Other::Torch) => Some(torch(&cpu, weight, m, self.group_size)?),
                    None => None,
                };
                let rival = rival.as_deref();
                let case = LinearCase { weight, m, cold, seconds };
                rows.push(linear_against(&cpu, &case, rival)?.table(&peaks)?);
            }
        }
        let mut rows = rows.into_iter();
        let mut table = rows
            .next()
            .ok_or_else(|| Error::usage("nothing to time: give a shape, a format and an M"))?;
        rows.try_for_each(|row| table.append(row))?;
        Ok(table)
    }
}

/// Times libtorch's layer of the same kind for so many rows.
type GpuTorch = dyn Fn(&dyn Weight, usize) -> Result<(String, f64)>;

/// The layer of libtorch that does the same: its own int8 and int4 layers where the weight is of that kind, else a dense
/// one.
#[cfg(feature = "torch")]
fn torch(cpu: &Cpu, weight: &dyn Weight, m: usize, group_size: usize) -> Result<Box<dyn Rival>> {
    Ok(Box::new(crate::libtorch::TorchLinear::new(cpu, weight, m, group_size)?))
}

/// The same on the GPU.
#[cfg(feature = "torch")]
fn torch_on_gpu(cpu: &Cpu, ordinal: usize, group_size: usize) -> Result<Box<GpuTorch>> {
    let gpu = crate::libtorch::TorchGpu::open(cpu, ordinal)?;
    Ok(Box::new(move |weight: &dyn Weight, m| {
        let (n, k) = weight.shape();
        gpu.linear_us(&weight.workflow(), (m, n, k), group_size)
    }))
}

#[cfg(not(feature = "torch"))]
fn torch_on_gpu(_: &Cpu, _: usize, _: usize) -> Result<Box<GpuTorch>> {
    Err(Error::usage(super::NO_LIBTORCH))
}

#[cfg(not(feature = "torch"))]
fn torch(_: &Cpu, _: &dyn Weight, _: usize, _: usize) -> Result<Box<dyn Rival>> {
    Err(Error::usage(super::NO_LIBTORCH))
}

fn checked(seconds: f64) -> Result<f64> {
    if (0.0..=60.0).contains(&seconds) {
        return Ok(seconds);
    }
    Err(Error::usage(format!("--seconds is {seconds}; wanted 0 to 60")))
}

/// Reads `11008x4096`.
fn shapes(words: &[String]) -> Result<Vec<(usize, usize)>> {
    // 2³⁰ weights are 4 GB in f32: more is a slip of the finger.
    let sound =
        |n: &usize, k: &usize| n.checked_mul(*k).is_some_and(|nk| (1..=1 << 30).contains(&nk));
    let read = |word: &String| {
        word.split_once('x')
            .and_then(|(n, k)| Some((n.trim().parse().ok()?, k.trim().parse().ok()?)))
            .filter(|(n, k)| sound(n, k))
            .ok_or_else(|| {
                Error::usage(format!("{word:?} is no shape; wanted NxK up to 2³⁰, as 11008x4096"))
            })
    };
    words.iter().map(read).collect()
}

fn one_shape(word: &str) -> Result<(usize, usize)> {
    let shape = shapes(&[word.to_owned()])?.first().copied();
    shape.ok_or_else(|| Error::usage("one shape was expected, as 4096x14336"))
}

#[cfg(test)]
mod tests {
    use super::shapes;

    #[test]
    fn shapes_are_read_and_nonsense_is_refused() {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(shapes(&words(&["11008x4096"])).expect("a shape"), [(11008, 4096)]);
        for bad in ["x", "3", "0x4", "99999999x99999999", "ax2"] {
            assert!(shapes(&words(&[bad])).is_err(), "{bad}");
        }
    }
}
