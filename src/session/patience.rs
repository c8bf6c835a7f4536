//! The prompt comes back soon after Ctrl-C, whatever a command is doing.
//!
//! A command works on a thread, with a copy of the session that shares its values, and the copy becomes the session when the
//! command ends. Long loops hear a wish to stop by themselves. Whoever does not within the session's patience (one kernel over a
//! huge layer, a disk that is slow) is left alone: the session stays as it was before the command, which can show and change
//! nothing any more and ends at the next place where it would have heard.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::{FrontEnd, Outcome, Session};
use crate::error::{AtPath as _, Error, Result};
use crate::value::Value;

/// How often a wish to stop is looked for: well below what a person notices.
const LOOK: Duration = Duration::from_millis(5);

/// As much as a program's first thread has, which some recursions count on.
const STACK: usize = 8 << 20;

/// What a command does.
pub(crate) type Work = Box<dyn FnOnce(&mut Session) -> Result<Value> + Send>;

impl Session {
    /// Leaves a command alone that has not stopped so long after it was told to; `None`, as for library users, waits for it.
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
    }

    /// Does a command's work, and comes back soon after a wish to stop.
    pub(crate) fn with_patience(&mut self, work: Work) -> Result<Value> {
        let Some(patience) = self.patience else { return work(self) };
        let gate = Arc::new(Gate(RwLock::new(Some(Arc::clone(&self.front)))));
        let mut working = self.double(Arc::clone(&gate) as _);
        let stop = working.cancel_flag();
        let (ended, end) = channel();
        let thread = move || {
            let result = catch_unwind(AssertUnwindSafe(|| work(&mut working)));
            // Nobody listens to a command that was left alone.
            let _ = ended.send((working, result));
        };
        std::thread::Builder::new().stack_size(STACK).spawn(thread).at("a command's thread")?;
        let mut told: Option<Instant> = None;
        loop {
            match end.recv_timeout(LOOK) {
                Ok((working, result)) => {
                    self.become_of(working, told.is_some());
                    return result.unwrap_or_else(|panic| resume_unwind(panic));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::invalid("the command's thread ended without a result"));
                }
            }
            if told.is_none() && self.cancelled() {
                stop.store(true, Ordering::Relaxed);
                told = Some(Instant::now());
            }
            if told.is_some_and(|told| told.elapsed() >= patience) {
                gate.close();
                self.front.end();
                self.note("what it had begun ends in the background, and changes nothing here");
                return Err(Error::Cancelled);
            }
        }
    }

    /// A session beside this one that begins with the same variables, models and settings on so many threads, shows nothing, and
    /// stops with this one.
    pub(crate) fn fork(&self, threads: usize) -> Session {
        let cpu = self.cpu_with(self.cpu.isa(), threads);
        Session {
            cpu: cpu.clone(),
            device: self.device.clone(),
            cuda: self.cuda.clone(),
            seed: self.seed,
            first_seed: self.seed,
            timeline: self.timeline.present(),
            cancel: Arc::clone(&self.cancel),
            hub: self.hub.clone(),
            records: self.records.fork(),
            // Its lines are no history of anybody's, and a stop is for the session that it came from to hear.
            depth: self.depth + 1,
            ..Session::with_cpu(cpu)
        }
    }

    /// This session on another thread: the same values, another front end, a stop of its own. What only one of the two can have
    /// (calibration under way, the store's connection) goes with it.
    fn double(&mut self, front: Arc<dyn FrontEnd>) -> Session {
        let cancel: Arc<AtomicBool> = Arc::default();
        let left = self.records.fork();
        Session {
            cpu: self.cpu.clone().with_stop(Some(Arc::clone(&cancel))),
            device: self.device.clone(),
            cuda: self.cuda.clone(),
            seed: self.seed,
            first_seed: self.first_seed,
            timeline: self.timeline.clone(),
            history: Arc::clone(&self.history),
            cancel,
            front,
            hub: self.hub.clone(),
            launch: self.launch.clone(),
            leaving: self.leaving,
            paused: self.paused.take(),
            autoquant_cache: self.autoquant_cache.clone(),
            logged: Arc::clone(&self.logged),
            inputs: self.inputs.clone(),
            records: std::mem::replace(&mut self.records, left),
            depth: self.depth,
            patience: None,
        }
    }

    /// Takes over what the double has become. With `told`, it was told to stop, and may have obeyed in a way that is no error.
    fn become_of(&mut self, working: Session, told: bool) {
        if told && !working.cancelled() {
            self.clear_cancelled();
        }
        let cancel = Arc::clone(&self.cancel);
        *self = Session {
            cpu: working.cpu.clone().with_stop(Some(Arc::clone(&cancel))),
            cancel,
            front: Arc::clone(&self.front),
            patience: self.patience,
            ..working
        };
    }
}

