//! Which kernels torchao is to run (A13): a word that configurations keep, and that changes no number here.

use crate::quantization::config::words;

words! {
    /// Which kernels torchao is to run. Here every workflow has its own, so that the word is only kept.
    KernelPreference "a kernel preference" {
        /// The best that there is.
        Auto = "AUTO",
        /// PyTorch's.
        Torch = "TORCH",
        /// MSLK's, for NVIDIA.
        Mslk = "MSLK",
        /// Dequantize and multiply.
        Emulated = "EMULATED",
        /// Triton's, for NVIDIA.
        Triton = "TRITON",
    }
}
