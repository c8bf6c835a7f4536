//! Ctrl-C in the middle of every command that there is: the prompt is back at once, and the session is as it was.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aolab::command::COMMANDS;
use aolab::session::FrontEnd;
use aolab::{Session, Value};

/// What the program itself gives commands.
const PATIENCE: Duration = Duration::from_millis(120);

/// Other tests run beside this one: what is asked of the middle of all times is asked of the slowest many times over.
const MIDDLE: Duration = Duration::from_millis(200);
const SLOWEST: Duration = Duration::from_millis(1500);

/// Remembers who was left alone.
#[derive(Debug, Default)]
struct Notes(Mutex<Vec<String>>);

impl FrontEnd for Notes {
    fn note(&self, text: &str) {
        self.0.lock().expect("no panic there").push(text.to_owned());
    }
}

#[test]
fn every_command_gives_the_prompt_back_within_a_fifth_of_a_second() {
    let folder = tempfile::tempdir().expect("a folder");
    std::env::set_current_dir(folder.path()).expect("a folder to work in");
    // The moments differ from run to run, and are printed.
    let mut seed = std::process::id();
    println!("seed {seed}");
    let mut draw = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(seed >> 8) / f64::from(1 << 24)
    };
    let mut times: Vec<(Duration, &str, bool)> = Vec::new();
    for entry in COMMANDS {
        for (i, example) in entry.examples.iter().enumerate() {
            let own = folder.path().join(format!("{}-{i}", entry.name));
            std::fs::create_dir(&own).expect("a folder of its own");
            std::env::set_current_dir(&own).expect("a folder to work in");
            // From a millisecond to a third of a second: commands differ as much.
            let moment = Duration::from_secs_f64(1e-3 * 300_f64.powf(draw()));
            if let Some((took, alone)) = interrupted(example.line, moment) {
                times.push((took, example.line, alone));
            }
        }
    }
    times.sort_unstable();
    let middle = times[times.len() / 2].0;
    for (took, line, alone) in times.iter().rev().take(12) {
        println!("{took:?} {}: {line}", if *alone { "left alone" } else { "heard" });
    }
    let alone = times.iter().filter(|(.., alone)| *alone).count();
    println!("{} lines stopped, {alone} left alone, half of them within {middle:?}", times.len());
    assert!(times.len() >= COMMANDS.len() / 2, "most were over before: {}", times.len());
    assert!(middle < MIDDLE, "{middle:?}");
    let (slowest, line, _) = times[times.len() - 1];
    assert!(slowest < SLOWEST, "{line}: {slowest:?}");
}

/// Stops `line` so long after its beginning. How long it took to come back, and whether it was left alone; `None` if it was over before.
fn interrupted(line: &str, moment: Duration) -> Option<(Duration, bool)> {
    let mut lab = Session::new();
    lab.set_store(Some(std::path::Path::new("runs.sqlite")));
    lab.run("kept = load tiny").expect("a model");
    lab.set_patience(Some(PATIENCE));
    let notes = Arc::new(Notes::default());
    lab.set_front_end(Arc::clone(&notes) as _);
    let cancel = lab.cancel_flag();
    let (over, ended) = std::sync::mpsc::channel::<()>();
    let (result, back, at) = std::thread::scope(|scope| {
        let stopper = scope.spawn(move || {
            let soon = ended.recv_timeout(moment);
            let at = Instant::now();
            soon.is_err().then(|| {
                cancel.store(true, Ordering::Relaxed);
                at
            })
        });
        let result = lab.run(line);
        let back = Instant::now();
        let _ = over.send(());
        (result, back, stopper.join().expect("no panic there"))
    });
    let at = at?;
    lab.clear_cancelled();
    // A statement of a line that ended before stays.
    assert!(lab.variables().contains_key("kept"), "{line}");
    let kept = lab.run("$kept | size").unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(matches!(kept, Value::Table(_)), "{line}");
    if let Err(error) = &result {
        assert!(error.is_cancelled(), "{line}: stopped, and said {error}");
    }
    let alone = notes
        .0
        .lock()
        .expect("no panic there")
        .iter()
        .any(|note| note.contains("in the background"));
    Some((back.saturating_duration_since(at), alone))
}
