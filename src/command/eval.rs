//! `eval`

use std::path::PathBuf;

use super::kv_cache_format::KvCacheFormat;
use super::{Command, Example, Group, Output};
use crate::data::texts;
use crate::error::Result;
use crate::eval::{self, Convention, EvalConfig};
use crate::model::Model;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Say what a change did to a model's answers: perplexity, divergence, signal-to-noise.
#[derive(Debug, clap::Args)]
pub(super) struct Eval {
    #[command(subcommand)]
    measure: Measure,
}

#[derive(Debug, clap::Subcommand)]
enum Measure {
    /// How well the model predicts a text: exp of the mean negative log-likelihood
    Perplexity {
        #[command(flatten)]
        text: TextArgs,
        /// How keys and values are kept; quantized ones are read token by token
        #[arg(long, value_enum, default_value = "f32")]
        kv_cache: KvCacheFormat,
    },
    /// What a narrower key and value cache does to the predictions, format by format
    KvCache {
        /// Formats, separated by commas
        #[arg(value_enum, value_delimiter = ',', default_values_t = KvCacheFormat::ALL)]
        formats: Vec<KvCacheFormat>,
        #[command(flatten)]
        text: TextArgs,
    },
    /// How far the predictions moved from a baseline's: KL divergence, token by token
    Kl {
        /// The baseline: a $variable, or anything that load takes
        #[arg(value_name = "MODEL")]
        base: String,
        #[command(flatten)]
        text: TextArgs,
    },
    /// Where a model's zeros are, in which pattern, and with a baseline what they cost each layer
    Sparsity {
        /// The baseline: a $variable, or anything that load takes; with one, a text is read
        #[arg(value_name = "MODEL")]
        base: Option<String>,
        #[command(flatten)]
        text: TextArgs,
    },
    /// Signal-to-noise of each layer and of the logits against a baseline's
    Sqnr {
        /// The baseline: a $variable, or anything that load takes
        #[arg(value_name = "MODEL")]
        base: String,
        #[command(flatten)]
        text: TextArgs,
    },
}

/// What is read, and how it is counted.
#[derive(Debug, clap::Args)]
pub(super) struct TextArgs {
    /// `sotu` (built in: State of the Union addresses 2001-2020) or a UTF-8 text file
    #[arg(long, value_name = "PATH", default_value = "sotu")]
    text: PathBuf,
    /// How windows are cut and counted; numbers of different conventions cannot be compared
    #[arg(long, value_enum, default_value_t)]
    convention: Convention,
    /// Tokens per window [default: 512, or what the model reads]
    #[arg(long)]
    context: Option<usize>,
    /// Only the first so many windows [default: all]
    #[arg(long)]
    windows: Option<usize>,
}

impl TextArgs {
    pub(super) fn read(&self, session: &mut Session) -> Result<(String, EvalConfig)> {
        let config = EvalConfig {
            convention: self.convention,
            context: self.context,
            windows: self.windows,
        };
        let text = texts::read(&self.text)?;
        session.reads(&self.name(), text.as_bytes());
        session.touches(&self.text);
        Ok((text, config))
    }

    /// How many rows a layer multiplies at once.
    pub(super) fn rows(&self, model: &Model) -> usize {
        self.context.unwrap_or(512.min(model.config.max_position_embeddings))
    }

    fn name(&self) -> String {
        self.text.display().to_string()
    }
}

