//! `quantize`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex::Regex;

use super::calibrate::{CalibrationArgs, Work, apply, some_are_chosen};
use super::mix::{AutoArgs, AutoquantArgs, fastest, mix};
use super::recipe_words::{AutoRoundArgs, AwqArgs, GptqArgs, RecipeWords, SmoothQuantArgs};
use super::{Command, Example, Group, Output};
use crate::error::{Context as _, Error, Result};
use crate::io::files;
use crate::model::{Linear, Model, sparse_of};
use crate::quantization::{
    AutoRoundConfig, AwqConfig, BitNetConfig, CodebookCoreMlWeightOnlyConfig,
    CodebookWeightOnlyConfig, EmbeddingQuantizer, FPXWeightOnlyConfig,
    Float8DynamicActivationFloat8WeightConfig, Float8DynamicActivationInt4WeightConfig,
    Float8StaticActivationFloat8WeightConfig, Float8WeightOnlyConfig, FqnToConfig, GgufBlockConfig,
    GptqConfig, GroupwiseLutWeightConfig, Int4DynamicActivationInt4WeightConfig,
    Int4WeightOnlyConfig, Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig, Int8DynamicActivationIntxWeightConfig,
    Int8DynamicActivationUIntxWeightConfig, Int8LutConfig, Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig, IntxWeightOnlyConfig, MXDynamicActivationMXWeightConfig,
    MXWeightOnlyConfig, NF4WeightOnlyConfig, NVFP4DynamicActivationNVFP4WeightConfig,
    NVFP4WeightOnlyConfig, QuantizationRecipe, QuantizeReport, Recipe, SinqConfig,
    SmoothQuantConfig, TiedEmbeddingQuantizer, UIntXWeightOnlyConfig, UIntxWeightOnlyConfig,
    config_from_dict, is_linear,
};
use crate::session::Session;
use crate::table::number;
use crate::value::{Kind, Value};

