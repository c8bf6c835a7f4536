//! A line with `{a,b,c}` and `{0..8}` in it, to lines without.

use serde::{Deserialize, Serialize};

use super::{Choice, MOST_TRIALS};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// One line to run, and the settings that made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The line.
    pub line: String,
    /// Names and values of its settings, in the order of the template.
    pub settings: Vec<(String, String)>,
}

/// A longer range makes no grid.
const MOST_VALUES: i64 = 100_000;

/// What stands between braces.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    List(Vec<String>),
    /// Whole numbers, both ends included.
    Whole(i64, i64),
    /// Real numbers, drawn evenly, or evenly in their logarithm.
    Real {
        from: f64,
        to: f64,
        log: bool,
    },
}

#[derive(Clone, Debug)]
struct Slot {
    name: String,
    values: Values,
}

/// The texts between slots (one more than there are slots) and the slots.
struct Template {
    texts: Vec<String>,
    slots: Vec<Slot>,
}

/// The trials of one template.
///
/// ```
/// # fn main() -> aolab::Result<()> {
/// use aolab::sweep::{Choice, trials};
/// let all = trials("quantize int8-weight-only --granularity {per-row,per-tensor} | size", Choice::Grid)?;
/// assert_eq!(all[1].line, "quantize int8-weight-only --granularity per-tensor | size");
/// assert_eq!(all[1].settings, [("granularity".to_string(), "per-tensor".to_string())]);
/// # Ok(()) }
/// ```
pub fn trials(template: &str, choice: Choice) -> Result<Vec<Trial>> {
    let read = Template::read(template)?;
    match choice {
        Choice::Grid => read.grid(),
        Choice::Random { count, seed } => Ok(read.random(count, seed)),
    }
}

impl Template {
    fn read(template: &str) -> Result<Template> {
        let (mut texts, mut slots) = (vec![String::new()], Vec::<Slot>::new());
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            let text = &rest[..open];
            texts.last_mut().expect("it began with one").push_str(text);
            let inside = rest[open + 1..]
                .split_once('}')
                .map(|(inside, after)| (values(inside), inside, after));
            let Some((found, inside, after)) = inside else {
                return Err(Error::usage(format!("{template:?}: a {{ is not closed")));
            };
            match found? {
                Some(values) => {
                    let mut name = name_before(texts.last().expect("it began with one"));
                    while slots.iter().any(|slot| slot.name == name) {
                        name.push('\'');
                    }
                    slots.push(Slot { name, values });
                    texts.push(String::new());
                }
                // Braces around one thing are no choice: a regular expression's, say.
                None => {
                    let plain = format!("{{{inside}}}");
                    texts.last_mut().expect("it began with one").push_str(&plain);
                }
            }
            rest = after;
        }
        texts.last_mut().expect("it began with one").push_str(rest);
        Ok(Template { texts, slots })
    }

    fn trial(&self, chosen: &[String]) -> Trial {
        let mut line = self.texts[0].clone();
        for (value, text) in chosen.iter().zip(&self.texts[1..]) {
            line.push_str(value);
            line.push_str(text);
        }
        let names = self.slots.iter().map(|slot| slot.name.clone());
        Trial {
            line: line.trim().to_owned(),
            settings: names.zip(chosen.iter().cloned()).collect(),
        }
    }

    fn grid(&self) -> Result<Vec<Trial>> {
        let mut all: Vec<Vec<String>> = vec![Vec::new()];
        for slot in &self.slots {
            let values = slot.all()?;
            if all.len().saturating_mul(values.len()) > MOST_TRIALS {
                let words = format!(
                    "more than {MOST_TRIALS} trials; draw some of them with --random COUNT"
                );
                return Err(Error::usage(words));
            }
            let longer = |chosen: &Vec<String>| {
                let with = values
                    .iter()
                    .map(|value| [chosen.as_slice(), std::slice::from_ref(value)].concat());
                with.collect::<Vec<_>>()
            };
            all = all.iter().flat_map(longer).collect();
        }
        Ok(all.iter().map(|chosen| self.trial(chosen)).collect())
    }

    /// Draws that come twice are taken once, so that there may be fewer than `count`.
    fn random(&self, count: usize, seed: u64) -> Vec<Trial> {
        let mut rng = Rng::new(seed);
        let mut all: Vec<Trial> = Vec::new();
        for _ in 0..count.min(MOST_TRIALS) {
            let chosen: Vec<String> = self.slots.iter().map(|slot| slot.draw(&mut rng)).collect();
            let trial = self.trial(&chosen);
            if !all.contains(&trial) {
                all.push(trial);
            }
        }
        all
    }
}

impl Slot {
    fn all(&self) -> Result<Vec<String>> {
        match &self.values {
            Values::List(values) => Ok(values.clone()),
            Values::Whole(from, to) if to.saturating_sub(*from) < MOST_VALUES => {
                Ok((*from..=*to).map(|value| value.to_string()).collect())
            }
            _ => Err(Error::usage(format!(
                "{}: a range has too many values for a grid; draw some with --random COUNT, or list them",
                self.name
            ))),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "an index below the length")]
    #[expect(clippy::cast_sign_loss, reason = "uniform draws are not negative")]
    #[expect(clippy::cast_precision_loss, reason = "lists and ranges are short")]
    fn draw(&self, rng: &mut Rng) -> String {
        let below = |count: f64, rng: &mut Rng| (rng.uniform() * count).floor();
        match &self.values {
            Values::List(values) => values[below(values.len() as f64, rng) as usize].clone(),
            Values::Whole(from, to) => {
                (from + below((to - from) as f64 + 1.0, rng) as i64).min(*to).to_string()
            }
            Values::Real { from, to, log: false } => short(from + (to - from) * rng.uniform()),
            Values::Real { from, to, log: true } => {
                short((from.ln() + (to.ln() - from.ln()) * rng.uniform()).exp())
            }
        }
    }
}

