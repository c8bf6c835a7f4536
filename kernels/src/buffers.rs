//! Memory that is used again by results of about the same length.
//!
//! A training step makes the same hundreds of tensors as the one before. From the allocator each would be searched for, and
//! filled with zeros by one thread before a kernel writes all of it; a [`Buffer`] comes with whatever it held before.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pages;

/// The memory of dropped [`Buffer`]s, by its length, an eighth of a power of two apart. Clones share it; it ends with the last clone and the last buffer.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    free: Arc<Mutex<HashMap<usize, Vec<Vec<f32>>>>>,
}

/// Numbers in memory that goes back to where it came from.
#[derive(Debug)]
pub struct Buffer {
    /// As many as there is room for.
    values: Vec<f32>,
    len: usize,
    home: Option<Buffers>,
}

/// Below this length the allocator is as fast.
const SMALLEST: usize = 1 << 12;

/// From this length on pages of 2 MiB pay: half of one is filled.
const IN_LARGE_PAGES: usize = 1 << 18;

impl Buffers {
    /// `len` numbers that somebody left, or zeros.
    pub fn take(&self, len: usize) -> Buffer {
        if len < SMALLEST {
            return Buffer::zeros(len);
        }
        let room = room(len);
        let left = self.free().get_mut(&room).and_then(Vec::pop);
        let values = left.unwrap_or_else(|| {
            let values = vec![0.0; room];
            if len >= IN_LARGE_PAGES {
                pages::gather(&values);
            }
            values
        });
        Buffer { values, len, home: Some(self.clone()) }
    }

    fn free(&self) -> MutexGuard<'_, HashMap<usize, Vec<Vec<f32>>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is allocated for `len` numbers: at most an eighth more, so that groups of ever other lengths share memory.
fn room(len: usize) -> usize {
    len.next_multiple_of((len.next_power_of_two() / 8).max(1))
}

impl Buffer {
    /// Zeros in memory of the allocator's.
    pub fn zeros(len: usize) -> Buffer {
        Buffer { values: vec![0.0; len], len, home: None }
    }

    /// The numbers, which do not go back.
    pub fn into_vec(mut self) -> Vec<f32> {
        self.home = None;
        self.values.truncate(self.len);
        std::mem::take(&mut self.values)
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let values = std::mem::take(&mut self.values);
            home.free().entry(values.len()).or_default().push(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_by_length_unless_it_was_taken_out() {
        let buffers = Buffers::default();
        let place = |buffer: &Buffer| buffer.as_ptr().addr();
        let mut first = buffers.take(SMALLEST);
        assert!(first.iter().all(|x| x.to_bits() == 0));
        first[0] = 7.0;
        let at = place(&first);
        let second = buffers.take(SMALLEST);
        assert_ne!(place(&second), at, "two at a time are two");
        drop(first);
        assert_ne!(place(&buffers.take(SMALLEST + 1)), at, "more than there is room for");
        let again = buffers.take(SMALLEST);
        assert_eq!(again.len(), SMALLEST);
        assert_eq!((place(&again), again[0].to_bits()), (at, 7.0_f32.to_bits()));
        let kept = again.into_vec();
        assert_eq!((kept.len(), kept.as_ptr().addr()), (SMALLEST, at));
        assert_ne!(place(&buffers.take(SMALLEST)), at, "it is somebody's own now");
        assert_eq!(buffers.take(0).len(), 0);
        let longer = buffers.take(SMALLEST + 900);
        let at = place(&longer);
        drop(longer);
        let other = buffers.take(SMALLEST + 1);
        assert_eq!((place(&other), other.len()), (at, SMALLEST + 1), "of the same room");
        // A buffer may outlive its home.
        let last = buffers.take(IN_LARGE_PAGES);
        drop(buffers);
        assert_eq!(last.len(), IN_LARGE_PAGES);
    }
}
