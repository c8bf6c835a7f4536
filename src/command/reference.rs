//! Help about all commands: the short list, and the page of the documentation.

use std::fmt::Write as _;

use super::{COMMANDS, Entry, Group};

/// Every command with one line, under its heading.
pub fn overview() -> String {
    let width = COMMANDS.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for group in Group::ALL {
        let entries: Vec<&Entry> = COMMANDS.iter().filter(|entry| entry.group == group).collect();
        if entries.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{}:", group.title());
        for entry in entries {
            let _ = writeln!(text, "  {:width$}  {}", entry.name, entry.about());
        }
        text.push('\n');
    }
    text.push_str(LANGUAGE);
    text
}

const LANGUAGE: &str = "\
Lines:
  load tiny | quantize int8-weight-only | size    a pipe: each command works on what the one before gave
  size                                            at the start, on the latest model (or table, figure)
  size tiny                                       or on one that is named first
  base = load tiny                                binds a variable; $base uses it
  time size                                       says how long each stage took
  a; b                                            two lines in one; # begins a comment
`help CMD` tells about one command, with examples.";

/// The reference page: every command with its help and examples, as Markdown.
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Reference of commands\n\n\
         Generated from the sources of the commands; `AOLAB_BLESS=1 cargo test --test examples` writes it anew.\n",
    );
    for group in Group::ALL {
        let entries: Vec<&Entry> = COMMANDS.iter().filter(|entry| entry.group == group).collect();
        if entries.is_empty() {
            continue;
        }
        let _ = writeln!(page, "\n## {}", group.title());
        for entry in entries {
            section(&mut page, entry);
        }
    }
    page
}

fn section(page: &mut String, entry: &Entry) {
    let command = entry.clap();
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string);
    let _ = writeln!(page, "\n### {}\n\n{}\n", entry.name, about.unwrap_or_default());
    let _ = writeln!(page, "{}\n", entry.pipe());
    let _ = writeln!(page, "```text\n{}\n```\n", entry.usage_and_options(&[]));
    for sub in command.get_subcommands() {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(page, "#### {} {}\n\n{about}\n", entry.name, sub.get_name());
        let _ = writeln!(page, "```text\n{}\n```\n", entry.usage_and_options(&[sub.get_name()]));
    }
    page.push_str("Examples:\n\n");
    for example in entry.examples {
        let _ = writeln!(page, "- `{}` — {}", example.line, example.about);
    }
}
