//! Rotary positions and causal attention.

use std::sync::Arc;

use super::float::Float;
use super::{Tape, Upstream, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::attention_training::{self, Forward, Gradients, SequenceShape};
use crate::kernels::rope::{self, RopeShape};
use crate::tensor::Tensor;

/// The shape of sequences that attend to themselves.
pub type Sequences = SequenceShape;

/// The rotary tables of `batch` sequences that begin at position 0. Clones share them.
#[derive(Clone, Debug)]
pub struct Positions {
    /// cos, sin, −sin; `(batch · tokens, pairs)` each.
    tables: Arc<[Vec<f32>; 3]>,
    rows: usize,
}

impl Positions {
    /// The tables of positions `0..tokens`, `batch` times.
    pub fn new(inv_freq: &[f64], batch: usize, tokens: usize) -> Positions {
        let (cos, sin) = rope::tables(inv_freq, 0..tokens, 1.0);
        let back = sin.iter().map(|sin| -sin).collect::<Vec<f32>>();
        let tables = [cos, sin, back].map(|table| table.repeat(batch));
        Positions { tables: Arc::new(tables), rows: batch * tokens }
    }
}

impl Tape {
    /// Turns the heads of `x (batch · tokens, heads · head_dim)` by their positions.
    pub fn rope(&self, x: &Var, positions: &Positions, heads: usize) -> Result<Var> {
        let (m, columns) = x.value.dims2()?;
        let shape = RopeShape { m, heads, head_dim: columns.checked_div(heads).unwrap_or(0) };
        let pairs = positions.tables[0].len().checked_div(positions.rows).unwrap_or(0);
        if m != positions.rows || shape.head_dim * heads != columns || 2 * pairs > shape.head_dim {
            return Err(Error::invalid(format!(
                "rope: {:?} is not {} positions of {heads} heads of {} numbers or more",
                x.shape(),
                positions.rows,
                2 * pairs
            )));
        }
        let is_f64 = self.is_f64("rope", &[x])?;
        let turn = if is_f64 { turn::<f64> } else { turn::<f32> };
        let y = turn(&self.cpu, &x.value, shape, positions, false)?;
        let positions = positions.clone();
        self.custom("rope", &[x], y, move |up, dy| {
            // A rotation's gradient turns back.
            Ok(vec![Some(turn(up.cpu, &dy, shape, &positions, true)?)])
        })
    }

    /// Causal attention of q `(batch · M, heads · head_dim)` over k and v `(batch · M, kv_heads · head_dim)`.
    pub fn attention(&self, q: &Var, k: &Var, v: &Var, shape: &Sequences) -> Result<Var> {
        let rows = shape.batch * shape.m;
        let wanted = [rows, shape.heads * shape.head_dim];
        let wanted_kv = [rows, shape.kv_heads * shape.head_dim];
        let divides = shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads);
        if q.shape() != wanted || k.shape() != wanted_kv || v.shape() != wanted_kv || !divides {
            return Err(Error::invalid(format!(
                "attention: q {:?}, k {:?}, v {:?}; wanted {wanted:?} and twice {wanted_kv:?}",
                q.shape(),
                k.shape(),
                v.shape()
            )));
        }
        if shape.window == Some(0) {
            return Err(Error::invalid("attention: a window of 0 shows nothing; wanted 1 or more"));
        }
        let is_f64 = self.is_f64("attention", &[q, k, v])?;
        let (forward, backward) = if is_f64 {
            (forward::<f64> as Ahead, backward::<f64> as Back)
        } else {
            (forward::<f32> as Ahead, backward::<f32> as Back)
        };
        let inputs = [q, k, v].map(|var| var.value.clone());
        let shape = *shape;
        let [out, lse] = forward(&self.cpu, &shape, &inputs)?;
        let result = out.clone();
        self.custom("attention", &[q, k, v], result, move |up, dout| {
            backward(up, &shape, &inputs, &[out, lse, dout])
        })
    }
}

type Ahead = fn(&Cpu, &Sequences, &[Tensor; 3]) -> Result<[Tensor; 2]>;
type Back =
    fn(&Upstream<'_>, &Sequences, &[Tensor; 3], &[Tensor; 3]) -> Result<Vec<Option<Tensor>>>;

fn turn<T: Float>(
    cpu: &Cpu,
    x: &Tensor,
    shape: RopeShape,
    positions: &Positions,
    back: bool,
) -> Result<Tensor> {
    let mut turned = T::room(cpu, x.numel());
    turned.copy_from_slice(x.as_slice::<T>()?);
    let [cos, sin, minus] = &*positions.tables;
    T::rotate(cpu, &mut turned, shape, [cos, if back { minus } else { sin }]);
    T::tensor(turned, x.shape())
}

fn forward<T: Float>(cpu: &Cpu, shape: &Sequences, [q, k, v]: &[Tensor; 3]) -> Result<[Tensor; 2]> {
    let mut out = T::room(cpu, q.numel());
    let mut lse = vec![T::default(); shape.batch * shape.heads * shape.m];
    let inputs = [q.as_slice()?, k.as_slice()?, v.as_slice()?];
    attention_training::forward(cpu, shape, inputs, &mut out, &mut lse);
    let lse_shape = [shape.batch, shape.heads, shape.m];
    Ok([T::tensor(out, q.shape())?, Tensor::new(lse, &lse_shape)?])
}

fn backward<T: Float>(
    up: &Upstream<'_>,
    shape: &Sequences,
    [q, k, v]: &[Tensor; 3],
    [out, lse, dout]: &[Tensor; 3],
) -> Result<Vec<Option<Tensor>>> {
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| T::room(up.cpu, x.numel()));
    let of = Forward {
        q: q.as_slice()?,
        k: k.as_slice()?,
        v: v.as_slice()?,
        out: out.as_slice()?,
        lse: lse.as_slice()?,
    };
    let mut to = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    attention_training::backward(up.cpu, shape, &of, dout.as_slice::<T>()?, &mut to);
    [(dq, q), (dk, k), (dv, v)]
        .into_iter()
        .map(|(gradient, x)| T::tensor(gradient, x.shape()).map(Some))
        .collect()
}
