//! The bridge to PyTorch's libtorch, through tch: the reference that results are held against, the baseline that speed is
//! measured by, and the way in for TorchScript. Everything here needs the feature `torch` and, when it runs, libtorch.
//!
//! Build with `LIBTORCH="$(bash tests/libtorch.sh)" cargo build --release --features torch`; the script fetches a lean libtorch once.
//! tch 0.26 fits PyTorch 2.13; for 2.11 run `cargo update -p tch --precise 0.24.0`. Programs of this package remember where
//! libtorch lay; `LD_LIBRARY_PATH` is looked at first.

mod cuda;
mod linear;
mod network;
mod script;
mod tensors;
mod training;
mod verify;

use std::sync::OnceLock;

pub use self::cuda::TorchGpu;
pub use self::linear::TorchLinear;
pub use self::network::{TorchNetwork, TorchRule};
pub use self::script::{Script, load_script};
pub use self::tensors::{from_torch, into_torch, to_torch};
pub use self::training::{TorchQat, TorchStep, TorchTrainer, TorchWeights};
pub use self::verify::{verify, verify_gpu};
use crate::error::{Error, Result};
use crate::kernels::{Cpu, libtorch};

/// An error of libtorch in one sentence: the rest of its text is a C++ stack.
pub(crate) fn wrong(error: impl std::fmt::Display) -> Error {
    let words = error.to_string();
    let first = words.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Error::invalid(format!("libtorch: {}", first.trim()))
}

/// Makes libtorch ready: its version is what this program was built for, it has as many threads as `cpu`, and its CUDA
/// half is loaded where there is one.
pub fn prepare(cpu: &Cpu) -> Result<()> {
    // Without a CUDA half libtorch runs on the CPU. The question for its version is the first that asks for CUDA: what is
    // loaded later than that, it never sees.
    let _ = open_cuda();
    let (built, loaded) = (libtorch::built_for(), libtorch::loaded_version());
    if let Some(loaded) = loaded.filter(|loaded| !built.starts_with(loaded.as_str())) {
        return Err(Error::invalid(format!(
            "this program was built for libtorch {built}, and {loaded} was loaded; build it again with that one's folder \
             as LIBTORCH, or take it out of LD_LIBRARY_PATH"
        )));
    }
    let threads = i32::try_from(cpu.threads().count()).unwrap_or(i32::MAX);
    if tch::get_num_threads() != threads {
        tch::set_num_threads(threads);
    }
    Ok(())
}

/// Loads libtorch's CUDA half, once; the error says why not. A program does not load it by itself: linkers drop it.
fn open_cuda() -> Result<(), String> {
    static OPENED: OnceLock<Result<(), String>> = OnceLock::new();
    OPENED.get_or_init(libtorch::open_cuda).clone()
}

/// Whether libtorch can use a GPU.
pub fn cuda_is_available() -> bool {
    open_cuda().is_ok() && tch::Cuda::is_available()
}
