//! Text in columns: how wide a string is in a terminal, and how one is shortened.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How many terminal columns `text` takes: 2 for CJK, 0 for combining marks.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` in at most `limit` columns: what stands in the middle gives way to `…`, because layer
/// names differ at both ends (`layers.0…wq.weight`).
pub fn shorten_middle(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    if limit == 0 {
        return String::new();
    }
    let front = prefix(text, (limit - 1).div_ceil(2));
    let back = suffix(text, limit - 1 - width(front));
    format!("{front}…{back}")
}

/// `text` in at most `limit` columns, cut at its end.
pub fn shorten_end(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    if limit == 0 {
        return String::new();
    }
    format!("{}…", prefix(text, limit - 1).trim_end())
}

/// Spaces are added on the right until `text` is `columns` wide.
pub fn pad_right(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// Spaces are added on the left until `text` is `columns` wide.
pub fn pad_left(text: &str, columns: usize) -> String {
    format!("{}{text}", " ".repeat(columns.saturating_sub(width(text))))
}

/// Lines of at most `limit` columns, broken at spaces; a longer word is cut.
pub fn wrap(text: &str, limit: usize) -> Vec<String> {
    let limit = limit.max(1);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().expect("there is a first line");
        if !line.is_empty() && width(line) + 1 + width(word) > limit {
            lines.push(String::new());
        }
        let mut rest = word;
        while width(rest) > limit && rest.chars().nth(1).is_some() {
            // At least one character a line, or a wide one in one column would never end.
            let first = rest.chars().next().map_or(0, char::len_utf8);
            let part = prefix(rest, limit).len().max(first);
            lines.last_mut().expect("there is a line").push_str(&rest[..part]);
            lines.push(String::new());
            rest = &rest[part..];
        }
        let line = lines.last_mut().expect("there is a line");
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(rest);
    }
    lines
}

/// Texts from files may hold control characters, which would move the cursor: they become `␀`-like
/// pictures, and line breaks become spaces.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            '\u{7f}' => '␡',
            c if u32::from(c) < 0x20 => char::from_u32(0x2400 + u32::from(c)).unwrap_or('�'),
            c if c.is_control() => '�',
            c => c,
        })
        .collect()
}

fn prefix(text: &str, limit: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += c.width().unwrap_or(0);
        if used > limit {
            return &text[..at];
        }
    }
    text
}

fn suffix(text: &str, limit: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices().rev() {
        used += c.width().unwrap_or(0);
        if used > limit {
            return &text[at + c.len_utf8()..];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_text_never_exceeds_its_columns() {
        for text in ["", "a", "layers.0.attention.wq.weight", "量子化された層", "e\u{301}te\u{301}"]
        {
            for limit in 0..20 {
                for short in [shorten_middle(text, limit), shorten_end(text, limit)] {
                    assert!(width(&short) <= limit, "{short:?} in {limit}");
                }
            }
        }
        assert_eq!(shorten_middle("layers.0.attention.wq", 11), "layer…on.wq");
        assert_eq!(shorten_end("a long sentence", 7), "a long…");
    }

    #[test]
    fn wrapped_lines_keep_every_word() {
        let text = "bits per weight, scales and zero points included";
        for limit in 11..50 {
            let lines = wrap(text, limit);
            assert!(lines.iter().all(|line| width(line) <= limit), "{lines:?} in {limit}");
            assert_eq!(lines.join(" "), text);
        }
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrap("漢字", 1), ["漢", "字"]);
    }

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(one_line("a\u{1b}[31mb\nc\u{7f}\u{85}"), "a␛[31mb c␡�");
    }
}
