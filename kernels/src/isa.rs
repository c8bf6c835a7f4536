//! Which instruction set a kernel may use, proved by a token.
//!
//! A token such as [`Avx2`] has a private field and is made only after the processor was asked, so
//! that holding one proves that `#[target_feature]` functions of that level may be called.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::buffers::{Buffer, Buffers};
use crate::parallel::Threads;

macro_rules! tokens {
    ($($(#[$doc:meta])* $name:ident on $arch:literal: $feature:expr;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            _made_by_detect: (),
        }

        impl $name {
            /// The token, if this processor has the instructions.
            pub fn detect() -> Option<Self> {
                #[cfg(target_arch = $arch)]
                if $feature {
                    return Some(Self { _made_by_detect: () });
                }
                None
            }
        }
    )+};
}

tokens! {
    /// AVX2, FMA and F16C.
    Avx2 on "x86_64": is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    /// AVX-512 F, BW, DQ and VL, with everything of [`Avx2`].
    Avx512 on "x86_64": Avx2::detect().is_some()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    /// [`Avx512`] with VNNI (int8 dot products) and BF16 (bf16 dot products).
    Avx512Vnni on "x86_64": Avx512::detect().is_some()
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512bf16");
    /// [`Avx512Vnni`] with VBMI: look-ups of bytes among 64 and 128. It is no [`Isa`] of its own: kernels that want it ask.
    Avx512Vbmi on "x86_64": Avx512Vnni::detect().is_some()
        && is_x86_feature_detected!("avx512vbmi");
    /// [`Avx512Vnni`] with VBMI, VBMI2, GFNI and BMI2: bytes, words and bits spread by a mask, bits added within bytes. It is no [`Isa`] of its own either.
    Avx512Vbmi2 on "x86_64": Avx512Vnni::detect().is_some()
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("gfni")
        && is_x86_feature_detected!("bmi2");
    /// NEON with the dot-product instructions.
    Neon on "aarch64": std::arch::is_aarch64_feature_detected!("neon")
        && std::arch::is_aarch64_feature_detected!("dotprod");
}

/// The instruction sets that kernels are written for, each with the proof that this machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: the oracle, and the path of every other processor.
    Scalar,
    /// See [`Avx2`].
    Avx2(Avx2),
    /// See [`Avx512`].
    Avx512(Avx512),
    /// See [`Avx512Vnni`].
    Avx512Vnni(Avx512Vnni),
    /// See [`Neon`].
    Neon(Neon),
}

impl Isa {
    /// Every instruction set of this machine, slowest first; `Scalar` is always there.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::Scalar];
        all.extend(Avx2::detect().map(Isa::Avx2));
        all.extend(Avx512::detect().map(Isa::Avx512));
        all.extend(Avx512Vnni::detect().map(Isa::Avx512Vnni));
        all.extend(Neon::detect().map(Isa::Neon));
        all
    }

    /// The fastest instruction set of this machine.
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Scalar)
    }

    /// The instruction set called `name` (see [`Isa::name`]), if this machine has it.
    pub fn by_name(name: &str) -> Option<Isa> {
        Isa::available().into_iter().find(|isa| isa.name() == name)
    }

    /// `scalar`, `avx2`, `avx512`, `avx512vnni` or `neon`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2(_) => "avx2",
            Isa::Avx512(_) => "avx512",
            Isa::Avx512Vnni(_) => "avx512vnni",
            Isa::Neon(_) => "neon",
        }
    }
}

impl Avx512 {
    /// The AVX2 token that every AVX-512 processor has too.
    pub fn avx2(self) -> Avx2 {
        Avx2 { _made_by_detect: () }
    }
}

impl Avx512Vnni {
    /// The AVX-512 token that every such processor has too.
    pub fn avx512(self) -> Avx512 {
        Avx512 { _made_by_detect: () }
    }
}

/// What layers with bf16 weights round their activations to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Nothing: activations stay f32.
    #[default]
    F32,
    /// bf16, as PyTorch does in a bf16 model; sums stay f32.
    Bf16,
}

impl Compute {
    /// `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        }
    }
}

/// The processor as kernels see it: an instruction set, the threads to spread work over, and what a layer that has the
/// choice computes in.
#[derive(Clone, Debug)]
pub struct Cpu {
    isa: Isa,
    threads: Threads,
    compute: Compute,
    stop: Option<Arc<AtomicBool>>,
    buffers: Option<Buffers>,
}

impl Cpu {
    /// The best instruction set and `threads` threads; `None` takes one thread per core.
    pub fn new(threads: Option<usize>) -> Cpu {
        Cpu::with_isa(Isa::best(), threads)
    }

    /// A chosen instruction set, for tests, benches and `--isa`.
    pub fn with_isa(isa: Isa, threads: Option<usize>) -> Cpu {
        let threads = threads.unwrap_or_else(Threads::available);
        let threads = Threads::new(threads);
        Cpu { isa, threads, compute: Compute::F32, stop: None, buffers: None }
    }

    /// The same processor and threads with another [`Compute`].
    pub fn with_compute(self, compute: Compute) -> Cpu {
        Cpu { compute, ..self }
    }

    /// The same processor for work that ends early when `stop` is set. A kernel ends what it has begun; whoever calls many
    /// of them asks [`Cpu::stopped`] between.
    pub fn with_stop(self, stop: Option<Arc<AtomicBool>>) -> Cpu {
        Cpu { stop, ..self }
    }

    /// The same processor for work whose results are made in memory that `buffers` keep.
    pub fn with_buffers(self, buffers: Buffers) -> Cpu {
        Cpu { buffers: Some(buffers), ..self }
    }

    /// The same instructions and buffers without other threads.
    pub fn alone(&self) -> Cpu {
        Cpu { threads: Threads::new(1), ..self.clone() }
    }

    /// `len` numbers of any value, to be written: zeros, or what a dropped result left.
    pub fn buffer(&self, len: usize) -> Buffer {
        match &self.buffers {
            Some(buffers) => buffers.take(len),
            None => Buffer::zeros(len),
        }
    }

    /// Whether somebody wants the work to end.
    pub fn stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// What layers with bf16 weights round their activations to.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The instruction set that kernels dispatch on.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads that kernels spread their work over.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }
}

#[cfg(all(test, target_arch = "aarch64"))]
mod tests {
    use super::*;

    #[test]
    fn an_arm_processor_runs_neon() {
        let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        assert_eq!(names, ["scalar", "neon"], "tests of every kernel would skip NEON otherwise");
    }
}
