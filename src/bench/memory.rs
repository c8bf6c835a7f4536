//! What the process took.

/// The most memory that this process has held resident so far, in bytes; `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Makes [`peak_rss_bytes`] count from what is resident now. Where the system cannot, it keeps counting from the start.
pub fn reset_peak_rss() {
    // Advice to the kernel (proc(5)): without it the figure is larger, never smaller.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn linux_tells_the_peak() {
        let before = super::peak_rss_bytes().expect("proc is mounted");
        let block = vec![1_u8; 64 << 20];
        let after = super::peak_rss_bytes().expect("proc is mounted");
        assert!(block.iter().all(|b| *b == 1) && after >= before && after > 64 << 20);
    }
}
