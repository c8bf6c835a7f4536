//! Markdown documents that run: what is a heading, a block of lines, and an output that is wanted.

/// A part of a document that matters when it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// `## Title`, with its marks.
    Heading(String),
    /// The lines of an ```` ```ao ```` block.
    Code {
        /// Its lines.
        text: String,
        /// The number of its first line in the document, from 1.
        line: usize,
    },
    /// The lines of an ```` ```output ```` block: what the block before must have shown.
    Output {
        /// Its lines.
        text: String,
        /// The number of its first line in the document, from 1.
        line: usize,
    },
}

/// The pieces of a document, in order. A block that is not closed reaches to the end.
pub fn pieces(document: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut open: Option<Fence> = None;
    for (i, line) in document.lines().enumerate() {
        match &mut open {
            Some(fence) if fence.closes(line) => {
                pieces.extend(open.take().and_then(Fence::piece));
            }
            Some(fence) => {
                fence.text.push_str(line);
                fence.text.push('\n');
            }
            None => match Fence::open(line, i + 2) {
                Some(fence) => open = Some(fence),
                None if is_heading(line) => pieces.push(Piece::Heading(line.trim().to_owned())),
                None => {}
            },
        }
    }
    pieces.extend(open.and_then(Fence::piece));
    pieces
}

struct Fence {
    mark: String,
    language: String,
    text: String,
    line: usize,
}

impl Fence {
    fn open(line: &str, first_line: usize) -> Option<Fence> {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let mark: String = trimmed
            .chars()
            .take_while(|c| matches!(c, '`' | '~') && trimmed.starts_with(*c))
            .collect();
        if mark.len() < 3 || indent > 3 {
            return None;
        }
        let language = trimmed[mark.len()..].split_whitespace().next().unwrap_or_default();
        let language = language.to_owned();
        Some(Fence { mark, language, text: String::new(), line: first_line })
    }

    fn closes(&self, line: &str) -> bool {
        let line = line.trim();
        let mark = self.mark.chars().next().unwrap_or('`');
        line.len() >= self.mark.len() && line.chars().all(|c| c == mark)
    }

    fn piece(self) -> Option<Piece> {
        let Fence { text, line, .. } = self;
        match self.language.as_str() {
            "ao" => Some(Piece::Code { text, line }),
            "output" => Some(Piece::Output { text, line }),
            _ => None,
        }
    }
}

fn is_heading(line: &str) -> bool {
    let marks = line.chars().take_while(|c| *c == '#').count();
    (1..=6).contains(&marks) && line[marks..].starts_with(' ')
}

/// The first line of `wanted` (counted from 0) that `shown` does not have after the lines before it.
///
/// The words of a wanted line stand one after another in one line of the output; how far apart they are and
/// the lines of a table's frame do not matter. `…` stands for any words, `~44.3` for a number within 1 % of it, and
/// `~44.3±0.5` for one within 0.5.
pub fn first_missing<'a>(wanted: &'a str, shown: &str) -> Option<(usize, &'a str)> {
    let shown: Vec<Vec<&str>> = shown.lines().map(words).collect();
    let mut from = 0;
    for (i, line) in wanted.lines().enumerate() {
        let pattern = words(line);
        if pattern.is_empty() {
            continue;
        }
        match shown[from..].iter().position(|words| contains(words, &pattern)) {
            Some(at) => from += at + 1,
            None => return Some((i, line)),
        }
    }
    None
}

fn words(line: &str) -> Vec<&str> {
    let frame = |word: &&str| !word.chars().all(|c| "│┃|─━-+┌┐└┘├┤┬┴┼═║".contains(c));
    line.split_whitespace().filter(frame).collect()
}

fn contains(words: &[&str], pattern: &[&str]) -> bool {
    (0..words.len()).any(|start| starts_with(&words[start..], pattern))
}

fn starts_with(words: &[&str], pattern: &[&str]) -> bool {
    match (pattern.split_first(), words.split_first()) {
        (None, _) => true,
        (Some((&"…", rest)), _) => {
            (0..=words.len()).any(|skipped| starts_with(&words[skipped..], rest))
        }
        (Some((wanted, rest)), Some((word, others))) => {
            word_fits(wanted, word) && starts_with(others, rest)
        }
        _ => false,
    }
}

fn word_fits(wanted: &str, word: &str) -> bool {
    let Some(number) = wanted.strip_prefix('~') else { return wanted == word };
    let (number, tolerance) = number.split_once('±').unwrap_or((number, ""));
    let (Ok(number), Ok(got)) = (number.parse::<f64>(), word.parse::<f64>()) else {
        return wanted == word;
    };
    let tolerance = tolerance.parse().unwrap_or(number.abs() / 100.0);
    (got - number).abs() <= tolerance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_give_headings_blocks_and_outputs_with_their_lines() {
        let document = "# One\ntext\n```ao\nload tiny\n\nsize\n```\n```output\ntotal …\n```\n\
                        ~~~~python\n```ao\n~~~~\n#no\n````ao\n```\nx\n````\n  ```ao\nopen";
        let code = |text: &str, line| Piece::Code { text: text.to_owned(), line };
        let wanted = [
            Piece::Heading("# One".to_owned()),
            code("load tiny\n\nsize\n", 4),
            Piece::Output { text: "total …\n".to_owned(), line: 9 },
            code("```\nx\n", 16),
            code("open\n", 20),
        ];
        assert_eq!(pieces(document), wanted);
    }

    #[test]
    fn outputs_are_compared_word_by_word() {
        let shown = "Title\n│ total   │ 44.31 │ dB │\nend  of it";
        let cases = [
            ("", None),
            ("total 44.31 dB", None),
            ("total ~44.0 dB\n\n end of it", None),
            ("total ~44.0±0.1 dB", Some(0)),
            ("total ~44.3±0.1 …", None),
            ("… it", None),
            ("total dB", Some(0)),
            ("total … dB", None),
            ("Titles", Some(0)),
            ("end of it\ntotal …", Some(1)),
            ("total ~x dB", Some(0)),
        ];
        for (wanted, missing) in cases {
            assert_eq!(first_missing(wanted, shown).map(|found| found.0), missing, "{wanted:?}");
        }
    }
}
