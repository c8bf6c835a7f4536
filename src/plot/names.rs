//! Names of layers without what all of them share.

use crate::table::words::width;

/// Names up to this width need no shortening.
const SHORT: usize = 16;

/// Takes from all names the dotted parts that all begin with and all end with
/// (`model.layers.0.wq.weight` → `0.wq`) and returns those ends; `None` leaves them as they are.
/// Names without a dot (`lm_head`, `total`) are no layers of that kind: they stay, and hinder nothing.
pub(super) fn strip_common_ends(names: &mut [String]) -> Option<(String, String)> {
    let dotted: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| name.contains('.')).collect();
    let (first, rest) = dotted.split_first()?;
    if rest.is_empty() || names.iter().all(|name| width(name) <= SHORT) {
        return None;
    }
    let (mut front, mut back) = (*first, *first);
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
    let shortest = dotted.iter().map(|name| name.len()).min().unwrap_or(0);
    let shared = front.len() + back.len();
    if shared == 0 || shortest <= shared {
        return None;
    }
    for name in names.iter_mut().filter(|name| name.contains('.')) {
        *name = name[front.len()..name.len() - back.len()].to_owned();
    }
    Some((front, back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_dotted_parts_are_taken() {
        let cases: [(&[&str], &[&str]); 8] = [
            (
                &["model.layers.0.q_proj", "lm_head", "model.layers.1.q_proj", "all of it. Yes"],
                &["model.layers.0.q_proj", "lm_head", "model.layers.1.q_proj", "all of it. Yes"],
            ),
            (
                &["model.layers.0.q_proj", "lm_head", "model.layers.1.k_proj", "whole model"],
                &["0.q_proj", "lm_head", "1.k_proj", "whole model"],
            ),
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
