//! `generate`

use super::kv_cache_format::KvCacheFormat;
use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::generate::{GenerateConfig, Stop, generate};
use crate::session::Session;
use crate::value::{Kind, Value};

/// Let a model continue a text, greedily or sampled with a seed.
///
/// The text appears as it is written. The order of the cuts is temperature, then top-k, then top-p.
#[derive(Debug, clap::Args)]
pub(super) struct Generate {
    /// What to continue
    prompt: String,
    /// Tokens to write at most
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token each time; higher is more daring
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the k likeliest tokens only; 0 takes all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw from the likeliest tokens that reach this probability together
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// The same seed writes the same text [default: the session's]
    #[arg(long)]
    seed: Option<u64>,
    /// How keys and values are kept
    #[arg(long, value_enum, default_value = "f32")]
    kv_cache: KvCacheFormat,
}

impl Command for Generate {
    const NAME: &'static str = "generate";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Text);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | generate \"My fellow citizens,\" --max-new-tokens 12",
            about: "the likeliest continuation",
            expect: "who have been engaged in the service of the United States",
        },
        Example {
            line: "load tiny | generate \"The state of our economy\" --temperature 0.8 --top-k 50 --seed 7",
            about: "a sampled one, the same each time",
            expect: "The state of our economy",
        },
        Example {
            line: "load tiny | generate \"My fellow citizens,\" --max-new-tokens 12 --kv-cache int8",
            about: "with keys and values in 8 bits",
            expect: "My fellow citizens,",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let model = input.into_model()?.with_kv_cache(self.kv_cache.get());
        let model = session.placed(model)?;
        let config = GenerateConfig {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed.unwrap_or(session.seed()),
        };
        let cpu = session.cpu().clone();
        let front = std::sync::Arc::clone(session.front_end());
        let mut begun = false;
        let mut stream = |piece: &str| {
            if !begun {
                front.stream(&self.prompt);
                begun = true;
            }
            front.stream(piece);
            !session.cancelled()
        };
        let written = generate(&model, &cpu, &self.prompt, &config, &mut stream)?;
        match written.stop {
            Stop::Cancelled => return Err(Error::Cancelled),
            Stop::Context => session.front_end().note("stopped: the model's context is full"),
            Stop::EndOfText | Stop::Length => {}
        }
        Ok(Value::Text(format!("{}{}", self.prompt, written.text)))
    }
}