/// Quantize the linear layers of a model.
///
/// The workflows, their options and their numbers are torchao's. The model that comes in is not changed: the
/// two share what stays the same.
#[derive(Debug, clap::Args)]
#[command(subcommand_value_name = "WORKFLOW", subcommand_help_heading = "Workflows")]
pub(super) struct Quantize {
    #[command(subcommand)]
    workflow: Option<Workflow>,
    /// Only the layers whose name this regular expression finds: 'mlp|self_attn', 'layers\.[0-3]\.'
    #[arg(long, value_name = "REGEX", global = true)]
    filter: Option<Regex>,
    /// Leave layers alone that the workflow cannot apply to, and say which
    #[arg(long, global = true)]
    skip_incompatible: bool,
    /// Take the configuration from torchao's JSON instead; it may tell layers apart
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tell layers apart: those called LAYERS, or matched by 're:PATTERN', take WORKFLOW (with its options in one word), or
    /// stay as they are with 'none'. May be given often; the first that matches decides
    #[arg(long, num_args = 2, value_names = ["LAYERS", "WORKFLOW"])]
    fqn: Vec<String>,
    /// What the layers that no --fqn names take
    #[arg(long, value_name = "WORKFLOW")]
    default: Option<RecipeWords>,
    #[command(flatten)]
    calibration: CalibrationArgs,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Workflow {
    /// For each layer the workflow that costs the predictions least, within a budget of bits
    Auto(AutoArgs),
    /// For each layer the workflow that runs fastest on this machine
    Autoquant(AutoquantArgs),
    /// A format whose every rounding is learned by signed steps; reads a text first
    AutoRound(AutoRoundArgs),
    /// A format behind scales that protect the weights of large inputs; reads a text first
    Awq(AwqArgs),
    /// The blocks of llama.cpp's GGUF files, 2 to 8 bits a weight
    Gguf(GgufBlockConfig),
    /// Ternary weights with one scale, activations rounded to 8 bits
    #[command(name = "bitnet")]
    BitNet(BitNetConfig),
    /// Codes of lookup tables for blocks of columns or rows, activations as they are
    #[command(name = "codebook-coreml-weight-only")]
    CodebookCoreMlWeightOnly(CodebookCoreMlWeightOnlyConfig),
    /// Codes of one codebook found by k-means, activations as they are
    CodebookWeightOnly(CodebookWeightOnlyConfig),
    /// The embedding in 1 to 8 bits; the linear layers stay
    Embedding(EmbeddingQuantizer),
    /// The embedding and the output layer, one buffer, in 1 to 8 bits; the other layers stay
    TiedEmbedding(TiedEmbeddingQuantizer),
    /// Codes of lookup tables for groups of rows or columns, activations as they are
    GroupwiseLutWeight(GroupwiseLutWeightConfig),
    /// Weights of 1 to 4 bits as tables of int8 values, activations rounded to 8 bits
    Int8Lut(Int8LutConfig),
    /// 4-bit weights in groups of 128, activations rounded to float8
    Float8DynamicActivationInt4Weight(Float8DynamicActivationInt4WeightConfig),
    /// 4-bit weights, a scale a row, activations rounded to 4 bits
    Int4DynamicActivationInt4Weight(Int4DynamicActivationInt4WeightConfig),
    /// 4-bit weights in groups with zero points, activations rounded to 8 bits
    Int8DynamicActivationInt4Weight(Int8DynamicActivationInt4WeightConfig),
    /// Weights of 1 to 8 bits, activations rounded to 8 bits at every call
    Int8DynamicActivationIntxWeight(Int8DynamicActivationIntxWeightConfig),
    /// Weights of 1 to 8 bits, activations as they are
    IntxWeightOnly(IntxWeightOnlyConfig),
    /// 4-bit codes of normal quantiles with doubly quantized scales, activations as they are
    #[command(name = "nf4-weight-only")]
    Nf4WeightOnly(NF4WeightOnlyConfig),
    /// Unsigned weights of 1 to 8 bits in groups with zero points, activations as they are
    #[command(name = "uintx-weight-only")]
    UIntXWeightOnly(UIntXWeightOnlyConfig),
    /// 4 bits fitted by HQQ, or 8 bits a row, as gemlite's kernels take them; activations as they are
    #[command(name = "uintx-bit-packed-weight-only")]
    UIntxBitPacked(UIntxWeightOnlyConfig),
    /// The same, activations rounded to 8 bits at every call
    #[command(name = "int8-dynamic-activation-uintx-weight")]
    Int8DynamicActivationUIntx(Int8DynamicActivationUIntxWeightConfig),
    /// Weights of 2 to 8 bits whose ranges are set by what they cost; may read a text first
    ModuleSwap(QuantizationRecipe),
    /// Float8 weights, and activations rounded to float8 at every call
    Float8DynamicActivationFloat8Weight(Float8DynamicActivationFloat8WeightConfig),
    /// Float8 weights, and activations rounded to float8 with a scale that is given, or found beforehand on a text
    Float8StaticActivationFloat8Weight(Float8StaticActivationFloat8WeightConfig),
    /// Float8 weights, activations as they are
    Float8WeightOnly(Float8WeightOnlyConfig),
    /// Weights of 4, 5 or 6 bits that are floats, a scale a row, activations as they are
    FpxWeightOnly(FPXWeightOnlyConfig),
    /// A format whose rounding errors later columns make up for; reads a text first
    Gptq(GptqArgs),
    /// 4-bit weights in groups, activations as they are
    Int4WeightOnly(Int4WeightOnlyConfig),
    /// 8-bit weights, activations as they are
    Int8WeightOnly(Int8WeightOnlyConfig),
    /// 8-bit weights, and activations rounded to 8 bits at every call
    Int8DynamicActivationInt8Weight(Int8DynamicActivationInt8WeightConfig),
    /// MX weights (fp8, fp6, fp4, int8 in blocks of 32), and activations through the same format
    MxDynamicActivationMxWeight(MXDynamicActivationMXWeightConfig),
    /// MX weights (fp8, fp6, fp4, int8 in blocks of 32), activations as they are
    MxWeightOnly(MXWeightOnlyConfig),
    /// NVFP4 weights (fp4 in blocks of 16), and activations through NVFP4 at every call
    Nvfp4DynamicActivationNvfp4Weight(NVFP4DynamicActivationNVFP4WeightConfig),
    /// NVFP4 weights (fp4 in blocks of 16), activations as they are
    Nvfp4WeightOnly(NVFP4WeightOnlyConfig),
    /// 8-bit weights, and activations on a grid of 8 bits that is found beforehand on a text
    Int8StaticActivationInt8Weight(Int8StaticActivationInt8WeightConfig),
    /// Codes with a scale a group and a scale a column, rows and columns evened out first
    Sinq(SinqConfig),
    /// Outliers of activations moved into weights of 8 bits; reads a text first
    Smoothquant(SmoothQuantArgs),
}

impl Workflow {
    pub(super) fn recipe(self) -> Result<Arc<dyn Recipe>> {
        Ok(match self {
            Workflow::Auto(_) | Workflow::Autoquant(_) => {
                return Err(Error::usage(
                    "auto and autoquant choose workflows for a model's layers, and are no base; \
                     give them workflows by --candidate",
                ));
            }
            Workflow::AutoRound(args) => Arc::new(AutoRoundConfig::from(args)),
            Workflow::Awq(args) => Arc::new(AwqConfig::from(args)),
            Workflow::Gguf(config) => config.recipe()?,
            Workflow::BitNet(config) => Arc::new(config),
            Workflow::CodebookCoreMlWeightOnly(config) => Arc::new(config),
            Workflow::CodebookWeightOnly(config) => Arc::new(config),
            Workflow::Embedding(config) => Arc::new(config),
            Workflow::TiedEmbedding(config) => Arc::new(config),
            Workflow::GroupwiseLutWeight(config) => Arc::new(config),
            Workflow::Int8Lut(config) => Arc::new(config),
            Workflow::Float8DynamicActivationInt4Weight(config) => Arc::new(config),
            Workflow::Int4DynamicActivationInt4Weight(config) => Arc::new(config),
            Workflow::Int8DynamicActivationInt4Weight(config) => Arc::new(config),
            Workflow::Int8DynamicActivationIntxWeight(config) => Arc::new(config),
            Workflow::IntxWeightOnly(config) => Arc::new(config),
            Workflow::Nf4WeightOnly(config) => Arc::new(config),
            Workflow::UIntXWeightOnly(config) => Arc::new(config),
            Workflow::UIntxBitPacked(config) => Arc::new(config.of_options()),
            Workflow::Int8DynamicActivationUIntx(config) => Arc::new(config.of_options()),
            Workflow::ModuleSwap(config) => Arc::new(config),
            Workflow::Float8DynamicActivationFloat8Weight(config) => Arc::new(config),
            Workflow::Float8StaticActivationFloat8Weight(config) => Arc::new(config),
            Workflow::Float8WeightOnly(config) => Arc::new(config),
            Workflow::FpxWeightOnly(config) => Arc::new(config),
            Workflow::MxDynamicActivationMxWeight(config) => Arc::new(config),
            Workflow::MxWeightOnly(config) => Arc::new(config),
            Workflow::Nvfp4DynamicActivationNvfp4Weight(config) => Arc::new(config),
            Workflow::Nvfp4WeightOnly(config) => Arc::new(config),
            Workflow::Gptq(args) => Arc::new(GptqConfig::from(args)),
            Workflow::Int4WeightOnly(config) => Arc::new(config),
            Workflow::Int8WeightOnly(config) => Arc::new(config),
            Workflow::Int8DynamicActivationInt8Weight(config) => Arc::new(config),
            Workflow::Int8StaticActivationInt8Weight(config) => Arc::new(config),
            Workflow::Sinq(config) => Arc::new(config),
            Workflow::Smoothquant(args) => Arc::new(SmoothQuantConfig::from(args)),
        })
    }
}

impl Command for Quantize {
    const NAME: &'static str = "quantize";
    const GROUP: Group = Group::Change;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Model);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | quantize int4-weight-only --group-size 32 | size",
            about: "4 bits a weight, a scale and a zero for every 32",
            expect: "total",
        },
        Example {
            line: "quantize tiny int8-weight-only --granularity per-row",
            about: "8 bits a weight, a scale for every row",
            expect: "int8-weight-only in 43 linear layers",
        },
        Example {
            line: "quantize tiny int8-dynamic-activation-int8-weight --act-mapping-type asymmetric",
            about: "8-bit activations too, on integer kernels",
            expect: "int8-dynamic-activation-int8-weight in 43 linear layers",
        },
        Example {
            line: "quantize tiny gguf --type Q4_K",
            about: "llama.cpp's blocks; `save NAME.gguf` makes a file for it",
            expect: "Q4_K in 43 linear layers",
        },
        Example {
            line: "quantize tiny gguf --type Q2_K --importance --sequences 4",
            about: "the same, so that columns with large inputs lose least",
            expect: "Q2_K in 43 linear layers",
        },
        Example {
            line: "quantize tiny intx-weight-only --weight-dtype int3 --granularity per-group:32",
            about: "3 bits a weight; int1 to int8 all pack",
            expect: "intx-weight-only in 43 linear layers",
        },
        Example {
            line: "quantize tiny int8-dynamic-activation-intx-weight --weight-dtype int4",
            about: "4-bit weights and 8-bit activations (8da4w)",
            expect: "int8-dynamic-activation-intx-weight in 43 linear layers",
        },
        Example {
            line: "quantize tiny nf4-weight-only",
            about: "QLoRA's format: codes of normal quantiles, scales in 8 bits",
            expect: "nf4-weight-only in 43 linear layers",
        },
        Example {
            line: "quantize tiny groupwise-lut-weight --filter 'k_proj'",
            about: "4-bit codes of tables, one for every two rows",
            expect: "groupwise-lut-weight in 6 linear layers",
        },
        Example {
            line: "quantize tiny embedding --weight-dtype int4 --granularity per-group:32",
            about: "only the embedding",
            expect: "tiny·embedding",
        },
        Example {
            line: "quantize tiny float8-weight-only --granularity per-group:128",
            about: "float8 weights",
            expect: "float8-weight-only in 43 linear layers",
        },
        Example {
            line: "quantize tiny mx-weight-only --weight-dtype e2m1 --scaling-mode floor",
            about: "fp4 in blocks of 32 with a power of two each",
            expect: "mx-weight-only in 43 linear layers",
        },
        Example {
            line: "quantize tiny nvfp4-dynamic-activation-nvfp4-weight",
            about: "fp4 weights and activations, two levels of scales",
            expect: "nvfp4-dynamic-activation-nvfp4-weight in 43 linear layers",
        },
        Example {
            line: "quantize tiny fpx-weight-only --ebits 2 --mbits 2",
            about: "5 bits a weight",
            expect: "fpx-weight-only in 43 linear layers",
        },
        Example {
            line: "quantize tiny int4-weight-only --group-size 64 --filter 'mlp\\.'",
            about: "only the feed-forward layers",
            expect: "int4-weight-only in 18 linear layers",
        },
        Example {
            line: "quantize tiny gptq --base 'int4-weight-only --group-size 32' --sequences 4",
            about: "rounding errors made up for, by what the layers' inputs look like",
            expect: "int4-weight-only in 43 linear layers",
        },
        Example {
            line: "quantize tiny auto --target-bits 6 --filter 'layers.0.' --sensitivity-sequences 1",
            about: "each layer measured with each candidate, and the best mix within 6 bits a weight",
            expect: "int8-weight-only in",
        },
        Example {
            line: "quantize tiny autoquant --seconds 0.001 --filter 'layers.0.self_attn'",
            about: "the fastest workflow for each layer, timed here and now",
            expect: "linear layers",
        },
        Example {
            line: "quantize tiny awq --base int4-weight-only --sequences 2 --filter 'v_proj'",
            about: "weights of large inputs protected by scales",
            expect: "awq·int4-weight-only in 6 linear layers",
        },
        Example {
            line: "quantize tiny --fqn 're:.*down_proj' int8-weight-only --default int4-weight-only",
            about: "one workflow for some layers and another for the rest",
            expect: "int8-weight-only in 6 linear layers",
        },
        Example {
            line: "quantize tiny int4-weight-only --group-size 512 --skip-incompatible",
            about: "what a group size does not fit is left alone, and told",
            expect: "bf16 in 43 linear layers",
        },
    ];

    fn run(mut self, session: &mut Session, input: Value) -> Result<Value> {
        let mut model = input.into_model()?;
        if let Some(applied) = self.quantize_embedding(session, &mut model)? {
            session.note(&applied);
            return Ok(Value::Model(model));
        }
        let filter = self.filter.clone();
        let chosen = |fqn: &str, linear: &Linear| {
            is_linear(fqn, linear) && filter.as_ref().is_none_or(|regex| regex.is_match(fqn))
        };
        if !self.skip_incompatible {
            some_are_chosen(&model, filter.as_ref(), &chosen)?;
        }
        let sparse = |(fqn, linear): &&(String, Linear)| {
            chosen(fqn, linear) && sparse_of(&linear.weight).is_some()
        };
        let sparse = model.linears().iter().filter(sparse).count();
        if sparse > 0 {
            session.note(&format!(
                "{sparse} of these layers are sparse: scales are chosen from the pruned weights, and the zeros stay"
            ));
        }
        let label = match &self.workflow {
            Some(Workflow::Auto(_)) => Some("auto"),
            Some(Workflow::Autoquant(_)) => Some("autoquant"),
            _ => None,
        };
        let recipe = match self.workflow.take() {
            Some(Workflow::Auto(args)) => mix(session, &model, &chosen, args)?,
            Some(Workflow::Autoquant(args)) => fastest(session, &model, &chosen, args)?,
            other => {
                self.workflow = other;
                self.recipe()?
            }
        };
        let work = Work {
            recipe: &recipe,
            filter: filter.as_ref(),
            chosen: &chosen,
            skip_incompatible: self.skip_incompatible,
            doing: "quantizing",
        };
        let report = apply(session, &mut model, &work, &self.calibration)?;
        // A search may find that every layer is best left as it is.
        let left_as_it_is = label.is_some() && model.linears().iter().any(|(f, l)| chosen(f, l));
        if report.quantized() == 0 && !self.skip_incompatible && !left_as_it_is {
            return Err(Error::invalid("no linear layer was chosen; `show` lists their names"));
        }
        tell(session, &report, self.filter.as_ref());
        model.name = format!("{}·{}", model.name, label.unwrap_or(recipe.name()));
        Ok(Value::Model(model))
    }
}

