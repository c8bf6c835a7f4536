//! The run store as several programs use it at once, and as a killed one leaves it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use aolab::store::{Metric, Query, Run, RunStore};
use aolab::table::Table;
use rusqlite::Connection;

fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aolab"));
    command.current_dir(folder).env("XDG_DATA_HOME", folder.join("data"));
    command.args(["--threads", "1", "--store", "runs.sqlite"]).stdin(Stdio::null());
    command
}

fn metric(name: &str, unit: &str, value: f64) -> Metric {
    Metric { name: name.into(), unit: unit.into(), value }
}

/// Every page, every reference and every index is as it should be.
fn check_file(path: &Path) {
    let connection = Connection::open(path).expect("a file");
    let whole: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("an answer");
    assert_eq!(whole, "ok");
    let broken: i64 = connection
        .query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))
        .expect("an answer");
    assert_eq!(broken, 0, "rows without what they refer to");
}

#[test]
fn several_programs_write_at_once() {
    const PROGRAMS: usize = 4;
    const EACH: usize = 6;
    let folder = tempfile::tempdir().expect("a folder");
    let line = "eval perplexity --windows 1 --context 16\n".repeat(EACH);
    let children: Vec<_> = (0..PROGRAMS)
        .map(|i| {
            let lines = format!("load tiny\n{line}");
            program(folder.path())
                .args(["--seed", &i.to_string(), "-c", &lines])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a start")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("an end");
        // A store that could not be written would be a remark here.
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert!(output.status.success());
    }
    let path = folder.path().join("runs.sqlite");
    check_file(&path);
    let store = RunStore::open(&path).expect("a store");
    assert_eq!(store.count("").expect("a count"), PROGRAMS * EACH);
    for seed in 0..PROGRAMS {
        let filter = format!("seed = {seed} and model = tiny and perplexity > 1");
        assert_eq!(store.count(&filter).expect("a count"), EACH, "{filter}");
    }
    let all = store.query(&Query::default()).expect("the runs");
    let first = &all[0].1;
    assert_eq!(first.model_hash.len(), 32);
    assert!(first.data.starts_with("sotu@"), "{}", first.data);
    assert!(!first.kernels.is_empty() && first.device.contains("1 threads"));
    assert!(
        all.iter()
            .all(|(_, run)| run.metrics == first.metrics || run.metrics[0] == first.metrics[0])
    );
}

#[cfg(unix)]
#[test]
fn a_killed_program_loses_nothing_that_it_had_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("runs.sqlite");
    let mut shown_by_all = 0;
    // Killed after more and more results: at the first, while the file is young, and later.
    for results in [1, 2, 3, 5, 8] {
        let lines =
            format!("load tiny\n{}", "eval perplexity --windows 1 --context 8\n".repeat(200));
        let mut child = program(folder.path())
            .args(["--json", "-c", &lines])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a start");
        let mut output = BufReader::new(child.stdout.take().expect("its output")).lines();
        // The first line is the model.
        for _ in 0..=results {
            output.next().expect("a line").expect("a line");
        }
        child.kill().expect("SIGKILL");
        let late =
            output.filter(|line| line.as_ref().is_ok_and(|line| line.ends_with('}'))).count();
        child.wait().expect("an end");
        shown_by_all += results + late;
        check_file(&path);
        let store = RunStore::open(&path).expect("the file is whole");
        let kept = store.query(&Query::default()).expect("the runs");
        assert!(kept.len() >= shown_by_all, "{} kept of {shown_by_all} shown", kept.len());
        shown_by_all = kept.len();
        for (id, run) in kept {
            assert_eq!(run.metrics[0].name, "perplexity", "run {id} is half there");
            store.result(id).expect("its table");
        }
    }
}

#[test]
fn what_is_kept_comes_back_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = RunStore::open(&folder.path().join("deep/er/runs.sqlite")).expect("a new store");
    let mut table = Table::new("t").column("model").column("perplexity");
    table.push(["a".into(), f64::INFINITY.into()]).expect("a row");
    let run = Run {
        started: 5,
        took: 1.25,
        line: "it's \"quoted\"; DROP TABLE runs".into(),
        subject: "a".into(),
        seed: u64::MAX,
        status: "done".into(),
        metrics: vec![
            metric("perplexity", "", f64::INFINITY),
            metric("speed", "tok/s", f64::NAN),
            metric("mean KL", "nat", 1e-300),
        ],
        table: Some(std::sync::Arc::new(table.clone())),
        ..Run::default()
    };
    let ids = store.insert(&[run.clone(), Run { table: None, ..run.clone() }]).expect("two rows");
    assert_eq!(ids, [1, 2]);
    let back = store.get(1).expect("the first");
    assert_eq!((back.seed, &back.line, back.took), (u64::MAX, &run.line, 1.25));
    assert_eq!(back.metrics[0], run.metrics[0]);
    assert!(back.metrics[1].value.is_nan());
    assert_eq!(back.metrics[2], run.metrics[2]);
    assert_eq!(store.result(1).expect("its table"), table);
    assert!(store.result(2).expect_err("no table").to_string().contains("kept no table"));
    assert!(store.get(3).expect_err("no run").to_string().contains("no run has the number 3"));
    // NaN is neither above nor below anything, and sorts last both ways.
    store.insert(&[Run { metrics: vec![metric("speed", "tok/s", 7.0)], ..run }]).expect("a row");
    assert_eq!(store.count("tok/s > 0").expect("a count"), 1);
    for ascending in [true, false] {
        let query = Query { sort: Some("tok/s".into()), ascending, ..Query::default() };
        assert_eq!(store.query(&query).expect("rows")[0].0, 3);
    }
    let json = serde_json::to_string(&back).expect("JSON");
    let again: Run = serde_json::from_str(&json).expect("a run");
    assert_eq!(again.metrics[0], back.metrics[0]);
}

