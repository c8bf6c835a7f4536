//! What went wrong on the GPU's side, in words.

use std::fmt;

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::nvrtc::result::NvrtcError;

/// The result of everything that needs a GPU or its compiler.
pub type CudaResult<T> = Result<T, CudaError>;

/// Why something could not be done on the GPU. `Display` is what a person reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaError(String);

impl CudaError {
    /// From a sentence.
    pub fn new(words: impl Into<String>) -> CudaError {
        CudaError(words.into())
    }

    /// With what was being done put in front.
    #[must_use]
    pub fn within(self, what: &str) -> CudaError {
        CudaError(format!("{what}: {}", self.0))
    }
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CudaError {}

impl From<DriverError> for CudaError {
    fn from(error: DriverError) -> CudaError {
        CudaError(format!("the CUDA driver says {:?}", error.0))
    }
}

impl From<NvrtcError> for CudaError {
    fn from(error: NvrtcError) -> CudaError {
        CudaError(format!("NVRTC says {:?}", error.0))
    }
}

impl From<CublasError> for CudaError {
    fn from(error: CublasError) -> CudaError {
        CudaError(format!("cuBLASLt says {:?}", error.0))
    }
}