impl Command for Eval {
    const NAME: &'static str = "eval";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const MEASURES: bool = true;
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | eval perplexity --windows 4",
            about: "perplexity on the first windows of the built-in text",
            expect: "perplexity",
        },
        Example {
            line: "load tiny | eval perplexity --windows 2 --convention llamacpp",
            about: "counted as llama.cpp's perplexity tool does",
            expect: "llamacpp",
        },
        Example {
            line: "load tiny | quantize int4-weight-only --group-size 32 | eval kl tiny --windows 2",
            about: "how far quantization moved the predictions",
            expect: "same top-1",
        },
        Example {
            line: "load tiny | quantize int8-weight-only | eval sqnr tiny --windows 1",
            about: "which layers lost most",
            expect: "mlp.down_proj",
        },
        Example {
            line: "load tiny | sparsify magnitude --pattern 2:4 | eval sparsity tiny --windows 1",
            about: "where the zeros are, and what they cost each layer",
            expect: "2:4 holds",
        },
        Example {
            line: "load tiny | eval perplexity --windows 1 --kv-cache int8",
            about: "with keys and values in 8 bits",
            expect: "kv-int8",
        },
        Example {
            line: "load tiny | eval kv-cache f16,int8,int4 --windows 1",
            about: "what a narrower cache costs, format by format",
            expect: "bytes/token",
        },
        Example {
            line: "load tiny | eval kv-cache f16,int8,int4 --windows 1 | plot --y 'mean KL' --log-y",
            about: "the same as a picture",
            expect: "int4",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let model = session.placed(input.into_model()?)?;
        let cpu = session.cpu().clone();
        let task = session.task("reading");
        let progress = &mut |done, total| task.progress(done, total);
        let table = match &self.measure {
            Measure::Perplexity { text, kv_cache } => {
                let model = model.with_kv_cache(kv_cache.get());
                // A quantized cache is read token by token.
                let rows = if model.kv_cache.is_quantized() { 1 } else { text.rows(&model) };
                session.measures(&model, &[rows]);
                let (words, config) = text.read(session)?;
                eval::perplexity(&model, &cpu, &words, &config, progress)?
                    .table(&model.name, &text.name())?
            }
            Measure::KvCache { formats, text } => {
                let formats: Vec<_> = formats.iter().map(|format| format.get()).collect();
                session.measures(&model, &[1]);
                let (words, mut config) = text.read(session)?;
                // Reading token by token takes its time.
                config.windows = config.windows.or(Some(8));
                let named = (words.as_str(), &*text.name());
                eval::kv_cache(&model, &formats, &cpu, named, &config, progress)?
            }
            Measure::Kl { base, text } => {
                let base = session.model_called(base)?;
                let base = session.placed(base)?;
                session.measures(&model, &[text.rows(&model)]);
                session.compares_with(&base);
                let (words, config) = text.read(session)?;
                let found = eval::kl(&base, &[&model], &cpu, &words, &config, progress)?;
                found[0].table(&model.name, &base.name, &text.name())?
            }
            Measure::Sparsity { base, text } => {
                let mut layers = eval::sparsity(&model)?;
                if let Some(base) = base {
                    let base = session.model_called(base)?;
                    session.measures(&model, &[text.rows(&model)]);
                    session.compares_with(&base);
                    let (words, mut config) = text.read(session)?;
                    config.windows = config.windows.or(Some(8));
                    let errors = eval::sqnr(&base, &model, &cpu, &words, &config, progress)?;
                    eval::with_errors(&mut layers, &errors);
                    let found = eval::perplexity(&model, &cpu, &words, &config, &mut |_, _| true)?;
                    let mut table = eval::sparsity_table(&model.name, &layers)?;
                    table.note(format!(
                        "perplexity {:.3} over {} windows of {}",
                        found.perplexity,
                        config.windows.unwrap_or_default(),
                        text.name()
                    ));
                    return Ok(Value::Table(table));
                }
                eval::sparsity_table(&model.name, &layers)?
            }
            Measure::Sqnr { base, text } => {
                let base = session.model_called(base)?;
                let base = session.placed(base)?;
                session.measures(&model, &[text.rows(&model)]);
                session.compares_with(&base);
                let (words, mut config) = text.read(session)?;
                // Signal-to-noise settles within a few thousand tokens.
                config.windows = config.windows.or(Some(8));
                eval::sqnr(&base, &model, &cpu, &words, &config, progress)?
                    .table(&model.name, &base.name)?
            }
        };
        Ok(Value::Table(table))
    }
}
