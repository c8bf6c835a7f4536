//! `formats`

use regex::Regex;

use super::calibrate::CalibrationArgs;
use super::eval::TextArgs;
use super::recipe_words::RecipeWords;
use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::formats::{FormatsConfig, Row, measure, table};
use crate::session::Session;
use crate::value::{Kind, Value};

/// One model in every format: size, perplexity in both conventions, divergence, speed.
///
/// Each format is made from the model, measured and let go before the next; layers that it cannot apply to stay as they are.
/// Formats that calibrate read a text first.
#[derive(Debug, clap::Args)]
pub(super) struct Formats {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Only the formats whose name this regular expression finds: 'int4|gptq'
    #[arg(long, value_name = "REGEX")]
    only: Option<Regex>,
    /// Timed tokens; 0 leaves speed out
    #[arg(long, default_value_t = 64)]
    tokens: usize,
}

/// What each row is called, and the words that make it.
const ROWS: &[(&str, &str)] = &[
    ("int8", "int8-weight-only"),
    ("int8 dynamic", "int8-dynamic-activation-int8-weight"),
    ("int8 static", "int8-static-activation-int8-weight"),
    ("int8 smoothquant", "smoothquant"),
    ("float8", "float8-weight-only"),
    ("float8 dynamic", "float8-dynamic-activation-float8-weight --granularity per-row"),
    ("float8 static", "float8-static-activation-float8-weight"),
    ("mxfp8", "mx-weight-only --weight-dtype e4m3"),
    ("mxint8", "mx-weight-only --weight-dtype int8"),
    ("Q8_0", "gguf --type Q8_0"),
    ("Q6_K", "gguf --type Q6_K"),
    ("mxfp6 e2m3", "mx-weight-only --weight-dtype e2m3"),
    ("mxfp6 e3m2", "mx-weight-only --weight-dtype e3m2"),
    ("fp6 e3m2", "fpx-weight-only --ebits 3 --mbits 2"),
    ("int5 g32", "intx-weight-only --weight-dtype int5 --granularity per-group:32"),
    ("Q5_K", "gguf --type Q5_K"),
    ("Q5_0", "gguf --type Q5_0"),
    ("fp5 e2m2", "fpx-weight-only --ebits 2 --mbits 2"),
    ("int4 g32", "int4-weight-only --group-size 32"),
    ("int4 g32 gptq", "gptq --base 'int4-weight-only --group-size 32'"),
    ("int4 g32 auto-round", "auto-round --base 'int4-weight-only --group-size 32'"),
    ("int4 g32 awq", "awq --base 'int4-weight-only --group-size 32'"),
    (
        "int4 g32 hqq",
        "int4-weight-only --group-size 32 --packing-format tile-packed-to-4d --choose-qparams-algorithm hqq",
    ),
    ("int4 g64 sinq", "sinq"),
    ("int4 g128", "int4-weight-only"),
    ("int4 g128 gptq", "gptq --base int4-weight-only"),
    ("float8 × int4", "float8-dynamic-activation-int4-weight"),
    ("8da4w g32", "int8-dynamic-activation-intx-weight --weight-dtype int4"),
    ("Q4_0", "gguf --type Q4_0"),
    ("Q4_K", "gguf --type Q4_K"),
    ("Q4_K importance", "gguf --type Q4_K --importance"),
    ("uint4 g64 hqq", "uintx-bit-packed-weight-only --group-size 64"),
    ("int4 g32 range", "module-swap --weight-group-size 32"),
    ("nf4", "nf4-weight-only"),
    ("nvfp4", "nvfp4-weight-only"),
    ("nvfp4 gptq", "gptq --base nvfp4-weight-only"),
    ("mxfp4", "mx-weight-only --weight-dtype e2m1"),
    ("mxfp4 gptq", "gptq --base 'mx-weight-only --weight-dtype e2m1'"),
    ("int4 a row", "intx-weight-only --weight-dtype int4 --granularity per-axis:0"),
    ("int4 × int4", "int4-dynamic-activation-int4-weight"),
    ("groupwise lut", "groupwise-lut-weight"),
    ("int3 g32", "intx-weight-only --weight-dtype int3 --granularity per-group:32"),
    (
        "int3 g32 hqq",
        "intx-weight-only --weight-dtype int3 --granularity per-group:32 --choose-qparams-algorithm hqq-scale-only",
    ),
    (
        "int3 g32 gptq",
        "gptq --base 'intx-weight-only --weight-dtype int3 --granularity per-group:32'",
    ),
    ("Q3_K", "gguf --type Q3_K"),
    ("Q3_K importance", "gguf --type Q3_K --importance"),
    ("int2 g32", "intx-weight-only --weight-dtype int2 --granularity per-group:32"),
    (
        "int2 g32 gptq",
        "gptq --base 'intx-weight-only --weight-dtype int2 --granularity per-group:32'",
    ),
    ("Q2_K", "gguf --type Q2_K"),
    ("Q2_K importance", "gguf --type Q2_K --importance"),
];

impl Command for Formats {
    const NAME: &'static str = "formats";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const MEASURES: bool = true;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "load tiny | formats --windows 2 --tokens 0 --only '^(int8|nf4|Q4_K)$'",
        about: "some formats of one model, side by side",
        expect: "tiny in 4 formats",
    }];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let model = input.into_model()?;
        let mut rows: Vec<Row> = vec![("as it came".to_owned(), None)];
        for (label, words) in ROWS {
            if self.only.as_ref().is_none_or(|only| only.is_match(label)) {
                let recipe = words.parse::<RecipeWords>()?.recipe();
                rows.push(((*label).to_owned(), Some(recipe)));
            }
        }
        if rows.len() == 1 {
            let names: Vec<&str> = ROWS.iter().map(|(label, _)| *label).collect();
            return Err(Error::usage(format!(
                "--only finds no format; there are {}",
                names.join(", ")
            )));
        }
        let calibrates =
            |(_, recipe): &Row| recipe.as_ref().is_some_and(|recipe| recipe.calibrated().is_some());
        let sequences = match rows.iter().any(calibrates) {
            true => self.calibration.draw(session, &model)?.0,
            false => Vec::new(),
        };
        let (text, eval) = self.text.read(session)?;
        let limit = model.config.max_position_embeddings.min(512);
        let decode_context = (limit / 2).min(limit.saturating_sub(self.tokens));
        let config = FormatsConfig { eval, decode_tokens: self.tokens, decode_context };
        let cpu = session.cpu().clone();
        session.measures(&model, &[1]);
        let task = session.task("measuring");
        let progress = &mut |done, total, _: &str| task.progress(done, total);
        let mut all = Vec::new();
        let texts = (text.as_str(), sequences.as_slice());
        let measured = measure(&cpu, (&model, &rows), texts, &config, progress, &mut all);
        drop(task);
        if measured.is_err() && !all.is_empty() {
            session.has_finished(table(&model.name, &all, &config)?);
        }
        measured?;
        table(&model.name, &all, &config).map(Value::Table)
    }
}
