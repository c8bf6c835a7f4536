//! Operations on each element, with a row vector broadcast where one is given, and dropout.

use super::float::Float;
use super::{Tape, Var, check_shape};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::real::Real;
use crate::rng::Rng;
use crate::tensor::{DType, Tensor};

/// A function of one number, of which the derivative is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// `c · x`
    Scale(f64),
    /// `x + c`
    Shift(f64),
    /// eˣ
    Exp,
    /// ln x
    Ln,
    /// √x
    Sqrt,
    /// x²
    Square,
    /// |x|, with slope 0 at 0.
    Abs,
    /// tanh x
    Tanh,
}

impl Function {
    /// f(x) and f′(x).
    fn at<T: Real>(self, x: T) -> (T, T) {
        let one = T::of(1.0);
        match self {
            Function::Scale(c) => (x * T::of(c), T::of(c)),
            Function::Shift(c) => (x + T::of(c), one),
            Function::Exp => (x.exp(), x.exp()),
            Function::Ln => (x.ln(), one / x),
            Function::Sqrt => (x.sqrt(), T::of(0.5) / x.sqrt()),
            Function::Square => (x * x, x + x),
            Function::Abs if x < T::default() => (-x, -one),
            Function::Abs if x > T::default() => (x, one),
            Function::Abs => (x, T::default()),
            Function::Tanh => {
                let y = T::of(x.wide().tanh());
                (y, one - y * y)
            }
        }
    }
}

/// What two numbers become.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pair {
    Add,
    Sub,
    Mul,
    Div,
}

impl Pair {
    fn at<T: Real>(self, a: T, b: T) -> T {
        match self {
            Pair::Add => a + b,
            Pair::Sub => a - b,
            Pair::Mul => a * b,
            Pair::Div => a / b,
        }
    }

    /// The derivatives for a and b, times `dy`.
    fn back<T: Real>(self, a: T, b: T, dy: T) -> (T, T) {
        match self {
            Pair::Add => (dy, dy),
            Pair::Sub => (dy, -dy),
            Pair::Mul => (dy * b, dy * a),
            Pair::Div => (dy / b, -(dy * a / (b * b))),
        }
    }
}

impl Tape {
    /// `a + b`; b may be a row `[n]` that is added to every row of a.
    pub fn add(&self, a: &Var, b: &Var) -> Result<Var> {
        self.pair("add", Pair::Add, a, b)
    }

    /// `a − b`; b may be a row.
    pub fn sub(&self, a: &Var, b: &Var) -> Result<Var> {
        self.pair("sub", Pair::Sub, a, b)
    }

    /// `a · b`, number by number; b may be a row.
    pub fn mul(&self, a: &Var, b: &Var) -> Result<Var> {
        self.pair("mul", Pair::Mul, a, b)
    }

    /// `a / b`, number by number; b may be a row.
    pub fn div(&self, a: &Var, b: &Var) -> Result<Var> {
        self.pair("div", Pair::Div, a, b)
    }

    /// `f(x)`, number by number.
    pub fn map(&self, function: Function, x: &Var) -> Result<Var> {
        let is_f64 = self.is_f64("map", &[x])?;
        let (forward, backward) = if is_f64 {
            (map::<f64> as Map, map_back::<f64> as MapBack)
        } else {
            (map::<f32> as Map, map_back::<f32> as MapBack)
        };
        let y = forward(function, &x.value)?;
        let kept = x.value.clone();
        self.custom("map", &[x], y, move |_, dy| Ok(vec![Some(backward(function, &kept, &dy)?)]))
    }

    /// Sets each number to 0 with probability `rate` and divides the others by `1 − rate`. The same seed drops the same.
    pub fn dropout(&self, x: &Var, rate: f64, seed: u64) -> Result<Var> {
        if !(0.0..1.0).contains(&rate) {
            return Err(Error::invalid(format!("dropout rate {rate}; wanted 0 ≤ rate < 1")));
        }
        let mut rng = Rng::new(seed);
        let keep = 1.0 / (1.0 - rate);
        let mut draw = || if rng.uniform() < rate { 0.0 } else { keep };
        let mask: Vec<f64> = (0..x.value.numel()).map(|_| draw()).collect();
        let mask = Tensor::new(mask, x.shape())?.to_dtype(x.value.dtype())?;
        self.mul(x, &self.constant(mask))
    }

