//! Reverse-mode differentiation: a [`Tape`] records operations on tensors and walks back over them.
//!
//! A [`Var`] is a tensor that the tape knows. Operations are methods of the tape, in f32 on the kernels and in f64 in
//! plain loops, so that any gradient can be checked by central differences. An operation of one's own, with its own
//! backward pass, is [`Tape::custom`]; low-precision training is made of those.
//!
//! ```
//! # fn main() -> aolab::Result<()> {
//! use aolab::{Tensor, autograd::Tape, kernels::Cpu};
//! let tape = Tape::new(&Cpu::new(None));
//! let x = tape.leaf(Tensor::new(vec![3.0_f32], &[1])?);
//! let y = tape.mul(&x, &x)?;
//! let gradients = tape.backward(&y)?;
//! assert_eq!(gradients.of(&x).map(|g| g.to_f32_vec()), Some(vec![6.0]));
//! # Ok(()) }
//! ```
//!
//! Gradients are summed in the order of the tape, reductions in fixed blocks: the same inputs give the same bytes on
//! any number of threads.

mod activation;
mod attention;
mod checkpoint;
mod elementwise;
mod embedding;
mod float;
mod linear;
mod loss;
mod norm;
mod reduce;
mod rows;
mod shape;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;

pub use attention::{Positions, Sequences};
pub use elementwise::Function;
pub(crate) use elementwise::sum_of_two;

use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::matmul::Precision;
use crate::tensor::{DType, Tensor};

/// A tensor on a tape. Clones share it.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    place: Option<Place>,
}

/// Where a variable stands on its tape; constants have no place.
#[derive(Clone, Debug)]
struct Place {
    tape: Arc<()>,
    index: usize,
}

impl Var {
    /// The numbers.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The length of each dimension.
    pub fn shape(&self) -> &[usize] {
        self.value.shape()
    }

    /// Whether a gradient flows to it.
    pub fn needs_gradient(&self) -> bool {
        self.place.is_some()
    }

    /// The same numbers, to which no gradient flows.
    #[must_use]
    pub fn detached(&self) -> Var {
        Var { value: self.value.clone(), place: None }
    }
}

/// What a backward pass is told.
#[derive(Debug)]
pub struct Upstream<'a> {
    /// The processor that kernels run on.
    pub cpu: &'a Cpu,
    /// How matmuls round their factors.
    pub precision: Precision,
    /// For each input of the operation, whether its gradient is wanted.
    pub needs: &'a [bool],
}