/// Four digits are enough of a setting, and can be typed again.
fn short(value: f64) -> String {
    format!("{value:.3e}").parse::<f64>().map_or_else(|_| value.to_string(), |v| v.to_string())
}

/// `a,b,c`, `1..8`, `1e-5..1e-2` or `log 1e-5..1e-2`; `None` for anything without a comma or a range.
fn values(inside: &str) -> Result<Option<Values>> {
    let (log, range) = match inside.strip_prefix("log ") {
        Some(range) => (true, range),
        None => (false, inside),
    };
    if let Some((from, to)) = range.split_once("..") {
        let (from, to) = (from.trim(), to.trim());
        if let (false, Ok(from), Ok(to)) = (log, from.parse::<i64>(), to.parse::<i64>())
            && from <= to
        {
            return Ok(Some(Values::Whole(from, to)));
        }
        if let (Ok(from), Ok(to)) = (from.parse::<f64>(), to.parse::<f64>())
            && from < to
            && from.is_finite()
            && to.is_finite()
            && (!log || from > 0.0)
        {
            return Ok(Some(Values::Real { from, to, log }));
        }
        let next = "wanted {2..8}, {0.1..0.9} or {log 1e-5..1e-2}, the smaller end first";
        return Err(Error::usage(format!("{{{inside}}} is no range of numbers; {next}")));
    }
    if !inside.contains(',') {
        return Ok(None);
    }
    Ok(Some(Values::List(inside.split(',').map(|value| value.trim().to_owned()).collect())))
}

/// The flag before a slot (`--group-size {` or `--group-size={`), else the command's word, else `setting`.
fn name_before(text: &str) -> String {
    let text = text.trim_end().trim_end_matches('=');
    let last = text.rsplit([' ', '|', ';']).next().unwrap_or_default();
    let name = last.trim_start_matches('-').trim_matches(['"', '\'']);
    if name.is_empty() { "setting".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(template: &str) -> Vec<String> {
        match trials(template, Choice::Grid) {
            Ok(trials) => trials.into_iter().map(|trial| trial.line).collect(),
            Err(error) => vec![format!("! {error}")],
        }
    }

    #[test]
    fn grids_hold_every_combination() {
        let cases: [(&str, &[&str]); 8] = [
            ("a", &["a"]),
            ("a {1,2} b", &["a 1 b", "a 2 b"]),
            ("{x,y} --n={1..2}", &["x --n=1", "x --n=2", "y --n=1", "y --n=2"]),
            ("f --filter 'a{3}' {1, 2}", &["f --filter 'a{3}' 1", "f --filter 'a{3}' 2"]),
            ("a {,--fast}", &["a", "a --fast"]),
            ("{-1..1}", &["-1", "0", "1"]),
            ("a {1,2", &["! \"a {1,2\": a { is not closed"]),
            (
                "a {2..1}",
                &[
                    "! {2..1} is no range of numbers; wanted {2..8}, {0.1..0.9} or {log 1e-5..1e-2}, the smaller end first",
                ],
            ),
        ];
        for (template, wanted) in cases {
            assert_eq!(lines(template), wanted, "{template}");
        }
        assert!(lines("--lr {0.1..0.2}")[0].starts_with("! lr: a range has too many values"));
        assert!(lines("{1..1000} {1..1000}")[0].contains("more than 100000 trials"));
        assert!(lines(&format!("{{0..{}}}", i64::MAX))[0].contains("too many values"));
    }

    #[test]
    fn settings_are_named_after_their_flags() {
        let trial =
            &trials("q {a,b} --n {1,2} | e --n={3,4} | {x,y}", Choice::Grid).expect("trials")[0];
        let names: Vec<&str> = trial.settings.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["q", "n", "n'", "setting"]);
    }

    #[test]
    fn random_draws_repeat_and_stay_within() {
        let template = "t --lr {log 1e-5..1e-2} --p {0.1..0.9} --n {2..4} {a,b}";
        let draw = |seed| trials(template, Choice::Random { count: 50, seed }).expect("trials");
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let all = draw(3);
        assert_eq!(all.len(), 50, "real numbers hardly repeat");
        let mut small = 0;
        for trial in &all {
            let number = |at: usize| trial.settings[at].1.parse::<f64>().expect("a number");
            assert!((1e-5..=1e-2).contains(&number(0)) && (0.1..=0.9).contains(&number(1)));
            assert!([2.0, 3.0, 4.0].iter().any(|n| (n - number(2)).abs() < 0.1));
            small += usize::from(number(0) < 1e-3);
        }
        assert!((20..45).contains(&small), "two of three decades: {small} of 50");
        // A choice of two has two trials, however often it is drawn.
        assert_eq!(
            trials("{a,b}", Choice::Random { count: 50, seed: 0 }).expect("trials").len(),
            2
        );
    }
}
