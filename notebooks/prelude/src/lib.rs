//! aolab for evcxr notebooks: `:dep aolab-notebook = { path = "notebooks/prelude" }`, then
//! `use aolab_notebook::*;`. Never depend on `aolab` itself in a cell: each cell would get its own copy.

pub use aolab::*;
