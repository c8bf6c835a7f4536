//! One configuration for each layer, chosen by name (A03, A04).
//!
//! A layer's fully qualified name is its module's, `model.layers.0.mlp.up_proj`; its parameter's adds `.weight`.
//! In this order: the exact parameter, the exact module, the first `re:` pattern that matches the whole name of
//! the parameter, the first that matches the whole name of the module, then `_default`. A key without
//! a configuration (`null`) leaves its layers alone.
//!
//! Unlike torchao 0.18, only the first pattern that matches is applied, a `null` for one parameter does not
//! displace another, and an exact key that names no layer is an error, because it is a typing mistake. A
//! pattern that matches no layer, or only layers that other keys decide about, is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use indexmap::IndexMap;
use regex::Regex;
use serde_json::{Map, Value as Json, json};

use super::config::{Typed, config_from_dict, unknown_field};
use super::{Choice, Recipe};
use crate::error::{Context as _, Error, Result, did_you_mean};
use crate::kernels::Cpu;
use crate::model::Weight;

/// The key that every layer without another takes.
const DEFAULT_KEY: &str = "_default";

/// One configuration for each layer, chosen by name.
#[derive(Clone, Debug, Default)]
pub struct FqnToConfig {
    entries: IndexMap<String, Option<Arc<dyn Recipe>>>,
    /// The patterns of the `re:` keys in order, with the index of their entry.
    patterns: Vec<(usize, Regex)>,
}

impl FqnToConfig {
    /// From keys in order: exact names, `re:` patterns, `_default`. `None` leaves the layer alone.
    pub fn new(
        entries: impl IntoIterator<Item = (String, Option<Arc<dyn Recipe>>)>,
    ) -> Result<FqnToConfig> {
        let entries: IndexMap<_, _> = entries.into_iter().collect();
        let mut patterns = Vec::new();
        for (index, key) in entries.keys().enumerate() {
            if let Some(pattern) = key.strip_prefix("re:") {
                let whole = Regex::new(&format!(r"\A(?:{pattern})\z"));
                let whole = whole.map_err(|error| Error::invalid(format!("{key}: {error}")))?;
                patterns.push((index, whole));
            }
        }
        Ok(FqnToConfig { entries, patterns })
    }