impl Quantize {
    /// What was done, if the workflow is one for the embedding.
    fn quantize_embedding(&self, session: &Session, model: &mut Model) -> Result<Option<String>> {
        let before = model.nbytes();
        match &self.workflow {
            Some(Workflow::Embedding(config)) => config.apply(session.cpu(), model)?,
            Some(Workflow::TiedEmbedding(config)) => config.apply(session.cpu(), model)?,
            _ => return Ok(None),
        }
        if self.filter.is_some() || self.config.is_some() {
            return Err(Error::usage(
                "the embedding is one layer: --filter and --config say nothing",
            ));
        }
        let name = model.embed_tokens.workflow();
        model.name = format!("{}·{name}", model.name);
        let (before, after) = (number::bytes(before as u64), number::bytes(model.nbytes() as u64));
        Ok(Some(format!("quantized the embedding ({name}): {before} → {after}")))
    }

    /// The one recipe that was asked for.
    fn recipe(&mut self) -> Result<Arc<dyn Recipe>> {
        let by_name = !self.fqn.is_empty() || self.default.is_some();
        match (self.workflow.take(), &self.config, by_name) {
            (Some(workflow), None, false) => workflow.recipe(),
            (None, Some(path), false) => config_from(path),
            (None, None, true) => self.by_name(),
            (None, None, false) => {
                let words = "which workflow? `help quantize` lists them; or --config FILE.json";
                Err(Error::usage(words))
            }
            _ => Err(Error::usage(
                "a workflow, --config, and --fqn with --default are answers to one question; give one",
            )),
        }
    }

