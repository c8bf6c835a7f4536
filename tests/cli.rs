//! The program as a shell sees it: exit codes, streams, scripts, documents, and how it stops.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use aolab::command::COMMANDS;

fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aolab"));
    command.current_dir(folder).env_remove("NO_COLOR").args(["--threads", "2"]);
    // Not the run store of whoever runs the tests.
    command.env("XDG_DATA_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    program(folder).args(arguments).output().expect("the program starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a person is likely to get wrong, the exit code, and what the program must say.
const MISTAKES: [(&[&str], i32, &str); 38] = [
    (&["quantise", "tiny"], 2, "did you mean `quantize`?"),
    (&["xylophone"], 2, "`help` lists them"),
    (&["eavl", "tiny"], 2, "did you mean `eval`?"),
    (&[""], 2, "`help` lists them"),
    (&["-c", "load tiny | eval perplexity --windows 0"], 2, "wanted 1 or more"),
    (&["-c", "load tiny | generate We --temperature -1"], 1, "temperature is -1"),
    (&["-c", "load tiny | bench prefill --tokens 99999999999"], 1, "512 positions"),
    (&["-c", "load tiny | eval perplexity --context 99999999999"], 1, "512 positions"),
    (&["bench", "linear", "--m", "0"], 2, "wanted 1 or more rows"),
    (&["bench", "linear", "--m", "18446744073709551615"], 2, "at most 2³⁰ numbers"),
    (&["load", "/dev/zero"], 1, "not a model"),
    (&["load", "tinny"], 1, "did you mean tiny?"),
    (&["load"], 2, "`load` also wants <MODEL>"),
    (&["size"], 2, "`load tiny` first, or `size tiny"),
    (&["show", "--al", "tiny"], 2, "did you mean --all?"),
    (&["quantize", "tiny", "int4"], 2, "did you mean int4-weight-only?"),
    (&["quantize", "tiny", "int4-weight-only", "--group-size", "x"], 2, "--group-size"),
    (&["quantize", "tiny", "int4-weight-only", "--group-size", "3"], 1, "K = 256"),
    (&["quantize", "tiny", "int4-weight-only", "--filter", "nothing"], 1, "no linear layer"),
    (
        &["-c", "quantize tiny gptq --base int4-weight-only --filter nothing"],
        1,
        "--filter 'nothing' fits none",
    ),
    (&["-c", "sparsify tiny wanda --filter nothing"], 1, "--filter 'nothing' fits none"),
    (&["-c", "load tiny | save x.pt --layout torchao"], 2, "how a folder keeps weights"),
    (&["verify", "golden", "/nowhere"], 1, "FAMILY.safetensors files"),
    (&["quantize", "tiny"], 2, "which workflow?"),
    (&["--isa", "mmx", "size", "tiny"], 2, "this machine has no \"mmx\""),
    (&["--threads", "0", "size", "tiny"], 2, "0 is not in 1..=4096"),
    (&["--jsn"], 2, "--json"),
    (&["help", "quantise"], 2, "did you mean `help quantize`?"),
    (&["run", "missing.ao"], 1, "missing.ao"),
    (
        &["-c", "load tiny | size | size"],
        2,
        "`size` takes a model, and the stage before gives a table",
    ),
    (&["-c", "load tiny | load tiny"], 2, "takes nothing from a pipe"),
    (&["-c", "x = load tiny; $y | size"], 2, "did you mean $x?"),
    (&["-c", "echo 'open"], 2, "is not closed"),
    (&["-c", "load tiny |"], 2, "nothing stands after this |"),
    (&["-c", "x = quit"], 2, "this gives nothing that x could hold"),
    (&["-c", "undo"], 1, "nothing to undo"),
    (&["-c", "load tiny | save x.csv"], 2, "got a model"),
    (&["-c", "load tiny | save no/such/folder"], 1, "no/such"),
];

#[test]
fn mistakes_are_told_in_words_with_their_exit_code() {
    for (arguments, code, words) in MISTAKES {
        let folder = folder();
        let output = run(folder.path(), arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}\nwanted: {words}\ngot: {said}");
        assert!(!said.contains("panicked"), "{said}");
        assert!(fs::read_dir(folder.path()).expect("a folder").next().is_none(), "{arguments:?}");
    }
}

#[test]
fn a_caret_stands_under_the_mistake() {
    let output = run(folder().path(), &["-c", "load tiny | sizes"]);
    assert!(stderr(&output).contains("\n  load tiny | sizes\n              ^^^^^\n"));
}

#[test]
fn nothing_runs_before_everything_is_checked() {
    let folder = folder();
    let output = run(folder.path(), &["-c", "save before.ao; load tiny | sizes"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!folder.path().join("before.ao").exists());
}

#[test]
fn help_lists_every_command_with_one_line() {
    let folder = folder();
    for arguments in [&["--help"][..], &["help"]] {
        let output = run(folder.path(), arguments);
        let shown = stdout(&output);
        assert!(output.status.success());
        for entry in COMMANDS {
            let about = entry.about();
            let listed = |line: &str| {
                let line = line.trim();
                line.starts_with(entry.name) && line.ends_with(&about)
            };
            assert!(shown.lines().any(listed), "{}: {about}\n{shown}", entry.name);
            assert!(!about.is_empty() && !about.contains('\n'));
        }
    }
    for entry in COMMANDS {
        let by_flag = run(folder.path(), &[entry.name, "--help"]);
        let by_command = run(folder.path(), &["help", entry.name]);
        assert!(by_flag.status.success() && by_command.status.success(), "{}", entry.name);
        assert_eq!(stdout(&by_flag), stdout(&by_command), "{}", entry.name);
        assert!(stdout(&by_flag).contains("Examples:"), "{}", entry.name);
    }
    let version = run(folder.path(), &["--version"]);
    assert!(stdout(&version).starts_with("aolab "));
}

#[test]
fn the_same_lines_come_through_every_door() {
    let folder = folder();
    let lines = "load tiny | quantize int8-weight-only\nsize # the latest model\n";
    fs::write(folder.path().join("lines.ao"), lines).expect("a script");
    let by_option = run(folder.path(), &["-c", lines]);
    let by_file = run(folder.path(), &["run", "lines.ao"]);
    let mut child = program(folder.path()).stdin(Stdio::piped()).spawn().expect("a start");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("lines go in");
    let by_stdin = child.wait_with_output().expect("an end");
    let wanted = stdout(&by_option);
    assert!(wanted.contains("Size of tiny·int8-weight-only"), "{wanted}");
    for output in [by_option, by_file, by_stdin] {
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), wanted);
        assert!(!stdout(&output).contains('\x1b'), "no colors where there is no terminal");
    }
    // The arguments of a shell make one pipeline.
    let by_words =
        run(folder.path(), &["load", "tiny", "|", "quantize", "int8-weight-only", "|", "size"]);
    assert!(wanted.ends_with(&stdout(&by_words)), "{}", stdout(&by_words));
}

