//! Kernels against the formulas in f64, on a GPU where there is one; elsewhere each test says that it was skipped.
#![allow(
    clippy::cast_possible_truncation,
    reason = "f64 to f32 rounds to nearest, as the references want"
)]

mod attention;
mod blocks;
mod compile;
mod linear;
mod one_token;
mod small;
mod sparse;
mod training;
mod training_attention;
mod training_casts;

use half::bf16;

use super::{Buffer, Device, Options, search_folders};

/// The GPU, or `None` after saying why not.
fn device() -> Option<Device> {
    match Device::open(&Options { library_folders: folders(), ..Options::default() }) {
        Ok(device) => Some(device),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// Where tests look for libraries: the folder in AOLAB_CUDA_LIBRARIES, the active Python environment, the toolkit.
#[expect(clippy::disallowed_methods, reason = "a test has no main that could pass this down")]
fn folders() -> Vec<std::path::PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(std::path::PathBuf::from);
    let first: Vec<_> = set("AOLAB_CUDA_LIBRARIES").into_iter().collect();
    let homes: Vec<_> = set("CUDA_HOME").into_iter().collect();
    let environments: Vec<_> = set("VIRTUAL_ENV").into_iter().collect();
    search_folders(&first, &homes, &environments)
}

fn to_bf16(v: &[f32]) -> Vec<u16> {
    v.iter().map(|v| bf16::from_f32(*v).to_bits()).collect()
}

fn from_bf16(v: &[u16]) -> Vec<f64> {
    v.iter().map(|v| bf16::from_bits(*v).to_f64()).collect()
}

/// A buffer whose every number is NaN.
fn poisoned_bf16(device: &Device, len: usize) -> Buffer<u16> {
    let buffer = device.uninit::<u16>(len).expect("memory");
    buffer.fill_bytes(0xff).expect("a fill");
    buffer
}

fn poisoned_f32(device: &Device, len: usize) -> Buffer<f32> {
    let buffer = device.uninit::<f32>(len).expect("memory");
    buffer.fill_bytes(0xff).expect("a fill");
    buffer
}

fn assert_close(case: &str, got: &[f64], wanted: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), wanted.len(), "{case}");
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let tolerance = tolerance(i);
        // A NaN, as poison leaves it, is never within a tolerance.
        let near = (got - wanted).abs() <= tolerance;
        assert!(near, "{case}: [{i}] = {got}, wanted {wanted} ± {tolerance}");
    }
}
