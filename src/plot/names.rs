//! Names of layers without what all of them share.

use crate::table::words::width;

/// Names up to this width need no shortening.
const SHORT: usize = 16;

/// Takes from all names the dotted parts that all begin with and all end with
/// (`model.layers.0.wq.weight` → `0.wq`) and returns those ends; `None` leaves them as they are.
pub(super) fn strip_common_ends(names: &mut [String]) -> Option<(String, String)> {
    let (first, rest) = names.split_first()?;
    if rest.is_empty() || names.iter().all(|name| width(name) <= SHORT) {
        return None;
    }
    let mut front = first.as_str();
    let mut back = first.as_str();
    for name in rest {
        let same = front.char_indices().zip(name.chars()).find(|((_, a), b)| a != b);
        front = &front[..same.map_or(front.len().min(name.len()), |((at, _), _)| at)];
        while !name.ends_with(back) {
            let mut chars = back.chars();
            chars.next();
            back = chars.as_str();
        }
    }
    let front = front[..front.rfind('.').map_or(0, |dot| dot + 1)].to_owned();
    let back = back.find('.').map_or("", |dot| &back[dot..]).to_owned();
    let shortest = names.iter().map(String::len).min().unwrap_or(0);
    let shared = front.len() + back.len();
    if shared == 0 || shortest <= shared {
        return None;
    }
    for name in names {
        *name = name[front.len()..name.len() - back.len()].to_owned();
    }
    Some((front, back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_dotted_parts_are_taken() {
        let cases: [(&[&str], &[&str]); 6] = [
            (
                &["model.layers.0.attn.wq.weight", "model.layers.11.mlp.w1.weight"],
                &["0.attn.wq", "11.mlp.w1"],
            ),
            (&["model.layers.10.weight", "model.layers.12.weight"], &["10", "12"]),
            (&["a.x", "a.y"], &["a.x", "a.y"]),
            (
                &["one long name without", "one long name without dots"],
                &["one long name without", "one long name without dots"],
            ),
            (&["model.layers.weight", "model.layers.weight"], &["model.layers.weight"; 2]),
            (&["модель.слой.один.вес", "модель.слой.два.вес"], &["один", "два"]),
        ];
        for (names, want) in cases {
            let mut got: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            strip_common_ends(&mut got);
            assert_eq!(got, want);
        }
        assert_eq!(strip_common_ends(&mut []), None);
    }
}
