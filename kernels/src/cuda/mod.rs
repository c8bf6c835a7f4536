//! Everything between a kernel and an NVIDIA GPU, found at run time.
//!
//! ```text
//! library.rs   where the driver's and the toolkit's libraries lie; opens them, never panics
//! compile.rs   NVRTC: CUDA C++ to a CUBIN for one architecture, with its registers and spills
//! cache.rs     compiled kernels on disk, by the hash of all that made them
//! device.rs    a GPU: its stream, its loaded kernels, its memory pool
//! memory.rs    buffers from a caching allocator, pinned host memory
//! launch.rs    arguments, grids, programmatic dependent launch
//! graph.rs     captured work, replayed as one launch; timing by events
//! record.rs    when each kernel ran, for profiles
//! matmul.rs    dense products through cuBLASLt, one algorithm a shape
//! linear/      linear layers in every format that has a kernel
//! sparse/      linear layers whose weight is 2:4
//! ops.rs       the operations between them
//! training/     forward, backward and step of training
//! tensor_map.rs  matrices as Hopper's copy engine sees them
//! sources.rs   every `.cu` of this crate and how it is specialised
//! ```
//!
//! Building needs no toolkit and running without a GPU is no error until a GPU is asked for: [`Device::open`] then says
//! in a sentence what is missing. Kernels are `.cu` files beside the CPU code of the same operation; they include no header, and
//! `common.cuh` is put in front of each: one wrapper for each PTX instruction.
//!
//! All work of a [`Device`] goes through its one stream, in order. A buffer whose last handle is dropped can therefore be
//! given to the next caller at once: whoever writes to it comes later in the same stream.
//!
//! # How to add a CUDA kernel
//!
//! `kernel.cu` beside the operation's `mod.rs`; every thread calls `wait_for_previous()` before it reads what another kernel wrote. One
//! entry in `sources::SOURCES` (with the specialisations that are used, so that the check compiles them for every
//! architecture), a function in `ops` that checks the shapes, and a test in `cuda/tests` against the formula in f64.

mod cache;
mod compile;
mod device;
mod error;
mod graph;
mod launch;
mod library;
pub mod linear;
mod matmul;
mod memory;
pub mod ops;
mod record;
pub mod sources;
pub mod sparse;
mod tensor_map;
pub mod training;

#[cfg(test)]
mod tests;

pub use cache::{Cache, CacheEntry};
pub use compile::{Compiled, Compiler, KernelResources};
pub use device::{Device, Options};
pub use error::{CudaError, CudaResult};
pub use graph::Graph;
pub use launch::{Arg, Grid, Kernel};
pub use library::{Found, search_folders};
pub use matmul::{DenseType, MatmulScales};
pub use memory::{Buffer, Pinned, PoolUse};
pub use record::KernelRun;
