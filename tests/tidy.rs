//! The invariants of the architecture that a program can check.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below `folder` with one of the extensions, sorted.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path
                .extension()
                .and_then(|e| e.to_str())
                .is_some_and(|e| extensions.contains(&e))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The direct sub-folders of `folder`, by name.
fn folders(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut all: Vec<_> = entries
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.is_dir())
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), path))
        .collect();
    all.sort();
    all
}

/// The text of all Rust files of a folder.
fn source(folder: &Path) -> String {
    files(folder, &["rs"]).iter().map(|path| read(path)).collect()
}

/// Reports all complaints at once.
fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// Folders of src/quantization that are shared arithmetic or plumbing, not workflows.
const NOT_WORKFLOWS: [&str; 4] = ["calibration", "config", "layouts", "primitives"];

fn workflows() -> Vec<(String, PathBuf)> {
    let all = folders(&root().join("src/quantization"));
    all.into_iter().filter(|(name, _)| !NOT_WORKFLOWS.contains(&name.as_str())).collect()
}

#[test]
fn unsafe_is_only_in_kernels() {
    let mut complaints = Vec::new();
    for path in files(&root().join("src"), &["rs"]) {
        for (i, line) in read(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("unsafe ") && !code.contains("forbid") {
                complaints.push(format!("{}:{}: unsafe outside kernels/", path.display(), i + 1));
            }
        }
    }
    none(&complaints);
    for main in ["src/lib.rs", "src/main.rs"] {
        assert!(read(&root().join(main)).contains("#![forbid(unsafe_code)]"), "{main}");
    }
}

#[test]
fn kernels_know_nothing_of_the_layers_above() {
    let mut complaints = Vec::new();
    for path in files(&root().join("kernels/src"), &["rs"]) {
        // The CUDA layer looks for libraries and keeps compiled kernels, so that it alone names paths.
        let cuda = path.to_string_lossy().contains("kernels/src/cuda");
        let words = ["aolab::", "Session", "std::path", "std::fs::read"];
        for word in words.into_iter().take(if cuda { 2 } else { 4 }) {
            let text = read(&path);
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            if code.clone().any(|line| line.contains(word)) {
                complaints.push(format!("{}: names {word}", path.display()));
            }
        }
    }
    none(&complaints);
}

#[test]
fn rayon_is_used_in_one_place() {
    let users: Vec<_> = files(&root().join("kernels/src"), &["rs"])
        .into_iter()
        .chain(files(&root().join("src"), &["rs"]))
        .filter(|path| {
            let text = read(path);
            text.lines().any(|l| l.contains("rayon::") && !l.trim_start().starts_with("//"))
        })
        .filter(|path| !path.to_string_lossy().contains("kernels/src/parallel"))
        .collect();
    assert!(users.is_empty(), "{users:?}");
}

#[test]
fn no_workflow_imports_another() {
    let all = workflows();
    assert!(!all.is_empty());
    let mut complaints = Vec::new();
    for (name, folder) in &all {
        let text = source(folder);
        for (other, _) in all.iter().filter(|(other, _)| other != name) {
            if text.contains(&format!("{other}::")) {
                complaints.push(format!("{name} imports {other}"));
            }
        }
    }
    none(&complaints);
}

#[test]
fn every_workflow_cites_its_ids_and_has_a_golden_test() {
    let mut golden = String::new();
    for path in files(&root().join("tests"), &["rs"]) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name.starts_with("golden") || path.to_string_lossy().contains("tests/golden") {
            golden += &read(&path);
        }
    }
    let mut complaints = Vec::new();
    for (name, folder) in workflows() {
        let docs: String =
            read(&folder.join("mod.rs")).lines().filter(|l| l.starts_with("//!")).collect();
        let cites = docs.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| {
            word.len() == 3
                && "QNPMXR".contains(&word[..1])
                && word[1..].chars().all(|c| c.is_ascii_digit())
        });
        if !cites {
            complaints.push(format!("{name}: its docs cite no id of the feature map (Q06, N02 …)"));
        }
        if !golden.contains(&name) {
            complaints.push(format!("{name}: no golden test names it"));
        }
    }
    none(&complaints);
}

/// Folders of kernels/src that hold no kernel of their own.
const NOT_KERNELS: [&str; 4] = ["cuda", "dtypes", "machine", "parallel"];

