//! Any text as lines of the command language and as a document.
#![no_main]

use aolab::command::{Names, complete, usage_hint};
use aolab::language::{lex, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (tokens, _) = lex(text);
    let mut end = 0;
    for token in &tokens {
        assert!(token.span.start >= end && text.get(token.span.clone()).is_some());
        end = token.span.end;
    }
    let _ = parse(text);
    let _ = usage_hint(text);
    // Paths are read from the disk, so that words with a slash are not completed here.
    if !text.contains('/') {
        let _ = complete(&Names::default(), text, text.len());
    }
});
