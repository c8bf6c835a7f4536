//! Any bytes as a safetensors file: every tensor is read, or there is an error.
#![no_main]

use std::io::Write;

use aolab::io::safetensors::SafetensorsFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("a small file");
    if let Ok(read) = SafetensorsFile::open(file.path()) {
        for name in read.names() {
            if let Ok(tensor) = read.tensor(name) {
                assert_eq!(tensor.nbytes(), tensor.bytes().len());
            }
        }
    }
});
