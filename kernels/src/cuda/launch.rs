//! Launching kernels.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, DeviceRepr, sys};

use super::tensor_map::TensorMap;
use super::{Buffer, CudaError, CudaResult, Device};

/// How many blocks of how many threads, and bytes of shared memory a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks.
    pub blocks: (usize, usize, usize),
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory of a block.
    pub shared: usize,
}

impl Grid {
    /// `blocks` in a row of `threads` each.
    pub fn line(blocks: usize, threads: usize) -> Grid {
        Grid { blocks: (blocks, 1, 1), threads, shared: 0 }
    }

    /// The same with `shared` bytes of dynamic shared memory.
    #[must_use]
    pub fn shared(self, shared: usize) -> Grid {
        Grid { shared, ..self }
    }
}

/// A kernel's argument.
#[derive(Clone, Copy, Debug)]
pub struct Arg(Value);

#[derive(Clone, Copy, Debug)]
enum Value {
    /// An address or a number, in the low bytes.
    Word(u64),
    /// Sixteen bf16 numbers: their low bytes, then their high ones.
    Table([u32; 8]),
    Map(TensorMap),
}

impl Arg {
    const fn word(word: u64) -> Arg {
        Arg(Value::Word(word))
    }
}

impl From<[u32; 8]> for Arg {
    fn from(table: [u32; 8]) -> Self {
        Arg(Value::Table(table))
    }
}

impl From<TensorMap> for Arg {
    fn from(map: TensorMap) -> Self {
        Arg(Value::Map(map))
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Arg::word(u64::from(value.cast_unsigned()))
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Arg::word(u64::from(value.to_bits()))
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Arg::word(value)
    }
}

impl<T: DeviceRepr> From<&Buffer<T>> for Arg {
    fn from(buffer: &Buffer<T>) -> Self {
        Arg::word(buffer.address())
    }
}

impl<T: DeviceRepr> From<Option<&Buffer<T>>> for Arg {
    fn from(buffer: Option<&Buffer<T>>) -> Self {
        Arg::word(buffer.map_or(0, Buffer::address))
    }
}

/// A size as the kernels take it.
pub(super) fn int(value: usize) -> Arg {
    i32::try_from(value).expect("shapes were checked to be below 2³¹ at the door").into()
}

/// Shared memory that a kernel may use without asking.
const SHARED_WITHOUT_ASKING: usize = 48 << 10;

/// A loaded kernel.
#[derive(Clone)]
pub struct Kernel {
    device: Device,
    function: CudaFunction,
    name: Arc<str>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel on {:?}", self.device)
    }
}

impl Kernel {
    pub(super) fn new(device: Device, function: CudaFunction, name: &str) -> Kernel {
        Kernel { device, function, name: name.into() }
    }

    /// How much of a multiprocessor's memory the kernel wants as shared memory: all that is to be had, or what the driver chooses. The rest is
    /// cache, which kernels that load to registers want. A multiprocessor has to run empty before its memory is divided anew, and in a
    /// token it never does, so that neighbours should want the same.
    pub(super) fn prefer_shared(&self, all: bool) -> CudaResult<&Kernel> {
        let attribute =
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        self.device.bind()?;
        self.function.set_attribute(attribute, if all { 100 } else { -1 })?;
        Ok(self)
    }

    /// Puts one run of the kernel into the stream. The caller knows the kernel's parameters: `arguments` are theirs in order.
    ///
    /// The kernel may start before its predecessor has ended (programmatic dependent launch) and waits by itself.
    pub(super) fn launch(&self, grid: Grid, arguments: &[Arg]) -> CudaResult<()> {
        if grid.blocks.0 * grid.blocks.1 * grid.blocks.2 == 0 {
            return Ok(());
        }
        self.device.bind()?;
        if grid.shared > SHARED_WITHOUT_ASKING {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            self.function.set_attribute(attribute, small(grid.shared)?.cast_signed())?;
        }
        // The driver reads them and writes to none.
        let mut pointers: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match &argument.0 {
                Value::Word(word) => std::ptr::from_ref(word).cast_mut().cast(),
                Value::Table(table) => std::ptr::from_ref(table).cast_mut().cast(),
                Value::Map(map) => std::ptr::from_ref(map).cast_mut().cast(),
            })
            .collect();
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: small(grid.blocks.0)?,
            gridDimY: small(grid.blocks.1)?,
            gridDimZ: small(grid.blocks.2)?,
            blockDimX: small(grid.threads)?,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: small(grid.shared)?,
            hStream: self.device.stream().cu_stream(),
            attrs: &raw mut early,
            numAttrs: u32::from(self.device.has_dependent_launch()),
        };
        let blocks = grid.blocks.0 * grid.blocks.1 * grid.blocks.2;
        self.device.launched(
            || self.name.to_string(),
            (blocks, grid.threads),
            || {
                // SAFETY: each pointer leads to an argument of this frame, which the driver copies before it returns; their number and
                // sizes are the kernel's, by the contract of this private function.
                let launched = unsafe {
                    sys::cuLaunchKernelEx(
                        &raw const config,
                        self.function.cu_function(),
                        pointers.as_mut_ptr(),
                        std::ptr::null_mut(),
                    )
                };
                Ok(launched.result()?)
            },
        )
    }
}

fn small(value: usize) -> CudaResult<u32> {
    u32::try_from(value).map_err(|_| CudaError::new(format!("a grid of {value} is too large")))
}
