//! Device memory from a caching allocator, and pinned host memory.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr, result};

use super::{CudaError, CudaResult, Device};

/// Blocks are rounded up to this, so that nearly equal sizes share them.
const GRAIN: usize = 512;

/// A request takes a cached block that is at most this much larger than it asked for, in eighths.
const SLACK_EIGHTHS: usize = 1;

/// How much memory there is and who has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Bytes in buffers that are alive.
    pub used: usize,
    /// The most that `used` has been.
    pub peak: usize,
    /// Bytes that the pool keeps for the next buffers.
    pub cached: usize,
}

/// Blocks that were given back, by size. One stream does all the work, in order, so that a block may be reused at once.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: BTreeMap<usize, Vec<u64>>,
    /// While work is being captured nothing may be allocated, and nothing reused: the graph will use it again.
    capturing: bool,
    usage: PoolUse,
}

fn lock(pool: &Mutex<Pool>) -> MutexGuard<'_, Pool> {
    // Nothing that holds the lock can panic half way through a change.
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A piece of device memory that goes back to the pool when its last handle is dropped.
struct Block {
    address: u64,
    nbytes: usize,
    device: Device,
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut pool = lock(self.device.pool());
        pool.usage.used -= self.nbytes;
        pool.usage.cached += self.nbytes;
        pool.free.entry(self.nbytes).or_default().push(self.address);
    }
}

/// `len` numbers of type `T` in device memory. Clones and parts share it; kernels read and write it in stream order.
pub struct Buffer<T> {
    block: Arc<Block>,
    /// In numbers.
    start: usize,
    len: usize,
    of: PhantomData<T>,
}

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Buffer { block: Arc::clone(&self.block), start: self.start, len: self.len, of: PhantomData }
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer {} × {} bytes", self.len, size_of::<T>())
    }
}

impl<T: DeviceRepr> Buffer<T> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of the numbers.
    pub fn nbytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The device address of the first.
    pub fn address(&self) -> u64 {
        self.block.address + (self.start * size_of::<T>()) as u64
    }

    /// Numbers `range` of these.
    pub fn part(&self, range: std::ops::Range<usize>) -> Buffer<T> {
        let len = self.len;
        assert!(range.start <= range.end && range.end <= len, "{range:?} of {len} numbers");
        Buffer { start: self.start + range.start, len: range.len(), ..self.clone() }
    }

    /// Copies numbers to the device.
    pub fn write(&self, from: &[T]) -> CudaResult<()> {
        assert!(from.len() == self.len, "{} numbers for a buffer of {}", from.len(), self.len);
        let stream = self.block.device.stream();
        self.block.device.bind()?;
        // SAFETY: the block has room for `len` numbers, which was checked; the copy of pageable memory returns when it has been read.
        unsafe { result::memcpy_htod_async(self.address(), from, stream.cu_stream()) }?;
        Ok(())
    }

    /// Copies the numbers to the host and waits for them.
    pub fn read_into(&self, to: &mut [T]) -> CudaResult<()> {
        assert!(to.len() == self.len, "{} numbers from a buffer of {}", to.len(), self.len);
        let device = &self.block.device;
        device.synchronize()?;
        // SAFETY: the block holds `len` numbers, which was checked; the call returns when they are there.
        unsafe { result::memcpy_dtoh_sync(to, self.address()) }?;
        Ok(())
    }

    /// The numbers on the host.
    pub fn read(&self) -> CudaResult<Vec<T>>
    where
        T: Default + Clone,
    {
        let mut all = vec![T::default(); self.len];
        self.read_into(&mut all)?;
        Ok(all)
    }

    /// Sets every byte to `byte`, in stream order.
    pub fn fill_bytes(&self, byte: u8) -> CudaResult<()> {
        let stream = self.block.device.stream();
        self.block.device.bind()?;
        // SAFETY: the block has `nbytes` bytes from this address on.
        unsafe {
            result::memset_d8_async(self.address(), byte, self.nbytes(), stream.cu_stream())
        }?;
        Ok(())
    }

    /// Copies the numbers of another buffer, in stream order.
    pub fn copy_from(&self, from: &Buffer<T>) -> CudaResult<()> {
        assert!(from.len == self.len, "{} numbers for a buffer of {}", from.len, self.len);
        let stream = self.block.device.stream();
        self.block.device.bind()?;
        // SAFETY: both hold `nbytes` bytes.
        unsafe {
            result::memcpy_dtod_async(
                self.address(),
                from.address(),
                self.nbytes(),
                stream.cu_stream(),
            )
        }?;
        Ok(())
    }
}

/// Memory that operations use between their kernels and that stays where it is, so that they can be captured. Whoever holds it
/// puts all of those kernels into the stream before the next one does.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Of each use the buffers so far, the largest last: captured graphs may still write to older ones.
    slots: [Vec<Buffer<u8>>; 3],
}

impl Scratch {
    /// Room for `len` numbers in slot `slot`.
    pub(super) fn take<T: DeviceRepr>(
        &mut self,
        device: &Device,
        slot: usize,
        len: usize,
    ) -> CudaResult<Buffer<T>> {
        let nbytes = len * size_of::<T>();
        let held = self.slots[slot].last().map_or(0, Buffer::len);
        if held < nbytes {
            self.slots[slot].push(device.uninit(nbytes.max(2 * held))?);
        }
        let block = match self.slots[slot].last() {
            Some(buffer) => Arc::clone(&buffer.block),
            None => Arc::clone(&device.uninit::<u8>(0)?.block),
        };
        Ok(Buffer { block, start: 0, len, of: PhantomData })
    }
}

