//! A workflow with its options in one word, and the workflows that take another one as their base.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use clap::{FromArgMatches as _, Subcommand as _};

use super::quantize::Workflow;
use crate::error::{Error, Result};
use crate::language::{TokenKind, lex};
use crate::quantization::{AutoRoundConfig, AwqConfig, GptqConfig, Recipe, SmoothQuantConfig};

/// `int4-weight-only --group-size 32` as the value of a flag.
#[derive(Clone)]
pub(super) struct RecipeWords {
    words: String,
    recipe: Arc<dyn Recipe>,
}

impl RecipeWords {
    pub(super) fn recipe(self) -> Arc<dyn Recipe> {
        self.recipe
    }

    /// As it was written.
    pub(super) fn words(&self) -> &str {
        &self.words
    }
}

impl fmt::Debug for RecipeWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.recipe.fmt(f)
    }
}

impl FromStr for RecipeWords {
    type Err = Error;

    fn from_str(text: &str) -> Result<RecipeWords> {
        let (tokens, fault) = lex(text);
        if let Some(fault) = fault {
            return Err(fault.into_error(text));
        }
        if let Some(other) = tokens.iter().find(|token| token.kind != TokenKind::Word) {
            return Err(Error::usage(format!(
                "{:?} is no word of a workflow; wanted one and its options",
                other.text
            )));
        }
        let words = tokens.iter().map(|token| token.text.as_str());
        let command = clap::Command::new("workflow")
            .no_binary_name(true)
            .subcommand_required(true)
            .disable_help_flag(true)
            .disable_help_subcommand(true)
            .color(clap::ColorChoice::Never);
        let matches = Workflow::augment_subcommands(command).try_get_matches_from(words);
        let workflow = matches.and_then(|matches| Workflow::from_arg_matches(&matches));
        let workflow = workflow.map_err(|error| {
            let words = error.to_string();
            let first = words.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Error::usage(format!("{first}; `help quantize` lists the workflows"))
        })?;
        Ok(RecipeWords { words: text.to_owned(), recipe: workflow.recipe()? })
    }
}

/// GPTQ's options.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct GptqArgs {
    /// The format and its options in one word: 'int4-weight-only --group-size 32'
    #[arg(long, value_name = "WORKFLOW")]
    base: RecipeWords,
    /// How much of the mean of the second moments' diagonal is added to it
    #[arg(long, default_value_t = 0.01)]
    percdamp: f64,
    /// Columns whose errors stay among themselves before they are passed on
    #[arg(long, default_value_t = 256, value_name = "COLUMNS")]
    gptq_quantize_block_size: usize,
    /// Take the inputs that the quantized blocks before give, not the original model's
    #[arg(long)]
    sequential: bool,
}

impl From<GptqArgs> for GptqConfig {
    fn from(args: GptqArgs) -> GptqConfig {
        GptqConfig {
            base: args.base.recipe(),
            percdamp: args.percdamp,
            gptq_quantize_block_size: args.gptq_quantize_block_size,
            sequential: args.sequential,
        }
    }
}

/// AutoRound's options.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AutoRoundArgs {
    /// The format and its options in one word: 'int4-weight-only --group-size 32'
    #[arg(long, value_name = "WORKFLOW")]
    base: RecipeWords,
    /// Signed steps
    #[arg(long, default_value_t = 200, value_name = "COUNT")]
    iters: usize,
    /// The length of the first step, in steps of the format [default: 1 / iters]
    #[arg(long, value_name = "NUMBER")]
    lr: Option<f32>,
}

impl From<AutoRoundArgs> for AutoRoundConfig {
    fn from(args: AutoRoundArgs) -> AutoRoundConfig {
        AutoRoundConfig { base: args.base.recipe(), iters: args.iters, lr: args.lr }
    }
}

/// AWQ's options.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AwqArgs {
    /// The format and its options in one word: 'int4-weight-only --group-size 32'
    #[arg(long, value_name = "WORKFLOW")]
    base: RecipeWords,
    /// How many exponents between 0 and 1 are tried
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    scale_search_space_size: usize,
}

impl From<AwqArgs> for AwqConfig {
    fn from(args: AwqArgs) -> AwqConfig {
        AwqConfig {
            base: args.base.recipe(),
            scale_search_space_size: args.scale_search_space_size,
        }
    }
}

/// SmoothQuant's options.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct SmoothQuantArgs {
    /// What quantizes the smoothed weight, and its options in one word
    #[arg(long, value_name = "WORKFLOW", default_value = "int8-dynamic-activation-int8-weight")]
    base: RecipeWords,
    /// How much of the activations' range goes into the weight: 0 none, 1 all
    #[arg(long, default_value_t = 0.5)]
    alpha: f64,
}

impl From<SmoothQuantArgs> for SmoothQuantConfig {
    fn from(args: SmoothQuantArgs) -> SmoothQuantConfig {
        SmoothQuantConfig { alpha: Some(args.alpha), ..SmoothQuantConfig::new(args.base.recipe()) }
    }
}
