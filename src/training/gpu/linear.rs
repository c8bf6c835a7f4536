//! The matmuls of linear layers in bf16, float8 and int8.

use aolab_kernels::Shape;
use aolab_kernels::cuda::linear::Output;
use aolab_kernels::cuda::training::{
    Amax, Cast, Coded, Codes, Float8, Into, Products, cast, largest, repeat, rows_product,
};
use aolab_kernels::cuda::{Buffer, CudaResult, Device};

use super::layout::Place;

/// How the matmuls of the blocks round their factors; the recipes are those of the CPU's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatmulKind {
    /// To bf16.
    Bf16,
    /// To e4m3, gradients to e5m2, one scale a tensor.
    Float8Tensorwise,
    /// To e4m3, a power of two along the dimension that is summed.
    Float8Rowwise,
    /// The same, the weight's gradient in bf16.
    Float8RowwiseWithGwHp,
    /// To int8, a scale along the dimension that is summed.
    Int8Mixed,
}

impl MatmulKind {
    /// All of them.
    pub const ALL: [MatmulKind; 5] = [
        MatmulKind::Bf16,
        MatmulKind::Float8Tensorwise,
        MatmulKind::Float8Rowwise,
        MatmulKind::Float8RowwiseWithGwHp,
        MatmulKind::Int8Mixed,
    ];

    /// What the CPU's rule of the same meaning is called.
    pub fn name(self) -> &'static str {
        match self {
            MatmulKind::Bf16 => "plain",
            MatmulKind::Float8Tensorwise => "float8 tensorwise",
            MatmulKind::Float8Rowwise => "float8 rowwise",
            MatmulKind::Float8RowwiseWithGwHp => "float8 rowwise_with_gw_hp",
            MatmulKind::Int8Mixed => "int8 mixed precision (output, grad_input, grad_weight)",
        }
    }

    /// Whether whoever writes a factor tells its largest number.
    pub(super) fn wants_amax(self) -> bool {
        self == MatmulKind::Float8Tensorwise
    }

    /// What factors are cast to.
    fn codes(self) -> Codes {
        if self == MatmulKind::Int8Mixed { Codes::Int8 } else { Codes::E4m3 }
    }
}

/// A weight's codes for the steps of one batch.
#[derive(Debug)]
pub(super) struct CodedWeight {
    /// (N, K).
    rows: Coded,
    /// (K, N).
    turned: Coded,
}

/// What the gradient of a layer needs of its input.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    Bf16(Buffer<u16>),
    /// (K, M).
    Turned(Coded),
}

/// One linear layer in one pass.
pub(super) struct Layer<'a> {
    pub(super) device: &'a Device,
    pub(super) kind: MatmulKind,
    pub(super) place: &'a Place,
    /// The weight in bf16.
    pub(super) weight: &'a Buffer<u16>,
    /// Its codes, where the kind has some.
    pub(super) coded: Option<&'a CodedWeight>,
}

/// A factor and the largest of its numbers, where that is known.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    pub(super) x: &'a Buffer<u16>,
    pub(super) amax: Option<&'a Buffer<u32>>,
}

impl<'a> From<&'a Buffer<u16>> for Factor<'a> {
    fn from(x: &'a Buffer<u16>) -> Factor<'a> {
        Factor { x, amax: None }
    }
}

fn float8(coded: &Coded, e5m2: bool) -> Float8<'_> {
    Float8 { codes: &coded.codes, scale: &coded.scale, e5m2 }
}

fn asked<T>(coded: Option<T>) -> T {
    coded.expect("it was asked for")
}

/// Casts with one scale, whose largest number may be known.
fn cast_all(
    device: &Device,
    factor: Factor<'_>,
    shape: (usize, usize),
    codes: Codes,
) -> CudaResult<[Coded; 2]> {
    let found = device.zeros::<u32>(1)?;
    let amax = match factor.amax {
        Some(amax) => amax,
        None => {
            let to = Amax { all: Some(&found), ..Amax::default() };
            largest(device, factor.x, shape, &to)?;
            &found
        }
    };
    let how = Cast { codes, power_of_two: false, rows: Some(amax), turned: Some(amax) };
    let [rows, turned] = cast(device, factor.x, shape, &how)?;
    Ok([asked(rows), asked(turned)])
}

/// Casts along rows and, if asked, along columns.
fn cast_each(
    device: &Device,
    x: &Buffer<u16>,
    (m, k): (usize, usize),
    codes: Codes,
    turned: bool,
) -> CudaResult<(Coded, Option<Coded>)> {
    let rows = device.zeros::<u32>(m)?;
    let columns = if turned { Some(device.zeros::<u32>(k)?) } else { None };
    let to = Amax { all: None, rows: Some(&rows), columns: columns.as_ref() };
    largest(device, x, (m, k), &to)?;
    let how = Cast { codes, power_of_two: true, rows: Some(&rows), turned: columns.as_ref() };
    let [rows, turned] = cast(device, x, (m, k), &how)?;
    Ok((asked(rows), turned))
}

