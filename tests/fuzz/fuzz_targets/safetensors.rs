//! Any bytes as a safetensors file: every tensor is read, or there is an error.
#![no_main]

#[path = "damage.rs"]
mod damage;

use std::sync::LazyLock;

use aolab::Tensor;
use aolab::io::safetensors::{SafetensorsFile, write};
use libfuzzer_sys::fuzz_target;

static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("small.safetensors");
    let tensors = [
        ("a".to_owned(), Tensor::new(vec![1.0_f32; 12], &[3, 4]).expect("twelve")),
        ("b.bias".to_owned(), Tensor::new(vec![2_i8; 5], &[5]).expect("five")),
        ("c".to_owned(), Tensor::new(Vec::<i64>::new(), &[0, 7]).expect("none")),
    ];
    write(&path, &tensors).expect("a small file");
    std::fs::read(path).expect("it was written")
});

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("any.safetensors");
    std::fs::write(&path, damage::file_of(bytes, &VALID)).expect("a small file");
    let Ok(read) = SafetensorsFile::open(&path) else { return };
    for name in read.names() {
        if let Ok(tensor) = read.tensor(name) {
            assert_eq!(tensor.nbytes(), tensor.bytes().len());
        }
    }
});
