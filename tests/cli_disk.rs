//! A full disk, folders that may not be written to, output that cannot be written: an error in words,
//! exit code 1, and nothing half-written left behind.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_aolab");

/// Runs `aolab -c LINES` in `folder` after these words of a shell.
fn shell(folder: &Path, before: &str, lines: &str, after: &str) -> Output {
    let script = format!("{before} exec \"$0\" --threads 2 -c \"$1\" {after}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, PROGRAM, lines]).current_dir(folder);
    command.stdin(Stdio::null()).output().expect("a shell")
}

/// Files cannot grow beyond `kib`; what is beyond is an error and no signal, as on a full disk.
fn small_disk(kib: u32) -> String {
    // POSIX counts in blocks of 512 bytes; bash and others in KiB, unless they are called sh.
    format!("trap '' XFSZ; ulimit -f {};", kib * 2)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half_written() {
    for (lines, kib, file) in [
        ("load tiny | save model", 2000, "model"),
        ("load tiny | quantize int8-weight-only | save model", 2000, "model"),
        ("show tiny; save layers.csv", 0, "layers.csv"),
        ("show tiny; save layers.json", 1, "layers.json"),
        ("size tiny | plot --y bytes; save sizes.svg", 1, "sizes.svg"),
        ("size tiny | plot --y bytes; save sizes.png", 1, "sizes.png"),
        ("load tiny; size; save session.ao", 0, "session.ao"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let output = shell(folder.path(), &small_disk(kib), lines, "");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{lines}: {said}");
        assert!(said.contains("error:") && said.contains(file), "{lines}: {said}");
        assert!(!said.contains("panicked") && !said.contains("partial"), "{said}");
        assert_eq!(names(folder.path()), [""; 0], "{lines}: something is left behind");
    }
}

#[test]
fn a_full_disk_costs_neither_the_old_file_nor_the_old_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = shell(folder.path(), "", "load tiny | save model; size; save sizes.csv", "");
    assert!(first.status.success(), "{}", stderr(&first));
    let old = fs::read(folder.path().join("sizes.csv")).expect("a table");
    let lines =
        ["show $m; save sizes.csv", "$m | quantize int8-weight-only | save model --overwrite"];
    for line in lines {
        let output = shell(folder.path(), &small_disk(0), &format!("m = load tiny; {line}"), "");
        assert_eq!(output.status.code(), Some(1), "{line}: {}", stderr(&output));
    }
    assert_eq!(fs::read(folder.path().join("sizes.csv")).expect("the old table"), old);
    assert_eq!(names(folder.path()), ["model", "sizes.csv"]);
    let again = shell(folder.path(), "", "load model | show", "");
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(!String::from_utf8_lossy(&again.stdout).contains("int8"), "it is the old model");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for lines in ["load tiny | size", "load tiny | generate We --max-new-tokens 4", "help"] {
        let output = shell(folder.path(), "", lines, ">/dev/full");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{lines}: {said}");
        assert!(said.contains("standard output"), "{lines}: {said}");
    }
    let closed = shell(folder.path(), "", "load tiny | size", ">&-");
    assert!(!stderr(&closed).contains("panicked"), "{}", stderr(&closed));
}

#[test]
fn places_without_permission_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in ["/proc/none/x.csv", "/proc/x.csv", "/dev/null/x.csv"] {
        let output = shell(folder.path(), "", &format!("size tiny; save {path}"), "");
        assert_eq!(output.status.code(), Some(1), "{path}: {}", stderr(&output));
        assert!(stderr(&output).contains(path), "{}", stderr(&output));
    }
    use std::os::unix::fs::PermissionsExt as _;
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).expect("a folder");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("it is ours");
    // Root may write everywhere.
    if fs::write(closed.join("probe"), "").is_err() {
        for lines in ["size tiny; save closed/x.csv", "load tiny | save closed/model"] {
            let output = shell(folder.path(), "", lines, "");
            assert_eq!(output.status.code(), Some(1), "{lines}: {}", stderr(&output));
            assert!(stderr(&output).contains("closed/"), "{}", stderr(&output));
        }
        assert!(names(&closed).is_empty());
    }
}

#[test]
fn a_history_that_cannot_be_kept_is_no_reason_to_stop() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = shell(folder.path(), "HOME=/proc/none XDG_DATA_HOME= ;", "load tiny | size", "");
    assert!(output.status.success(), "{}", stderr(&output));
}
