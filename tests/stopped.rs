//! A person stops long work in the middle: what was finished is in the run store, and the session is as it was.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aolab::Session;
use aolab::session::{FrontEnd, Silent};
use aolab::store::{Query, Run, RunStore};

/// Stops the session once `what` has got to step `at`, as Ctrl-C does.
#[derive(Debug)]
struct Stopper {
    what: &'static str,
    at: usize,
    stop: Arc<AtomicBool>,
    notes: Mutex<Vec<String>>,
}

impl FrontEnd for Stopper {
    fn progress(&self, what: &str, done: usize, _total: usize) {
        if what.starts_with(self.what) && done >= self.at {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn note(&self, text: &str) {
        self.notes.lock().expect("no panic there").push(text.to_owned());
    }
}

/// Runs `line` until its work has got to step `at`; gives the session and what it remarked.
fn stopped(store: &Path, line: &str, what: &'static str, at: usize) -> (Session, Vec<String>) {
    let mut lab = Session::new();
    lab.set_store(Some(store));
    lab.run("kept = load tiny").expect("a model");
    let stop = lab.cancel_flag();
    let front = Arc::new(Stopper { what, at, stop, notes: Mutex::default() });
    lab.set_front_end(Arc::clone(&front) as _);
    let error = lab.run(line).expect_err("it was stopped");
    assert!(error.is_cancelled(), "{line}: {error}");
    lab.clear_cancelled();
    lab.set_front_end(Arc::new(Silent));
    assert!(lab.run("$kept | size").is_ok(), "the session goes on");
    let notes = front.notes.lock().expect("no panic there").clone();
    (lab, notes)
}

fn runs(store: &Path) -> Vec<(i64, Run)> {
    let store = RunStore::open(store).expect("a store");
    store.query(&Query { ascending: true, ..Query::default() }).expect("runs")
}

#[test]
fn a_training_that_is_stopped_is_kept_with_the_rows_it_had() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("runs.sqlite");
    let line = "train tiny --steps 400 --batch 1 --sequence 32";
    let (mut lab, notes) = stopped(&path, line, "training", 3);
    assert!(notes.iter().any(|note| note.starts_with("stopped after step ")), "{notes:?}");
    let found = runs(&path);
    let [(id, run)] = found.as_slice() else { panic!("one run: {found:?}") };
    assert!(run.status == "stopped" && run.command.starts_with("train --steps 400"), "{run:?}");
    let steps = run.metrics.iter().find(|metric| metric.name == "steps").expect("steps").value;
    assert!((3.0..400.0).contains(&steps), "{steps}");
    // A row a step, and no more; they are the session's, too.
    let rows = RunStore::open(&path).expect("a store").result(*id).expect("its table");
    let losses = lab.variable("losses").expect("bound").clone().into_table().expect("a table");
    let count = |table: &aolab::table::Table| table.len().to_string();
    assert_eq!(count(&losses), format!("{steps}"));
    assert!(rows.len() >= losses.len(), "{} of {}", rows.len(), losses.len());
    let listed = lab.run("runs where 'status = stopped'").expect("a table").into_table();
    assert_eq!(listed.expect("a table").len(), 1);
}

#[test]
fn formats_that_were_measured_before_a_stop_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("runs.sqlite");
    let line = "formats tiny --windows 1 --tokens 0 --only '^(int8|nf4|Q4_K|Q3_K|nvfp4)$'";
    let (_, notes) = stopped(&path, line, "measuring", 2);
    assert!(notes.iter().any(|note| note.starts_with("2 finished rows")), "{notes:?}");
    let found = runs(&path);
    let [(id, run)] = found.as_slice() else { panic!("one run: {found:?}") };
    assert!(run.status == "stopped" && run.command.starts_with("formats"), "{run:?}");
    let rows = RunStore::open(&path).expect("a store").result(*id).expect("its table");
    assert_eq!(rows.column_text("format").expect("a column"), ["as it came", "int8"]);
    assert!(run.metrics.iter().any(|metric| metric.name == "perplexity [int8]"), "{run:?}");
}

#[test]
fn trials_that_had_ended_before_a_stop_are_kept_and_not_done_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("runs.sqlite");
    let pipeline = "\"quantize $kept int4-weight-only --group-size {32,64,128,256} | eval perplexity --windows 1 --context 64\"";
    let line = format!("sweep --jobs 1 {pipeline}");
    let (mut lab, notes) = stopped(&path, &line, "trials", 2);
    assert!(notes.iter().any(|note| note.contains("--resume goes on")), "{notes:?}");
    let before = runs(&path);
    assert!((2..4).contains(&before.len()), "{before:?}");
    assert!(before.iter().all(|(_, run)| run.status == "done"), "{before:?}");
    let all = lab.run(&format!("sweep --jobs 1 --resume {pipeline}")).expect("the rest");
    assert_eq!(all.into_table().expect("a table").len(), 4);
    let after = runs(&path);
    assert_eq!(after.len(), 4, "{after:?}");
    assert_eq!(after[..before.len()], before[..], "what was done is not done again");
}
