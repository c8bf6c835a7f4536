//! Variables and latest values, and the way back to earlier ones.

use std::sync::Arc;

use indexmap::IndexMap;

use super::Input;
use crate::value::{Kind, Value};

/// Steps that `undo` can go back. Each keeps its models in memory, shared with the present where they are equal.
const UNDO_STEPS: usize = 32;

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) variables: IndexMap<String, Value>,
    /// The latest value of each kind, the most recent last.
    latest: Vec<Value>,
    /// The files that a value was made of, by `$name` of a variable or the kind of a latest value.
    inputs: IndexMap<String, Vec<Input>>,
}

impl State {
    pub(super) fn latest(&self, kinds: &[Kind]) -> Option<&Value> {
        self.latest.iter().rev().find(|value| kinds.contains(&value.kind()))
    }

    /// The files that the value called `what` was made of.
    pub(super) fn inputs(&self, what: &str) -> &[Input] {
        self.inputs.get(what).map_or(&[], Vec::as_slice)
    }

    pub(super) fn set_inputs(&mut self, what: &str, inputs: Vec<Input>) {
        if inputs.is_empty() {
            self.inputs.shift_remove(what);
        } else {
            self.inputs.insert(what.to_owned(), inputs);
        }
    }

    pub(super) fn remember(&mut self, value: Value) {
        self.latest.retain(|old| old.kind() != value.kind());
        self.latest.push(value);
    }
}

/// A state, and the statement that led away from it.
#[derive(Clone, Debug)]
struct Step {
    statement: String,
    state: State,
}

/// The present with its past and its undone future.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    pub(super) now: State,
    past: Vec<Arc<Step>>,
    future: Vec<Arc<Step>>,
}

impl Timeline {
    /// The present alone.
    pub(super) fn present(&self) -> Timeline {
        Timeline { now: self.now.clone(), ..Timeline::default() }
    }

    /// Keeps the present as a step to come back to, before `statement` changes it.
    pub(super) fn advance(&mut self, statement: &str) {
        let step = Step { statement: statement.to_owned(), state: self.now.clone() };
        self.past.push(Arc::new(step));
        if self.past.len() > UNDO_STEPS {
            self.past.remove(0);
        }
        self.future.clear();
    }

    /// Goes back one step; gives the statement that was undone.
    pub(super) fn undo(&mut self) -> Option<String> {
        let step = Arc::unwrap_or_clone(self.past.pop()?);
        let undone = std::mem::replace(&mut self.now, step.state);
        self.future.push(Arc::new(Step { statement: step.statement.clone(), state: undone }));
        Some(step.statement)
    }

    /// Does again what was undone last; gives its statement.
    pub(super) fn redo(&mut self) -> Option<String> {
        let step = Arc::unwrap_or_clone(self.future.pop()?);
        let before = std::mem::replace(&mut self.now, step.state);
        self.past.push(Arc::new(Step { statement: step.statement.clone(), state: before }));
        Some(step.statement)
    }
}
