//! The state behind every front end: values, variables, history, and how to stop.
//!
//! ```
//! use aolab::session::Session;
//!
//! # fn main() -> aolab::Result<()> {
//! let mut lab = Session::new();
//! lab.run("load tiny | quantize int8-weight-only")?;
//! let sizes = lab.run("size")?.into_table()?;
//! assert!(!sizes.is_empty());
//! # Ok(()) }
//! ```

mod export;
mod history;
mod inputs;
mod patience;
mod progress;
mod provenance;
mod state;

pub use export::Logged;
pub use history::{Effect, HistoryLine, Status};
pub use inputs::Input;
pub use progress::{FrontEnd, Outcome, Silent, Task};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aolab_kernels::cuda::{self, Device};
use aolab_kernels::{Compute, Cpu, Isa};
use indexmap::IndexMap;

use self::state::Timeline;
use crate::error::{Error, Result, did_you_mean};
use crate::io::{HubConfig, LoadOptions};
use crate::model::Model;
use crate::quantization::Calibration;
use crate::quantization::autoquant::AutoquantCache;
use crate::training::distributed::Launch;
use crate::value::{Kind, Value};

/// One person's work: what is loaded, what was done, and how it is shown.
///
/// [`Session::run`] takes a line of the command language; everything a line can do, a method or the
/// library can do too.
#[derive(Debug)]
pub struct Session {
    cpu: Cpu,
    /// Where models run; `None` is the CPU.
    device: Option<Device>,
    /// Where a GPU's libraries and compiled kernels lie.
    cuda: cuda::Options,
    seed: u64,
    /// The seed before the first statement, which a replay must start from.
    first_seed: u64,
    timeline: Timeline,
    history: Arc<Vec<HistoryLine>>,
    cancel: Arc<AtomicBool>,
    front: Arc<dyn FrontEnd>,
    hub: Option<HubConfig>,
    /// What a launcher of several processes said, or what was wrong with it.
    launch: std::result::Result<Option<Launch>, String>,
    /// Set by `quit`: the front end should end.
    pub leaving: bool,
    /// A calibrated quantization that was stopped, with what was asked for: asked again, it goes on.
    pub(crate) paused: Option<(String, Calibration)>,
    /// The kernel times that autoquant has measured.
    pub(crate) autoquant_cache: AutoquantCache,
    /// What statements gave, for reports.
    logged: Arc<Vec<Logged>>,
    /// The files that the statement under way has read, itself or through what it uses.
    inputs: Vec<Input>,
    /// Where measured numbers are kept, and what the command under way measures with.
    pub(crate) records: provenance::Records,
    /// How many scripts are running within one another.
    pub(crate) depth: usize,
    /// How long a command may take to stop before it is left alone.
    patience: Option<Duration>,
}

impl Default for Session {
    fn default() -> Session {
        Session::new()
    }
}

impl Session {
    /// An empty session on the fastest instruction set with one thread per core, which shows nothing.
    pub fn new() -> Session {
        Session::with_cpu(Cpu::new(None))
    }

    /// An empty session on a chosen processor.
    pub fn with_cpu(cpu: Cpu) -> Session {
        let cancel: Arc<AtomicBool> = Arc::default();
        Session {
            cpu: cpu.with_stop(Some(Arc::clone(&cancel))),
            device: None,
            cuda: cuda::Options::default(),
            seed: 0,
            first_seed: 0,
            timeline: Timeline::default(),
            history: Arc::default(),
            cancel,
            front: Arc::new(Silent),
            hub: None,
            launch: Ok(None),
            leaving: false,
            paused: None,
            autoquant_cache: AutoquantCache::default(),
            logged: Arc::default(),
            inputs: Vec::new(),
            records: provenance::Records::default(),
            depth: 0,
            patience: None,
        }
    }

    /// Makes `load hf:ORG/NAME` look there.
    pub fn set_hub(&mut self, hub: HubConfig) {
        self.hub = Some(hub);
    }

    /// Makes `model` the one that commands work on.
    pub(crate) fn bind_latest(&mut self, model: Model) {
        self.timeline.now.remember(Value::Model(model));
    }

    /// Makes `train` one rank of several, or say what was wrong with the launcher's variables.
    pub fn set_launch(&mut self, launch: std::result::Result<Option<Launch>, String>) {
        self.launch = launch;
    }

