//! Codes from values and values from codes, given scales and zero points (N06–N09).

use super::blocks::BlockGrid;
use super::cast::{
    CodeRange, Rounding, ToBf16, ToF16, ToF32, cast, check_float, promote, round_to,
};
use super::qparams::{nan_max, nan_min};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// `q = clamp(round(x · (1 / scale)) + zero_point, quant_min, quant_max)` (N06): the reciprocal is
/// multiplied, then rounded, then shifted, then clamped.
pub fn quantize_affine(
    input: &Tensor,
    block_size: &[usize],
    scale: &Tensor,
    zero_point: &Tensor,
    range: CodeRange,
) -> Result<Tensor> {
    reciprocal_codes(input, block_size, scale, Some(zero_point), range)
}

/// `q = clamp(round(x · (1 / scale)), quant_min, quant_max)` (N08).
pub fn quantize_affine_no_zero_point(
    input: &Tensor,
    block_size: &[usize],
    scale: &Tensor,
    range: CodeRange,
) -> Result<Tensor> {
    reciprocal_codes(input, block_size, scale, None, range)
}

/// `q = clamp(round((x − (zero_point − scale · mid_point)) / scale), quant_min, quant_max)` (N09).
pub fn quantize_affine_tinygemm(
    input: &Tensor,
    block_size: &[usize],
    scale: &Tensor,
    zero_point: &Tensor,
    range: CodeRange,
) -> Result<Tensor> {
    check_float(input, "quantize")?;
    let grid = BlockGrid::new(input.shape(), block_size)?;
    let scales = per_block(scale, &grid, "scale")?;
    let zero_points = per_block(zero_point, &grid, "zero_point")?;
    let scale_dtype = scale.dtype();
    let shift_dtype = promote(scale_dtype, zero_point.dtype());
    let minima: Vec<f32> = scales
        .iter()
        .zip(&zero_points)
        .map(|(scale, zero_point)| {
            let shift = round_to(scale_dtype, scale * range.mid_point());
            round_to(shift_dtype, zero_point - shift)
        })
        .collect();
    let difference_dtype = promote(input.dtype(), shift_dtype);
    let quotient_dtype = promote(difference_dtype, scale_dtype);
    let values = input.to_f32_vec();
    let (low, high) = bounds(range, quotient_dtype);
    let mut codes = vec![0.0; values.len()];
    grid.for_each_run(|block, run| {
        let (scale, min) = (scales[block], minima[block]);
        for (code, value) in codes[run.clone()].iter_mut().zip(&values[run]) {
            let difference = round_to(difference_dtype, value - min);
            let quotient = round_to(quotient_dtype, difference / scale);
            *code = nan_min(nan_max(quotient.round_ties_even(), low), high);
        }
    });
    cast(codes, range.container(), input.shape())
}

/// `x = (q − zero_point) · scale`, each step in torch's dtype, the result in `output` (N07).
pub fn dequantize_affine(
    codes: &Tensor,
    block_size: &[usize],
    scale: &Tensor,
    zero_point: &Tensor,
    output: DType,
) -> Result<Tensor> {
    let grid = BlockGrid::new(codes.shape(), block_size)?;
    let zero_points = per_block(zero_point, &grid, "zero_point")?;
    scaled(codes, &grid, scale, output, |code, block| {
        let zero_point = round_to(output, zero_points[block]);
        round_to(output, round_to(output, code) - zero_point)
    })
}

/// `x = q · scale` (N08).
pub fn dequantize_affine_no_zero_point(
    codes: &Tensor,
    block_size: &[usize],
    scale: &Tensor,
    output: DType,
) -> Result<Tensor> {
    let grid = BlockGrid::new(codes.shape(), block_size)?;
    scaled(codes, &grid, scale, output, |code, _| round_to(output, code))
}

/// `x = (q − mid_point) · scale + zero_point` (N09).
pub fn dequantize_affine_tinygemm(
    codes: &Tensor,
    block_size: &[usize],
    (scale, zero_point): (&Tensor, &Tensor),
    range: CodeRange,
    output: DType,
) -> Result<Tensor> {
    let grid = BlockGrid::new(codes.shape(), block_size)?;
    let zero_points = per_block(zero_point, &grid, "zero_point")?;
    let products =
        scaled(codes, &grid, scale, output, |code, _| round_to(output, code - range.mid_point()))?;
    let mut values = products.to_f32_vec();
    grid.for_each_run(|block, run| {
        values[run].iter_mut().for_each(|value| *value += zero_points[block]);
    });
    cast(values, output, codes.shape())
}

