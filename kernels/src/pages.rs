//! Large pages: how memory is mapped, never what it holds.
//!
//! A decoder reads every weight once a token. In pages of 4 KiB each page costs a walk through the page tables
//! (twice as deep in a virtual machine) and stops the processor's prefetching; in pages of 2 MiB it does not.
//! Both functions are advice: where the system cannot, nothing happens.

/// What x86-64 and aarch64 with 4 KiB pages call a huge page.
const LARGE: usize = 2 << 20;

/// Moves the pages under `data`, which was written already, together into large ones. Neighbours that share
/// such a page move along, so that weights of less than 2 MiB profit too.
pub fn gather<T>(data: &[T]) {
    #[cfg(target_os = "linux")]
    advise(data, libc::MADV_COLLAPSE);
    #[cfg(not(target_os = "linux"))]
    let _ = data;
}

/// Asks for large pages when `data` is first written. What is smaller than such a page stays as it is.
pub fn expect<T>(data: &[T]) {
    #[cfg(target_os = "linux")]
    if size_of_val(data) >= LARGE {
        advise(data, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = data;
}

#[cfg(target_os = "linux")]
fn advise<T>(data: &[T], advice: libc::c_int) {
    let start = data.as_ptr().addr() / LARGE * LARGE;
    let end = (data.as_ptr().addr() + size_of_val(data)).next_multiple_of(LARGE);
    let first = data.as_ptr().with_addr(start).cast_mut().cast();
    // SAFETY: these two kinds of advice change which physical pages hold the range, not its content or its
    // protection, so that even memory around `data` may be named. An error means that nothing was done.
    let _ = unsafe { libc::madvise(first, end - start, advice) };
}

/// While it lives, memory that is freed is kept for what is allocated next; then the system gets it back. A training step frees and
/// takes the same hundreds of megabytes as the one before, and the system clears every page of them that it gives.
///
/// Of the whole process, and only with glibc's allocator; elsewhere nothing happens.
#[derive(Debug)]
#[must_use = "memory is kept as long as this lives"]
pub struct Kept(());

/// glibc's own numbers of mmap calls at most and of bytes kept at the top of the heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const DEFAULTS: [(libc::c_int, libc::c_int); 2] =
    [(libc::M_MMAP_MAX, 65_536), (libc::M_TRIM_THRESHOLD, 128 << 10)];

impl Kept {
    /// From here on. Two at a time are as one, until the first of them ends.
    pub fn begin() -> Kept {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        set([(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, libc::c_int::MAX)]);
        Kept(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            set(DEFAULTS);
            // SAFETY: gives free memory back; what is allocated stays where it is.
            let _ = unsafe { libc::malloc_trim(0) };
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn set(parameters: [(libc::c_int, libc::c_int); 2]) {
    for (parameter, value) in parameters {
        // SAFETY: both say where memory of later calls comes from and when it goes back; what is allocated stays where
        // it is. A value that is refused changes nothing.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_changes_nothing() {
        for len in [0, 1, 1000, 3 * LARGE] {
            let mut data = vec![0_u8; len];
            expect(&data);
            data.iter_mut().enumerate().for_each(|(i, b)| *b = i.to_le_bytes()[0]);
            gather(&data);
            assert!(data.iter().enumerate().all(|(i, b)| *b == i.to_le_bytes()[0]), "{len}");
        }
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn freed_memory_is_taken_again_without_new_pages() {
        let faults = || -> u64 {
            let file =
                std::fs::File::open("/proc/thread-self/stat").expect("this thread's numbers");
            let stat = std::io::read_to_string(file).expect("one line");
            let fields = stat.rsplit(')').next().expect("behind the name");
            fields.split_whitespace().nth(7).expect("minor faults").parse().expect("a number")
        };
        let fill = || drop(std::hint::black_box(vec![1_u8; 48 << 20]));
        let _kept = Kept::begin();
        fill();
        let before = faults();
        (0..4).for_each(|_| fill());
        // Other tests allocate meanwhile; four times 48 MiB would be 49,152 pages.
        let seen = faults() - before;
        assert!(seen < 30_000, "{seen} pages were asked for again");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn large_pages_are_really_there() {
        let field = |name: &str| -> Option<u64> {
            let file = std::fs::File::open("/proc/self/smaps_rollup").ok()?;
            let text = std::io::read_to_string(file).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse().ok()
        };
        let before = field("AnonHugePages:");
        let data: Vec<u8> = vec![7; 16 * LARGE];
        gather(&data);
        // Advice: a system without large pages must still pass, and says so.
        match (before, field("AnonHugePages:")) {
            (Some(before), Some(after)) if after > before => {}
            other => println!("skipped: this system made no large pages ({other:?} kB)"),
        }
        assert!(data.iter().all(|&b| b == 7));
    }
}
