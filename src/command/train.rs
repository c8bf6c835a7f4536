//! `train`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::pat_args::PatArgs;
use super::{Command, Example, Group, Output};
use crate::data::texts;
use crate::error::{Error, Result};
use crate::io::files;
use crate::kernels::pages::Kept;
use crate::model::Model;
use crate::quantization::config_from_dict;
use crate::session::Session;
use crate::tensor::DType;
use crate::training::float8::{self, Recipe};
use crate::training::int8::{BitNetRule, Int8MixedRule, Int8WeightOnlyRule};
use crate::training::mx::{MXRule, MXTrainingConfig};
use crate::training::nvfp4::{NVFP4Rule, NVFP4TrainingConfig};
use crate::training::optim::{AdamConfig, GaloreConfig, OptimizerConfig, StateBits};
use crate::training::paretoq::{ParetoQ, ParetoQRule};
use crate::training::parq::{ParqConfig, ParqRule, ProxMap, Quantizer};
use crate::training::qat::{LoraConfig, QatConfig, QatRule};
use crate::training::semi_sparse::{Gradient, SemiSparseRule, Side};
use crate::training::supermask::SupermaskRule;
use crate::training::{
    Corpus, Curve, Ended, LinearRule, MatmulPrecision, Parameters, Plain, RunOptions, Schedule,
    TrainConfig, Trainer, initialize,
};
use crate::value::{Kind, Value};

/// How long ranks wait for each other at the start.
const MEET: Duration = Duration::from_mins(5);

/// And later: longer than an evaluation takes.
const ANSWER: Duration = Duration::from_mins(30);