    fn by_name(&mut self) -> Result<Arc<dyn Recipe>> {
        let mut entries = Vec::new();
        for pair in self.fqn.chunks_exact(2) {
            let recipe = match pair[1].as_str() {
                "none" => None,
                words => Some(words.parse::<RecipeWords>().within(&pair[0])?.recipe()),
            };
            entries.push((pair[0].clone(), recipe));
        }
        if let Some(default) = self.default.take() {
            entries.push(("_default".to_owned(), Some(default.recipe())));
        }
        Ok(Arc::new(FqnToConfig::new(entries)?))
    }
}

fn config_from(path: &Path) -> Result<Arc<dyn Recipe>> {
    config_from_dict(&files::read_json(path)?)
}

/// How many layers were quantized, and which were left alone although they were chosen.
fn tell(session: &Session, report: &QuantizeReport, filter: Option<&Regex>) {
    let (before, after) = report.nbytes();
    session.note(&format!(
        "quantized {} of {} linear layers: {} → {}",
        report.quantized(),
        report.layers.len(),
        number::bytes(before as u64),
        number::bytes(after as u64),
    ));
    for note in &report.notes {
        session.note(note);
    }
    for layer in &report.layers {
        let chosen = filter.is_none_or(|regex| regex.is_match(&layer.fqn));
        if let Some(why) = layer.skipped.as_ref().filter(|_| chosen) {
            session.note(&format!("left alone: {}: {why}", layer.fqn));
        }
    }
}