#[test]
fn every_result_is_one_json_document() {
    let folder = folder();
    let lines = "load tiny; size; echo words; show --all; set; size | plot; x = size; time size";
    for arguments in [["--json", "-c", lines], ["-c", lines, "--json"]] {
        let output = run(folder.path(), &arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        let documents: Vec<serde_json::Value> = stdout(&output)
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON document a line"))
            .collect();
        assert_eq!(documents.len(), 8, "{documents:?}");
        assert_eq!(documents[0]["parameters"], 6_819_072);
        assert_eq!(documents[2]["text"], "words");
    }
}

#[test]
fn a_saved_session_does_it_again() {
    let folder = folder();
    let lines = "a = load tiny; $a | quantize int4-weight-only --group-size 64; size; undo; size; save did.ao";
    let first = run(folder.path(), &["--seed", "5", "-c", lines]);
    assert!(first.status.success(), "{}", stderr(&first));
    let script = fs::read_to_string(folder.path().join("did.ao")).expect("a script");
    assert!(script.contains("set seed 5\n"), "{script}");
    let again = run(folder.path(), &["run", "did.ao"]);
    // The script begins by setting the seed, which shows the settings.
    assert!(stdout(&again).ends_with(&stdout(&first)), "{}\n{}", stdout(&again), stdout(&first));
}

#[test]
fn documents_run_and_their_outputs_are_checked() {
    let folder = folder();
    let right = "# Sizes\n\n```ao\nbase = load tiny\n$base | size\n```\n\n```output\ntotal 6,819,072 ~13.6 MB …\n```\n\n```ao\n$base | show\n```\n";
    let wrong = right.replace("~13.6", "~12.0");
    let broken = right.replace("$base | show", "$bose | show");
    for (name, text) in [("right.md", right), ("wrong.md", &wrong), ("broken.md", &broken)] {
        fs::write(folder.path().join(name), text).expect("a document");
    }
    let output = run(folder.path(), &["run", "right.md"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("# Sizes"), "{}", stdout(&output));
    let output = run(folder.path(), &["run", "wrong.md"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["wrong.md:9", "~12.0 MB", "6,819,072  13.6 MB"] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let output = run(folder.path(), &["run", "broken.md"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("broken.md:13") && said.contains("did you mean $base?"), "{said}");
}

#[test]
fn a_script_that_runs_itself_is_refused() {
    let folder = folder();
    fs::write(folder.path().join("loop.ao"), "run loop.ao\n").expect("a script");
    let output = run(folder.path(), &["run", "loop.ao"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("does it run itself?"));
}

#[test]
fn errors_lose_nothing_and_stand_in_the_saved_script() {
    let mut lab = aolab::Session::new();
    lab.run("base = load tiny").expect("the built-in model");
    lab.run("$base | quantize int4-weight-only --group-size 3").expect_err("3 does not divide");
    lab.run("nonsense").expect_err("no such command");
    assert_eq!(lab.model().expect("a model").name, "tiny");
    let sizes = lab.run("$base | size").expect("still bound").into_table().expect("a table");
    assert!(!sizes.is_empty());
    let script = lab.script();
    assert!(script.contains("# failed: nonsense"), "{script}");
    assert!(script.contains("\n$base | size\n"), "{script}");
}

#[test]
fn a_model_folder_is_replaced_only_when_asked() {
    let folder = folder();
    let saved = run(folder.path(), &["-c", "load tiny | save model"]);
    assert!(saved.status.success(), "{}", stderr(&saved));
    let again = run(folder.path(), &["-c", "load tiny | save model"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
    let over = run(folder.path(), &["-c", "load model | save model --overwrite"]);
    assert!(over.status.success(), "{}", stderr(&over));
    let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_reader_that_leaves_ends_the_program_quietly() {
    let mut child =
        program(folder().path()).args(["show", "tiny", "--all"]).spawn().expect("a start");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_long_work_and_leaves_no_half_written_file() {
    let folder = folder();
    let many = vec!["eval perplexity | save result.csv"; 50].join(";");
    let child = program(folder.path())
        .args(["-c", &format!("load tiny; {many}; save end.ao")])
        .spawn()
        .expect("a start");
    std::thread::sleep(Duration::from_millis(700));
    let pid = child.id().to_string();
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {pid}")]).status();
    assert!(sent.expect("sh").success());
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped; what was finished is kept"));
    for entry in fs::read_dir(folder.path()).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        assert_eq!(name, "result.csv", "only what was finished is there");
    }
}
