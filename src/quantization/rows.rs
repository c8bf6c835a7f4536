//! A weight quantized a few rows at a time, so that its f32 copy never exists as a whole.

use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::model::Weight;
use crate::tensor::Tensor;

/// Values that one thread expands at once: 1 MiB as f32, which stays in a core's L2 cache.
const VALUES_AT_ONCE: usize = 1 << 18;

/// Runs `work` on blocks of rows of `weight`, each a tensor in the dtype that the weight came in, on all
/// threads, and gives the results to `keep` in order.
pub(crate) fn for_row_blocks<T: Send>(
    cpu: &Cpu,
    weight: &dyn Weight,
    work: impl Fn(&Tensor) -> Result<T> + Sync,
    keep: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    for_blocks_of_rows(cpu, weight, 1, work, keep)
}

/// [`for_row_blocks`] with a multiple of `multiple` rows in every block but the last.
pub(crate) fn for_blocks_of_rows<T: Send>(
    cpu: &Cpu,
    weight: &dyn Weight,
    multiple: usize,
    work: impl Fn(&Tensor) -> Result<T> + Sync,
    mut keep: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let (n, k) = weight.shape();
    let rows = (VALUES_AT_ONCE / k.max(1)).clamp(1, n.max(1)).next_multiple_of(multiple);
    let starts: Vec<usize> = (0..n).step_by(rows).collect();
    let block = |start: usize| {
        let rows = rows.min(n - start);
        let mut values = vec![0.0; rows * k];
        weight.dequantize_rows(start..start + rows, &mut values)?;
        work(&Tensor::new(values, &[rows, k])?.to_dtype(weight.dtype())?)
    };
    // A few blocks a thread are in flight at once; their results are kept before the next are made.
    for wave in starts.chunks(4 * cpu.threads().count()) {
        let results: Vec<Mutex<Option<Result<T>>>> =
            wave.iter().map(|_| Mutex::new(None)).collect();
        cpu.threads().run(wave.len(), |i| {
            let result = block(wave[i]);
            *results[i].lock().unwrap_or_else(|broken| broken.into_inner()) = Some(result);
        });
        for result in results {
            let result = result.into_inner().unwrap_or_else(|broken| broken.into_inner());
            keep(result.ok_or_else(|| Error::invalid("a block of rows was not computed"))??)?;
        }
    }
    Ok(())
}
