//! Work cut into parts that threads take, with the results in order.

use std::sync::Mutex;

use crate::kernels::Cpu;

/// `f(0) … f(parts − 1)` on all threads. The same parts give the same results on any number of threads.
pub(crate) fn map_parts<T: Send>(cpu: &Cpu, parts: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let results: Vec<Mutex<Option<T>>> = (0..parts).map(|_| Mutex::new(None)).collect();
    cpu.threads().run(parts, |part| {
        let result = f(part);
        *results[part].lock().unwrap_or_else(|broken| broken.into_inner()) = Some(result);
    });
    let unwrap =
        |result: Mutex<Option<T>>| result.into_inner().unwrap_or_else(|broken| broken.into_inner());
    results.into_iter().filter_map(unwrap).collect()
}
