//! The one place that knows about threads.
//!
//! [`Threads`] is a small team that runs one loop at a time. It is cheap to clone and to share, and
//! a loop costs about a microsecond to start and end: decoding one token runs some two hundred of
//! them.
//!
//! A loop is a `Region` on the caller's stack. The caller opens it by publishing its address in
//! `Team::region` and a new epoch in `Team::gate`, takes parts from an atomic counter as the others
//! do, closes it, and waits until nobody is inside. A worker that is late (asleep, or another
//! program has its core) finds the region closed and is not waited for.

mod team;
mod tiles;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use team::Crew;
pub use tiles::Tile;

/// A team of threads. Clones share the team; its threads end with the last clone.
#[derive(Clone, Debug)]
pub struct Threads {
    crew: Option<Arc<Crew>>,
    count: usize,
}

impl Threads {
    /// How many threads this machine can run at once.
    pub fn available() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// A team of `count` threads (at least one). If the system refuses threads, the caller's
    /// remains.
    pub fn new(count: usize) -> Threads {
        let crew = if count > 1 { Crew::start(count - 1).ok().map(Arc::new) } else { None };
        let count = if crew.is_some() { count } else { 1 };
        Threads { crew, count }
    }

    /// How many threads run a loop.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Runs `f(i)` for every `i < parts` and returns when all are done. Parts may run in any order.
    ///
    /// While the team is busy (a loop inside a loop, or another thread's loop), the caller runs its
    /// parts alone. If a part panics, the others are finished or skipped and the panic goes on
    /// here.
    pub fn run(&self, parts: usize, f: impl Fn(usize) + Sync) {
        match &self.crew {
            Some(crew) if parts > 1 => crew.team().run(parts, &f),
            _ => (0..parts).for_each(f),
        }
    }

    /// Cuts `data` into chunks of `chunk` items (the last may be shorter) and runs `f(index,
    /// chunk)` on each.
    pub fn chunks_mut<T: Send>(
        &self,
        data: &mut [T],
        chunk: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let cols = data.len();
        self.tiles_mut(data, cols, (1, chunk), |i, mut tile| f(i, tile.row(0)));
    }

    /// Cuts `data`, a matrix of `cols` columns, into tiles of `(rows, columns)` (those at the
    /// edges may be smaller) and runs `f(index, tile)` on each; `index` counts along a row of tiles
    /// first.
    pub fn tiles_mut<T: Send>(
        &self,
        data: &mut [T],
        cols: usize,
        size: (usize, usize),
        f: impl Fn(usize, Tile<'_, T>) + Sync,
    ) {
        let grid = tiles::Grid::new(data, cols, size);
        // SAFETY: `run` calls its closure once for every part, so that every tile is handed out
        // once.
        self.run(grid.count(), |i| f(i, unsafe { grid.tile(i) }));
    }

    /// A chunk length that cuts `items` into one share per thread, each a multiple of `multiple`.
    pub fn share(&self, items: usize, multiple: usize) -> usize {
        items.div_ceil(self.count).next_multiple_of(multiple.max(1)).max(1)
    }
}
