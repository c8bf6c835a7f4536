//! What `quantize` reads for workflows that look at a layer's inputs, and how it goes on after a stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::texts;
use crate::error::{Error, Result};
use crate::model::{Linear, Model};
use crate::quantization::calibration::{Sequences, draw};
use crate::quantization::{Calibration, QuantizeReport, Recipe};
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

/// What is to be done: a recipe, which layers, whether to skip what does not fit, and how all that is told apart from
/// other work.
pub(super) type Work<'a> = (Arc<dyn Recipe>, &'a dyn Fn(&str, &Linear) -> bool, bool, String);

/// Calibrates and quantizes `model`. Work that was stopped goes on where the same is asked for again.
pub(super) fn calibrate(
    session: &mut Session,
    model: &Model,
    (recipe, filter, skip, marks): Work<'_>,
    args: &CalibrationArgs,
) -> Result<(Model, QuantizeReport)> {
    let (wanted, text) = args.wanted(session, model);
    let key = format!("{} {marks} {wanted:?} {}", recipe.config_to_dict(), text.display());
    let paused = session.paused.take().filter(|(old, work)| *old == key && work.is_of(model));
    let mut work = match paused {
        Some((_, work)) => {
            let (done, all) = work.blocks();
            session.note(&format!("goes on where it was stopped: {done} of {all} blocks are done"));
            work
        }
        None => {
            let (sequences, ..) = args.draw(session, model)?;
            Calibration::new(model, recipe, filter, skip, &sequences)?
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
