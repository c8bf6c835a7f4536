//! Running a layer.

use super::{Data, Linear, Output, Rows, Tiling};
use crate::cuda::launch::int;
use crate::cuda::matmul::Operands;
use crate::cuda::sources::{FEW_TOKENS, PACK, QUANTIZE, SMALL};
use crate::cuda::{Arg, Buffer, CudaResult, DenseType, Device, Grid};

/// Up to this many tokens, W is decoded in registers and read once.
const FEW: usize = 64;

/// Up to this many tokens, bf16 runs in our kernel, which starts early; then cuBLASLt is as fast.
const FEW_BF16: usize = 4;

/// `few_tokens.cu`'s names for what becomes of a sum.
fn epilogue(output: &Output<'_>, rows: Rows) -> usize {
    match (output, rows) {
        (Output::Bf16(_), Rows::Plain) => 0,
        (Output::AddF32(_), _) => 1,
        (Output::F32(_), _) => 2,
        (Output::Bf16(_), Rows::GatePairs) => 3,
    }
}

impl Output<'_> {
    fn len(&self) -> usize {
        match self {
            Output::Bf16(y) => y.len(),
            Output::AddF32(y) | Output::F32(y) => y.len(),
        }
    }

    fn address(&self) -> u64 {
        match self {
            Output::Bf16(y) => y.address(),
            Output::AddF32(y) | Output::F32(y) => y.address(),
        }
    }
}

impl Linear {
    pub(super) fn runs_few(&self, m: usize) -> bool {
        match self.data {
            Data::Bf16 { .. } => m <= FEW_BF16,
            _ => m <= FEW,
        }
    }

    /// `y = x · Wᵀ (+ bias)`; x is (M, [`Linear::k_padded`]) bf16, zeros behind K.
    pub fn run(&self, x: &Buffer<u16>, m: usize, y: &Output<'_>) -> CudaResult<()> {
        let wanted = (m * self.k_padded, m * self.outputs());
        assert!((x.len(), y.len()) == wanted, "{} and {} are not {wanted:?}", x.len(), y.len());
        assert!(self.rows == Rows::Plain || matches!(y, Output::Bf16(_)), "gate pairs give bf16");
        if m == 0 {
            return Ok(());
        }
        if !self.runs_few(m) {
            return self.run_many(x, m, y);
        }
        let bits = match self.data {
            Data::Int4 { .. } => 4,
            Data::Bf16 { .. } => 16,
            _ => 8,
        };
        self.run_few(x, m, y, Tiling::choose(bits, m, self.n, self.k_padded))
    }

    /// The same by `few_tokens.cu` cut as `tiling` says, for benches that look for the best.
    pub fn run_few(
        &self,
        x: &Buffer<u16>,
        m: usize,
        y: &Output<'_>,
        tiling: Tiling,
    ) -> CudaResult<()> {
        let device = &self.device;
        let (mut codes, mut token_scale) = (None, None);
        let (bits, w, params, row_scale, group) = match &self.data {
            Data::Int4 { packed, params, group, .. } => {
                (4, packed.address(), params.address(), None, *group)
            }
            Data::Int8 { q, scale, dynamic } => {
                if *dynamic {
                    let quantized = quantize_codes(device, x, m, (self.k, self.k_padded))?;
                    codes = Some(quantized.0);
                    token_scale = Some(quantized.1);
                }
                (8, q.address(), 0, Some(scale), 0)
            }
            Data::Bf16 { w } => (16, w.address(), 0, None, 0),
        };
        let mut tiling = tiling;
        let mut defines = tiling.defines(bits);
        if let Data::Int4 { group, bf16, .. } = self.data {
            // Steps of 16 columns that share a scale, up to the four of a chunk.
            let flush = match group % 64 {
                0 => 4,
                32 => 2,
                _ => 1,
            };
            tiling.params = 64 * (4 / flush) * if bf16 { 1 } else { 2 };
            defines.push(format!("AO_FLUSH={flush}"));
            if !bf16 {
                defines.push("AO_F32_SCALE".to_owned());
            }
        }
        let kernel = device.kernel(&FEW_TOKENS, &defines, "few_tokens")?;
        let tiles = match self.rows {
            Rows::Plain => self.n.div_ceil(16),
            Rows::GatePairs => (self.n / 2).div_ceil(8),
        };
        let blocks = (16 * tiles).div_ceil(tiling.rows());
        let shared = tiling.shared(bits, m, self.k_padded);
        let grid = Grid::line(blocks, tiling.threads()).shared(shared);
        kernel.launch(
            grid,
            &[
                w.into(),
                params.into(),
                row_scale.into(),
                token_scale.as_ref().into(),
                self.bias.as_ref().into(),
                codes.as_ref().unwrap_or(x).into(),
                y.address().into(),
                int(m),
                int(self.n),
                int(self.k_padded),
                int(self.k_padded),
                int(self.outputs()),
                int(group),
                int(epilogue(y, self.rows)),
            ],
        )
    }

