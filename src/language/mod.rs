//! The command language: what a line means, before anybody knows the commands.
//!
//! ```text
//! load tiny | quantize int4-weight-only --group-size 32 | eval perplexity   # a pipeline
//! base = load tiny                                                          # binds a variable
//! $base | size; $base | show                                                # uses it, twice
//! time eval perplexity                                                      # says how long each stage took
//! ```
//!
//! `;` or the end of the line separates statements. A line that ends in `\` or `|`, or within quotes,
//! goes on in the next one, and so does one that is followed by a line starting with `|`. `'…'` keeps everything,
//! `"…"` knows `\n`, `\t`, `\"`, `\\` and `\$`. Outside quotes a backslash makes the next of ` '"|;#$\` plain
//! and is itself plain before anything else, so that regular expressions can be typed as they are.

mod fault;
mod lexer;
pub mod markdown;
mod parser;

pub use fault::Fault;
pub(crate) use fault::line_number;
pub use lexer::{Token, TokenKind, lex};
pub use parser::{Program, Stage, Statement, Word, parse, program_of_words, quote};
