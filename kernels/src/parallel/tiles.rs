//! A matrix cut into tiles that threads fill at the same time.

use std::marker::PhantomData;
use std::ops::Range;

/// A matrix cut into tiles, none handed out yet.
pub(super) struct Grid<'a, T> {
    data: *mut T,
    cols: usize,
    rows: usize,
    size: (usize, usize),
    tiles_across: usize,
    tiles_down: usize,
    _borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: a grid is a `&mut [T]` that is given away in disjoint pieces; sending pieces of it to
// other threads is sending `T`s. Shared access offers nothing but `tile`, whose contract forbids
// overlap.
unsafe impl<T: Send> Sync for Grid<'_, T> {}

/// A rectangle of a matrix, borrowed for writing.
#[derive(Debug)]
pub struct Tile<'a, T> {
    first: *mut T,
    stride: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    _borrowed: PhantomData<&'a mut [T]>,
}

impl<'a, T> Grid<'a, T> {
    pub(super) fn new(data: &'a mut [T], cols: usize, size: (usize, usize)) -> Grid<'a, T> {
        let rows = data.len().checked_div(cols).unwrap_or(0);
        assert!(rows * cols == data.len(), "a matrix must have whole rows of {cols} columns");
        let size = (size.0.max(1), size.1.max(1));
        Grid {
            data: data.as_mut_ptr(),
            cols,
            rows,
            size,
            tiles_across: cols.div_ceil(size.1),
            tiles_down: rows.div_ceil(size.0),
            _borrowed: PhantomData,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.tiles_across * self.tiles_down
    }

    /// Tile `i`.
    ///
    /// # Safety
    ///
    /// Each `i` may be asked for once.
    pub(super) unsafe fn tile(&self, i: usize) -> Tile<'_, T> {
        assert!(i < self.count(), "tile {i} of {}", self.count());
        let (row, col) = (i / self.tiles_across * self.size.0, i % self.tiles_across * self.size.1);
        // SAFETY: `row < rows` and `col < cols`, so that the offset is inside `data`.
        let first = unsafe { self.data.add(row * self.cols + col) };
        Tile {
            first,
            stride: self.cols,
            rows: row..self.rows.min(row.saturating_add(self.size.0)),
            cols: col..self.cols.min(col.saturating_add(self.size.1)),
            _borrowed: PhantomData,
        }
    }
}

impl<T> Tile<'_, T> {
    /// Which rows of the matrix these are.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Which columns of the matrix these are.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// Row `i` of the tile (`0` is the matrix's row `rows().start`).
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows.len(), "row {i} of a tile of {}", self.rows.len());
        // SAFETY: row `rows.start + i` is inside the matrix, by the assert.
        let start = unsafe { self.first.add(i * self.stride) };
        // SAFETY: the `cols.len()` items from `start` are this tile's alone (tiles do not overlap
        // and each is made once), and `&mut self` keeps a second slice of this tile from living at
        // the same time.
        unsafe { std::slice::from_raw_parts_mut(start, self.cols.len()) }
    }
}