    fn run_many(&self, x: &Buffer<u16>, m: usize, y: &Output<'_>) -> CudaResult<()> {
        if self.rows == Rows::GatePairs {
            let both = self.device.uninit::<u16>(m * self.n)?;
            self.product(x, m, &Output::Bf16(&both))?;
            return silu_mul(&self.device, &both, m, self.n / 2, self.n / 2, y.address());
        }
        if let Output::AddF32(sum) = y {
            let product = self.device.uninit::<u16>(m * self.n)?;
            self.product(x, m, &Output::Bf16(&product))?;
            let kernel = self.device.kernel(&SMALL, &[], "add_rows")?;
            let arguments = [(*sum).into(), (&product).into(), (sum.len() as u64).into()];
            return kernel.launch(Grid::line(sum.len().div_ceil(256), 256), &arguments);
        }
        self.product(x, m, y)
    }

    /// The product and its bias, through cuBLASLt.
    fn product(&self, x: &Buffer<u16>, m: usize, y: &Output<'_>) -> CudaResult<()> {
        let device = &self.device;
        let shape = self.at(m);
        let dense =
            if matches!(y, Output::F32(_)) { DenseType::Bf16ToF32 } else { DenseType::Bf16 };
        match &self.data {
            Data::Int8 { q, scale, dynamic: true } => {
                self.product_int8(x, m, (q, scale), y)?;
            }
            Data::Bf16 { w } => {
                let operands = Operands { x: x.address(), w: w.address(), y: y.address() };
                device.matmul(dense, shape, &operands, None)?;
            }
            _ => {
                let w = self.to_bf16()?;
                let operands = Operands { x: x.address(), w: w.address(), y: y.address() };
                device.matmul(dense, shape, &operands, None)?;
            }
        }
        if let Some(bias) = &self.bias {
            let kernel = device.kernel(&SMALL, &[], "add_bias")?;
            let is_f32 = int(usize::from(matches!(y, Output::F32(_))));
            let len = (m * self.n) as u64;
            let arguments = [y.address().into(), bias.into(), int(self.n), len.into(), is_f32];
            kernel.launch(Grid::line((m * self.n).div_ceil(256), 256), &arguments)?;
        }
        Ok(())
    }

    fn product_int8(
        &self,
        x: &Buffer<u16>,
        m: usize,
        (q, scale): (&Buffer<u8>, &Buffer<f32>),
        y: &Output<'_>,
    ) -> CudaResult<()> {
        let device = &self.device;
        let x = quantize_rows(device, "quantize_int8_rows", x, m, self.k_padded)?;
        let sums = device.uninit::<i32>(m * self.n)?;
        let operands = Operands { x: x.0.address(), w: q.address(), y: sums.address() };
        device.matmul(DenseType::Int8, self.at(m), &operands, None)?;
        let kernel = device.kernel(&QUANTIZE, &[], "scale_int32")?;
        let grid = Grid { blocks: (self.n.div_ceil(256), m, 1), threads: 256, shared: 0 };
        let is_f32 = int(usize::from(matches!(y, Output::F32(_))));
        let (y, n) = (y.address().into(), int(self.n));
        kernel.launch(grid, &[(&sums).into(), (&x.1).into(), scale.into(), y, n, is_f32])
    }