/// `number(code, block) · scale` in the promoted dtype, cast to `output`.
fn scaled(
    codes: &Tensor,
    grid: &BlockGrid,
    scale: &Tensor,
    output: DType,
    number: impl Fn(f32, usize) -> f32,
) -> Result<Tensor> {
    if !matches!(output, DType::F32 | DType::BF16 | DType::F16) {
        return Err(Error::invalid(format!("dequantize: wanted f32, bf16 or f16, got {output}")));
    }
    let scales = per_block(scale, grid, "scale")?;
    let product_dtype = promote(output, scale.dtype());
    let mut values = codes.to_f32_vec();
    grid.for_each_run(|block, run| {
        for value in &mut values[run] {
            *value = round_to(product_dtype, number(*value, block) * scales[block]);
        }
    });
    cast(values, output, codes.shape())
}

/// N06 and N08. The loop is compiled once for each pair of dtypes that products and sums can have.
fn reciprocal_codes(
    input: &Tensor,
    block_size: &[usize],
    scale: &Tensor,
    zero_point: Option<&Tensor>,
    range: CodeRange,
) -> Result<Tensor> {
    check_float(input, "quantize")?;
    let grid = BlockGrid::new(input.shape(), block_size)?;
    let product = promote(input.dtype(), scale.dtype());
    let sum = zero_point.map_or(product, |zero_point| promote(product, zero_point.dtype()));
    let reciprocals: Vec<f32> = per_block(scale, &grid, "scale")?
        .into_iter()
        .map(|scale_value| round_to(scale.dtype(), 1.0 / scale_value))
        .collect();
    let zero_points = match zero_point {
        // An integer zero point is cast to the dtype of the sum before it is added.
        Some(zero_point) => per_block(zero_point, &grid, "zero_point")?
            .into_iter()
            .map(|value| round_to(sum, value))
            .collect(),
        None => vec![0.0; grid.len()],
    };
    let blocks = Blocks { grid, reciprocals, zero_points, bounds: bounds(range, sum) };
    let values = input.to_f32_vec();
    let codes = match (product, sum) {
        (DType::BF16, DType::BF16) => blocks.codes::<ToBf16, ToBf16>(values),
        (DType::BF16, _) => blocks.codes::<ToBf16, ToF32>(values),
        (DType::F16, DType::F16) => blocks.codes::<ToF16, ToF16>(values),
        (DType::F16, _) => blocks.codes::<ToF16, ToF32>(values),
        _ => blocks.codes::<ToF32, ToF32>(values),
    };
    cast(codes, range.container(), input.shape())
}

struct Blocks {
    grid: BlockGrid,
    reciprocals: Vec<f32>,
    zero_points: Vec<f32>,
    bounds: (f32, f32),
}

impl Blocks {
    fn codes<Product: Rounding, Sum: Rounding>(&self, mut values: Vec<f32>) -> Vec<f32> {
        let (low, high) = self.bounds;
        self.grid.for_each_run(|block, run| {
            let (reciprocal, zero_point) = (self.reciprocals[block], self.zero_points[block]);
            for value in &mut values[run] {
                let steps = Product::round(*value * reciprocal).round_ties_even();
                let code = Sum::round(steps + zero_point);
                // Neither comparison holds for NaN, which stays.
                let code = if code < low { low } else { code };
                *value = if code > high { high } else { code };
            }
        });
        values
    }
}

/// The bounds of the codes in the dtype that they are clamped in.
fn bounds(range: CodeRange, dtype: DType) -> (f32, f32) {
    (round_to(dtype, range.min_f32()), round_to(dtype, range.max_f32()))
}

/// One value a block, as f32.
fn per_block(tensor: &Tensor, grid: &BlockGrid, what: &str) -> Result<Vec<f32>> {
    if tensor.numel() == grid.len() {
        return Ok(tensor.to_f32_vec());
    }
    Err(Error::invalid(format!(
        "{what} has shape {:?}; wanted one value for each of {} blocks",
        tensor.shape(),
        grid.len()
    )))
}