impl CodedWeight {
    /// The codes of a weight (N, K); `None` in bf16.
    pub(super) fn of(
        device: &Device,
        kind: MatmulKind,
        weight: &Buffer<u16>,
        place: &Place,
    ) -> CudaResult<Option<CodedWeight>> {
        let shape = (place.rows, place.columns);
        Ok(Some(match kind {
            MatmulKind::Bf16 => return Ok(None),
            MatmulKind::Float8Tensorwise => {
                let [rows, turned] = cast_all(device, weight.into(), shape, Codes::E4m3)?;
                CodedWeight { rows, turned }
            }
            MatmulKind::Float8Rowwise | MatmulKind::Int8Mixed => {
                let (rows, turned) = cast_each(device, weight, shape, kind.codes(), true)?;
                CodedWeight { rows, turned: asked(turned) }
            }
            MatmulKind::Float8RowwiseWithGwHp => {
                let rows = device.zeros::<u32>(place.rows)?;
                // The largest of all for each column: one scale, told as many times as products want it.
                let all = device.zeros::<u32>(1)?;
                let to = Amax { all: Some(&all), rows: Some(&rows), columns: None };
                largest(device, weight, shape, &to)?;
                let how = Cast {
                    codes: Codes::E4m3,
                    power_of_two: true,
                    rows: Some(&rows),
                    turned: Some(&all),
                };
                let [rows, turned] = cast(device, weight, shape, &how)?;
                CodedWeight { rows: asked(rows), turned: asked(turned) }
            }
        }))
    }
}

/// A layer's products with rows of codes want a scale a row: one for all is repeated.
fn repeated(device: &Device, coded: &Coded, rows: usize) -> CudaResult<Coded> {
    if coded.scale.len() == rows {
        return Ok(coded.clone());
    }
    let scale = device.uninit::<f32>(rows)?;
    repeat(device, &coded.scale, &scale)?;
    Ok(Coded { codes: coded.codes.clone(), scale })
}

impl Layer<'_> {
    fn coded(&self) -> &CodedWeight {
        self.coded.expect("codes were made for every layer whose kind has some")
    }

    /// `y (M, N) = x · Wᵀ`, and what the gradient needs of x.
    pub(super) fn forward(
        &self,
        products: &mut Products,
        x: Factor<'_>,
        y: &Into<'_>,
    ) -> CudaResult<Kept> {
        let (n, k) = (self.place.rows, self.place.columns);
        let m = x.x.len() / k;
        let shape = Shape { m, n, k };
        match self.kind {
            MatmulKind::Bf16 => {
                products.forward(shape, x.x, self.weight, y)?;
                Ok(Kept::Bf16(x.x.clone()))
            }
            MatmulKind::Float8Tensorwise => {
                let [rows, turned] = cast_all(self.device, x, (m, k), Codes::E4m3)?;
                let w = float8(&self.coded().rows, false);
                products.float8(shape, &float8(&rows, false), &w, y)?;
                Ok(Kept::Turned(turned))
            }
            kind => {
                let turned = kind != MatmulKind::Float8RowwiseWithGwHp;
                let (rows, turned) = cast_each(self.device, x.x, (m, k), kind.codes(), turned)?;
                self.rows(shape, [&rows, &self.coded().rows], y)?;
                Ok(turned.map_or_else(|| Kept::Bf16(x.x.clone()), Kept::Turned))
            }
        }
    }

    /// A product of rows of codes.
    fn rows(&self, shape: Shape, factors: [&Coded; 2], y: &Into<'_>) -> CudaResult<()> {
        let (device, codes) = (self.device, self.kind.codes());
        match y {
            Into::Bf16(y) => rows_product(device, codes, shape, factors, &Output::Bf16(y)),
            Into::F32(y) => rows_product(device, codes, shape, factors, &Output::F32(y)),
            Into::Sum { to, onto } => {
                if to.address() != onto.address() {
                    to.copy_from(onto)?;
                }
                rows_product(device, codes, shape, factors, &Output::AddF32(to))
            }
        }
    }

    /// `dx (M, K) = dy · W`, `dW (N, K) = dyᵀ · x`.
    pub(super) fn backward(
        &self,
        products: &mut Products,
        dy: Factor<'_>,
        kept: &Kept,
        dx: &Buffer<u16>,
        dw: &Into<'_>,
    ) -> CudaResult<()> {
        let (n, k) = (self.place.rows, self.place.columns);
        let m = dy.x.len() / n;
        let shape = Shape { m, n, k };
        let (to_input, to_weight) = (Shape { m, n: k, k: n }, Shape { m: n, n: k, k: m });
        match (self.kind, kept) {
            (MatmulKind::Bf16, Kept::Bf16(x)) => {
                products.weight_gradient(shape, dy.x, x, dw)?;
                products.input_gradient(shape, dy.x, self.weight, &Into::Bf16(dx))
            }
            (MatmulKind::Float8Tensorwise, Kept::Turned(x)) => {
                let [rows, turned] = cast_all(self.device, dy, (m, n), Codes::E5m2)?;
                let (x, w) = (float8(x, false), float8(&self.coded().turned, false));
                products.float8(to_weight, &float8(&turned, true), &x, dw)?;
                products.float8(to_input, &float8(&rows, true), &w, &Into::Bf16(dx))
            }
            (kind, kept) => {
                let both = matches!(kept, Kept::Turned(_));
                let (rows, turned) = cast_each(self.device, dy.x, (m, n), kind.codes(), both)?;
                match kept {
                    Kept::Turned(x) => self.rows(to_weight, [&asked(turned), x], dw)?,
                    Kept::Bf16(x) => products.weight_gradient(shape, dy.x, x, dw)?,
                }
                let w = repeated(self.device, &self.coded().turned, k)?;
                self.rows(to_input, [&rows, &w], &Into::Bf16(dx))
            }
        }
    }
}
