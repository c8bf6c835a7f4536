//! Trials on other machines, through an engine that is there already: Slurm's `sbatch` or HyperQueue's `hq`.
//!
//! A sweep's folder is on a file system that all machines share. It holds `sweep.json` (the trials), `task.sh` (what each task runs:
//! `aolab -c "sweep --trial N --folder …"`), `models/` (what trials begin with), `logs/`, and `rows/N.json`, which task N
//! writes whole and under its name only when it is done. A task that died has no row: whoever collects submits it again. A task that
//! runs twice writes the same row twice. The run store is not in that folder: SQLite's locks do not hold on network file systems.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::results::Finished;
use super::{Sweep, local};
use crate::error::{AtPath as _, Error, Result};
use crate::io::files;
use crate::session::Session;

/// What runs the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// Slurm: `sbatch --array`
    Slurm,
    /// HyperQueue: `hq submit --array`
    Hq,
}

/// Everything that tasks read.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    version: u32,
    sweep: Sweep,
    seed: u64,
    /// Lines that every task runs first: they load what trials begin with.
    before: Vec<String>,
}

/// A sweep's folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    plan: Plan,
}

/// A plan or a row larger than this was not written by a sweep.
const LARGEST_FILE: u64 = 256 << 20;
const PLAN_VERSION: u32 = 1;

impl Folder {
    /// Makes the folder of a new sweep, or finds it if the same sweep made it.
    pub fn create(path: &Path, sweep: &Sweep, seed: u64, before: Vec<String>) -> Result<Folder> {
        for part in ["rows", "logs"] {
            let part = path.join(part);
            fs::create_dir_all(&part).at(&part)?;
        }
        let path = std::path::absolute(path).at(path)?;
        let plan = Plan { version: PLAN_VERSION, sweep: sweep.clone(), seed, before };
        let file = path.join("sweep.json");
        if file.exists() {
            let there = Folder::open(&path)?;
            if there.plan.sweep != *sweep {
                let words = format!(
                    "another sweep ({}) is in this folder; name another",
                    there.plan.sweep.id
                );
                return Err(Error::file(&path, words));
            }
        }
        let text = serde_json::to_string_pretty(&plan);
        let text = text.map_err(|error| Error::file(&file, error.to_string()))?;
        files::write_atomically(&file, |out| out.write_all(text.as_bytes()))?;
        let folder = Folder { path, plan };
        let script = folder.script()?;
        let file = folder.path.join("task.sh");
        files::write_atomically(&file, |out| out.write_all(script.as_bytes()))?;
        Ok(folder)
    }

    /// Opens the folder of a sweep.
    pub fn open(path: &Path) -> Result<Folder> {
        let path = std::path::absolute(path).at(path)?;
        let file = path.join("sweep.json");
        let plan: Plan = serde_json::from_slice(&files::read(&file, LARGEST_FILE)?)
            .map_err(|error| Error::file(&file, format!("this is no sweep: {error}")))?;
        if plan.version != PLAN_VERSION {
            let words = format!("a sweep of version {}, wanted {PLAN_VERSION}", plan.version);
            return Err(Error::file(&file, words));
        }
        Ok(Folder { path, plan })
    }

    /// Its sweep.
    pub fn sweep(&self) -> &Sweep {
        &self.plan.sweep
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn row(&self, trial: usize) -> PathBuf {
        self.path.join("rows").join(format!("{trial}.json"))
    }

    /// What each task runs. The engine's variable says which trial it is.
    fn script(&self) -> Result<String> {
        let program = std::env::current_exe().at("this program")?;
        let folder = words_of(&self.path)?;
        let line = format!("sweep --folder {} --trial", crate::language::quote(folder));
        let mut script =
            String::from("#!/bin/sh\n# Runs one trial of a sweep. Written by aolab.\n");
        let _ = writeln!(script, "trial=\"${{SLURM_ARRAY_TASK_ID:-$HQ_TASK_ID}}\"");
        let _ = writeln!(
            script,
            "exec {} --quiet --no-store --threads \"${{SLURM_CPUS_PER_TASK:-$(nproc)}}\" -c {}\" $trial\"",
            shell(words_of(&program)?),
            shell(&line)
        );
        Ok(script)
    }

    /// Runs one trial, as a task does, and writes its row.
    pub fn run_trial(&self, session: &mut Session, trial: usize) -> Result<Finished> {
        let all = &self.plan.sweep.trials;
        let one = all.get(trial).ok_or_else(|| {
            Error::usage(format!(
                "there is no trial {trial}; the sweep has {}, counted from 0",
                all.len()
            ))
        })?;
        session.set_seed(self.plan.seed);
        for line in &self.plan.before {
            session.run(line)?;
        }
        let threads = session.cpu().threads().count();
        let finished = local::run_one(session, &self.plan.sweep.id, one, threads)?;
        let row = self.row(trial);
        let text = serde_json::to_string(&finished);
        let text = text.map_err(|error| Error::file(&row, error.to_string()))?;
        files::write_atomically(&row, |out| out.write_all(text.as_bytes()))?;
        Ok(finished)
    }

    /// The rows that are there, by trial. A file that is no row of its trial counts as missing, and is written anew by its task.
    pub fn rows(&self) -> Vec<Option<Finished>> {
        let read = |trial: usize| {
            let bytes = files::read(&self.row(trial), LARGEST_FILE).ok()?;
            let row: Finished = serde_json::from_slice(&bytes).ok()?;
            (row.trial == self.plan.sweep.trials[trial]).then_some(row)
        };
        (0..self.plan.sweep.trials.len()).map(read).collect()
    }

    /// How many rows there are, without reading them.
    pub fn count(&self) -> usize {
        (0..self.plan.sweep.trials.len()).filter(|trial| self.row(*trial).exists()).count()
    }

    /// Submits trials as one array job; gives its number. `options` are the engine's own, such as `--partition=gpu`.
    pub fn submit(&self, engine: Engine, trials: &[usize], options: &[String]) -> Result<String> {
        let program = engine.submit_program();
        let mut words: Vec<OsString> = Vec::new();
        let logs = words_of(&self.path)?;
        let array = array(trials);
        let name = format!("aolab-{}", self.plan.sweep.id);
        let own = match engine {
            Engine::Slurm => vec![
                "--parsable".to_owned(),
                format!("--array={array}"),
                "--requeue".to_owned(),
                format!("--job-name={name}"),
                format!("--output={logs}/logs/%a.txt"),
                "--open-mode=append".to_owned(),
            ],
            Engine::Hq => vec![
                "--output-mode=quiet".to_owned(),
                "submit".to_owned(),
                format!("--array={array}"),
                format!("--name={name}"),
                format!("--stdout={logs}/logs/%{{TASK_ID}}.txt"),
                format!("--stderr={logs}/logs/%{{TASK_ID}}.txt"),
            ],
        };
        words.extend(own.into_iter().chain(options.iter().cloned()).map(OsString::from));
        if engine == Engine::Hq {
            words.extend(["--", "sh"].map(OsString::from));
        }
        words.push(self.path.join("task.sh").into_os_string());
        let said = answer(program, &words)?;
        // sbatch says `17` or `17;cluster`, hq says `17`.
        let number = said.trim().lines().last().unwrap_or_default();
        let number = number.split(';').next().unwrap_or_default().trim();
        if number.is_empty() || !number.chars().all(|c| c.is_ascii_digit()) {
            return Err(Error::invalid(format!("{program} gave no job number but {said:?}")));
        }
        Ok(number.to_owned())
    }
}

impl Engine {
    fn submit_program(self) -> &'static str {
        match self {
            Engine::Slurm => "sbatch",
            Engine::Hq => "hq",
        }
    }