    /// The keys and their configurations, in order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Option<&dyn Recipe>)> {
        self.entries.iter().map(|(key, recipe)| (key.as_str(), recipe.as_deref()))
    }

    /// Whether an exact key or a pattern names the module or parameter `fqn` (A04).
    pub fn matches(&self, fqn: &str) -> bool {
        let exact = self.entries.contains_key(fqn) && fqn != DEFAULT_KEY && !fqn.starts_with("re:");
        exact || self.first_pattern(fqn).is_some()
    }

    /// The entry that decides about the linear layer `fqn`, and its key.
    fn entry(&self, fqn: &str) -> Option<(&str, Option<&dyn Recipe>)> {
        let parameter = format!("{fqn}.weight");
        let exact = |name: &str| self.entries.get_index_of(name);
        let index = exact(&parameter)
            .or_else(|| exact(fqn))
            .or_else(|| self.first_pattern(&parameter))
            .or_else(|| self.first_pattern(fqn))
            .or_else(|| exact(DEFAULT_KEY))?;
        let (key, recipe) = self.entries.get_index(index)?;
        Some((key, recipe.as_deref()))
    }

    fn first_pattern(&self, name: &str) -> Option<usize> {
        self.patterns.iter().find(|(_, whole)| whole.is_match(name)).map(|(index, _)| *index)
    }

    /// The patterns that decide about none of these layers, each with the reason in words.
    fn patterns_without_layers(&self, fqns: &[&str]) -> Vec<String> {
        let keys = |fqn: &&str| self.entry(fqn).map(|(key, _)| key.to_owned());
        let deciding: BTreeSet<String> = fqns.iter().filter_map(keys).collect();
        let mut notes = Vec::new();
        for (index, whole) in &self.patterns {
            let Some((key, _)) = self.entries.get_index(*index) else { continue };
            let matches =
                |fqn: &&str| whole.is_match(fqn) || whole.is_match(&format!("{fqn}.weight"));
            if !fqns.iter().any(matches) {
                notes.push(format!(
                    "{key} matches no linear layer (a pattern must match the whole name, as in re:.*{}.*)",
                    key.trim_start_matches("re:").trim_matches(['.', '*'])
                ));
            } else if !deciding.contains(key) {
                notes.push(format!(
                    "{key} decides nothing: an earlier key decides about each layer that it matches"
                ));
            }
        }
        notes
    }

    pub(super) fn from_typed(typed: &Typed<'_>) -> Result<FqnToConfig> {
        typed.check_version(1)?;
        let data = typed.object()?;
        let known = ["fqn_to_config", "module_fqn_to_config"];
        if let Some(key) = data.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(unknown_field(typed.name, key, &known));
        }
        let map = |key: &str| match data.get(key) {
            None => Ok(None),
            Some(Json::Object(map)) => Ok(Some(map).filter(|map| !map.is_empty())),
            Some(other) => {
                let name = typed.name;
                Err(Error::invalid(format!("{name}: {key} is {other}; wanted an object")))
            }
        };
        // torchao writes both names, the older one for older readers.
        let entries = match (map(known[0])?, map(known[1])?) {
            (Some(new), Some(old)) if new != old => {
                return Err(Error::invalid(format!(
                    "{}: fqn_to_config and module_fqn_to_config are both given and differ; give one",
                    typed.name
                )));
            }
            (Some(entries), _) | (None, Some(entries)) => entries,
            (None, None) => return Ok(FqnToConfig::default()),
        };
        let read = |(key, json): (&String, &Json)| match json {
            Json::Null => Ok((key.clone(), None)),
            json => Ok((key.clone(), Some(config_from_dict(json).within(key)?))),
        };
        FqnToConfig::new(entries.iter().map(read).collect::<Result<Vec<_>>>()?)
    }
}

impl Recipe for FqnToConfig {
    fn name(&self) -> &'static str {
        "fqn-to-config"
    }

    fn config_to_dict(&self) -> Json {
        let entry = |(key, recipe): (&String, &Option<Arc<dyn Recipe>>)| {
            (key.clone(), recipe.as_ref().map_or(Json::Null, |recipe| recipe.config_to_dict()))
        };
        let map: Map<String, Json> = self.entries.iter().map(entry).collect();
        json!({
            "_type": "FqnToConfig",
            "_version": 1,
            "_data": { "fqn_to_config": map, "module_fqn_to_config": map },
        })
    }

    fn check(&self, _shape: (usize, usize)) -> Result<()> {
        Err(Error::invalid("FqnToConfig chooses by name; ask it for a layer's configuration first"))
    }

    fn quantize(&self, _cpu: &Cpu, weight: &dyn Weight) -> Result<Arc<dyn Weight>> {
        self.check(weight.shape())?;
        Err(Error::invalid("FqnToConfig quantizes no weight itself"))
    }

    fn choose(&self, fqn: &str) -> Choice<'_> {
        match self.entry(fqn) {
            Some((_, Some(recipe))) => Choice::Other(recipe),
            Some((key, None)) => Choice::Leave(format!("{key} is null")),
            None => Choice::Leave("no key matches".to_owned()),
        }
    }

    fn check_layers(&self, fqns: &[&str]) -> Result<Vec<String>> {
        for key in self.entries.keys() {
            let module = key.strip_suffix(".weight").unwrap_or(key);
            let is_name = key != DEFAULT_KEY && !key.starts_with("re:");
            if is_name && !fqns.contains(&module) && !fqns.contains(&key.as_str()) {
                let hint = did_you_mean(module, fqns.iter().copied())
                    .map(|fqn| format!("; did you mean {fqn}?"))
                    .unwrap_or_default();
                return Err(Error::invalid(format!("{key}: no linear layer has this name{hint}")));
            }
        }
        Ok(self.patterns_without_layers(fqns))
    }
}
