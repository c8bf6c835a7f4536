//! The tensors of nested containers, by the names of their places: `{"model": {"w": t}}` holds `model.w`.

use super::object::{Id, Object, Objects, Stored};
use super::pickle::Pickle;

/// What lies at one place.
#[derive(Clone, Debug)]
pub(super) enum Leaf {
    Tensor(Stored),
    /// A number, a text, a flag: as it is shown.
    Scalar {
        kind: &'static str,
        shown: String,
    },
}

/// Containers in containers, deeper than any state dict.
const MAX_DEPTH: usize = 64;
/// Places that are named, of all: sharing lets a small file have very many.
const MAX_PLACES: usize = 1 << 20;
/// Bytes of all names together.
const MAX_NAMES: usize = 64 << 20;
/// So much of a text is shown.
const SHOWN: usize = 60;

/// Every leaf below the root, in the file's order. A tensor alone is called `tensor`.
pub(super) fn leaves(pickle: &Pickle) -> Result<Vec<(String, Leaf)>, String> {
    let mut walk = Walk { objects: &pickle.objects, leaves: Vec::new(), places: 0, names: 0 };
    walk.visit(String::new(), pickle.root, 0)?;
    Ok(walk.leaves)
}

struct Walk<'a> {
    objects: &'a Objects,
    leaves: Vec<(String, Leaf)>,
    places: usize,
    names: usize,
}

impl Walk<'_> {
    fn visit(&mut self, name: String, id: Id, depth: usize) -> Result<(), String> {
        self.places += 1;
        self.names += name.len();
        if depth > MAX_DEPTH {
            return Err(format!(
                "its containers are nested deeper than {MAX_DEPTH}, or hold themselves"
            ));
        }
        if self.places > MAX_PLACES || self.names > MAX_NAMES {
            return Err(format!("it names more than {MAX_PLACES} objects: no state dict does"));
        }
        let objects = self.objects;
        match objects.get(id) {
            Object::Dict(pairs) => {
                for (key, value) in pairs {
                    let key = match objects.get(*key) {
                        Object::Text(text) => text.clone(),
                        Object::Int(number) => number.to_string(),
                        _ => {
                            return Err(
                                "a dict has a key that is neither a text nor a number".into()
                            );
                        }
                    };
                    self.visit(joined(&name, &key), *value, depth + 1)?;
                }
            }
            Object::List(items) | Object::Tuple(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.visit(joined(&name, &i.to_string()), *item, depth + 1)?;
                }
            }
            Object::Tensor(tensor) => {
                let name = if name.is_empty() { "tensor".to_owned() } else { name };
                self.leaves.push((name, Leaf::Tensor((**tensor).clone())));
            }
            other => {
                if let Some((kind, shown)) = scalar(other) {
                    self.leaves.push((name, Leaf::Scalar { kind, shown }));
                }
            }
        }
        Ok(())
    }
}

fn joined(name: &str, key: &str) -> String {
    if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") }
}

fn scalar(object: &Object) -> Option<(&'static str, String)> {
    Some(match object {
        Object::Bool(value) => ("bool", value.to_string()),
        Object::Int(value) => ("int", value.to_string()),
        Object::Float(value) => ("float", value.to_string()),
        Object::Text(text) => ("str", text.chars().take(SHOWN).collect()),
        Object::Class(super::object::Class::DType(ty)) => ("dtype", ty.name().to_owned()),
        _ => return None,
    })
}
