//! `sweep`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{Command, Example, Group, Output};
use crate::error::{AtPath as _, Error, Result};
use crate::language::{parse, quote};
use crate::model::Model;
use crate::session::Session;
use crate::store::model_hash_of;
use crate::sweep::cluster::{Engine, Folder};
use crate::sweep::{Choice, Sweep, finished_before, jobs_that_fit, results, run};
use crate::value::{Kind, Value};

/// Run one pipeline with many settings, each a run of the store.
///
/// {a,b,c} in a pipeline stands for each of these, {2..8} for each whole number, {0.1..0.9} and {log 1e-5..1e-2} for numbers that --random
/// draws. A pipeline that begins with a command that takes a model begins with the latest one, or with the one that is piped in. Trials run
/// at once where memory allows, unless they time something. A sweep that was stopped goes on with --resume: trials that are done are not
/// done again. --on slurm makes each trial a task of an array job, with its files in --folder, which all machines must see.
#[derive(Debug, clap::Args)]
pub(super) struct Sweeping {
    /// Pipelines in quotes, such as "quantize int4-weight-only --group-size {32,64,128} | eval perplexity"
    #[arg(value_name = "PIPELINE")]
    pipelines: Vec<String>,
    /// So many random trials of each pipeline, by the session's seed, in place of all
    #[arg(long, value_name = "COUNT")]
    random: Option<usize>,
    /// Trials at once [default: what threads and memory allow; 1 if anything is timed]
    #[arg(long, value_name = "COUNT")]
    jobs: Option<usize>,
    /// Go on where the same sweep was stopped
    #[arg(long)]
    resume: bool,
    /// Let another engine run the trials
    #[arg(long, value_enum, value_name = "ENGINE", requires = "folder")]
    on: Option<Engine>,
    /// The sweep's folder, on a file system that all machines share
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// An option for the engine, such as --engine-option=--partition=gpu; may be given often
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    engine_option: Vec<String>,
    /// How often trials whose tasks died are submitted again
    #[arg(long, default_value_t = 2, value_name = "COUNT")]
    retries: usize,
    /// Submit, and do not wait: `sweep --resume --folder DIR` collects
    #[arg(long, requires = "on")]
    no_wait: bool,
    /// Run one trial of the folder and write its row: what tasks do
    #[arg(long, value_name = "N", requires = "folder", conflicts_with = "on")]
    trial: Option<usize>,
}

impl Command for Sweeping {
    const NAME: &'static str = "sweep";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Nothing, Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny; sweep \"quantize int4-weight-only --group-size {32,64} | eval perplexity --windows 1\"",
            about: "two group sizes side by side",
            expect: "group-size",
        },
        Example {
            line: "load tiny; sweep --random 2 \"quantize int4-weight-only --group-size {32,64,128,256} | eval perplexity --windows 1\"",
            about: "two of four, drawn by the seed",
            expect: "perplexity",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        if let (Some(trial), Some(folder)) = (self.trial, &self.folder) {
            let folder = Folder::open(folder)?;
            let done = folder.run_trial(session, trial)?;
            return results(folder.sweep(), &[done]).map(Value::Table);
        }
        // The trials' own latest model is the one that was piped in.
        let mut base = session.fork(session.cpu().threads().count());
        if let Value::Model(model) = &input {
            base.bind_latest(model.clone());
        }
        let table = match (&self.folder, self.pipelines.is_empty()) {
            (Some(folder), true) => self.elsewhere(session, &Folder::open(folder)?)?,
            (Some(folder), false) => {
                let sweep = self.sweep(&base)?;
                let before = saved(folder, &self.pipelines, &base)?;
                let folder = Folder::create(folder, &sweep, session.seed(), before)?;
                self.elsewhere(session, &folder)?
            }
            (None, _) => self.here(session, &base)?,
        };
        Ok(Value::Table(table))
    }
}

impl Sweeping {
    fn sweep(&self, base: &Session) -> Result<Sweep> {
        let choice = match self.random {
            Some(0) => return Err(Error::usage("--random 0 draws no trial; wanted 1 or more")),
            Some(count) => Choice::Random { count, seed: base.seed() },
            None => Choice::Grid,
        };
        let model = base.model().map(model_hash_of).unwrap_or_default();
        let sweep = Sweep::of(&self.pipelines, choice, &model)?;
        // A mistake that all trials share is told before any runs.
        base.check_line(&sweep.trials[0].line)?;
        Ok(sweep)
    }

