//! How the small operations spread over threads: only when the work outweighs waking one.

use std::sync::Mutex;

use crate::Cpu;

/// From this many numbers on (1.5 µs of a norm, 5 µs of an activation), a second thread saves more
/// than the microsecond that a loop costs to start.
const PARALLEL_FROM: usize = 1 << 13;

/// Runs `f(first_row, rows)` over the rows of `y`, each `width` long: in one piece when there is
/// little to do, else one piece per thread.
pub(crate) fn over_rows<T: Send>(
    cpu: &Cpu,
    y: &mut [T],
    width: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if y.len() < PARALLEL_FROM || cpu.threads().count() == 1 {
        f(0, y);
        return;
    }
    let rows = cpu.threads().share(y.len() / width, 1);
    cpu.threads().chunks_mut(y, rows * width, |part, y| f(part * rows, y));
}

/// Runs `f(index, part)` on every part, which may borrow several outputs at once.
pub(crate) fn over_parts<P: Send>(cpu: &Cpu, parts: Vec<P>, f: impl Fn(usize, P) + Sync) {
    let parts: Vec<Mutex<Option<P>>> = parts.into_iter().map(|p| Mutex::new(Some(p))).collect();
    cpu.threads().run(parts.len(), |i| {
        let part = parts[i].lock().unwrap_or_else(|broken| broken.into_inner()).take();
        if let Some(part) = part {
            f(i, part);
        }
    });
}
