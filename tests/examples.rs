//! Every example of every command is run as a person would, and the reference page is not stale.

use std::path::Path;
use std::process::Command;

use aolab::command::{COMMANDS, Entry, reference_page};

#[test]
fn every_example_runs_and_shows_what_it_says() {
    let mut failed = Vec::new();
    for entry in COMMANDS {
        assert!(!entry.examples.is_empty(), "{} has no example", entry.name);
        failed.extend(failures(entry));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

/// Runs each example in an empty folder.
fn failures(entry: &Entry) -> Vec<String> {
    let run = |line: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        Command::new(env!("CARGO_BIN_EXE_aolab"))
            .args(["--threads", "2", "-c", line])
            .current_dir(folder.path())
            .env("XDG_DATA_HOME", folder.path().join("data"))
            .output()
            .expect("the program starts")
    };
    let failure = |example: &aolab::command::Example| {
        assert!(!example.expect.is_empty(), "{}: no part of the output is expected", example.line);
        assert!(
            example.line.contains(entry.name),
            "{} is no example of {}",
            example.line,
            entry.name
        );
        let output = run(example.line);
        let shown = [output.stdout, output.stderr].concat();
        let shown = String::from_utf8_lossy(&shown);
        let right = output.status.success() && shown.contains(example.expect);
        (!right).then(|| {
            let (line, expect, code) = (example.line, example.expect, output.status);
            format!("{line}\nwanted: {expect}\ngot ({code}):\n{shown}")
        })
    };
    entry.examples.iter().filter_map(failure).collect()
}

#[test]
fn the_reference_page_is_not_stale() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tutorials/reference.md");
    let page = reference_page();
    #[expect(clippy::disallowed_methods, reason = "a test is its own main")]
    let bless = std::env::var_os("AOLAB_BLESS").is_some();
    if bless {
        std::fs::write(&path, &page).expect("the page can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "tutorials/reference.md is stale; `AOLAB_BLESS=1 cargo test --test examples` writes it anew"
    );
}
