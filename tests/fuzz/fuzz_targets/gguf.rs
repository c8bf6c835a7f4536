//! Any bytes as a GGUF file: the model is built from it, or there is an error.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().expect("a temporary file");
    file.write_all(bytes).expect("a small file");
    let path = file.path().to_str().expect("UTF-8");
    let _ = aolab::load(path);
});