    /// W as bf16 rows (N, [`Linear::k_padded`]).
    pub fn to_bf16(&self) -> CudaResult<Buffer<u16>> {
        let device = &self.device;
        let w = device.uninit::<u16>(self.n * self.k_padded)?;
        let (n, k) = (int(self.n), int(self.k_padded));
        match &self.data {
            Data::Int4 { packed, params, bf16, group } => {
                let kernel = device.kernel(&PACK, &[], "unpack_int4")?;
                let f32_params = int(usize::from(!bf16));
                let pairs = int(usize::from(self.rows == Rows::GatePairs));
                let (group, packed_len) = (int(*group), packed.len());
                let arguments: [Arg; 9] =
                    [packed.into(), params.into(), (&w).into(), n, k, k, group, f32_params, pairs];
                kernel.launch(Grid::line(packed_len.div_ceil(256), 256), &arguments)?;
            }
            Data::Int8 { q, scale, .. } => {
                let kernel = device.kernel(&PACK, &[], "int8_to_bf16")?;
                let fours = q.len() / 4;
                let arguments = [q.into(), scale.into(), (&w).into(), k, (fours as u64).into()];
                kernel.launch(Grid::line(fours.div_ceil(256), 256), &arguments)?;
            }
            Data::Bf16 { w: rows } => w.copy_from(rows)?,
        }
        Ok(w)
    }
}

/// Rows of x as `kernel` quantizes them, and their scales.
fn quantize_rows(
    device: &Device,
    kernel: &str,
    x: &Buffer<u16>,
    m: usize,
    k: usize,
) -> CudaResult<(Buffer<u8>, Buffer<f32>)> {
    let (q, scale) = (device.uninit(m * k)?, device.uninit(m)?);
    quantize_rows_into(device, kernel, x, k, (&q, &scale))?;
    Ok((q, scale))
}

/// The same into buffers that are there; K is a multiple of 8.
pub(in crate::cuda) fn quantize_rows_into(
    device: &Device,
    kernel: &str,
    x: &Buffer<u16>,
    k: usize,
    (q, scale): (&Buffer<u8>, &Buffer<f32>),
) -> CudaResult<()> {
    let m = scale.len();
    assert!(k.is_multiple_of(8) && x.len() == m * k && q.len() == m * k, "{m} rows of {k}");
    let kernel = device.kernel(&QUANTIZE, &[], kernel)?;
    let arguments = [x.into(), q.into(), scale.into(), int(k)];
    let threads = (k / 8).div_ceil(4).next_multiple_of(32).clamp(32, 512);
    kernel.launch(Grid::line(m, threads), &arguments)
}

/// The int8 codes of x as bf16, and the tokens' scales.
fn quantize_codes(
    device: &Device,
    x: &Buffer<u16>,
    m: usize,
    (_, k_padded): (usize, usize),
) -> CudaResult<(Buffer<u16>, Buffer<f32>)> {
    let (codes, scale) = (device.uninit::<u16>(m * k_padded)?, device.uninit::<f32>(m)?);
    let kernel = device.kernel(&QUANTIZE, &[], "quantize_int8_codes")?;
    // Zeros behind K change neither the largest value nor any sum.
    let arguments = [x.into(), (&codes).into(), (&scale).into(), int(k_padded), int(k_padded)];
    kernel.launch(Grid::line(m, 512), &arguments)?;
    Ok((codes, scale))
}

/// `silu(gate) · up` of (M, 2 F) to (M, `ldy`) at `y`.
fn silu_mul(
    device: &Device,
    both: &Buffer<u16>,
    m: usize,
    f: usize,
    ldy: usize,
    y: u64,
) -> CudaResult<()> {
    let kernel = device.kernel(&SMALL, &[], "silu_mul")?;
    let grid = Grid { blocks: (ldy.div_ceil(256), m, 1), threads: 256, shared: 0 };
    kernel.launch(grid, &[both.into(), y.into(), int(f), int(ldy)])
}
