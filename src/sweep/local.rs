//! Trials on this machine, several at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use super::results::Finished;
use super::{Sweep, Trial};
use crate::error::{Error, Result};
use crate::eval::Progress;
use crate::model::Model;
use crate::session::Session;
use crate::store::Run;

/// How many trials on `model` may run at once: as many as there are threads, and as memory holds with room to spare. A trial may
/// hold a second copy of the model in f32, and a quarter of a gigabyte of activations.
pub fn jobs_that_fit(threads: usize, model: Option<&Model>) -> usize {
    const ACTIVATIONS: usize = 256 << 20;
    let each = model.map_or(0, |model| 4 * model.parameters() + model.nbytes()) + ACTIVATIONS;
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    // Where nobody says how much there is, one at a time is safe.
    let fit = memory.map_or(1, |bytes| bytes / 2 / each);
    fit.clamp(1, threads.max(1))
}

/// `MemAvailable` of Linux in bytes.
fn available(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Runs the trials of `sweep` that are not `done`, `jobs` at once, each in a copy of `session` with its share of the threads. Gives all,
/// in order. When the person stops, what has ended is in the store.
pub fn run(
    session: &Session,
    sweep: &Sweep,
    jobs: usize,
    done: &BTreeMap<String, Run>,
    progress: Progress,
) -> Result<Vec<Finished>> {
    let mut all: Vec<Option<Finished>> = sweep
        .trials
        .iter()
        .map(|trial| done.get(&trial.line).map(|run| Finished::of_run(trial, run)))
        .collect();
    let open: Vec<usize> = (0..all.len()).filter(|i| all[*i].is_none()).collect();
    let jobs = jobs.clamp(1, open.len().max(1));
    let threads = (session.cpu().threads().count() / jobs).max(1);
    let next = AtomicUsize::new(0);
    let (send, finished) = mpsc::channel();
    let total = all.len();
    let mut count = total - open.len();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (send, next, open) = (send.clone(), &next, &open);
            scope.spawn(move || {
                let take = || open.get(next.fetch_add(1, Ordering::Relaxed)).copied();
                while let Some(i) = take().filter(|_| !session.cancelled()) {
                    let one = run_one(session, &sweep.id, &sweep.trials[i], threads);
                    // The receiver is there until every sender is gone.
                    let _ = send.send((i, one));
                }
            });
        }
        drop(send);
        progress(count, total);
        for (i, one) in finished {
            if let Ok(one) = one {
                all[i] = Some(one);
                count += 1;
                progress(count, total);
            }
        }
    });
    // A trial that is missing was stopped.
    all.into_iter().collect::<Option<Vec<_>>>().ok_or(Error::Cancelled)
}

/// One trial in a session of its own. A failure is a result too; only a stop is an error.
pub(super) fn run_one(
    session: &Session,
    id: &str,
    trial: &Trial,
    threads: usize,
) -> Result<Finished> {
    let mut own = session.fork(threads);
    own.records.trial = Some((id.to_owned(), trial.line.clone()));
    own.records.collected = Some(Vec::new());
    let begun = Instant::now();
    let started = crate::store::utc_now_ms();
    let result = own.run(&trial.line);
    let runs = own.records.collected.take().unwrap_or_default();
    let error = match result {
        Err(error) if error.is_cancelled() => return Err(error),
        Err(error) => error.to_string(),
        Ok(_) if runs.is_empty() => {
            "it measured nothing: end the pipeline with eval, bench or compare".to_owned()
        }
        Ok(_) => return Ok(Finished { trial: trial.clone(), runs, error: None }),
    };
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let failed = Run {
        started,
        took,
        line: trial.line.clone(),
        command: trial.line.clone(),
        status: format!("failed: {error}"),
        ..own.frame()
    };
    own.keep_finished(std::slice::from_ref(&failed));
    Ok(Finished { trial: trial.clone(), runs: vec![failed], error: Some(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_bounds_what_runs_at_once() {
        assert_eq!(available("MemFree: 1 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(available("nothing"), None);
        assert_eq!(available("MemAvailable: 99999999999999999999 kB"), None);
        assert_eq!(jobs_that_fit(0, None), 1);
        assert!(jobs_that_fit(4, None) <= 4);
    }
}
