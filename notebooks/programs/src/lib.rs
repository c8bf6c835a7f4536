//! The notebooks as plain programs. `cargo test -p aolab-notebook-programs` runs each from its first cell to its last: what
//! fails there fails in the notebook too. One build serves all of them, and none needs Jupyter.
#![allow(clippy::all, unused, reason = "cells are written to be read one by one")]

#[cfg(test)]
mod notebooks {
    include!(concat!(env!("OUT_DIR"), "/notebooks.rs"));
}