/// The front end of a command that may be left alone: from then on nothing comes through.
#[derive(Debug)]
struct Gate(RwLock<Option<Arc<dyn FrontEnd>>>);

impl Gate {
    fn close(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Holding the lock while showing keeps what is shown before what the prompt shows after closing.
    fn with(&self, show: impl FnOnce(&dyn FrontEnd)) {
        if let Some(front) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            show(&**front);
        }
    }
}

impl FrontEnd for Gate {
    fn result(&self, outcome: &Outcome<'_>) {
        self.with(|front| front.result(outcome));
    }

    fn note(&self, text: &str) {
        self.with(|front| front.note(text));
    }

    fn stream(&self, piece: &str) {
        self.with(|front| front.stream(piece));
    }

    fn progress(&self, what: &str, done: usize, total: usize) {
        self.with(|front| front.progress(what, done, total));
    }

    fn end(&self) {
        self.with(|front| front.end());
    }

    fn echo(&self, line: &str) {
        self.with(|front| front.echo(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patient() -> Session {
        let mut lab = Session::new();
        lab.set_patience(Some(Duration::from_millis(50)));
        lab
    }

    #[test]
    fn a_command_that_does_not_hear_is_left_alone_and_changes_nothing() {
        let mut lab = patient();
        lab.run("kept = load tiny").expect("a model");
        let cancel = lab.cancel_flag();
        let (begun, begins) = channel();
        let (finish, finished) = channel::<()>();
        let (over, overs) = channel();
        let work: Work = Box::new(move |session| {
            begun.send(()).expect("the test listens");
            let _ = finished.recv();
            session.bind("late", Value::Text("changed".to_owned()));
            over.send(session.cancelled()).expect("the test listens");
            Ok(Value::Nothing)
        });
        let result = std::thread::scope(|scope| {
            scope.spawn(move || {
                begins.recv().expect("it begins");
                cancel.store(true, Ordering::Relaxed);
            });
            lab.with_patience(work)
        });
        assert!(result.is_err_and(|error| error.is_cancelled()));
        lab.clear_cancelled();
        finish.send(()).expect("it still waits");
        assert!(overs.recv().expect("it ends"), "it would have heard at its end");
        assert!(lab.variable("late").is_err() && lab.variable("kept").is_ok());
        assert!(lab.run("$kept | size").is_ok(), "the session goes on");
        assert_eq!(lab.history().len(), 2);
    }

    #[test]
    fn settings_undo_and_results_come_back_from_the_thread() {
        let mut lab = patient();
        lab.run("set seed 7; m = load tiny; q = quantize $m int8-weight-only; undo").expect("all");
        assert_eq!(lab.seed(), 7);
        assert!(lab.variable("m").is_ok() && lab.variable("q").is_err());
        assert!(lab.run("redo").is_ok() && lab.variable("q").is_ok());
        lab.run("set threads 1").expect("a setting");
        assert_eq!(lab.cpu().threads().count(), 1);
        lab.cancel_flag().store(true, Ordering::Relaxed);
        assert!(lab.cpu().stopped(), "the processor hears the session's own flag again");
    }

    #[test]
    fn a_panic_comes_back_from_the_thread() {
        let mut lab = patient();
        let work: Work = Box::new(|_| panic!("out of luck"));
        let caught = catch_unwind(AssertUnwindSafe(|| lab.with_patience(work)));
        let words = caught.expect_err("a panic").downcast::<&str>().expect("its words");
        assert_eq!(*words, "out of luck");
    }
}
