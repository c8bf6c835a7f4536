//! What clap says about arguments, in our words and with the place.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::entry::Entry;
use crate::error::did_you_mean;
use crate::language::{Fault, Stage};

/// The mistake in `stage` that clap found.
pub(super) fn fault_of(error: &clap::Error, entry: &Entry, stage: &Stage) -> Fault {
    let context = |kind| error.get(kind).map(words_of).unwrap_or_default();
    let first = |kind| context(kind).into_iter().next().unwrap_or_default();
    let name = entry.name;
    let more = format!("`help {name}` tells more");
    let (words, about) = match error.kind() {
        ErrorKind::UnknownArgument => {
            let got = first(ContextKind::InvalidArg);
            let near = first(ContextKind::SuggestedArg);
            let kind = if got.starts_with('-') { "flag" } else { "argument" };
            let next = if near.is_empty() { more } else { format!("did you mean {near}?") };
            (format!("`{name}` has no {kind} {got}; {next}"), got)
        }
        ErrorKind::InvalidSubcommand => {
            let got = first(ContextKind::InvalidSubcommand);
            let command = entry.clap();
            let known: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            let next = did_you_mean(&got, known.iter().copied()).map_or_else(
                || format!("it has {}", known.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            (format!("`{name}` has no {got:?}; {next}"), got)
        }
        ErrorKind::InvalidValue if first(ContextKind::InvalidValue).is_empty() => {
            let flag = first(ContextKind::InvalidArg);
            let flag_name = flag.split_whitespace().next().unwrap_or_default().to_owned();
            (format!("{flag} wants a value; {more}"), flag_name)
        }
        ErrorKind::InvalidValue => {
            let (got, flag) = (first(ContextKind::InvalidValue), first(ContextKind::InvalidArg));
            let known = context(ContextKind::ValidValue);
            let next = match did_you_mean(&got, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("it takes {}", known.join(", ")),
            };
            (format!("{flag} cannot be {got:?}; {next}"), got)
        }
        ErrorKind::ValueValidation => {
            let (got, flag) = (first(ContextKind::InvalidValue), first(ContextKind::InvalidArg));
            let why = std::error::Error::source(error).map(ToString::to_string);
            let why = why.unwrap_or_else(|| "it is not a value of its kind".to_owned());
            (format!("{flag} cannot be {got:?}: {}", in_plain_words(why)), got)
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = context(ContextKind::InvalidArg).join(" ");
            (format!("`{name}` also wants {missing}; {more}"), String::new())
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let known = context(ContextKind::ValidSubcommand);
            let known = if known.is_empty() { subcommands(entry) } else { known };
            (format!("`{name}` what? It has {}; {more}", known.join(", ")), String::new())
        }
        ErrorKind::ArgumentConflict => {
            let (got, prior) =
                (first(ContextKind::InvalidArg), context(ContextKind::PriorArg).join(", "));
            if got == prior || prior.is_empty() {
                (format!("{got} is given twice"), got)
            } else {
                (format!("{got} cannot be together with {prior}"), got)
            }
        }
        _ => (rendered(error), first(ContextKind::InvalidArg)),
    };
    Fault::new(words, place(stage, &about))
}

fn subcommands(entry: &Entry) -> Vec<String> {
    entry.clap().get_subcommands().map(|sub| sub.get_name().to_owned()).collect()
}

fn words_of(value: &ContextValue) -> Vec<String> {
    match value {
        ContextValue::String(text) => vec![text.clone()],
        ContextValue::Strings(texts) => texts.clone(),
        ContextValue::StyledStr(text) => vec![text.to_string()],
        _ => Vec::new(),
    }
}

/// What Rust says of a text that is no number, for people who do not know Rust.
fn in_plain_words(why: String) -> String {
    match why.as_str() {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "wanted a whole number".to_owned()
        }
        "invalid float literal" | "cannot parse float from empty string" => {
            "wanted a number".to_owned()
        }
        _ => why,
    }
}

/// clap's own words without its frame.
fn rendered(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or_default();
    text.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Where the word that `about` starts with stands, or the whole stage.
fn place(stage: &Stage, about: &str) -> std::ops::Range<usize> {
    let about = about.split([' ', '=']).next().unwrap_or_default();
    let word =
        stage.arguments().iter().find(|word| !about.is_empty() && word.text == about).or_else(
            || stage.arguments().iter().find(|word| !about.is_empty() && word.text.contains(about)),
        );
    word.map_or_else(|| stage.span(), |word| word.span.clone())
}
