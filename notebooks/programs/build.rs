//! Writes each notebook as a function: its cells joined, the values that it shows shown by `evcxr_display`.
#![allow(clippy::disallowed_methods, reason = "cargo tells a build script by the environment")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::Value as Json;

fn main() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let folder = here.parent().expect("a folder above").to_owned();
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut notebooks: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the notebooks")
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ipynb"))
        .collect();
    notebooks.sort();
    let mut programs = String::new();
    for path in &notebooks {
        println!("cargo::rerun-if-changed={}", path.display());
        if let Some(program) = program(path) {
            programs.push_str(&program);
        }
    }
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("notebooks.rs"), programs).expect("a file in OUT_DIR");
}

/// The test that runs a notebook; none for one whose cells are aolab's own lines.
fn program(path: &Path) -> Option<String> {
    let name = path.file_stem().expect("a name").to_str().expect("a name in UTF-8");
    let text = fs::read_to_string(path).expect("a readable notebook");
    let notebook: Json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let cells = notebook["cells"].as_array().expect("cells");
    for cell in cells.iter().filter(|cell| cell["cell_type"] == "code") {
        let stored = cell["outputs"].as_array().is_some_and(|outputs| !outputs.is_empty());
        assert!(!stored, "{name}: notebooks are stored without outputs; clear them");
        assert!(cell["execution_count"].is_null(), "{name}: a cell keeps its number; clear it");
    }
    if notebook["metadata"]["kernelspec"]["name"] != "rust" {
        return None;
    }
    let function = format!("notebook_{}", name.replace('-', "_"));
    let mut program = String::new();
    let _ =
        writeln!(program, "#[test]\nfn {function}() -> Result<(), Box<dyn std::error::Error>> {{");
    for cell in cells.iter().filter(|cell| cell["cell_type"] == "code") {
        let lines = cell["source"].as_array().expect("lines");
        let code: String = lines.iter().map(|line| line.as_str().expect("a text")).collect();
        program.push_str(&cell_as_statements(&code));
    }
    program.push_str("Ok(())\n}\n");
    Some(program)
}

/// A cell that ends without `;` or `}` shows the value of what follows the last statement.
fn cell_as_statements(code: &str) -> String {
    let kept = code.lines().filter(|line| !line.starts_with(":dep"));
    let lines: Vec<&str> = kept.map(str::trim_end).collect();
    let ends = |line: &str| line.is_empty() || line.ends_with([';', '}']);
    let last = lines.iter().rposition(|line| ends(line)).map_or(0, |i| i + 1);
    let (statements, value) = lines.split_at(last);
    let mut out = statements.join("\n") + "\n";
    let value = value.join("\n");
    if !value.trim().is_empty() {
        let _ = writeln!(out, "({value}).evcxr_display();");
    }
    out
}
