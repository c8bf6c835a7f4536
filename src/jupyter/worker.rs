//! The thread that owns the session and runs one cell after another.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use aolab::command::Names;
use aolab::{Error, Result, Session, Value};
use indexmap::IndexMap;
use tokio::sync::mpsc::Sender;

use super::cell::{self, Cell};
use super::screen::{Screen, Shown};

/// What the worker tells the server.
#[derive(Debug)]
pub(super) enum Event {
    /// Something to see.
    Shown(Shown),
    /// The cell has ended.
    Ended(Ended),
}

/// How a cell ended, and what the session knows now.
#[derive(Debug)]
pub(super) struct Ended {
    /// What went wrong.
    pub(super) fault: Option<CellFault>,
    /// For completion and inspection while the next cell runs.
    pub(super) known: Known,
    /// The cell said `quit`.
    pub(super) leaving: bool,
}

/// Why a cell failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CellFault {
    /// `Error`, `Usage`, `Panic`, or what every Jupyter client knows: `KeyboardInterrupt`.
    pub(super) name: &'static str,
    /// What, got, wanted, what next.
    pub(super) words: String,
}

/// The names and values of a session, copied out of it: values share their bytes.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) names: Names,
    pub(super) variables: IndexMap<String, Value>,
}

impl Known {
    pub(super) fn of(session: &Session) -> Known {
        Known { names: Names::of(session), variables: session.variables().clone() }
    }
}

/// Runs the cells of `jobs` until the server drops its end.
pub(super) fn work(mut session: Session, jobs: &Receiver<String>, events: &Sender<Event>) {
    let screen = Arc::new(Screen::new(events.clone()));
    session.set_front_end(Arc::clone(&screen) as _);
    while let Ok(code) = jobs.recv() {
        session.clear_cancelled();
        let fault = guarded(|| run_cell(&mut session, &screen, &code));
        screen.finish();
        let ended = Ended { fault, known: Known::of(&session), leaving: session.leaving };
        if events.blocking_send(Event::Ended(ended)).is_err() {
            break;
        }
    }
}

fn run_cell(session: &mut Session, screen: &Screen, code: &str) -> Result<()> {
    match cell::read(code)? {
        Cell::Lines(lines) => session.run(lines).map(drop),
        Cell::Sweep(line) => session.run(&line).map(drop),
        Cell::Timed(lines) => {
            let start = Instant::now();
            let result = session.run(lines).map(drop);
            let time_ms = start.elapsed().as_secs_f64() * 1e3;
            screen.finish();
            screen.remark(&format!("the cell took {time_ms:.1} ms"));
            result
        }
    }
}

/// A panic is a fault of the program; it fails the cell, and the session lives on.
fn guarded(run: impl FnOnce() -> Result<()>) -> Option<CellFault> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(fault_of(&error)),
        Err(payload) => Some(CellFault { name: "Panic", words: panic_words(&*payload) }),
    }
}

fn fault_of(error: &Error) -> CellFault {
    let name = match error.exit_code() {
        130 => "KeyboardInterrupt",
        2 => "Usage",
        _ => "Error",
    };
    CellFault { name, words: error.to_string() }
}

fn panic_words(payload: &(dyn Any + Send)) -> String {
    let words = payload.downcast_ref::<&str>().map(|words| (*words).to_owned());
    let words = words.or_else(|| payload.downcast_ref::<String>().cloned());
    let words = words.unwrap_or_else(|| "without words".to_owned());
    format!("aolab panicked: {words}; this is a mistake in aolab, and the session is as it was")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_interrupts_and_panics_fail_a_cell_and_are_told_apart() {
        let name = |run: fn() -> Result<()>| guarded(run).map(|fault| fault.name);
        assert_eq!(name(|| Ok(())), None);
        assert_eq!(name(|| Err(Error::invalid("no"))), Some("Error"));
        assert_eq!(name(|| Err(Error::usage("no"))), Some("Usage"));
        assert_eq!(name(|| Err(Error::Cancelled)), Some("KeyboardInterrupt"));
        let fault = guarded(|| panic!("out of {}", "luck")).expect("a fault");
        assert!(fault.name == "Panic" && fault.words.contains("out of luck"), "{fault:?}");
    }

    #[test]
    fn a_session_goes_from_cell_to_cell() {
        let (jobs, received) = std::sync::mpsc::channel();
        let (events, mut seen) = tokio::sync::mpsc::channel(64);
        for code in ["m = load tiny", "nonsense", "%%time\n$m | size"] {
            jobs.send(code.to_owned()).expect("the worker listens");
        }
        drop(jobs);
        work(Session::new(), &received, &events);
        let mut ended = Vec::new();
        let mut results = 0;
        while let Ok(event) = seen.try_recv() {
            match event {
                Event::Ended(end) => ended.push(end),
                Event::Shown(Shown::Result(_)) => results += 1,
                Event::Shown(_) => {}
            }
        }
        let faults: Vec<bool> = ended.iter().map(|end| end.fault.is_some()).collect();
        assert_eq!((faults.as_slice(), results), (&[false, true, false][..], 2));
        assert!(ended[1].known.variables.contains_key("m"));
    }
}