impl Device {
    /// Room for `len` numbers, with whatever was there before.
    pub fn uninit<T: DeviceRepr>(&self, len: usize) -> CudaResult<Buffer<T>> {
        let nbytes = len
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.max(1).checked_next_multiple_of(GRAIN))
            .ok_or_else(|| CudaError::new(format!("{len} numbers are more than memory")))?;
        let (address, nbytes) = self.take_block(nbytes)?;
        let block = Arc::new(Block { address, nbytes, device: self.clone() });
        Ok(Buffer { block, start: 0, len, of: PhantomData })
    }

    /// `len` numbers whose bytes are all zero.
    pub fn zeros<T: DeviceRepr>(&self, len: usize) -> CudaResult<Buffer<T>> {
        let buffer = self.uninit(len)?;
        buffer.fill_bytes(0)?;
        Ok(buffer)
    }

    /// A copy of `from` on the device.
    pub fn upload<T: DeviceRepr>(&self, from: &[T]) -> CudaResult<Buffer<T>> {
        let buffer = self.uninit(from.len())?;
        buffer.write(from)?;
        Ok(buffer)
    }

    /// What the buffers take.
    pub fn pool_use(&self) -> PoolUse {
        lock(self.pool()).usage
    }

    /// Gives cached blocks back to the driver.
    pub fn trim(&self) -> CudaResult<()> {
        self.synchronize()?;
        let mut pool = lock(self.pool());
        for address in std::mem::take(&mut pool.free).into_values().flatten() {
            // SAFETY: the block came from `malloc_sync`, no buffer holds it, and the stream is idle.
            unsafe { result::free_sync(address) }?;
        }
        pool.usage.cached = 0;
        Ok(())
    }

    pub(super) fn is_capturing(&self) -> bool {
        lock(self.pool()).capturing
    }

    pub(super) fn set_capturing(&self, capturing: bool) {
        lock(self.pool()).capturing = capturing;
    }

    fn take_block(&self, nbytes: usize) -> CudaResult<(u64, usize)> {
        self.bind()?;
        let mut pool = lock(self.pool());
        if pool.capturing {
            return Err(CudaError::new(format!(
                "{nbytes} bytes were asked for while work was being captured; a graph cannot allocate"
            )));
        }
        let most = nbytes + nbytes / 8 * SLACK_EIGHTHS;
        let fitting = pool.free.range(nbytes..=most).find(|(_, blocks)| !blocks.is_empty());
        let size = fitting.map(|(size, _)| *size);
        if let Some(size) = size
            && let Some(address) = pool.free.get_mut(&size).and_then(Vec::pop)
        {
            pool.usage.cached -= size;
            pool.usage.used += size;
            pool.usage.peak = pool.usage.peak.max(pool.usage.used);
            return Ok((address, size));
        }
        drop(pool);
        let address = self.allocate(nbytes)?;
        let mut pool = lock(self.pool());
        pool.usage.used += nbytes;
        pool.usage.peak = pool.usage.peak.max(pool.usage.used);
        Ok((address, nbytes))
    }

    /// New memory from the driver; cached blocks are given up where there is too little.
    fn allocate(&self, nbytes: usize) -> CudaResult<u64> {
        // SAFETY: the context is bound; the block is freed by `trim` alone, when no buffer holds it.
        if let Ok(address) = unsafe { result::malloc_sync(nbytes) } {
            return Ok(address);
        }
        self.trim()?;
        // SAFETY: as above.
        unsafe { result::malloc_sync(nbytes) }.map_err(|error| {
            let used = self.pool_use().used;
            CudaError::from(error)
                .within(&format!("{nbytes} bytes do not fit beside the {used} in use"))
        })
    }
}

/// Host memory that the GPU reads and writes by itself, without a copy in between.
#[derive(Debug)]
pub struct Pinned<T: DeviceRepr> {
    slice: cudarc::driver::PinnedHostSlice<T>,
    stream: Arc<CudaStream>,
}

impl<T: DeviceRepr + cudarc::driver::ValidAsZeroBits + Copy> Pinned<T> {
    /// `len` zeros.
    pub fn zeros(device: &Device, len: usize) -> CudaResult<Pinned<T>> {
        let context: &Arc<CudaContext> = device.context();
        // SAFETY: the memory is filled below, before anything reads it.
        let mut slice = unsafe { context.alloc_pinned::<T>(len) }?;
        let first = slice.as_mut_ptr()?;
        // SAFETY: `len` numbers lie there, and zero bytes are a value of `T`.
        unsafe { std::ptr::write_bytes(first, 0, len) };
        Ok(Pinned { slice, stream: Arc::clone(device.stream()) })
    }

    /// The numbers, when all work of the stream is done.
    pub fn get(&self) -> CudaResult<Vec<T>> {
        self.stream.synchronize()?;
        Ok(self.slice.as_slice()?.to_vec())
    }

    /// Copies numbers from the device in stream order.
    pub fn copy_from(&mut self, from: &Buffer<T>) -> CudaResult<()> {
        let len = from.len();
        assert!(len == self.slice.len(), "{len} numbers for {} pinned ones", self.slice.len());
        let to = self.slice.as_mut_ptr()?;
        // SAFETY: `len` numbers lie there, alive as long as `self`, and are read only after the stream is idle.
        let to = unsafe { std::slice::from_raw_parts_mut(to, len) };
        // SAFETY: both sides hold `len` numbers.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.stream.cu_stream()) }?;
        Ok(())
    }
}
