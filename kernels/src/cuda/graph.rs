//! Captured work and its time.

use std::fmt;

use cudarc::driver::{CudaGraph, sys};

use super::{CudaError, CudaResult, Device};

/// Work that was recorded once and is replayed by one launch. What it reads and writes must outlive it.
pub struct Graph {
    graph: CudaGraph,
    device: Device,
}

// A graph may be used by one thread at a time, which `&mut self` sees to.
impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph on {:?}", self.device)
    }
}

impl Device {
    /// Records what `work` puts into the stream, without running it. Work that waits for the GPU, allocates or compiles breaks the
    /// recording and is an error: run it once before, and keep its buffers.
    pub fn capture(&self, work: impl FnOnce() -> CudaResult<()>) -> CudaResult<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let broken = |error: CudaError| error.within("this work cannot be captured in a graph");
        self.stream().begin_capture(mode)?;
        self.set_capturing(true);
        let worked = work();
        self.set_capturing(false);
        let ended = self.stream().end_capture(sys::CUgraphInstantiate_flags(0));
        worked.map_err(broken)?;
        let graph = ended.map_err(|error| broken(error.into()))?;
        let graph = graph.ok_or_else(|| broken(CudaError::new("nothing was recorded")))?;
        graph.upload()?;
        Ok(Graph { graph, device: self.clone() })
    }

    /// How long `work` keeps the GPU busy, in microseconds: the median of `repeats`, each between two events.
    pub fn time_us(
        &self,
        repeats: usize,
        mut work: impl FnMut() -> CudaResult<()>,
    ) -> CudaResult<f64> {
        let event = || self.context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        work()?;
        let mut events = Vec::with_capacity(repeats);
        for _ in 0..repeats.max(1) {
            let (start, end) = (event()?, event()?);
            start.record(self.stream())?;
            work()?;
            end.record(self.stream())?;
            events.push((start, end));
        }
        self.synchronize()?;
        let mut times = Vec::with_capacity(events.len());
        for (start, end) in &events {
            times.push(1e3 * f64::from(start.elapsed_ms(end)?));
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}

impl Graph {
    /// Runs it once, in stream order.
    pub fn launch(&mut self) -> CudaResult<()> {
        Ok(self.graph.launch()?)
    }

    /// How many kernels, copies and fills it holds.
    pub fn nodes(&self) -> CudaResult<usize> {
        let mut count = 0;
        // SAFETY: the graph is alive; a null list asks for the number alone.
        let asked = unsafe {
            sys::cuGraphGetNodes(self.graph.cu_graph(), std::ptr::null_mut(), &raw mut count)
        };
        asked.result()?;
        Ok(count)
    }
}
