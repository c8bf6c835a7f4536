//! Weights of experts: one tensor `(E, N, K)`, each expert quantized for itself, as torchao's int4, float8 and MX tensors of three
//! dimensions are.
//!
//! Scales never cross experts, so every recipe of a matrix is one of experts. The models of this program have no experts; the
//! library quantizes, keeps, reads and multiplies their weights.

use std::sync::Arc;

use serde_json::Value as Json;

use super::Recipe;
use super::stored::read_weight;
use crate::error::{Context as _, Error, Result};
use crate::kernels::Cpu;
use crate::model::{DenseWeight, Weight};
use crate::tensor::{DType, Element, Tensor};

/// The quantized weights `(E, N, K)` of one layer's experts.
#[derive(Clone, Debug)]
pub struct ExpertWeights {
    experts: Vec<Arc<dyn Weight>>,
}

impl ExpertWeights {
    /// Quantizes each expert of `weights (E, N, K)` by `recipe`, which must not need inputs.
    pub fn quantize(cpu: &Cpu, recipe: &dyn Recipe, weights: &Tensor) -> Result<ExpertWeights> {
        let [_, n, k] = shape3(weights.shape())?;
        recipe.check((n, k))?;
        let quantize = |(i, expert): (usize, Tensor)| {
            recipe.quantize(cpu, &DenseWeight::new(expert)?).within(format!("expert {i}"))
        };
        let experts = split(weights)?.into_iter().enumerate().map(quantize);
        ExpertWeights::of(experts.collect::<Result<Vec<_>>>()?)
    }

    /// Experts of one shape and one format.
    pub fn of(experts: Vec<Arc<dyn Weight>>) -> Result<ExpertWeights> {
        let first = experts.first().ok_or_else(|| Error::invalid("there are no experts"))?;
        let (shape, meta) = (first.shape(), first.meta());
        let other = |expert: &&Arc<dyn Weight>| expert.shape() != shape || expert.meta() != meta;
        if let Some(other) = experts.iter().find(other) {
            return Err(Error::invalid(format!(
                "experts are {} {shape:?} and {} {:?}; wanted one shape and one format",
                first.workflow(),
                other.workflow(),
                other.shape()
            )));
        }
        Ok(ExpertWeights { experts })
    }

    /// `(E, N, K)`
    pub fn shape(&self) -> [usize; 3] {
        let (n, k) = self.experts[0].shape();
        [self.experts.len(), n, k]
    }

    /// The weight of each expert.
    pub fn experts(&self) -> &[Arc<dyn Weight>] {
        &self.experts
    }

    /// The bytes of everything that is kept in memory.
    pub fn nbytes(&self) -> usize {
        self.experts.iter().map(|expert| expert.nbytes()).sum()
    }

    /// The numbers that are kept, f32 `(E, N, K)`.
    pub fn dequantize(&self) -> Result<Tensor> {
        let all = self.experts.iter().map(|expert| expert.dequantize());
        stack(&all.collect::<Result<Vec<_>>>()?)
    }

