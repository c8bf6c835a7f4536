//! How the small operations spread over threads: only when the work outweighs waking one.

#[cfg(target_arch = "x86_64")]
use std::ops::Range;
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

/// `rows` as R runs that are gone through side by side, a row of each at a time, and the rows left over.
///
/// Each run is a stream that goes on where its last row ended, and the streams lie far apart: the processor's own
/// prefetching follows both without being asked, where rows next to each other make it start anew in every row.
#[cfg(target_arch = "x86_64")]
pub(crate) fn side_by_side<const R: usize>(
    rows: Range<usize>,
) -> (impl Iterator<Item = [usize; R]>, Range<usize>) {
    let (start, run) = (rows.start, rows.len() / R);
    let together = move |i| std::array::from_fn(|r| start + r * run + i);
    ((0..run).map(together), start + R * run..rows.end)
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn runs_and_the_rest_are_all_rows_once() {
        for rows in [0..0, 3..4, 5..9, 7..30, 0..96] {
            let (together, rest) = side_by_side::<4>(rows.clone());
            let mut seen: Vec<usize> = together.flatten().chain(rest).collect();
            seen.sort_unstable();
            assert_eq!(seen, rows.collect::<Vec<_>>());
        }
        let (mut together, rest) = side_by_side::<2>(10..17);
        assert_eq!(together.next(), Some([10, 13]));
        assert_eq!(rest, 16..17);
    }
}