    fn pair(&self, name: &'static str, pair: Pair, a: &Var, b: &Var) -> Result<Var> {
        let is_row = b.shape().len() == 1 && a.shape().last() == b.shape().last();
        if !is_row {
            check_shape(name, &a.value, &b.value)?;
        }
        let is_f64 = self.is_f64(name, &[a, b])?;
        let (forward, backward) = if is_f64 {
            (pair_of::<f64> as PairOf, pair_back::<f64> as PairBack)
        } else {
            (pair_of::<f32> as PairOf, pair_back::<f32> as PairBack)
        };
        let y = forward(&self.cpu, pair, &a.value, &b.value)?;
        // A sum needs no more than the gradient's own numbers.
        if pair == Pair::Add && a.shape() == b.shape() {
            return self.custom(name, &[a, b], y, |_, dy| Ok(vec![Some(dy.clone()), Some(dy)]));
        }
        let (a_value, b_value) = (a.value.clone(), b.value.clone());
        self.custom(name, &[a, b], y, move |up, dy| {
            let (da, db) = backward(up.cpu, pair, [&a_value, &b_value, &dy], up.needs)?;
            Ok(vec![da, db])
        })
    }
}

type Map = fn(Function, &Tensor) -> Result<Tensor>;
type MapBack = fn(Function, &Tensor, &Tensor) -> Result<Tensor>;
type PairOf = fn(&Cpu, Pair, &Tensor, &Tensor) -> Result<Tensor>;
type PairBack = fn(&Cpu, Pair, [&Tensor; 3], &[bool]) -> Result<(Option<Tensor>, Option<Tensor>)>;

fn map<T: Float>(function: Function, x: &Tensor) -> Result<Tensor> {
    let y = x.as_slice::<T>()?.iter().map(|x| function.at(*x).0).collect();
    Tensor::new(y, x.shape())
}

fn map_back<T: Float>(function: Function, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let pairs = x.as_slice::<T>()?.iter().zip(dy.as_slice::<T>()?);
    Tensor::new(pairs.map(|(x, dy)| function.at(*x).1 * *dy).collect(), x.shape())
}

/// Numbers that a thread takes at a time.
const SHARE: usize = 1 << 16;

fn pair_of<T: Float>(cpu: &Cpu, pair: Pair, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (x, z) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    if x.len() != z.len() {
        let y = x.chunks_exact(z.len().max(1));
        let y = y.flat_map(|row| row.iter().zip(z).map(|(a, b)| pair.at(*a, *b)));
        return Tensor::new(y.collect(), a.shape());
    }
    let mut y = T::room(cpu, x.len());
    cpu.threads().chunks_mut(&mut y, SHARE, |part, y| {
        let range = part * SHARE..part * SHARE + y.len();
        for ((y, a), b) in y.iter_mut().zip(&x[range.clone()]).zip(&z[range]) {
            *y = pair.at(*a, *b);
        }
    });
    T::tensor(y, a.shape())
}

fn pair_back<T: Float>(
    cpu: &Cpu,
    pair: Pair,
    [a, b, dy]: [&Tensor; 3],
    needs: &[bool],
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (x, z, g) = (a.as_slice::<T>()?, b.as_slice::<T>()?, dy.as_slice::<T>()?);
    if x.len() == z.len() {
        let of = |take: fn((T, T)) -> T| {
            let mut y = T::room(cpu, x.len());
            cpu.threads().chunks_mut(&mut y, SHARE, |part, y| {
                let range = part * SHARE..part * SHARE + y.len();
                let factors = x[range.clone()].iter().zip(&z[range.clone()]).zip(&g[range]);
                y.iter_mut().zip(factors).for_each(|(y, ((a, b), dy))| {
                    *y = take(pair.back(*a, *b, *dy));
                });
            });
            T::tensor(y, a.shape())
        };
        let da = needs[0].then(|| of(|both| both.0)).transpose()?;
        let db = needs[1].then(|| of(|both| both.1)).transpose()?;
        return Ok((da, db));
    }
    let n = z.len().max(1);
    let at = |i: usize| pair.back(x[i], z[i % n], g[i]);
    let da = needs[0].then(|| Tensor::new((0..x.len()).map(|i| at(i).0).collect(), a.shape()));
    let db = needs[1].then(|| {
        let mut sums = vec![T::default(); z.len()];
        (0..x.len()).for_each(|i| sums[i % n] += at(i).1);
        Tensor::new(sums, b.shape())
    });
    Ok((da.transpose()?, db.transpose()?))
}

/// `a + b` of one shape and dtype, in a's memory where nobody else holds it.
pub(crate) fn sum_of_two(cpu: &Cpu, a: Tensor, b: &Tensor) -> Result<Tensor> {
    check_shape("gradient", &a, b)?;
    match a.dtype() {
        DType::F64 => add_into::<f64>(cpu, a, b),
        _ => add_into::<f32>(cpu, a, b),
    }
}

fn add_into<T: Float>(cpu: &Cpu, a: Tensor, b: &Tensor) -> Result<Tensor> {
    let b = b.as_slice::<T>()?;
    a.changed::<T>(|sum| {
        cpu.threads().chunks_mut(sum, SHARE, |part, sum| {
            sum.iter_mut().zip(&b[part * SHARE..]).for_each(|(sum, b)| *sum += *b);
        });
    })
}
