//! Any bytes as a file of torch.save: every tensor is read, or there is an error.
#![no_main]

#[path = "damage.rs"]
mod damage;

use aolab::io::pytorch::TorchFile;
use libfuzzer_sys::fuzz_target;

static VALID: &[u8] = include_bytes!("../../pytorch/checkpoint.pt");

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("any.pt");
    std::fs::write(&path, damage::file_of(bytes, VALID)).expect("a small file");
    let Ok(read) = TorchFile::open(&path) else { return };
    for name in read.names() {
        if let Ok(tensor) = read.tensor(name) {
            assert_eq!(tensor.nbytes(), tensor.bytes().len());
        }
    }
});
