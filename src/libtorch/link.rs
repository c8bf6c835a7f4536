//! The build script: programs of this package find libtorch where it lay when they were built.

#[allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "so build scripts talk to cargo"
)]
fn main() {
    println!("cargo:rerun-if-changed=src/libtorch/link.rs");
    println!("cargo:rerun-if-env-changed=DEP_AOLAB_KERNELS_LIBTORCH");
    // Only with the feature `torch`; LD_LIBRARY_PATH is looked at before this folder.
    if let Some(folder) = std::env::var_os("DEP_AOLAB_KERNELS_LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
