//! The `aolab` program.
#![forbid(unsafe_code)]
fn main() {}