    /// Which rank of several this process is; `None` where it is alone.
    pub fn launch(&self) -> Result<Option<Launch>> {
        self.launch.clone().map_err(Error::invalid)
    }

    /// The processor that kernels run on.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Makes kernels run on another number of threads.
    pub fn set_threads(&mut self, threads: usize) {
        self.cpu = self.cpu_with(self.cpu.isa(), threads);
    }

    /// Another processor with the same settings, which stops where this session does.
    fn cpu_with(&self, isa: Isa, threads: usize) -> Cpu {
        let stop = Some(Arc::clone(&self.cancel));
        Cpu::with_isa(isa, Some(threads)).with_compute(self.cpu.compute()).with_stop(stop)
    }

    /// Chooses what layers with bf16 weights round their activations to.
    pub fn set_compute(&mut self, compute: Compute) {
        self.cpu = self.cpu.clone().with_compute(compute);
    }

    /// Makes kernels use the instruction set called `name`.
    pub fn set_isa(&mut self, name: &str) -> Result<()> {
        let isa = Isa::by_name(name).ok_or_else(|| {
            let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            Error::usage(format!("this machine has no {name:?}; it has {}", names.join(", ")))
        })?;
        self.cpu = self.cpu_with(isa, self.cpu.threads().count());
        Ok(())
    }

    /// The GPU that models run on, if it is not the CPU.
    pub fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// Says where a GPU's libraries and compiled kernels lie.
    pub fn set_cuda_options(&mut self, options: cuda::Options) {
        self.cuda = options;
    }

    /// Where a GPU's libraries and compiled kernels lie.
    pub fn cuda_options(&self) -> &cuda::Options {
        &self.cuda
    }

    /// Makes models run on `cpu`, `cuda` (the first GPU) or `cuda:N`.
    pub fn set_device(&mut self, name: &str) -> Result<()> {
        let ordinal = match name.split_once(':') {
            _ if name == "cpu" => {
                self.device = None;
                return Ok(());
            }
            _ if name == "cuda" => Some(0),
            Some(("cuda", number)) => number.parse().ok(),
            _ => None,
        };
        let ordinal = ordinal.ok_or_else(|| {
            Error::usage(format!("{name:?} is no device; wanted cpu, cuda or cuda:N"))
        })?;
        let open = Device::open(&cuda::Options { ordinal, ..self.cuda.clone() });
        self.device = Some(open.map_err(|error| Error::invalid(error.to_string()))?);
        Ok(())
    }

    /// The model where this session's models run; says which layers have no kernel there.
    pub fn placed(&self, model: Model) -> Result<Model> {
        let model = model.on(self.device.as_ref());
        let report = model.placement()?;
        let fallbacks = report.iter().filter_map(|layer| Some((layer, layer.fallback.as_ref()?)));
        let fallbacks: Vec<_> = fallbacks.collect();
        if let Some((first, why)) = fallbacks.first() {
            let (count, all) = (fallbacks.len(), report.len());
            let (workflow, fqn) = (&first.workflow, &first.fqn);
            self.note(&format!("{count} of {all} layers {why} ({workflow}, first {fqn})"));
        }
        Ok(model)
    }

