//! aolab
#![forbid(unsafe_code)]
