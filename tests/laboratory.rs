//! Sweeps, the saved forms of a session, stale values, watching, the report and the dashboard.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use aolab::Session;
use aolab::store::{Query, RunStore};
use aolab::table::Table;

const PATIENCE: Duration = Duration::from_secs(120);

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn program(at: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aolab"));
    command.current_dir(at).env("XDG_DATA_HOME", at.join("data")).env_remove("NO_COLOR");
    command.args(["--threads", "2", "--store", "runs.sqlite"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(at: &Path, line: &str) -> Output {
    program(at).args(["-c", line]).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn laboratory(at: &Path) -> Session {
    let mut lab = Session::new();
    lab.set_threads(2);
    lab.set_store(Some(&at.join("runs.sqlite")));
    lab.run("load tiny").expect("the built-in model");
    lab
}

fn table(lab: &mut Session, line: &str) -> Table {
    lab.run(line).unwrap_or_else(|error| panic!("{line}: {error}")).into_table().expect("a table")
}

fn interrupt(child: &Child) {
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status();
    assert!(sent.expect("sh").success());
}

fn wait_until(what: &str, seen: impl Fn() -> bool) {
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const EVAL: &str = "eval perplexity --windows 1 --context 64";

#[test]
fn a_sweep_finds_what_its_lines_find_alone() {
    let at = folder();
    let mut lab = laboratory(at.path());
    let alone: Vec<f64> = [32, 64]
        .iter()
        .map(|size| {
            let line =
                format!("load tiny | quantize int4-weight-only --group-size {size} | {EVAL}");
            table(&mut lab, &line).column_f64("perplexity").expect("a number")[0]
        })
        .collect();
    lab.run("load tiny").expect("the model that trials begin with");
    let line = format!("\"quantize int4-weight-only --group-size {{32,64,7}} | {EVAL}\"");
    for jobs in [1, 3] {
        let found = table(&mut lab, &format!("sweep {line} --jobs {jobs}"));
        assert_eq!(found.column_f64("group-size").expect("settings"), [32.0, 64.0, 7.0]);
        let perplexity = found.column_f64("perplexity").expect("numbers");
        assert_eq!(perplexity[..2], alone, "{jobs} at once");
        assert!(perplexity[2].is_nan());
        let failed = found.column_text("failed").expect("reasons");
        assert!(failed[2].contains("K = 256"), "{failed:?}");
        assert!(
            found.column_f64("bits").expect("bits")[0] > found.column_f64("bits").expect("bits")[1]
        );
    }
    let store = lab.store().expect("a store");
    assert_eq!(store.count("status = done and sweep != ''").expect("a count"), 4);
    assert_eq!(store.count("status ~ failed").expect("a count"), 2);
    let front = table(&mut lab, &format!("sweep {line} | pareto --x bits --y perplexity"));
    assert_eq!(front.len(), 2, "the trial that failed has no place: {front}");
    assert!(
        lab.run("sweep \"quantise {a,b}\"")
            .is_err_and(|e| e.to_string().contains("did you mean `quantize`"))
    );
    // A sweep leaves the session's own model as it was.
    assert_eq!(lab.model().expect("a model").name, "tiny");
}

#[cfg(unix)]
#[test]
fn a_stopped_sweep_goes_on_where_it_was() {
    let at = folder();
    let windows: Vec<String> = (8..32).map(|tokens: usize| tokens.to_string()).collect();
    let line = format!(
        "load tiny; sweep --jobs 1 \"quantize int8-weight-only | eval perplexity --windows 24 --context {{{}}}\"",
        windows.join(",")
    );
    let child = program(at.path()).args(["-c", &line]).spawn().expect("a start");
    let store = at.path().join("runs.sqlite");
    let count = || RunStore::open(&store).and_then(|store| store.count("")).unwrap_or(0);
    wait_until("a trial", || store.exists() && count() >= 2);
    interrupt(&child);
    let output = child.wait_with_output().expect("an end");
    let done = count();
    if output.status.success() {
        panic!("all trials ended before the interrupt; the test needs longer ones");
    }
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("with --resume goes on"), "{}", text(&output.stderr));
    assert!((2..24).contains(&done), "{done} trials");
    let resumed = run(at.path(), &format!("{line} --resume"));
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    assert_eq!(count(), 24, "no trial is done twice");
    assert!(text(&resumed.stdout).contains(&format!("{done} of 24 trials were done before")));
}

/// An engine that runs tasks here: `sbatch` or `hq submit` by the name of the script. Task 1 dies at its first try.
fn fake_engine(at: &Path) -> PathBuf {
    let bin = at.join("bin");
    fs::create_dir_all(&bin).expect("a folder");
    let submit = r#"#!/bin/sh
here="$(dirname "$0")"
case "$*" in *"job list"*) exit 0;; esac
for word in "$@"; do case "$word" in --array=*) array="${word#--array=}";; esac; script="$word"; done
echo "$(basename "$0") $*" >> "$here/calls"
for task in $(echo "$array" | tr ',' ' '); do
  for i in $(seq "${task%-*}" "${task#*-}"); do
    if [ "$i" = 1 ] && [ ! -e "$here/died" ]; then touch "$here/died"; continue; fi
    SLURM_ARRAY_TASK_ID=$i SLURM_CPUS_PER_TASK=1 sh "$script" > "$here/log-$i" 2>&1
  done
done
echo 17
"#;
    for name in ["sbatch", "hq"] {
        write_program(&bin.join(name), submit);
    }
    write_program(&bin.join("squeue"), "#!/bin/sh\nexit 0\n");
    bin
}

fn write_program(path: &Path, script: &str) {
    fs::write(path, script).expect("a script");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
    }
}

#[cfg(unix)]
#[test]
#[expect(clippy::disallowed_methods, reason = "a test is its own main")]
fn dead_tasks_are_submitted_again_and_rows_come_home() {
    for engine in ["slurm", "hq"] {
        let at = folder();
        let bin = fake_engine(at.path());
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a PATH"));
        let line = format!(
            "base = load tiny; sweep --on {engine} --folder 'shared folder' \"$base | quantize int4-weight-only --group-size {{32,64}} | {EVAL}\" \"quantize int8-weight-only | {EVAL}\""
        );
        let output =
            program(at.path()).env("PATH", &path).args(["--seed", "3", "-c", &line]).output();
        let output = output.expect("a start");
        assert!(output.status.success(), "{}", text(&output.stderr));
        let calls = fs::read_to_string(bin.join("calls")).expect("calls");
        assert!(calls.contains("--array=0-2") && calls.contains("--array=1 "), "{calls}");
        let store = RunStore::open(&at.path().join("runs.sqlite")).expect("a store");
        let runs = store.query(&Query { ascending: true, ..Query::default() }).expect("rows");
        assert_eq!(runs.len(), 3);
        assert!(runs.iter().all(|(_, run)| run.seed == 3 && run.status == "done"));
        // The same numbers as here.
        let here = folder();
        let mut lab = laboratory(here.path());
        let wanted =
            table(&mut lab, &format!("quantize int4-weight-only --group-size 32 | {EVAL}"));
        let wanted = wanted.column_f64("perplexity").expect("numbers")[0];
        assert_eq!(runs[0].1.metrics[0].value.to_bits(), wanted.to_bits());
        // Collected again, nothing is there twice; what is missing is said, and one that was lost is made again.
        fs::remove_file(at.path().join("shared folder/rows/2.json")).expect("a row to lose");
        let again = run(at.path(), "sweep --resume --folder 'shared folder'");
        assert!(
            text(&again.stdout).contains("1 of 3 trials have no row yet"),
            "{}",
            text(&again.stdout)
        );
        let line = format!("sweep --resume --on {engine} --folder 'shared folder'");
        let again =
            program(at.path()).env("PATH", &path).args(["-c", &line]).output().expect("a start");
        assert!(again.status.success(), "{}", text(&again.stderr));
        assert!(!text(&again.stdout).contains("no row yet"), "{}", text(&again.stdout));
        assert_eq!(store.count("").expect("a count"), 3);
    }
}

/// A session whose lines give numbers, saved in every form.
fn saved_session(at: &Path) -> String {
    let lines = format!(
        "base = load tiny; q = $base | quantize int4-weight-only --group-size 64; $q | {EVAL}; nonsense"
    );
    let first = run(at, &lines.replace("; nonsense", "; save did.ao; save did.ipynb; save did.rs"));
    assert!(first.status.success(), "{}", text(&first.stderr));
    perplexity_in(&text(&first.stdout))
}

/// What the perplexity table shows: the number after the model's name.
fn perplexity_in(shown: &str) -> String {
    let row = shown
        .lines()
        .find(|line| line.trim_start().starts_with("tiny·int4-weight-only "))
        .expect("a row");
    row.split_whitespace().nth(1).expect("a number").to_owned()
}

#[test]
fn a_saved_script_and_notebook_give_the_same_numbers() {
    let at = folder();
    let wanted = saved_session(at.path());
    for file in ["did.ao", "did.ipynb"] {
        let again = run(at.path(), &format!("run {file}"));
        assert!(again.status.success(), "{}", text(&again.stderr));
        assert_eq!(perplexity_in(&text(&again.stdout)), wanted, "{file}");
    }
    let notebook = fs::read_to_string(at.path().join("did.ipynb")).expect("a notebook");
    let notebook: serde_json::Value = serde_json::from_str(&notebook).expect("JSON");
    assert_eq!(notebook["metadata"]["kernelspec"]["name"], "aolab");
    assert!(notebook["cells"].as_array().expect("cells").iter().all(|cell| cell["id"].is_string()));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test is its own main")]
fn a_saved_rust_program_gives_the_same_numbers() {
    let at = folder();
    let wanted = saved_session(at.path());
    // Beside this test lies the library that it was linked with; the newest, if earlier builds are there too.
    let deps = std::env::current_exe().expect("this test").parent().expect("its folder").to_owned();
    let is_library = |path: &PathBuf| {
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("libaolab-") && name.ends_with(".rlib")
    };
    let entries = fs::read_dir(&deps).expect("a folder").flatten().map(|entry| entry.path());
    let library = entries
        .filter(is_library)
        .max_by_key(|path| path.metadata().and_then(|found| found.modified()).expect("a file"))
        .expect("the library");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition", "2024", "-O", "did.rs", "-o", "did", "-L"])
        .arg(format!("dependency={}", deps.display()))
        .arg("--extern")
        .arg(format!("aolab={}", library.display()))
        .current_dir(at.path())
        .output()
        .expect("rustc");
    assert!(built.status.success(), "{}", text(&built.stderr));
    let ran = Command::new(at.path().join("did")).current_dir(at.path()).output().expect("a start");
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert_eq!(perplexity_in(&text(&ran.stdout)), wanted);
}

#[test]
fn any_line_survives_as_a_rust_string() {
    let mut lab = Session::new();
    lab.run("echo 'a \"quote\" and \"## more'").expect("a text");
    let program = lab.rust_program();
    assert!(program.contains("lab.run(r###\"echo 'a \"quote\" and \"## more'\"###)?"), "{program}");
}

#[test]
fn what_was_undone_or_only_measured_is_not_brought_back() {
    let mut lab = Session::new();
    for line in [
        "set seed 7",
        "a = load tiny",
        "size",
        "b = load tiny",
        "undo",
        "undo",
        "redo",
        "c = size",
        "set compute bf16",
    ] {
        lab.run(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    lab.run("nonsense").expect_err("no command");
    let script = lab.resume_script();
    let lines: Vec<&str> = script.lines().skip(1).collect();
    assert_eq!(lines, ["set seed 7", "a = load tiny", "c = size", "set compute bf16"]);
}

#[test]
fn values_go_stale_when_their_files_change() {
    let at = folder();
    let words = at.path().join("words.txt");
    fs::write(&words, "the state of the union is strong and ".repeat(40)).expect("a text");
    let mut lab = laboratory(at.path());
    lab.run("fresh = load tiny").expect("a model");
    lab.run(&format!("p = eval perplexity --text '{}' --windows 1 --context 32", words.display()))
        .expect("a table");
    lab.run("figure = $p | plot").expect("a figure");
    assert!(lab.stale("$p").is_none());
    assert!(!table(&mut lab, "vars").columns().iter().any(|column| column.name == "stale"));
    fs::write(&words, "other words").expect("a change");
    assert!(lab.stale("$p").is_some_and(|why| why.contains("words.txt has changed")));
    assert!(lab.stale("$figure").is_some(), "what was made of it is stale too");
    assert!(lab.stale("$fresh").is_none());
    assert_eq!(table(&mut lab, "vars").column_text("stale").expect("a column")[0], "–");
    fs::remove_file(&words).expect("gone");
    assert!(lab.stale("$p").is_some_and(|why| why.contains("is gone")));
    // A model's folder counts with every file in it.
    let model = at.path().join("model");
    lab.run(&format!("load tiny | save '{}'", model.display())).expect("a folder");
    lab.run(&format!("m = load '{}'", model.display())).expect("a model");
    assert!(lab.stale("$m").is_none());
    let config = fs::read_to_string(model.join("config.json")).expect("a file");
    fs::write(model.join("config.json"), config + "\n").expect("a change");
    assert!(lab.stale("$m").is_some_and(|why| why.contains("config.json has changed")));
}

#[cfg(unix)]
#[test]
fn watching_runs_again_at_every_change_and_ends_well() {
    let at = folder();
    let file = at.path().join("study.ao");
    fs::write(&file, "echo first\n").expect("a script");
    let mut child =
        program(at.path()).args(["-c", "watch study.ao; echo after"]).spawn().expect("a start");
    let mut lines = BufReader::new(child.stdout.take().expect("output"))
        .lines()
        .map(|line| line.expect("a line"));
    assert_eq!(lines.next().as_deref(), Some("first"));
    // A mistake ends nothing.
    fs::write(&file, "nonsense\n").expect("a change");
    std::thread::sleep(Duration::from_millis(400));
    fs::write(&file, "echo second version\n").expect("a change");
    assert_eq!(lines.next().as_deref(), Some("second version"));
    std::thread::sleep(Duration::from_millis(200));
    interrupt(&child);
    assert_eq!(lines.next().as_deref(), Some("after"), "the next line runs");
    assert!(child.wait().expect("an end").success());
}

/// Chromium as Debian or a browser's own package calls it.
fn chromium() -> Option<&'static str> {
    let there = |name: &&str| {
        Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success())
    };
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| there(name))
}

fn page(at: &Path) -> PathBuf {
    let mut lab = laboratory(at);
    lab.run("echo '<img src=x onerror=alert(1)>'").expect("a text");
    table(&mut lab, "size");
    lab.run("size | plot --y bytes --title '</figure><script>bad()</script>'").expect("a figure");
    lab.run("load '<b>nowhere</b>'").expect_err("no such model");
    let page = at.join("session.html");
    lab.run(&format!("report '{}' --title 'A <study> & more'", page.display())).expect("a page");
    page
}

#[test]
fn a_report_is_one_page_and_escapes_everything() {
    let at = folder();
    let html = fs::read_to_string(page(at.path())).expect("a page");
    for forbidden in [
        "<img src=x",
        "<b>nowhere",
        "<script>bad()",
        "</figure><script",
        "A <study>",
        "http://",
        "https://",
    ] {
        let html = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    for wanted in [
        "&lt;img src=x onerror=alert(1)&gt;",
        "A &lt;study&gt; &amp; more",
        "<svg",
        "data-value",
        "Content-Security-Policy",
    ] {
        assert!(html.contains(wanted), "{wanted}");
    }
}

#[test]
fn a_report_sorts_and_zooms_in_a_browser() {
    let Some(browser) = chromium() else {
        println!("skipped: there is no Chromium");
        return;
    };
    let at = folder();
    let page = page(at.path());
    let html = fs::read_to_string(&page).expect("a page");
    // A second script under the page's own nonce does what a person does, and writes down what it sees.
    let nonce =
        html.split("nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
    let probe = format!(
        "<script nonce=\"{nonce}\">
        const table = [...document.querySelectorAll('table.sorts')][0];
        const at = [...table.tHead.rows[0].cells].findIndex(th => th.textContent === 'bytes');
        const values = () => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[at].dataset.value));
        table.tHead.rows[0].cells[at].click(); const up = values();
        table.tHead.rows[0].cells[at].click(); const down = values();
        const sorted = up.every((v, i) => !i || up[i - 1] <= v) && down.every((v, i) => !i || down[i - 1] >= v);
        const svg = document.querySelector('figure.zooms svg'), before = svg.getAttribute('viewBox');
        svg.dispatchEvent(new WheelEvent('wheel', {{deltaY: -300, clientX: 100, clientY: 100, cancelable: true, bubbles: true}}));
        const zoomed = svg.getAttribute('viewBox') !== before;
        document.title = `sorted=${{sorted}} rows=${{up.length}} zoomed=${{zoomed}} images=${{document.images.length}}`;
        </script></body>"
    );
    fs::write(&page, html.replace("</body>", &probe)).expect("a page");
    let shown = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            "--virtual-time-budget=3000",
        ])
        .arg(format!("--user-data-dir={}", at.path().join("profile").display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("a browser");
    let dom = text(&shown.stdout);
    let title =
        dom.split("<title>").nth(1).and_then(|rest| rest.split('<').next()).unwrap_or_default();
    assert!(
        title.starts_with("sorted=true rows=") && title.ends_with("zoomed=true images=0"),
        "{title}\n{}",
        text(&shown.stderr)
    );
}

/// What a server answers to one request, head and body.
fn get(address: &str, path: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn the_dashboard_is_live_and_answers_only_who_has_the_token() {
    let at = folder();
    let mut lab = laboratory(at.path());
    table(&mut lab, EVAL);
    let mut child =
        program(at.path()).args(["-c", "dashboard --seconds 60"]).spawn().expect("a start");
    let mut said = BufReader::new(child.stderr.take().expect("its remarks"));
    let mut line = String::new();
    said.read_line(&mut line).expect("its address");
    let url = line
        .split_whitespace()
        .next()
        .expect("an address")
        .strip_prefix("http://")
        .expect("http")
        .to_owned();
    let (address, query) = url.split_once("/?").expect("a token");
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let page = get(address, &format!("/?{query}"), address);
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("<h1>Runs</h1>"), "{page}");
    let runs = get(address, &format!("/runs?{query}&filter=perplexity%20%3E%201"), address);
    assert!(runs.contains("\"count\":1") && runs.contains("eval perplexity"), "{runs}");
    // Another program's row is there at the next look.
    table(&mut lab, EVAL);
    assert!(get(address, &format!("/runs?{query}"), address).contains("\"count\":2"));
    for (path, host, status) in [
        ("/", address, "403"),
        ("/runs", address, "403"),
        ("/?token=0123456789abcdef0123456789abcdef", address, "403"),
        (&*format!("/?{query}"), "evil.example", "403"),
        (&*format!("/nothing?{query}"), address, "404"),
        (&*format!("/runs?{query}&filter=%28%28"), address, "400"),
        (&*format!("/runs?{query}&filter=x%3B%20DROP%20TABLE%20runs"), address, "400"),
    ] {
        let answer = get(address, path, host);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {host}: {answer}");
        assert!(!answer.contains("perplexity ("), "{answer}");
    }
    // Garbage ends nothing.
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.write_all(b"\x00\xff nonsense\r\n\r\n").expect("bytes");
    drop(stream);
    assert!(get(address, &format!("/?{query}"), address).starts_with("HTTP/1.1 200"));
    child.kill().expect("an end");
    child.wait().expect("an end");
}

#[test]
fn debugging_aids_say_what_they_measured() {
    let at = folder();
    let mut lab = laboratory(at.path());
    lab.run("base = load tiny").expect("a model");
    lab.run("same = load tiny").expect("a model");
    lab.run(
        "int4 = $base | quantize int4-weight-only --group-size 32 --filter layers.1.mlp.up_proj",
    )
    .expect("a model");
    // Equal models are equal everywhere; a quantized layer shows where it is, and after it.
    let equal = table(&mut lab, "compare --per-layer $base $same --windows 1 --context 16");
    assert!(equal.column_f64("SQNR").expect("numbers").iter().all(|db| db.is_infinite()));
    let found = table(&mut lab, "compare --per-layer $base $int4 --windows 1 --context 16");
    let (places, db) =
        (found.column_text("place").expect("places"), found.column_f64("SQNR").expect("numbers"));
    for (place, db) in places.iter().zip(&db) {
        let begins =
            places.iter().position(|p| p == "model.layers.1.mlp.up_proj").expect("the layer");
        let at = places.iter().position(|p| p == place).expect("itself");
        assert_eq!(db.is_infinite(), at < begins, "{place}: {db}");
    }
    // The same pass gives the same answer with and without a watch, and every call is in the trace.
    let trace = at.path().join("trace.json");
    let line = format!("$int4 | profile '{EVAL}' --trace '{}'", trace.display());
    let profile = table(&mut lab, &line);
    assert!(
        profile.column_text("kernel").expect("kernels").iter().any(|name| name.contains("int4"))
    );
    let trace: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(trace).expect("a file")).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let linear: Vec<_> = events.iter().filter(|event| event["cat"] == "linear").collect();
    let layers = lab.model().expect("a model").layers.len();
    // q, k and v are one call, gate and up another; two outputs remain, and the output layer.
    assert_eq!(linear.len(), 4 * layers + 1, "one window");
    for event in &linear {
        assert!(event["ph"] == "X" && event["dur"].as_f64().is_some_and(|us| us > 0.0), "{event}");
    }
    let command = events.iter().find(|event| event["cat"] == "command").expect("the command");
    let end = |event: &serde_json::Value| {
        event["ts"].as_f64().expect("a time") + event["dur"].as_f64().expect("a time")
    };
    assert!(linear.iter().all(|event| end(event) <= end(command) + 1.0));
    let stats = table(&mut lab, "$base | stats activations --windows 2 --context 16");
    assert_eq!(stats.len(), 2 * (7 * layers + 1));
    let csv = stats.to_csv();
    assert!(csv.starts_with("tag,counter_val,fqn,op,max_abs,avg,std\r\nact,0,model.layers.0.self_attn.q_proj.weight,linear,"));
    let shapes = table(&mut lab, "$base | shapes --m 1,3");
    assert_eq!(shapes.len(), 2 * (7 * layers + 1));
    let roof = table(&mut lab, "$base | roofline --m 1 --seconds 0.01");
    assert!(roof.column_f64("of the roof").expect("shares").iter().all(|share| *share > 0.0));
    assert!(table(&mut lab, "info").column_text("what").expect("rows").contains(&"GPU".to_owned()));
}