    /// Where random draws start when a command is given no seed of its own.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses where random draws start.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
        if self.history.is_empty() {
            self.first_seed = seed;
        }
    }

    /// Who shows results and progress.
    pub fn front_end(&self) -> &Arc<dyn FrontEnd> {
        &self.front
    }

    /// Puts another front end in place, and gives the one before.
    pub fn set_front_end(&mut self, front: Arc<dyn FrontEnd>) -> Arc<dyn FrontEnd> {
        std::mem::replace(&mut self.front, front)
    }

    /// Begins long work: its progress, its stream of text, and how it hears that it should stop.
    pub fn task(&self, what: &str) -> Task {
        Task::new(Arc::clone(&self.front), Arc::clone(&self.cancel), what)
    }

    /// A remark beside the results: a layer that was skipped, a file that was written.
    pub fn note(&self, text: &str) {
        self.front.note(text);
    }

    /// The flag that stops long work. Whoever hears Ctrl-C sets it.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// Whether the person wants to stop.
    pub fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// [`Error::Cancelled`] when the person wants to stop.
    pub fn check(&self) -> Result<()> {
        if self.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Forgets a wish to stop that has been obeyed.
    pub fn clear_cancelled(&self) {
        self.cancel.store(false, Ordering::Relaxed);
    }

    /// The variables by name, in the order in which they were bound.
    pub fn variables(&self) -> &IndexMap<String, Value> {
        &self.timeline.now.variables
    }

    /// The value of the variable `name` (without `$`).
    pub fn variable(&self, name: &str) -> Result<&Value> {
        self.variables().get(name).ok_or_else(|| {
            Error::usage(unknown_variable(name, self.variables().keys().map(String::as_str)))
        })
    }

    /// Binds a variable. `undo` takes it back.
    pub fn bind(&mut self, name: &str, value: impl Into<Value>) {
        self.keep(&format!("{name} = …"), Some(name), &value.into());
    }

    /// The most recent value of one of `kinds`.
    pub fn latest(&self, kinds: &[Kind]) -> Option<&Value> {
        self.timeline.now.latest(kinds)
    }

    /// The model that commands work on when none is named.
    pub fn model(&self) -> Result<&Model> {
        match self.latest(&[Kind::Model]) {
            Some(Value::Model(model)) => Ok(model),
            _ => Err(Error::usage("there is no model yet; `load tiny` loads the built-in one")),
        }
    }

    /// The model called `word`: a variable `$name`, or anything that `load` takes.
    pub fn model_called(&mut self, word: &str) -> Result<Model> {
        match word.strip_prefix('$') {
            Some(name) => {
                let model = self.variable(name)?.clone().into_model();
                self.uses(&format!("${name}"));
                model
            }
            None => {
                self.touches(std::path::Path::new(word));
                self.load(word)
            }
        }
    }

    /// Loads a model; the front end sees how a download gets on.
    fn load(&self, source: &str) -> Result<Model> {
        let mut options = LoadOptions::new(crate::quantization::read_weight);
        options.hub = self.hub.clone().map(|mut hub| {
            let front = Arc::clone(&self.front);
            let count = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
            hub.progress = Some(Arc::new(move |file, done, total| {
                front.progress(file, count(done), count(total));
            }));
            let front = Arc::clone(&self.front);
            hub.note = Some(Arc::new(move |words| front.note(words)));
            hub.cancel = Some(Arc::clone(&self.cancel));
            hub
        });
        let model = crate::load_with(source, &options);
        self.front.end();
        model
    }

    /// Goes back before the last change of a variable or of the current values; gives its statement.
    pub fn undo(&mut self) -> Result<String> {
        self.timeline.undo().ok_or_else(|| Error::invalid("there is nothing to undo"))
    }

    /// Does again what was undone last; gives its statement.
    pub fn redo(&mut self) -> Result<String> {
        self.timeline.redo().ok_or_else(|| Error::invalid("there is nothing to redo"))
    }

    /// Keeps the value of `statement`: as the latest of its kind and, if it has a name, as a variable.
    pub(crate) fn keep(&mut self, statement: &str, name: Option<&str>, value: &Value) -> Effect {
        let current = !matches!(value, Value::Nothing | Value::Text(_));
        if !current && name.is_none() {
            return Effect::Nothing;
        }
        self.timeline.advance(statement);
        let inputs = std::mem::take(&mut self.inputs);
        if current {
            self.timeline.now.remember(value.clone());
            self.timeline.now.set_inputs(&value.kind().to_string(), inputs.clone());
        }
        if let Some(name) = name {
            self.timeline.now.variables.insert(name.to_owned(), value.clone());
            self.timeline.now.set_inputs(&format!("${name}"), inputs);
        }
        let stays = name.is_some() || matches!(value, Value::Model(_) | Value::Tensor(_));
        if stays { Effect::State } else { Effect::Result }
    }
}

/// The words of an error about a variable that is not there.
pub(crate) fn unknown_variable<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    let next = match did_you_mean(name, known.clone()) {
        Some(near) => format!("did you mean ${near}?"),
        None if known.into_iter().next().is_none() => {
            format!("`{name} = load tiny` would bind it")
        }
        None => "`vars` lists those that there are".to_owned(),
    };
    format!("no variable is called ${name}; {next}")
}