/// Train a model on texts, with quantization in the loop if asked.
///
/// Gives the trained model, and binds $curves: a table of each step's loss, for `plot lines --x step --y loss`; $losses has
/// those of all runs, for `plot lines --x step --y loss --by "linear layers"`. The same
/// seed gives the same bytes on any number of threads. With --checkpoints, Ctrl-C ends with one, and --resume goes on as if
/// nothing had happened. Started by torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), processes share every
/// batch and average their gradients.
#[derive(Debug, clap::Args)]
pub(super) struct Train {
    /// What to train on: `sotu-train` (built in) or UTF-8 text files; can be given more than once
    #[arg(long, value_name = "PATH", default_value = "sotu-train")]
    data: Vec<PathBuf>,
    /// Optimizer steps
    #[arg(long, default_value_t = 100)]
    steps: usize,
    /// Sequences of a forward pass
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 256)]
    sequence: usize,
    /// Forward passes whose gradients are averaged for a step
    #[arg(long, default_value_t = 1)]
    accumulate: usize,
    /// The peak learning rate
    #[arg(long, default_value_t = 1e-4)]
    lr: f64,
    /// Steps in which the learning rate rises
    #[arg(long, default_value_t = 10)]
    warmup: usize,
    /// How the learning rate falls afterwards
    #[arg(long, value_enum, default_value_t = Schedule::Cosine)]
    schedule: Schedule,
    /// Where the learning rate ends, as a share of the peak
    #[arg(long, default_value_t = 0.1)]
    min_lr: f64,
    /// The largest norm of the gradient; 0 leaves it alone
    #[arg(long, default_value_t = 1.0)]
    clip: f64,
    /// Dropout on the embedding and on both residual branches
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,
    /// How much of the loss is the distance from the logits of the model as it is now; the rest is the text's
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    distill: f64,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    /// How matmuls of linear layers round their factors
    #[arg(long, value_enum, default_value_t = MatmulPrecision::F32)]
    precision: MatmulPrecision,
    /// Compute blocks again in the backward pass: less memory, a third more time
    #[arg(long)]
    checkpoint_blocks: bool,
    /// Forget the weights and begin at random ones
    #[arg(long)]
    from_scratch: bool,
    /// How linear layers multiply; the output layer always as it is
    #[arg(long, value_enum, default_value_t = Linears::Plain, conflicts_with_all = ["qat", "qat_config", "lora_rank"])]
    linear: Linears,
    #[command(flatten)]
    qat: QatArgs,
    #[command(flatten)]
    pat: PatArgs,
    /// Draw weights to 2^BITS values a row (0: ternary), harder with every step until they are these values (PARQ)
    #[arg(long, value_name = "BITS", conflicts_with_all = ["qat", "qat_config", "lora_rank", "linear"])]
    parq: Option<u32>,
    /// Learn the row scales of weights of 1 to 4 bits (0: ternary) with them (ParetoQ)
    #[arg(long, value_name = "BITS", conflicts_with_all = ["qat", "qat_config", "lora_rank", "linear", "parq"])]
    paretoq: Option<u32>,
    /// Evaluate every so many steps, and before the first; 0 does not
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    eval_every: usize,
    /// What to evaluate on: `sotu` or a text file
    #[arg(long, value_name = "PATH", default_value = "sotu")]
    eval_text: PathBuf,
    /// Windows of the training sequence length that are evaluated
    #[arg(long, default_value_t = 32)]
    eval_windows: usize,
    /// A folder for checkpoints
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Write one every so many steps besides the last
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    checkpoint_every: usize,
    /// Go on from the newest checkpoint of the folder, if there is one
    #[arg(long, requires = "checkpoints")]
    resume: bool,
    /// The same seed trains the same bytes [default: the session's]
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct OptimizerArgs {
    /// Which optimizer
    #[arg(long, value_enum, default_value_t = Kinds::Adamw)]
    optimizer: Kinds,
    /// How Adam keeps its moments: 32, 8 or 4 bits, or float8
    #[arg(long, value_enum, default_value_t = StateBits::F32)]
    state_bits: StateBits,
    /// The decay of matrices
    #[arg(long, default_value_t = 0.01)]
    weight_decay: f32,
    /// How slowly Adam forgets the squares of gradients
    #[arg(long, default_value_t = 0.999)]
    beta2: f64,
    /// Run AdamW on so many directions of each matrix's gradient (GaLore)
    #[arg(long, value_name = "RANK")]
    galore_rank: Option<usize>,
    /// Steps with the same directions
    #[arg(long, value_name = "STEPS", default_value_t = 200, requires = "galore_rank")]
    galore_gap: u32,
    /// What a step in those directions is multiplied by
    #[arg(long, value_name = "FACTOR", default_value_t = 0.25, requires = "galore_rank")]
    galore_scale: f32,
    /// Keep parameters in bf16, rounded at random after each step
    #[arg(long)]
    bf16_stochastic_round: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kinds {
    Adamw,
    Adam,
    Sgd,
}

impl OptimizerArgs {
    fn config(&self) -> OptimizerConfig {
        match self.optimizer {
            Kinds::Sgd => OptimizerConfig::Sgd { momentum: 0.9, weight_decay: self.weight_decay },
            kind => OptimizerConfig::Adam(AdamConfig {
                state: self.state_bits,
                betas: (0.9, self.beta2),
                weight_decay: self.weight_decay,
                decoupled: matches!(kind, Kinds::Adamw),
                bf16_stochastic_round: self.bf16_stochastic_round,
                galore: self.galore_rank.map(|rank| GaloreConfig {
                    rank,
                    update_proj_gap: self.galore_gap,
                    scale: self.galore_scale,
                    ..GaloreConfig::default()
                }),
                ..AdamConfig::default()
            }),
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Linears {
    /// As they are
    Plain,
    /// Factors in float8, one scale a tensor
    Float8Tensorwise,
    /// Factors in float8, a power of two a row
    Float8Rowwise,
    /// The same, the weight's gradient as it is
    Float8RowwiseWithGwHp,
    /// Factors in float8, a scale for 128 numbers, of weights for 128 × 128
    Float8Blockwise,
    /// Factors in int8
    Int8MixedPrecision,
    /// Weights are int8 between steps, rounded at random
    Int8WeightOnly,
    /// Weights −1, 0 and 1, activations in int8
    Bitnet,
    /// Weights 2:4, chosen anew at every call
    SemiSparse,
    /// Inputs 2:4, chosen anew at every call
    SemiSparseActivation,
    /// Half of the blocks of 16 of each weight, by scores that are trained instead of the weights
    Supermask,
    /// Factors in MX's fp8, a power of two for every 32
    Mxfp8,
    /// The same, the weight's gradient as it is
    Mxfp8WgradWithHp,
    /// Factors in MX's fp4
    Mxfp4,
    /// Factors in NVFP4: rotated, gradients rounded at random
    Nvfp4,
}

impl Linears {
    fn rule(self, seed: u64) -> Option<Arc<dyn LinearRule>> {
        let mx = |config| Some(Arc::new(MXRule { config }) as Arc<dyn LinearRule>);
        match self {
            Linears::Plain => None,
            Linears::Float8Tensorwise => Some(float8::rule(Recipe::Tensorwise)),
            Linears::Float8Rowwise => Some(float8::rule(Recipe::Rowwise)),
            Linears::Float8RowwiseWithGwHp => Some(float8::rule(Recipe::RowwiseWithGwHp)),
            Linears::Float8Blockwise => Some(float8::rule(Recipe::Blockwise)),
            Linears::Int8MixedPrecision => Some(Arc::new(Int8MixedRule::default())),
            Linears::Int8WeightOnly => Some(Arc::new(Int8WeightOnlyRule { seed })),
            Linears::Bitnet => Some(Arc::new(BitNetRule)),
            Linears::SemiSparse => Some(semi_sparse(Side::Weight)),
            Linears::SemiSparseActivation => Some(semi_sparse(Side::Input)),
            Linears::Supermask => Some(Arc::new(SupermaskRule {
                sparsity_level: 0.5,
                blocksize: 16,
                fixed_weight: true,
                seed,
            })),
            Linears::Mxfp8 => mx(MXTrainingConfig::default()),
            Linears::Mxfp8WgradWithHp => {
                mx(MXTrainingConfig { wgrad_with_hp: true, ..MXTrainingConfig::default() })
            }
            Linears::Mxfp4 => mx(MXTrainingConfig::mxfp4()),
            Linears::Nvfp4 => Some(Arc::new(NVFP4Rule::new(NVFP4TrainingConfig::new(seed)))),
        }
    }
}

fn semi_sparse(side: Side) -> Arc<dyn LinearRule> {
    Arc::new(SemiSparseRule { side, gradient: Gradient::Ste })
}

#[derive(Debug, clap::Args)]
struct QatArgs {
    /// Fake-quantize: int4-weight-only, int2 … int8 (weights), 8da2w … 8da8w (and int8 activations), mxfp8, mxfp4, nvfp4 (both);
    /// or an older flow: 8da4w-qat, 4w-embedding-qat, fp8a4w-qat, joined by +
    #[arg(long, value_name = "QUANTIZER")]
    qat: Option<String>,
    /// Numbers that share a scale [default: a row; int4-weight-only: 128]
    #[arg(long, value_name = "SIZE", requires = "qat")]
    group_size: Option<usize>,
    /// Fake-quantize as this configuration of quantize does, in torchao's JSON
    #[arg(long, value_name = "FILE", conflicts_with = "qat")]
    qat_config: Option<PathBuf>,
    /// Steps before fake quantization begins
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    qat_delay: usize,
    /// Learn the ranges of integer weights
    #[arg(long)]
    range_learning: bool,
    /// Train adapters of this rank only, merged at the end
    #[arg(long, value_name = "RANK")]
    lora_rank: Option<usize>,
    /// Train the lengths of the adapted rows, too (DoRA)
    #[arg(long, requires = "lora_rank")]
    dora: bool,
    /// How much the adapters count
    #[arg(long, default_value_t = 16.0)]
    lora_alpha: f64,
}

impl QatArgs {
    fn rule(&self, seed: u64) -> Result<Arc<dyn LinearRule>> {
        let mut config = match (&self.qat, &self.qat_config) {
            (Some(word), _) => QatConfig::of_word(word, self.group_size)?,
            (None, Some(path)) => {
                QatConfig::of_base(&*config_from_dict(&files::read_json(path)?)?)?
            }
            (None, None) if self.range_learning => {
                return Err(Error::usage("--range-learning wants --qat with integer weights"));
            }
            (None, None) if self.lora_rank.is_none() => return Ok(Arc::new(Plain)),
            (None, None) => QatConfig::new(None, None),
        };
        config.delay = self.qat_delay;
        config.range_learning = self.range_learning;
        config.lora = self.lora_rank.map(|rank| LoraConfig {
            rank,
            alpha: self.lora_alpha,
            seed,
            dora: self.dora,
        });
        Ok(Arc::new(QatRule::new(config)?))
    }
}

impl Train {
    fn config(&self, seed: u64) -> TrainConfig {
        let bf16 = self.optimizer.bf16_stochastic_round;
        TrainConfig {
            steps: self.steps,
            batch: self.batch,
            sequence: self.sequence,
            accumulate: self.accumulate,
            lr: self.lr,
            warmup: self.warmup,
            schedule: self.schedule,
            min_lr: self.min_lr,
            clip: self.clip,
            dropout: self.dropout,
            distill: self.distill,
            optimizer: self.optimizer.config(),
            precision: self.precision,
            parameters: if bf16 { DType::BF16 } else { DType::F32 },
            checkpoint_blocks: self.checkpoint_blocks,
            seed,
        }
    }

    /// Annealing fills the middle of the run: the last fifth trains with hard values.
    fn parq_rule(&self, bits: u32) -> Result<Arc<dyn LinearRule>> {
        let quantizer = if bits == 0 { Quantizer::TernaryUnif } else { Quantizer::Unif };
        let anneal_end = (self.steps * 4 / 5).max(self.warmup + 1);
        let prox_map = ProxMap::Parq {
            anneal_start: self.warmup,
            anneal_end,
            steepness: 10.0,
            anneal_center: 0.5,
        };
        Ok(Arc::new(ParqRule::new(ParqConfig {
            quantizer,
            bits,
            prox_map,
            warmup_steps: self.warmup,
            quant_period: 10,
            quant_per_channel: true,
        })?))
    }

    fn trainer(&self, model: &Model, texts: &[String], seed: u64) -> Result<Trainer> {
        let (tokenizer, bos) = (model.tokenizer()?, model.config.bos_token_id);
        let corpus = |texts: &[String]| Corpus::of_texts(tokenizer, bos, texts);
        let config = self.config(seed);
        let pruned = self.pat.rule(&config)?;
        let rule = match (self.parq, self.paretoq, pruned.or(self.linear.rule(seed))) {
            (Some(bits), ..) => self.parq_rule(bits)?,
            (_, Some(bits), _) => Arc::new(ParetoQRule::new(ParetoQ::new(bits)?)),
            (.., Some(rule)) => rule,
            (None, None, None) => self.qat.rule(seed)?,
        };
        let mut trainer = Trainer::new(model, corpus(texts)?, config, rule)?;
        if self.eval_every > 0 {
            trainer.hold_out(corpus(&[texts::read(&self.eval_text)?])?, self.eval_windows)?;
        }
        Ok(trainer)
    }
}

impl Command for Train {
    const NAME: &'static str = "train";
    const GROUP: Group = Group::Change;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Model);
    const CHANGES_VARIABLES: bool = true;
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | train --steps 2 --batch 2 --sequence 64 --eval-every 2 --eval-windows 4",
            about: "fine-tune on the built-in text",
            expect: "held-out perplexity",
        },
        Example {
            line: "load tiny | train --qat int4-weight-only --group-size 32 --steps 2 --batch 2 --sequence 64 \
                   | quantize int4-weight-only --group-size 32",
            about: "quantization-aware training, then the quantization it was trained for",
            expect: "int4-weight-only in 43 linear layers",
        },
        Example {
            line: "train tiny --from-scratch --steps 2 --batch 1 --sequence 32 --lr 1e-3; plot lines --x step --y loss",
            about: "from random weights, and the loss as a chart",
            expect: "loss",
        },
        Example {
            line: "train tiny --steps 2 --batch 1 --sequence 32; train tiny --steps 2 --batch 1 --sequence 32 --lr 1e-3; \
                   runs losses | plot loss",
            about: "every run is kept with its curve, and two are drawn",
            expect: "loss",
        },
        Example {
            line: "train tiny --steps 2 --batch 2 --sequence 64 --checkpoints run; \
                   train tiny --steps 2 --batch 2 --sequence 64 --checkpoints run --resume",
            about: "checkpoints, and going on from one",
            expect: "resumed at step 2",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let mut model = input.into_model()?;
        session.compares_with(&model);
        let mut texts = Vec::new();
        for path in &self.data {
            let text = texts::read(path)?;
            session.reads(&path.display().to_string(), text.as_bytes());
            texts.push(text);
        }
        let seed = self.seed.unwrap_or(session.seed());
        if self.from_scratch {
            let parameters = Parameters::of(&model, DType::F32)?;
            let fresh = initialize(&parameters, model.config.num_hidden_layers, seed)?;
            model = fresh.to_model(&model, &model.name)?;
        }
        let mut trainer = self.trainer(&model, &texts, seed)?;
        if let Some(folder) = self.checkpoints.as_ref().filter(|_| self.resume)
            && trainer.resume(folder)?
        {
            session.note(&format!("resumed at step {}", trainer.steps_done()));
        }
        if let Some(launch) = session.launch()? {
            trainer.join(&launch, MEET, ANSWER)?;
        }
        let options = RunOptions {
            eval_every: self.eval_every,
            checkpoints: self.checkpoints.clone(),
            checkpoint_every: self.checkpoint_every,
        };
        let cpu = session.cpu().clone();
        let task = session.task("training");
        let front = Arc::clone(session.front_end());
        let mut progress = |curve: &Curve, total: usize| {
            let loss = curve.points.last().map_or(f64::NAN, |point| point.loss);
            let words = format!("training {} loss {loss:.3}", curve.sparkline(16));
            front.progress(&words, curve.points.len(), total);
            !task.cancelled()
        };
        let ended = match session.device().cloned() {
            Some(device) => trainer.run_on_gpu(&device, &options, &mut progress)?,
            None => {
                let _kept = Kept::begin();
                trainer.run(&cpu, &options, &mut progress)?
            }
        };
        drop(task);
        // Runs of a session stand one below another, for one plot of them all.
        let before = session.variables().get("losses").cloned();
        let mut losses = trainer.losses()?;
        if let Some(Value::Table(mut all)) = before
            && all.append(losses.clone()).is_ok()
        {
            losses = all;
        }
        session.bind("losses", losses);
        let curves = trainer.table()?;
        session.bind("curves", curves.clone());
        let trained = trainer.model()?;
        session.measures(&trained, &[self.batch * self.sequence]);
        session.measured(curves, trainer.metrics());
        if ended == Ended::Stopped {
            return Err(stopped(session, &trainer, self.checkpoints.is_some()));
        }
        session.note(&trainer.summary());
        Ok(Value::Model(trained))
    }
}

fn stopped(session: &Session, trainer: &Trainer, kept: bool) -> Error {
    let step = trainer.steps_done();
    let next =
        if kept { "`--resume` goes on from it" } else { "nothing was kept: give --checkpoints" };
    session.note(&format!("stopped after step {step}; {next}"));
    Error::Cancelled
}
