//! Recording: when each kernel ran.

use std::sync::PoisonError;

use cudarc::driver::{CudaEvent, sys};

use super::{CudaError, CudaResult, Device};

/// One run of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRun {
    /// As in its source.
    pub name: String,
    /// Microseconds from the beginning of the recording.
    pub start_us: f64,
    /// Microseconds that it took.
    pub us: f64,
    /// Blocks, 0 where a library chose them.
    pub blocks: usize,
    /// Threads of a block.
    pub threads: usize,
}

/// A recording under way.
pub(super) struct Recorder {
    begin: CudaEvent,
    runs: Vec<Pending>,
}

struct Pending {
    name: String,
    grid: (usize, usize),
    start: CudaEvent,
    end: CudaEvent,
}

impl Device {
    /// Runs `work` with each kernel between two events: none starts before its predecessor has ended, so that each is timed by itself and
    /// all together take longer than without a recording. What runs inside a captured graph is not seen.
    pub fn record<T>(&self, work: impl FnOnce() -> T) -> CudaResult<(T, Vec<KernelRun>)> {
        let begin = self.event()?;
        begin.record(self.stream())?;
        {
            let mut recorder = self.recorder();
            if recorder.is_some() {
                return Err(CudaError::new("a recording is under way already"));
            }
            *recorder = Some(Recorder { begin, runs: Vec::new() });
        }
        let over = Over(self);
        let result = work();
        let recorder = self.recorder().take();
        drop(over);
        self.synchronize()?;
        let mut runs = Vec::new();
        if let Some(Recorder { begin, runs: pending }) = recorder {
            for Pending { name, grid: (blocks, threads), start, end } in pending {
                let start_us = 1e3 * f64::from(begin.elapsed_ms(&start)?);
                let us = 1e3 * f64::from(start.elapsed_ms(&end)?);
                runs.push(KernelRun { name, start_us, us, blocks, threads });
            }
        }
        Ok((result, runs))
    }

    /// Whether kernels are recorded, so that nothing should hide in a graph.
    pub fn is_recording(&self) -> bool {
        self.recorder().is_some()
    }

    /// Launches a kernel, and notes when it ran if that is wanted; `grid` are its blocks and threads. Its name is asked for only then.
    pub(super) fn launched(
        &self,
        name: impl FnOnce() -> String,
        grid: (usize, usize),
        launch: impl FnOnce() -> CudaResult<()>,
    ) -> CudaResult<()> {
        if !self.is_recording() || self.is_capturing() {
            return launch();
        }
        let (start, end) = (self.event()?, self.event()?);
        start.record(self.stream())?;
        launch()?;
        end.record(self.stream())?;
        if let Some(recorder) = &mut *self.recorder() {
            recorder.runs.push(Pending { name: name(), grid, start, end });
        }
        Ok(())
    }

    fn event(&self) -> CudaResult<CudaEvent> {
        Ok(self.context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))?)
    }

    fn recorder(&self) -> std::sync::MutexGuard<'_, Option<Recorder>> {
        self.recorder_lock().lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the recording where `work` does not return.
struct Over<'a>(&'a Device);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        *self.0.recorder() = None;
    }
}