/// An operation's backward pass: from the gradient of its result to those of its inputs, `None` where none is wanted.
pub type Backward = Box<dyn FnOnce(&Upstream<'_>, Tensor) -> Result<Vec<Option<Tensor>>>>;

struct Node {
    name: &'static str,
    inputs: Vec<Option<usize>>,
    /// `None` for a leaf and for an operation that was walked over already.
    backward: Option<Backward>,
    is_leaf: bool,
}

/// Records operations, and walks back over them.
pub struct Tape {
    cpu: Cpu,
    precision: Precision,
    recording: bool,
    watching: Cell<bool>,
    id: Arc<()>,
    nodes: RefCell<Vec<Node>>,
}

impl Tape {
    /// An empty tape whose operations run on `cpu`.
    pub fn new(cpu: &Cpu) -> Tape {
        Tape {
            cpu: cpu.clone(),
            precision: Precision::F32,
            recording: true,
            watching: Cell::new(false),
            id: Arc::new(()),
            nodes: RefCell::new(Vec::new()),
        }
    }

    /// A tape that computes and records nothing: for evaluation.
    pub fn no_grad(cpu: &Cpu) -> Tape {
        Tape { recording: false, ..Tape::new(cpu) }
    }

    /// The same with matmuls of linear layers in another precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Tape {
        Tape { precision, ..self }
    }

    /// The processor that operations run on.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// [`Error::Cancelled`] when somebody wants the work to end.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cpu.stopped() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// How matmuls round their factors.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Makes every operation an error whose result is not finite: finds where a NaN begins.
    pub fn watch(&self) {
        self.watching.set(true);
    }

    /// A tensor whose gradient is wanted.
    pub fn leaf(&self, value: Tensor) -> Var {
        if !self.recording {
            return self.constant(value);
        }
        let node = Node { name: "leaf", inputs: Vec::new(), backward: None, is_leaf: true };
        self.push(node, value)
    }

    /// A tensor whose gradient is not wanted.
    pub fn constant(&self, value: Tensor) -> Var {
        Var { value, place: None }
    }

    /// An operation of one's own: `value` was computed from `inputs`, and `backward` gives one gradient for each of
    /// them, of its shape and dtype.
    pub fn custom(
        &self,
        name: &'static str,
        inputs: &[&Var],
        value: Tensor,
        backward: impl FnOnce(&Upstream<'_>, Tensor) -> Result<Vec<Option<Tensor>>> + 'static,
    ) -> Result<Var> {
        if self.watching.get() {
            check_finite(name, &value)?;
        }
        let mut places = Vec::with_capacity(inputs.len());
        for input in inputs {
            places.push(self.index_of(input)?);
        }
        if !self.recording || places.iter().all(Option::is_none) {
            return Ok(self.constant(value));
        }
        let backward: Option<Backward> = Some(Box::new(backward));
        Ok(self.push(Node { name, inputs: places, backward, is_leaf: false }, value))
    }

    /// The gradients of the one number `loss` for every leaf. What the operations kept is freed on the way, so that
    /// a tape is walked once.
    pub fn backward(&self, loss: &Var) -> Result<Gradients> {
        if loss.value.numel() != 1 {
            return Err(Error::invalid(format!(
                "backward wants one number, got shape {:?}; take its mean or sum first",
                loss.shape()
            )));
        }
        let one = match loss.value.dtype() {
            DType::F64 => Tensor::new(vec![1.0_f64], loss.shape())?,
            _ => Tensor::new(vec![1.0_f32], loss.shape())?,
        };
        self.backward_from(loss, one)
    }

    /// The gradients of `Σ var · gradient` for every leaf.
    pub fn backward_from(&self, var: &Var, gradient: Tensor) -> Result<Gradients> {
        check_shape("backward", &var.value, &gradient)?;
        let mut found: Vec<Option<Tensor>> = Vec::new();
        found.resize_with(self.nodes.borrow().len(), || None);
        let Some(start) = self.index_of(var)? else {
            return Ok(Gradients { tape: Arc::clone(&self.id), found });
        };
        found[start] = Some(gradient);
        for index in (0..=start).rev() {
            if found[index].is_some() {
                self.check()?;
                self.step_back(index, &mut found)?;
            }
        }
        Ok(Gradients { tape: Arc::clone(&self.id), found })
    }

    /// Passes the gradient of node `index` on to its inputs.
    fn step_back(&self, index: usize, found: &mut [Option<Tensor>]) -> Result<()> {
        let (name, inputs, backward) = {
            let node = &mut self.nodes.borrow_mut()[index];
            if node.is_leaf {
                return Ok(());
            }
            (node.name, std::mem::take(&mut node.inputs), node.backward.take())
        };
        let (Some(backward), Some(gradient)) = (backward, found[index].take()) else {
            let words = "the tape was walked already; record the operations again";
            return Err(Error::invalid(format!("{name}: {words}")));
        };
        let needs: Vec<bool> = inputs.iter().map(Option::is_some).collect();
        let upstream = Upstream { cpu: &self.cpu, precision: self.precision, needs: &needs };
        let gradients = backward(&upstream, gradient)?;
        if gradients.len() != inputs.len() {
            let (got, wanted) = (gradients.len(), inputs.len());
            return Err(Error::invalid(format!("{name}: got {got} gradients, wanted {wanted}")));
        }
        for (input, gradient) in inputs.into_iter().zip(gradients) {
            if let (Some(input), Some(gradient)) = (input, gradient) {
                if self.watching.get() {
                    check_finite(name, &gradient)?;
                }
                found[input] = Some(match found[input].take() {
                    None => gradient,
                    Some(sum) => sum_of_two(&self.cpu, sum, &gradient)?,
                });
            }
        }
        Ok(())
    }

    fn push(&self, node: Node, value: Tensor) -> Var {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(node);
        let place = Place { tape: Arc::clone(&self.id), index: nodes.len() - 1 };
        Var { value, place: Some(place) }
    }

    fn index_of(&self, var: &Var) -> Result<Option<usize>> {
        match &var.place {
            None => Ok(None),
            Some(place) if Arc::ptr_eq(&place.tape, &self.id) => Ok(Some(place.index)),
            Some(_) => Err(Error::invalid(
                "a variable of another tape; pass its value on with `leaf` or `constant`",
            )),
        }
    }

    /// Whether the operands are f64 (else f32); they must agree.
    fn is_f64(&self, name: &str, operands: &[&Var]) -> Result<bool> {
        let mut dtypes = operands.iter().map(|var| var.value.dtype());
        let first = dtypes.next().unwrap_or(DType::F32);
        match dtypes.find(|dtype| *dtype != first) {
            Some(other) => {
                Err(Error::invalid(format!("{name}: got {first} and {other}; cast one")))
            }
            None if matches!(first, DType::F32 | DType::F64) => Ok(first == DType::F64),
            None => Err(Error::invalid(format!("{name}: got {first}; wanted f32 or f64"))),
        }
    }
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.nodes.borrow().iter().map(|node| node.name).collect();
        f.debug_struct("Tape")
            .field("recording", &self.recording)
            .field("precision", &self.precision)
            .field("operations", &names)
            .finish_non_exhaustive()
    }
}

