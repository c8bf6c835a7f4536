//! How `quantize` and `sparsify` change a model: what is read for recipes that look at a layer's inputs, and how such work
//! goes on after a stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex::Regex;

use crate::data::texts;
use crate::error::{Error, Result};
use crate::model::{Linear, Model};
use crate::quantization::calibration::{Sequences, draw, needs_calibration};
use crate::quantization::{Calibration, QuantizeOptions, QuantizeReport, Recipe, quantize_with};
use crate::session::Session;

/// What the model reads.
#[derive(Debug, clap::Args)]
pub(super) struct CalibrationArgs {
    /// For awq, gptq and others that read a text first: `calibration` (built in: pieces of tiny's training text), or a UTF-8 file
    #[arg(long, value_name = "PATH", global = true)]
    calibrate: Option<PathBuf>,
    /// How many pieces of the text are read [default: 64]
    #[arg(long, value_name = "COUNT", global = true)]
    sequences: Option<usize>,
    /// Tokens in each [default: 256]
    #[arg(long, value_name = "TOKENS", global = true)]
    sequence_length: Option<usize>,
    /// Where the draws of the pieces start [default: the session's seed]
    #[arg(long, value_name = "SEED", global = true)]
    calibration_seed: Option<u64>,
}

impl CalibrationArgs {
    /// Refuses options of calibration for a workflow that reads nothing.
    pub(super) fn refuse(&self, workflow: &str) -> Result<()> {
        let given = [
            ("--calibrate", self.calibrate.is_some()),
            ("--sequences", self.sequences.is_some()),
            ("--sequence-length", self.sequence_length.is_some()),
            ("--calibration-seed", self.calibration_seed.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => Err(Error::usage(format!(
                "{flag} is for workflows that read a text first, such as gptq; {workflow} reads none"
            ))),
        }
    }
}

impl CalibrationArgs {
    /// What is read: which pieces, and of which text.
    fn wanted(&self, session: &Session, model: &Model) -> (Sequences, &Path) {
        let default = Sequences::default();
        let length = default.length.min(model.config.max_position_embeddings);
        let wanted = Sequences {
            count: self.sequences.unwrap_or(default.count),
            length: self.sequence_length.unwrap_or(length),
            seed: self.calibration_seed.unwrap_or(session.seed()),
        };
        (wanted, self.calibrate.as_deref().unwrap_or(Path::new("calibration")))
    }

    /// The pieces, and how they are told about.
    pub(super) fn draw(
        &self,
        session: &Session,
        model: &Model,
    ) -> Result<(Vec<Vec<u32>>, Sequences, String)> {
        let (wanted, text) = self.wanted(session, model);
        let sequences = draw(model, &texts::read(text)?, &wanted)?;
        session.note(&format!(
            "calibrates on {} sequences of {} tokens of {}, seed {}",
            wanted.count,
            wanted.length,
            text.display(),
            wanted.seed
        ));
        Ok((sequences, wanted, text.display().to_string()))
    }
}

/// What is to be done.
pub(super) struct Work<'a> {
    pub(super) recipe: &'a Arc<dyn Recipe>,
    /// Of `chosen` what can be told apart from other work.
    pub(super) filter: Option<&'a Regex>,
    pub(super) chosen: &'a dyn Fn(&str, &Linear) -> bool,
    pub(super) skip_incompatible: bool,
    /// In a word, for the bar of work that reads no text.
    pub(super) doing: &'static str,
}

/// Refuses a filter that fits no layer before anything is read or timed for it.
pub(super) fn some_are_chosen(
    model: &Model,
    filter: Option<&Regex>,
    chosen: &dyn Fn(&str, &Linear) -> bool,
) -> Result<()> {
    if model.linears().iter().any(|(fqn, linear)| chosen(fqn, linear)) {
        return Ok(());
    }
    let filter = filter.map_or_else(String::new, |regex| format!(": --filter '{regex}' fits none"));
    Err(Error::invalid(format!("no linear layer was chosen{filter}; `show` lists their names")))
}

/// Does it to `model`; a recipe that looks at inputs reads a text first.
pub(super) fn apply(
    session: &mut Session,
    model: &mut Model,
    work: &Work<'_>,
    args: &CalibrationArgs,
) -> Result<QuantizeReport> {
    if needs_calibration(model, work.recipe.as_ref()) {
        let report;
        (*model, report) = calibrate(session, model, work, args)?;
        return Ok(report);
    }
    args.refuse(work.recipe.name())?;
    let task = session.task(work.doing);
    let mut progress = |done, total, _: &str| {
        task.progress(done, total);
    };
    let options = QuantizeOptions {
        skip_incompatible: work.skip_incompatible,
        progress: Some(&mut progress),
        cancelled: Some(&|| task.cancelled()),
    };
    quantize_with(session.cpu(), model, work.recipe.as_ref(), work.chosen, options)
}

/// Calibrates and quantizes `model`. Work that was stopped goes on where the same is asked for again.
fn calibrate(
    session: &mut Session,
    model: &Model,
    asked: &Work<'_>,
    args: &CalibrationArgs,
) -> Result<(Model, QuantizeReport)> {
    let (wanted, text) = args.wanted(session, model);
    let (filter, skip) = (asked.filter.map(Regex::as_str), asked.skip_incompatible);
    let recipe = asked.recipe.config_to_dict();
    let key = format!("{recipe} {filter:?} {skip} {wanted:?} {}", text.display());
    let paused = session.paused.take().filter(|(old, work)| *old == key && work.is_of(model));
    let mut work = match paused {
        Some((_, work)) => {
            let (done, all) = work.blocks();
            session.note(&format!("goes on where it was stopped: {done} of {all} blocks are done"));
            work
        }
        None => {
            let (sequences, ..) = args.draw(session, model)?;
            Calibration::new(model, Arc::clone(asked.recipe), asked.chosen, skip, &sequences)?
        }
    };
    let task = session.task("calibrating");
    let result = work.run(session.cpu(), &mut |done, total, _| task.progress(done, total));
    drop(task);
    match result {
        Ok(()) => work.finish(),
        Err(error) => {
            if error.is_cancelled() {
                let (done, all) = work.blocks();
                session.note(&format!(
                    "{done} of {all} blocks are done and kept; the same command goes on from there"
                ));
                session.paused = Some((key, work));
            }
            Err(error)
        }
    }
}
