//! Checkpoints: folders `step-00000100`, each with all that the next step depends on.
//!
//! `parameters.safetensors`, `optimizer.safetensors` and `trainer.json`. A folder is written under another name and
//! renamed once everything is on disk, so that whatever has the name is complete, whenever the program dies.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::curve::Curve;
use super::{TrainConfig, Trainer};
use crate::error::{AtPath, Error, Result};
use crate::io::files;
use crate::io::safetensors::{SafetensorsFile, write_to};
use crate::tensor::Tensor;

const PREFIX: &str = "step-";
/// This one and the one before.
const KEPT: usize = 2;
const VERSION: u64 = 1;

/// Writes the state of `trainer`; gives the folder.
pub(super) fn save(trainer: &Trainer, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).at(folder)?;
    let path = folder.join(format!("{PREFIX}{:08}", trainer.step));
    let partial = files::partial_name(&path)?;
    // What a process of this number left behind when it was killed.
    if partial.exists() {
        fs::remove_dir_all(&partial).at(&partial)?;
    }
    let written = fs::create_dir(&partial).at(&partial).and_then(|()| write(trainer, &partial));
    let named = written.and_then(|()| {
        if path.exists() {
            fs::remove_dir_all(&path).at(&path)?;
        }
        fs::rename(&partial, &path).at(&path)
    });
    if named.is_err() {
        // The first error is the one to report; that the rest may stay behind changes nothing in it.
        let _ = fs::remove_dir_all(&partial);
    }
    named?;
    for (_, old) in complete(folder)?.into_iter().rev().skip(KEPT) {
        fs::remove_dir_all(&old).at(&old)?;
    }
    Ok(path)
}

fn write(trainer: &Trainer, dir: &Path) -> Result<()> {
    let parameters: Vec<(String, Tensor)> =
        trainer.parameters.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    write_to(&dir.join("parameters.safetensors"), &parameters)?;
    let mut optimizer = trainer.optimizer.tensors()?;
    optimizer.push(("curve".to_owned(), trainer.curve.to_tensor()?));
    write_to(&dir.join("optimizer.safetensors"), &optimizer)?;
    let json = json!({
        "version": VERSION,
        "step": trainer.step,
        "rule": trainer.rule().name(),
        "config": trainer.config,
    });
    let path = dir.join("trainer.json");
    let write = |out: &mut dyn Write| {
        serde_json::to_writer_pretty(&mut *out, &json).map_err(io::Error::from)?;
        out.write_all(b"\n")
    };
    files::write_new(&path, write).at(&path)
}

/// The checkpoints of `folder`, oldest first.
fn complete(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(Ok(step)) = name.strip_prefix(PREFIX).map(str::parse) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint of `folder`; `None` where there is none.
pub(super) fn newest(folder: &Path) -> Result<Option<PathBuf>> {
    if !folder.exists() {
        return Ok(None);
    }
    Ok(complete(folder)?.pop().map(|(_, path)| path))
}

/// Puts `trainer` into the state of the checkpoint, which must be of the same run.
pub(super) fn load(trainer: &mut Trainer, path: &Path) -> Result<()> {
    let json = files::read_json(&path.join("trainer.json"))?;
    let field = |name: &str| json.get(name).cloned().unwrap_or(Json::Null);
    if field("version").as_u64() != Some(VERSION) {
        let got = field("version");
        return Err(Error::invalid(format!("version {got} is not supported; wanted {VERSION}")));
    }
    let config: TrainConfig = serde_json::from_value(field("config"))
        .map_err(|error| Error::invalid(format!("config: {error}")))?;
    same(&config, &trainer.config)?;
    let rule = field("rule");
    let wanted = trainer.rule().name();
    if rule.as_str() != Some(&wanted) {
        return Err(Error::invalid(format!(
            "it was trained with {rule}, this run with {wanted:?}"
        )));
    }
    let step = field("step").as_u64().and_then(|step| usize::try_from(step).ok());
    let step = step.ok_or_else(|| Error::invalid("step: wanted a whole number"))?;

    let file = SafetensorsFile::open(path.join("parameters.safetensors"))?;
    let names: Vec<String> = trainer.parameters.iter().map(|(name, _)| name.clone()).collect();
    let mut parameters = trainer.parameters.clone();
    for name in &names {
        let (tensor, wanted) = (file.tensor(name)?, parameters.get(name)?);
        if (tensor.dtype(), tensor.shape()) != (wanted.dtype(), wanted.shape()) {
            return Err(Error::invalid(format!(
                "{name} is {} {:?}, wanted {} {:?}: it is of another model",
                tensor.dtype(),
                tensor.shape(),
                wanted.dtype(),
                wanted.shape()
            )));
        }
        parameters.set(name, tensor);
    }
    if let Some(other) = file.names().find(|name| !names.iter().any(|known| known == name)) {
        return Err(Error::invalid(format!("{other} is no parameter of this model")));
    }
    let file = SafetensorsFile::open(path.join("optimizer.safetensors"))?;
    let find = |name: &str| file.contains(name).then(|| file.tensor(name).ok()).flatten();
    let shapes = parameters.iter().map(|(name, tensor)| (name.as_str(), tensor.shape()));
    let curve = Curve::of_tensor(&file.tensor("curve")?)?;
    if curve.points.len() != step {
        let got = curve.points.len();
        return Err(Error::invalid(format!("the curve has {got} steps, trainer.json says {step}")));
    }
    trainer.optimizer.restore(shapes, &find)?;
    trainer.parameters = parameters;
    trainer.curve = curve;
    trainer.step = step;
    Ok(())
}

/// A run goes on only as it began: its curve is that of an uninterrupted one.
fn same(saved: &TrainConfig, asked: &TrainConfig) -> Result<()> {
    if saved == asked {
        return Ok(());
    }
    let (saved, asked) = (json!(saved), json!(asked));
    let fields = asked.as_object().into_iter().flatten();
    let differ: Vec<String> = fields
        .filter(|(name, value)| saved.get(name.as_str()) != Some(value))
        .map(|(name, value)| format!("{name} was {}, now {value}", saved[name]))
        .collect();
    Err(Error::invalid(format!(
        "it is of another run: {}; resume with the same options, or choose another folder",
        differ.join("; ")
    )))
}
