//! The one place that knows about threads.
//!
//! [`Threads`] is a small team that runs one loop at a time. It is cheap to clone and to share.

use std::sync::Arc;
use std::sync::Mutex;

/// A team of threads. Clones share the team.
#[derive(Clone, Debug)]
pub struct Threads {
    pool: Option<Arc<rayon::ThreadPool>>,
    count: usize,
}

impl Threads {
    /// How many threads this machine can run at once.
    pub fn available() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// A team of `count` threads (at least one). If the system refuses threads, the caller's remains.
    pub fn new(count: usize) -> Threads {
        let count = count.max(1);
        let build =
            || rayon::ThreadPoolBuilder::new().num_threads(count).build().ok().map(Arc::new);
        let pool = if count > 1 { build() } else { None };
        let count = if pool.is_some() { count } else { 1 };
        Threads { pool, count }
    }

    /// How many threads run a loop.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Runs `f(i)` for every `i < parts` and returns when all are done. Parts may run in any order.
    pub fn run(&self, parts: usize, f: impl Fn(usize) + Sync) {
        match &self.pool {
            Some(pool) if parts > 1 => pool.in_place_scope(|scope| {
                for i in 1..parts {
                    let f = &f;
                    scope.spawn(move |_| f(i));
                }
                f(0);
            }),
            _ => (0..parts).for_each(f),
        }
    }

    /// Cuts `data` into chunks of `chunk` items (the last may be shorter) and runs `f(index, chunk)` on each.
    pub fn chunks_mut<T: Send>(
        &self,
        data: &mut [T],
        chunk: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let parts: Vec<Mutex<&mut [T]>> = data.chunks_mut(chunk.max(1)).map(Mutex::new).collect();
        self.run(parts.len(), |i| {
            let mut part = parts[i].lock().unwrap_or_else(|broken| broken.into_inner());
            f(i, &mut part);
        });
    }

    /// A chunk length that cuts `items` into one share per thread, each a multiple of `multiple`.
    pub fn share(&self, items: usize, multiple: usize) -> usize {
        items.div_ceil(self.count).next_multiple_of(multiple.max(1)).max(1)
    }
}