/// The words that an option of a workflow takes, by the name of its value, for completion.
pub(super) fn words_of(value_name: &str) -> &'static [&'static str] {
    match value_name {
        "SIZE" => &["32", "64", "128", "256"],
        "GRANULARITY" => &["per-row", "per-tensor", "per-group:32", "per-group:128"],
        "OBSERVER" => &["min-max", "moving-average", "mse"],
        "MAPPING" => &["symmetric", "asymmetric"],
        "WEIGHT_MAPPING" => &["symmetric", "symmetric-no-clipping-err", "asymmetric"],
        "INTX" => &["int1", "int2", "int3", "int4", "int5", "int6", "int7", "int8"],
        "UINTX" => &["uint1", "uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "uint8"],
        "INTX_GRANULARITY" => &["per-axis:0", "per-group:32", "per-group:64", "per-group:128"],
        "INTX_ALGORITHM" => &["affine", "hqq-scale-only"],
        "INTX_FORMAT" => &["unpacked-to-int8", "opaque-torchao-auto"],
        "FLOAT8_INT4_FORMAT" => &["preshuffled", "plain"],
        "TABLE_BLOCK" => &["2,-1", "-1,64", "-1,-1"],
        "ACTIVATION_GROUPS" => &["per-token", "per-tensor", "32"],
        "SETTING" => &["min-max", "mse", "activation-loss"],
        "CODE_BLOCK" => &["1,1", "1,4"],
        "DTYPE" => &["f32", "bf16", "f16"],
        "FLOAT8" => &["float8_e4m3fn", "float8_e5m2"],
        "ELEMENT" => &["e4m3", "e5m2", "e2m3", "e3m2", "e2m1", "int8"],
        "MODE" => &["floor", "ceil", "even", "rceil"],
        "BOOL" => &["true", "false"],
        "FORMAT" => &["plain", "tile-packed-to-4d"],
        "WORKFLOW" => &["int4-weight-only", "int8-weight-only"],
        "ALGORITHM" => &["tinygemm", "hqq"],
        "LAYOUT" => &["aolab", "torchao", "compressed-tensors"],
        "BLOCK_TYPE" => {
            &["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
        }
        _ => &[],
    }
}
