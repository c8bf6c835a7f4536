//! Data-parallel training: each rank takes its share of every batch, and gradients are averaged over all of them.
//!
//! Ranks are processes that a launcher starts with torchrun's variables ([`Launch`]); they meet at rank 0's address and
//! talk over TCP ([`Group`]). Sums run in the order of the ranks, so that all ranks go on with the same bytes and a
//! run can be done again; more ranks sum in another order than one does, so that curves agree to rounding.

mod frame;
mod group;
mod launch;

pub use group::Group;
pub use launch::Launch;