    /// What a file keeps: the tensors of a weight, each with the experts as its first dimension.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let all: Vec<_> = self.experts.iter().map(|expert| expert.tensors()).collect();
        let named = all[0].iter().enumerate().map(|(i, (name, _))| {
            let parts: Vec<Tensor> = all.iter().map(|parts| parts[i].1.clone()).collect();
            Ok((name.clone(), stack(&parts).within(name)?))
        });
        named.collect()
    }

    /// The format of every expert, as [`Weight::meta`] has it.
    pub fn meta(&self) -> Json {
        self.experts[0].meta()
    }

    /// The experts whose [`ExpertWeights::meta`] and [`ExpertWeights::tensors`] these are.
    pub fn read(
        meta: &Json,
        tensors: &[(String, Tensor)],
        [e, n, k]: [usize; 3],
    ) -> Result<ExpertWeights> {
        let mut all: Vec<Vec<(String, Tensor)>> = vec![Vec::new(); e];
        for (name, tensor) in tensors {
            if tensor.shape().first() != Some(&e) {
                return Err(Error::invalid(format!(
                    "{name} is {:?}; wanted {e} experts first",
                    tensor.shape()
                )));
            }
            for (expert, part) in all.iter_mut().zip(split(tensor)?) {
                expert.push((name.clone(), part));
            }
        }
        let read = |(i, tensors): (usize, Vec<(String, Tensor)>)| {
            read_weight(meta, tensors, (n, k)).within(format!("expert {i}"))
        };
        let experts = all.into_iter().enumerate().map(read);
        ExpertWeights::of(experts.collect::<Result<Vec<_>>>()?)
    }

    /// `y = x · W[e]ᵀ` for the tokens of each expert: `x (M, K)` has `tokens[0]` rows for the first, then those for the second,
    /// and so on. `y (M, N)`.
    pub fn linear(&self, cpu: &Cpu, x: &[f32], tokens: &[usize], y: &mut [f32]) -> Result<()> {
        let [e, n, k] = self.shape();
        let m: usize = tokens.iter().sum();
        if tokens.len() != e || x.len() != m * k || y.len() != m * n {
            return Err(Error::invalid(format!(
                "{} counts of {m} tokens, x of {} and y of {} numbers; wanted {e} counts, M × {k} and M × {n}",
                tokens.len(),
                x.len(),
                y.len()
            )));
        }
        let (mut x, mut y) = (x, y);
        for (expert, m) in self.experts.iter().zip(tokens) {
            let (own, rest) = x.split_at(m * k);
            let (out, behind) = y.split_at_mut(m * n);
            if *m > 0 {
                expert.linear(cpu, own, *m, out)?;
            }
            (x, y) = (rest, behind);
        }
        Ok(())
    }
}

fn shape3(shape: &[usize]) -> Result<[usize; 3]> {
    <[usize; 3]>::try_from(shape).ok().filter(|shape| shape[0] > 0).ok_or_else(|| {
        Error::invalid(format!("experts are {shape:?}; wanted (E, N, K) with one expert or more"))
    })
}

/// The parts of a tensor along its first dimension.
fn split(tensor: &Tensor) -> Result<Vec<Tensor>> {
    let of: fn(&Tensor) -> Result<Vec<Tensor>> = match tensor.dtype() {
        DType::F64 => parts::<f64>,
        DType::F32 => parts::<f32>,
        DType::F16 => parts::<half::f16>,
        DType::BF16 => parts::<half::bf16>,
        DType::I64 => parts::<i64>,
        DType::I32 => parts::<i32>,
        DType::I16 => parts::<i16>,
        DType::I8 => parts::<i8>,
        DType::U8 => parts::<u8>,
    };
    of(tensor)
}

fn parts<T: Element>(tensor: &Tensor) -> Result<Vec<Tensor>> {
    let Some((count, shape)) = tensor.shape().split_first() else {
        return Err(Error::invalid("a number alone has no experts"));
    };
    let size: usize = shape.iter().product();
    let values = tensor.as_slice::<T>()?;
    (0..*count).map(|i| Tensor::new(values[i * size..][..size].to_vec(), shape)).collect()
}

/// Tensors of one shape and dtype as one, behind a new first dimension.
fn stack(all: &[Tensor]) -> Result<Tensor> {
    let first = all.first().ok_or_else(|| Error::invalid("there are no experts"))?;
    if let Some(other) =
        all.iter().find(|t| t.shape() != first.shape() || t.dtype() != first.dtype())
    {
        return Err(Error::invalid(format!(
            "experts' tensors are {:?} and {:?}",
            first.shape(),
            other.shape()
        )));
    }
    let of: fn(&[Tensor]) -> Result<Tensor> = match first.dtype() {
        DType::F64 => joined::<f64>,
        DType::F32 => joined::<f32>,
        DType::F16 => joined::<half::f16>,
        DType::BF16 => joined::<half::bf16>,
        DType::I64 => joined::<i64>,
        DType::I32 => joined::<i32>,
        DType::I16 => joined::<i16>,
        DType::I8 => joined::<i8>,
        DType::U8 => joined::<u8>,
    };
    of(all)
}

fn joined<T: Element>(all: &[Tensor]) -> Result<Tensor> {
    let mut values = Vec::new();
    for tensor in all {
        values.extend_from_slice(tensor.as_slice::<T>()?);
    }
    let shape = [&[all.len()], all[0].shape()].concat();
    Tensor::new(values, &shape)
}