#[test]
fn every_kernel_folder_has_its_facts_oracle_shapes_and_cost() {
    let mut complaints = Vec::new();
    for (name, folder) in folders(&root().join("kernels/src")) {
        if NOT_KERNELS.contains(&name.as_str()) {
            continue;
        }
        let text = source(&folder);
        let docs: String = text.lines().filter(|line| line.starts_with("//!")).collect();
        for fact in ["Error", "Source"] {
            if !docs.contains(fact) {
                complaints.push(format!("{name}: no header states its {fact}"));
            }
        }
        for (what, sign) in [
            ("scalar oracle", "scalar"),
            ("SHAPES", "const SHAPES"),
            ("cost", "cost("),
            ("kernel name", "fn kernel_name"),
        ] {
            if !text.contains(sign) {
                complaints.push(format!("{name}: has no {what} ({sign})"));
            }
        }
    }
    none(&complaints);
}

#[test]
fn files_are_short_enough_to_read() {
    let mut long = BTreeMap::new();
    for folder in ["src", "kernels/src"] {
        for path in files(&root().join(folder), &["rs"]) {
            let lines = read(&path).lines().count();
            if lines > 600 {
                long.insert(path, lines);
            }
        }
    }
    assert!(long.is_empty(), "over 600 lines: {long:?}");
    assert!(
        read(&root().join("src/main.rs")).lines().count() < 60,
        "main.rs is a door, not a room"
    );
}

#[test]
fn nothing_is_unfinished_and_no_machine_is_named() {
    let mut complaints = Vec::new();
    // Assembled here so that this file does not complain about itself.
    let words = ["to\u{64}o!(", "unimplemente\u{64}!(", "FIX\u{4d}E", "#[ignor\u{65}"];
    let all = ["src", "kernels", "tests", "benches", "tutorials", "notebooks", ".ci"];
    for folder in all {
        for path in files(&root().join(folder), &["rs", "md", "sh", "toml", "ao", "ipynb", "py"]) {
            let text = read(&path);
            for word in words {
                if text.contains(word) {
                    complaints.push(format!("{}: {word}", path.display()));
                }
            }
        }
    }
    none(&complaints);
}

/// The README's table begins with this line and ends before an empty one.
const SUPPORT_TABLE: &str =
    "| workflow | torchao | granularity | CPU kernel | ids |\n|---|---|---|---|---|\n";

#[test]
fn the_support_table_of_the_readme_is_the_librarys() {
    let table = aolab::quantization::support_table().expect("a table");
    let mut wanted = SUPPORT_TABLE.to_owned();
    for row in table.rows() {
        let cells: Vec<String> = row
            .iter()
            .map(|cell| match cell {
                aolab::table::Cell::Text(text) => text.clone(),
                other => panic!("{other:?} is no text"),
            })
            .collect();
        wanted += &format!("| {} |\n", cells.join(" | "));
    }
    check_table(SUPPORT_TABLE, &wanted);
}

/// The table of the README that begins with `heading` and ends before an empty line.
#[expect(clippy::disallowed_methods, reason = "the variable is these tests' switch")]
fn check_table(heading: &str, wanted: &str) {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _writes = ONE_AT_A_TIME.lock();
    let path = root().join("README.md");
    let readme = read(&path);
    let from = readme.find(heading).unwrap_or_else(|| panic!("the README's table {heading}"));
    let to = from + readme[from..].find("\n\n").expect("an end") + 1;
    if std::env::var("AOLAB_BLESS").is_ok() {
        let new = format!("{}{wanted}{}", &readme[..from], &readme[to..]);
        fs::write(&path, new).expect("a README that can be written");
        return;
    }
    assert_eq!(&readme[from..to], wanted, "AOLAB_BLESS=1 cargo test --test tidy writes it");
}

const GOLDEN_TABLE: &str =
    "| family | equal | total | largest difference | verdict |\n|---|---|---|---|---|\n";

/// On the scalar kernels, whose sums have one order on every processor.
#[test]
fn the_golden_table_of_the_readme_is_what_verify_golden_finds() {
    let cpu = aolab::kernels::Cpu::with_isa(aolab::kernels::Isa::available()[0], Some(1));
    let folder = root().join("tests/golden");
    let reports = aolab::verify::golden(&cpu, &folder, &[], &mut |_, _| true).expect("a folder");
    let mut wanted = GOLDEN_TABLE.to_owned();
    for report in reports {
        let largest = match report.largest() {
            0.0 => "0".to_owned(),
            part => format!("{part:.0e}"),
        };
        let (equal, total) = (report.equal(), report.total());
        let (name, verdict) = (&report.family, report.verdict());
        wanted += &format!("| {name} | {equal} | {total} | {largest} | {verdict} |\n");
    }
    check_table(GOLDEN_TABLE, &wanted);
}