/// What [`Tape::backward`] found.
#[derive(Debug)]
pub struct Gradients {
    tape: Arc<()>,
    found: Vec<Option<Tensor>>,
}

impl Gradients {
    /// The gradient of a leaf; `None` where nothing flowed to it.
    pub fn of(&self, leaf: &Var) -> Option<&Tensor> {
        let place = leaf.place.as_ref().filter(|place| Arc::ptr_eq(&place.tape, &self.tape))?;
        self.found.get(place.index)?.as_ref()
    }

    /// The gradient of a leaf, taken out.
    pub fn take(&mut self, leaf: &Var) -> Option<Tensor> {
        let place = leaf.place.as_ref().filter(|place| Arc::ptr_eq(&place.tape, &self.tape))?;
        self.found.get_mut(place.index)?.take()
    }
}

fn check_shape(name: &str, wanted: &Tensor, got: &Tensor) -> Result<()> {
    if (wanted.shape(), wanted.dtype()) == (got.shape(), got.dtype()) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name}: got {} {:?}, wanted {} {:?}",
        got.dtype(),
        got.shape(),
        wanted.dtype(),
        wanted.shape()
    )))
}

fn check_finite(name: &str, value: &Tensor) -> Result<()> {
    let finite = match value.dtype() {
        DType::F32 => value.as_slice::<f32>()?.iter().all(|x| x.is_finite()),
        DType::F64 => value.as_slice::<f64>()?.iter().all(|x| x.is_finite()),
        _ => true,
    };
    if finite {
        Ok(())
    } else {
        Err(Error::invalid(format!("{name} gave a number that is not finite")))
    }
}

/// The rows and the length of the last dimension.
fn rows_of(name: &str, shape: &[usize]) -> Result<(usize, usize)> {
    match shape {
        [rest @ .., last] if *last > 0 => Ok((rest.iter().product(), *last)),
        _ => Err(Error::invalid(format!("{name}: shape {shape:?} has no rows"))),
    }
}