    /// Whether any task of a job waits or runs. A job that the engine has forgotten has none.
    pub fn is_busy(self, job: &str) -> bool {
        let (program, words) = match self {
            Engine::Slurm => (
                "squeue",
                vec!["--noheader".to_owned(), format!("--jobs={job}"), "--format=%i".to_owned()],
            ),
            Engine::Hq => (
                "hq",
                ["--output-mode=quiet", "job", "list", "--filter=waiting,running"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
        };
        let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        let Ok(said) = answer(program, &words) else { return false };
        let first =
            |line: &str| line.split(|c: char| !c.is_ascii_digit()).next().map(str::to_owned);
        said.lines().any(|line| first(line.trim()).as_deref() == Some(job))
    }

    /// Takes a job back.
    pub fn cancel(self, job: &str) -> Result<()> {
        let (program, words) = match self {
            Engine::Slurm => ("scancel", vec![job]),
            Engine::Hq => ("hq", vec!["job", "cancel", job]),
        };
        let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        answer(program, &words).map(|_| ())
    }
}

/// What a program says; an error that tells what it complained about.
fn answer(program: &str, words: &[OsString]) -> Result<String> {
    let output = Command::new(program).args(words).output().map_err(|error| {
        Error::invalid(format!(
            "{program} cannot be started: {error}; is it installed here, and on the PATH?"
        ))
    })?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        let why = said(&output.stderr);
        return Err(Error::invalid(format!("{program}: {}: {why}", output.status)));
    }
    Ok(said(&output.stdout))
}

/// `0-3,7` of 0, 1, 2, 3 and 7.
fn array(trials: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &trial in trials {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == trial => *end = trial,
            _ => ranges.push((trial, trial)),
        }
    }
    let range = |(from, to): (usize, usize)| {
        if from == to { from.to_string() } else { format!("{from}-{to}") }
    };
    ranges.into_iter().map(range).collect::<Vec<_>>().join(",")
}

/// A path as a word of a script; one that is no UTF-8 cannot be.
fn words_of(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::file(path, "a sweep's folder needs a name in UTF-8"))
}

/// A word as a shell takes it.
fn shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::Choice;

    #[test]
    fn arrays_and_words_are_written_as_engines_and_shells_read_them() {
        assert_eq!(array(&[0, 1, 2, 3, 7]), "0-3,7");
        assert_eq!(array(&[5]), "5");
        assert_eq!(array(&[1, 3, 4]), "1,3-4");
        assert_eq!(shell("it's"), r"'it'\''s'");
    }

    #[test]
    fn rows_that_are_damaged_count_as_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let sweep = Sweep::of(&["echo {a,b}".to_owned()], Choice::Grid, "").expect("a sweep");
        let made = Folder::create(folder.path(), &sweep, 0, Vec::new()).expect("a folder");
        assert_eq!(made.rows(), [None, None]);
        let row = Finished { trial: sweep.trials[1].clone(), runs: Vec::new(), error: None };
        fs::write(made.row(1), serde_json::to_string(&row).expect("JSON")).expect("a row");
        fs::write(made.row(0), "{\"trial\":").expect("half a row");
        assert_eq!(made.rows(), [None, Some(row.clone())]);
        // The row of another trial under this name is none.
        fs::write(made.row(0), serde_json::to_string(&row).expect("JSON")).expect("a row");
        assert_eq!(made.rows()[0], None);
        let other = Sweep::of(&["echo {a,c}".to_owned()], Choice::Grid, "").expect("a sweep");
        let error =
            Folder::create(folder.path(), &other, 0, Vec::new()).expect_err("taken").to_string();
        assert!(error.contains("another sweep"), "{error}");
    }
}
