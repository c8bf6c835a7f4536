//! Where the libraries lie.
//!
//! The driver's (`libcuda`) is found by the system. NVRTC and cuBLASLt come with a toolkit or as Python wheels, and wheels are not
//! on the loader's path: they are opened here by their full path first, and the loader then knows them by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::{cublaslt, driver, nvrtc};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::{CudaError, CudaResult};

/// In this order: NVRTC opens its builtins by bare name, and cuBLAS opens cuBLASLt.
const STEMS: [&str; 3] = ["libnvrtc-builtins.so.", "libnvrtc.so.", "libcublasLt.so."];

/// Folders below a Python environment's `site-packages` that hold the libraries, newest first.
const WHEELS: [&str; 3] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cublas/lib"];

/// Which libraries there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The driver.
    pub driver: bool,
    /// The compiler.
    pub nvrtc: bool,
    /// The dense products.
    pub cublaslt: bool,
    /// Files that were opened by their full path.
    pub opened: Vec<PathBuf>,
}

/// The folders that hold libraries: `first` (a person's own), a toolkit at `homes` (CUDA_HOME, CUDA_PATH), the Python
/// environments at `environments` (VIRTUAL_ENV, CONDA_PREFIX), and the usual place of a toolkit.
pub fn search_folders(
    first: &[PathBuf],
    homes: &[PathBuf],
    environments: &[PathBuf],
) -> Vec<PathBuf> {
    let mut all = first.to_vec();
    all.extend(homes.iter().flat_map(|home| [home.join("lib64"), home.join("lib")]));
    for environment in environments {
        for python in entries(&environment.join("lib")) {
            let site = python.join("site-packages");
            all.extend(WHEELS.iter().map(|wheel| site.join(wheel)));
        }
    }
    all.push(PathBuf::from("/usr/local/cuda/lib64"));
    all.retain(|folder| folder.is_dir());
    all
}

/// The paths in `folder`, sorted; none where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// Opens what `folders` hold, once a process, and says what can be used.
pub(super) fn open(folders: &[PathBuf]) -> &'static Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut opened = Vec::new();
        for stem in STEMS {
            // The first folder that has it wins; what the system finds by itself needs no help.
            let file = folders.iter().flat_map(|folder| entries(folder)).find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(stem) && !name.contains(".alt.")
            });
            if let Some(path) = file
                && keep_open(&path)
            {
                opened.push(path);
            }
        }
        // SAFETY: looks for a library by name; nothing of it is called.
        let driver = unsafe { driver::sys::is_culib_present() };
        // SAFETY: as above.
        let nvrtc = unsafe { nvrtc::sys::is_culib_present() };
        // SAFETY: as above.
        let cublaslt = unsafe { cublaslt::sys::is_culib_present() };
        Found { driver, nvrtc, cublaslt, opened }
    })
}

/// Opens a library for the rest of the process; whether it could be.
fn keep_open(path: &Path) -> bool {
    // SAFETY: these are NVIDIA's libraries, whose initialisers only set up their own tables.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        Ok(library) => {
            // Dropping would close it again under the loader's feet.
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

impl Found {
    pub(super) fn need_driver(&self) -> CudaResult<()> {
        if self.driver {
            return Ok(());
        }
        Err(CudaError::new(
            "no NVIDIA driver is installed (libcuda.so.1 was not found); use --device cpu",
        ))
    }

    pub(super) fn need_nvrtc(&self) -> CudaResult<()> {
        if self.nvrtc {
            return Ok(());
        }
        Err(CudaError::new(
            "the CUDA compiler NVRTC was not found; `pip install nvidia-cuda-nvrtc nvidia-cublas` in the active environment, \
             install a CUDA toolkit, or say where libnvrtc.so lies with --cuda-libraries FOLDER",
        ))
    }

    pub(super) fn need_cublaslt(&self) -> CudaResult<()> {
        if self.cublaslt {
            return Ok(());
        }
        Err(CudaError::new(
            "cuBLASLt was not found; `pip install nvidia-cublas` in the active environment, install a CUDA toolkit, or \
             say where libcublasLt.so lies with --cuda-libraries FOLDER",
        ))
    }
}