    fn here(&self, session: &mut Session, base: &Session) -> Result<crate::table::Table> {
        let sweep = self.sweep(base)?;
        let done = if self.resume {
            finished_before(&*session.store()?, &sweep)?
        } else {
            BTreeMap::new()
        };
        let threads = base.cpu().threads().count();
        let jobs = match self.jobs {
            Some(0) => return Err(Error::usage("--jobs 0 runs nothing; wanted 1 or more")),
            Some(jobs) => jobs,
            None if base.device().is_some() || self.pipelines.iter().any(|line| times(line)) => 1,
            None => jobs_that_fit(threads, base.model().ok()),
        };
        let jobs = jobs.min(sweep.trials.len());
        let task = session.task("trials");
        let finished =
            run(base, &sweep, jobs, &done, &mut |done, total| task.progress(done, total));
        drop(task);
        let finished = finished.inspect_err(|error| {
            if error.is_cancelled() {
                session.note("trials that ended are kept; the same line with --resume goes on");
            }
        })?;
        let mut table = results(&sweep, &finished)?;
        if !done.is_empty() {
            table.note(format!(
                "{} of {} trials were done before",
                done.len().min(finished.len()),
                finished.len()
            ));
        }
        if jobs > 1 {
            let each = (threads / jobs).max(1);
            table.note(format!("{jobs} trials at once, {each} threads each: speeds are of that"));
        }
        Ok(table)
    }

    /// Submits what is missing, waits, and brings the rows into the run store.
    fn elsewhere(&self, session: &mut Session, folder: &Folder) -> Result<crate::table::Table> {
        let total = folder.sweep().trials.len();
        let mut tries = 0;
        let mut rows = folder.rows();
        while let Some(engine) = self.on {
            let missing: Vec<usize> = (0..total).filter(|trial| rows[*trial].is_none()).collect();
            if missing.is_empty() || tries > self.retries {
                break;
            }
            let job = folder.submit(engine, &missing, &self.engine_option)?;
            session.note(&format!("job {job}: {} of {total} trials", missing.len()));
            if self.no_wait {
                break;
            }
            wait(session, folder, engine, &job)?;
            rows = folder.rows();
            tries += 1;
        }
        let finished: Vec<_> = rows.into_iter().flatten().collect();
        let kept = finished_before_anyhow(session, folder.sweep())?;
        for one in finished.iter().filter(|one| !kept.contains_key(&one.trial.line)) {
            session.keep_finished(&one.runs);
        }
        let mut table = results(folder.sweep(), &finished)?;
        if finished.len() < total {
            table.note(format!(
                "{} of {total} trials have no row yet; `sweep --resume --folder {}` collects, and with --on it submits them again",
                total - finished.len(),
                folder.path().display()
            ));
        }
        Ok(table)
    }
}

/// What the store has of the sweep; nothing where this session keeps no runs.
fn finished_before_anyhow(
    session: &mut Session,
    sweep: &Sweep,
) -> Result<BTreeMap<String, crate::store::Run>> {
    if session.store_path().is_none() {
        return Ok(BTreeMap::new());
    }
    finished_before(&*session.store()?, sweep)
}

/// Until every row is there, or the engine knows no task of the job any more. Ctrl-C leaves the tasks running.
fn wait(session: &Session, folder: &Folder, engine: Engine, job: &str) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(100);
    /// Engines are asked more rarely: they have others to serve.
    const ASK_EVERY: u32 = 20;
    let total = folder.sweep().trials.len();
    let task = session.task("trials elsewhere");
    for round in 1.. {
        let done = folder.count();
        if done == total {
            break;
        }
        if !task.progress(done, total) {
            session.note(&format!(
                "job {job} goes on; `sweep --resume --folder {}` collects its rows",
                folder.path().display()
            ));
            return Err(Error::Cancelled);
        }
        // A task's row is written before the task ends.
        if round % ASK_EVERY == 0 && !engine.is_busy(job) {
            break;
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Whether a pipeline times anything, which others at the same time would disturb.
fn times(line: &str) -> bool {
    let Ok(program) = parse(line) else { return false };
    let mut stages = program.statements.iter().flat_map(|statement| &statement.stages);
    stages.any(|stage| matches!(&*stage.head().text, "bench" | "compare" | "generate"))
}

/// Saves the models that trials begin with (the latest, and variables by name) into the folder; gives the lines that load them.
fn saved(folder: &std::path::Path, pipelines: &[String], base: &Session) -> Result<Vec<String>> {
    let folder =
        std::path::absolute(folder).map_err(|error| Error::file(folder, error.to_string()))?;
    let models = folder.join("models");
    std::fs::create_dir_all(&models).at(&models)?;
    let mut lines = Vec::new();
    let mut keep = |name: Option<&str>, model: &Model| -> Result<()> {
        let path = folder
            .join("models")
            .join(name.map_or("latest".to_owned(), |name| format!("of-{name}")));
        if !path.exists() {
            super::save::save_model(base, &path, model, false)?;
        }
        let load = format!("load {}", quote(&path.display().to_string()));
        lines.push(name.map_or(load.clone(), |name| format!("{name} = {load}")));
        Ok(())
    };
    for (name, value) in base.variables() {
        let used = pipelines.iter().any(|line| line.contains(&format!("${name}")));
        match value {
            Value::Model(model) if used => keep(Some(name), model)?,
            other if used => {
                let words = format!(
                    "${name} is {}, and only models go with a sweep to other machines",
                    other.kind().with_article()
                );
                return Err(Error::usage(words));
            }
            _ => {}
        }
    }
    // The latest is loaded last, so that it is the latest there too.
    if let Ok(model) = base.model() {
        keep(None, model)?;
    }
    Ok(lines)
}
