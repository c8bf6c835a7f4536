//! A GPU.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;

use super::launch::Kernel;
use super::matmul::Blas;
use super::memory::{Pool, Scratch};
use super::record::Recorder;
use super::sources::Source;
use super::{Cache, Compiler, CudaError, CudaResult, compile, library};

/// The oldest driver that runs what we build: CUDA 12.0.
const OLDEST_DRIVER: i32 = 12_000;

/// Where to look and which GPU to take.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which GPU, counted from 0.
    pub ordinal: usize,
    /// Folders with NVRTC and cuBLASLt, searched before the system's: see [`super::search_folders`].
    pub library_folders: Vec<PathBuf>,
    /// Where compiled kernels are kept; `None` compiles anew in each process.
    pub cache: Option<PathBuf>,
}

/// A GPU with one stream. Clones are the same GPU.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    compiler: Compiler,
    cache: Option<Cache>,
    found: &'static library::Found,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    l2_bytes: usize,
    modules: Mutex<HashMap<String, Arc<CudaModule>>>,
    pool: Mutex<Pool>,
    /// Its buffers hold the device, which lives until the process ends.
    scratch: Mutex<Scratch>,
    recorder: Mutex<Option<Recorder>>,
    blas: OnceLock<CudaResult<Blas>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device {} ({})", self.name(), self.arch())
    }
}

impl Device {
    /// Opens a GPU, or says in a sentence why there is none.
    pub fn open(options: &Options) -> CudaResult<Device> {
        let found = library::open(&options.library_folders);
        found.need_driver()?;
        let version = driver_version()?;
        if version < OLDEST_DRIVER {
            return Err(CudaError::new(format!(
                "the NVIDIA driver is for CUDA {}.{}; aolab needs one for CUDA 12.0 or newer",
                version / 1000,
                version % 1000 / 10
            )));
        }
        let count = CudaContext::device_count()
            .map_err(|error| CudaError::from(error).within("no NVIDIA GPU can be used"))?;
        let count = usize::try_from(count).unwrap_or(0);
        if options.ordinal >= count {
            return Err(CudaError::new(format!(
                "GPU {} was asked for and this machine has {count}",
                options.ordinal
            )));
        }
        let compiler = Compiler::find(&options.library_folders)?;
        let context = CudaContext::new(options.ordinal)?;
        // SAFETY: all work goes through one stream, in order, so that no event needs to guard a buffer.
        unsafe { context.disable_event_tracking() };
        let number = |attribute| -> CudaResult<usize> {
            Ok(usize::try_from(context.attribute(attribute)?).unwrap_or(0))
        };
        let inner = Inner {
            stream: context.new_stream()?,
            compiler,
            cache: options.cache.clone().map(Cache::new),
            found,
            name: context.name()?,
            capability: context.compute_capability()?,
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            modules: Mutex::default(),
            pool: Mutex::default(),
            scratch: Mutex::default(),
            recorder: Mutex::default(),
            blas: OnceLock::new(),
            context,
        };
        if inner.capability < (8, 0) {
            let (major, minor) = inner.capability;
            return Err(CudaError::new(format!(
                "{} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer",
                inner.name
            )));
        }
        Ok(Device(Arc::new(inner)))
    }

    /// Whether both are the same GPU, opened once.
    pub fn is(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Its number among the GPUs that the driver shows.
    pub fn ordinal(&self) -> usize {
        self.0.context.ordinal()
    }

    /// `NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The architecture that kernels are compiled for: `sm_90a`.
    pub fn arch(&self) -> String {
        let (major, minor) = self.0.capability;
        // From Hopper on the newest instructions exist for exactly one architecture, marked with an `a`.
        let suffix = if major >= 9 { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }

    /// `(9, 0)`.
    pub fn capability(&self) -> (i32, i32) {
        self.0.capability
    }

    /// Whether kernels may be launched before their predecessor has ended.
    pub fn has_dependent_launch(&self) -> bool {
        self.0.capability >= (9, 0)
    }

    /// Whether warpgroup products (`wgmma`) and tensor maps are there: Hopper alone.
    pub fn has_wgmma(&self) -> bool {
        self.0.capability.0 == 9
    }

    /// How many multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// Bytes of the last cache.
    pub fn l2_bytes(&self) -> usize {
        self.0.l2_bytes
    }

    /// Bytes of memory that are free, and all of them.
    pub fn memory(&self) -> CudaResult<(usize, usize)> {
        Ok(self.0.context.mem_get_info()?)
    }

    /// The compiler.
    pub fn compiler(&self) -> Compiler {
        self.0.compiler
    }

    /// Waits until all work is done, and reports what went wrong in it.
    pub fn synchronize(&self) -> CudaResult<()> {
        Ok(self.0.stream.synchronize()?)
    }

    /// The kernel `name` of `source`, specialised by `defines`; compiled, or read from the cache, when first asked for.
    pub fn kernel(&self, source: &Source, defines: &[String], name: &str) -> CudaResult<Kernel> {
        let key = format!("{} {}", source.name, defines.join(" "));
        let loaded = self.modules().get(&key).cloned();
        let module = match loaded {
            Some(module) => module,
            None => {
                let module = self.load(source, defines)?;
                self.modules().insert(key, Arc::clone(&module));
                module
            }
        };
        let function = module.load_function(name).map_err(|error| {
            CudaError::from(error).within(&format!("{name} of {}", source.name))
        })?;
        Ok(Kernel::new(self.clone(), function, name))
    }

    fn modules(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<CudaModule>>> {
        self.0.modules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, source: &Source, defines: &[String]) -> CudaResult<Arc<CudaModule>> {
        let arch = self.arch();
        let (major, minor) = self.0.compiler.version;
        let parts = [
            &source.full_text(),
            &compile::flags(defines, &arch).join(" "),
            &format!("{major}.{minor}"),
        ];
        let name = Cache::name(source.name, &arch, &parts.map(String::as_str));
        let cached = self.0.cache.as_ref().and_then(|cache| cache.load(&name));
        let cubin = match cached {
            Some(cubin) => cubin,
            None => {
                let cubin = self.0.compiler.compile(source, defines, &arch)?.cubin;
                if let Some(cache) = &self.0.cache {
                    cache.store(&name, &cubin);
                }
                cubin
            }
        };
        self.0.context.load_module(Ptx::from_binary(cubin)).map_err(|error| {
            CudaError::from(error).within(&format!("{} cannot be loaded", source.name))
        })
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.0.stream
    }

    pub(super) fn pool(&self) -> &Mutex<Pool> {
        &self.0.pool
    }

    pub(super) fn recorder_lock(&self) -> &Mutex<Option<Recorder>> {
        &self.0.recorder
    }

    pub(super) fn scratch(&self) -> std::sync::MutexGuard<'_, Scratch> {
        self.0.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes this GPU the one that the calling thread talks to.
    pub(super) fn bind(&self) -> CudaResult<()> {
        Ok(self.0.context.bind_to_thread()?)
    }

    pub(super) fn blas(&self) -> CudaResult<&Blas> {
        let made = self.0.blas.get_or_init(|| {
            self.0.found.need_cublaslt()?;
            self.bind()?;
            Blas::new()
        });
        made.as_ref().map_err(Clone::clone)
    }
}

/// The newest CUDA that the driver knows: 13000 is 13.0.
fn driver_version() -> CudaResult<i32> {
    let mut version = 0;
    // SAFETY: `version` is a number of this frame, and the driver's library is there.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}