#[test]
fn garbage_is_collected_and_room_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = RunStore::open(&folder.path().join("runs.sqlite")).expect("a new store");
    let mut table = Table::new("t").column("text");
    table.push(["x".repeat(10_000).into()]).expect("a row");
    let table = std::sync::Arc::new(table);
    let run = |status: &str| Run {
        status: status.into(),
        table: Some((*table).clone().into()),
        ..Run::default()
    };
    let runs: Vec<Run> = (0..100).map(|i| run(if i < 10 { "done" } else { "failed: x" })).collect();
    store.insert(&runs).expect("rows");
    let done = store.gc("not status = done").expect("a collection");
    assert_eq!(done.runs, 90);
    assert!(done.bytes.1 < done.bytes.0 / 2, "{:?}", done.bytes);
    assert_eq!(store.count("").expect("a count"), 10);
    store.result(1).expect("what is left is whole");
    assert_eq!(store.gc("").expect("nothing").runs, 0);
}

#[test]
fn other_files_are_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "not a database at all, but long enough to have a header")
        .expect("a file");
    assert!(RunStore::open(&text).is_err());
    assert!(std::fs::read_to_string(&text).expect("still there").starts_with("not a database"));
    let other = folder.path().join("other.sqlite");
    Connection::open(&other)
        .expect("a file")
        .execute_batch("CREATE TABLE mine (x)")
        .expect("a table");
    let error = RunStore::open(&other).expect_err("not ours").to_string();
    assert!(error.contains("no run store of aolab"), "{error}");
    let newer = folder.path().join("newer.sqlite");
    RunStore::open(&newer).expect("a store");
    Connection::open(&newer)
        .expect("a file")
        .execute_batch("PRAGMA user_version = 99")
        .expect("a mark");
    assert!(RunStore::open(&newer).expect_err("newer").to_string().contains("version 99"));
}

#[test]
fn a_folders_own_store_is_found_from_below() {
    let folder = tempfile::tempdir().expect("a folder");
    let below = folder.path().join("a/b");
    std::fs::create_dir_all(&below).expect("folders");
    let run = |at: &Path, line: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_aolab"))
            .args(["--json", "-c", line])
            .current_dir(at)
            .env("XDG_DATA_HOME", folder.path().join("data"))
            .output()
            .expect("a start");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(folder.path(), "runs init");
    run(&below, "load tiny | eval perplexity --windows 1 --context 8");
    let listed = run(folder.path(), "runs where 'perplexity > 1'");
    assert!(listed.contains("eval perplexity --windows 1 --context 8"), "{listed}");
    assert!(!folder.path().join("data/aolab/runs.sqlite").exists());
}

#[test]
fn training_is_kept_with_its_curve_and_drawn_from_the_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("runs.sqlite");
    let mut lab = aolab::Session::new();
    lab.set_store(Some(&path));
    lab.run("train tiny --steps 3 --batch 1 --sequence 32 --eval-every 3 --eval-windows 2")
        .expect("it trains");
    lab.run("train tiny --qat int4 --group-size 32 --steps 2 --batch 1 --sequence 32")
        .expect("too");
    let store = RunStore::open(&path).expect("a store");
    let found = store.query(&Query { ascending: true, ..Query::default() }).expect("runs");
    assert_eq!(found.len(), 2);
    let (id, run) = &found[0];
    let value = |name: &str| run.metrics.iter().find(|metric| metric.name == name).map(|m| m.value);
    assert_eq!(value("steps"), Some(3.0));
    assert!(value("loss").is_some_and(f64::is_finite), "{run:?}");
    assert!(value("held-out perplexity").is_some_and(|perplexity| perplexity > 1.0), "{run:?}");
    assert!(run.command.starts_with("train --steps 3") && run.status == "done", "{run:?}");
    assert!(run.baseline.starts_with("tiny@") && !run.model_hash.is_empty(), "{run:?}");
    assert!(run.subject.contains("trained") && run.data.contains('@'), "{run:?}");
    // The curve as it was, and the held-out loss before the first step.
    assert_eq!(store.result(*id).expect("its table").len(), 4);
    let mut later = aolab::Session::new();
    later.set_store(Some(&path));
    let losses = later.run("runs losses").expect("curves").into_table().expect("a table");
    assert_eq!(losses.len(), 4 + 2);
    let figure = later.run("plot loss").expect("a picture").into_figure().expect("a figure");
    assert!(figure.to_svg().expect("an SVG").contains("trained"));
    assert!(later.run("runs losses 'loss < 0' | plot loss").is_err(), "nothing to draw");
    let words = later.run("runs show 99").expect_err("two runs").to_string();
    assert!(words.contains("no run has the number 99"), "{words}");
    let words = later.run("set seed x").expect_err("no number").to_string();
    assert!(words.contains("wanted a whole number"), "{words}");
    let words = later.run("runs | plot nonsense").expect_err("no such kind").to_string();
    assert!(words.contains("loss (of training)"), "{words}");
    let words = later.run("runs | plot loss").expect_err("no losses").to_string();
    assert!(words.contains("runs losses"), "{words}");
}
