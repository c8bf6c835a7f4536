//! Running a layer.

use super::hopper::Activations;
use super::{Data, Float8Scales, HopperTiling, Input, Linear, Norm, Output, Path, Rows, Tiling};
use crate::cuda::launch::int;
use crate::cuda::matmul::Operands;
use crate::cuda::memory::Scratch;
use crate::cuda::ops::rms_norm;
use crate::cuda::sources::{FEW_TOKENS, PACK, QUANTIZE, SMALL};
use crate::cuda::{Arg, Buffer, CudaResult, DenseType, Device, Grid};

/// Up to this many tokens, W is decoded in registers and read once where there is no wgmma.
const FEW: usize = 64;

/// Up to this many tokens, bf16 runs in our kernel, which starts early; then cuBLASLt is as fast.
const FEW_BF16: usize = 4;

/// Up to this many tokens warps of their own are faster than warpgroups; in layers of many rows up to half as many.
const FEW_ON_HOPPER: usize = 16;

/// Rows of a layer that occupies every multiprocessor with tiles of 128.
const MANY_ROWS: usize = 12288;

/// `few_tokens.cu`'s names for what becomes of a sum.
pub(super) fn epilogue(output: &Output<'_>, rows: Rows) -> usize {
    match (output, rows) {
        (Output::Bf16(_), Rows::Plain) => 0,
        (Output::AddF32(_), _) => 1,
        (Output::F32(_), _) => 2,
        (Output::Bf16(_), Rows::GatePairs) => 3,
    }
}

impl Output<'_> {
    pub(in crate::cuda) fn len(&self) -> usize {
        match self {
            Output::Bf16(y) => y.len(),
            Output::AddF32(y) | Output::F32(y) => y.len(),
        }
    }

    pub(in crate::cuda) fn address(&self) -> u64 {
        match self {
            Output::Bf16(y) => y.address(),
            Output::AddF32(y) | Output::F32(y) => y.address(),
        }
    }
}

impl Linear {
    pub(super) fn path(&self, m: usize) -> Path {
        let wgmma = self.has_wgmma();
        match self.data {
            Data::TwoOfFour(_) | Data::Blocks(_) => Path::Sparse,
            _ if m == 1 && self.streams() => Path::One,
            Data::Bf16 { .. } if m <= FEW_BF16 => Path::Few,
            Data::Bf16 { .. } => Path::Library,
            Data::Rows8 { .. } if wgmma => Path::Wgmma,
            _ if wgmma => {
                let few = if self.n >= MANY_ROWS { FEW_ON_HOPPER / 2 } else { FEW_ON_HOPPER };
                if m <= few { Path::Few } else { Path::Wgmma }
            }
            _ if m <= FEW => Path::Few,
            _ => Path::Library,
        }
    }

    /// `y = x · Wᵀ (+ bias)`; x is (M, [`Linear::k_padded`]) bf16, zeros behind K.
    pub fn run(&self, x: &Buffer<u16>, m: usize, y: &Output<'_>) -> CudaResult<()> {
        let wanted = (m * self.k_padded, m * self.outputs());
        assert!((x.len(), y.len()) == wanted, "{} and {} are not {wanted:?}", x.len(), y.len());
        assert!(self.rows == Rows::Plain || matches!(y, Output::Bf16(_)), "gate pairs give bf16");
        match m {
            0 => return Ok(()),
            1 if self.path(1) == Path::One => return self.run_one(&Input::Bf16(x), y),
            _ => {}
        }
        if self.path(m) == Path::Sparse {
            return self.run_sparse(x, m, y);
        }
        // Held until the product is in the stream, so that no other layer's activations come between.
        let mut scratch = self.device.scratch();
        let (x, token_scale) = self.activations(&mut scratch, x, m)?;
        match self.path(m) {
            Path::Few => {
                let bits = match self.data {
                    Data::Codes4 { .. } => 4,
                    Data::Bf16 { .. } => 16,
                    _ => 8,
                };
                let tiling = Tiling::choose(bits, m, self.n, self.k_padded);
                self.few((x, 0, 0.0), token_scale, m, y, tiling)
            }
            Path::Wgmma => self.run_wgmma(Activations { x, scale: token_scale }, m, y),
            Path::One | Path::Library | Path::Sparse => self.run_many(x, token_scale, m, y),
        }
    }

    /// One token that is normed on its way in: by the same kernel where it can, else to `room`, which holds K padded.
    pub fn run_normed(
        &self,
        norm: &Norm<'_>,
        room: &Buffer<u16>,
        y: &Output<'_>,
    ) -> CudaResult<()> {
        let wanted = (self.k, self.k, self.outputs());
        let got = (norm.x.len(), norm.weight.len(), y.len());
        assert!(got == wanted, "{got:?} are not {wanted:?}");
        assert!(self.rows == Rows::Plain || matches!(y, Output::Bf16(_)), "gate pairs give bf16");
        let input = Input::Normed(*norm);
        if self.path(1) == Path::One && self.streams_normed() {
            return self.run_one(&input, y);
        }
        let bits = match self.data {
            Data::Bf16 { .. } => Some(16),
            Data::Codes8 { .. } => Some(8),
            _ => None,
        };
        let tiling = Tiling::choose(bits.unwrap_or(16), 1, self.n, self.k_padded);
        let whole = bits.is_some() && tiling.row_warps == 1;
        if whole && self.k == self.k_padded {
            return self.few(Norm::of(&input), 0, 1, y, tiling);
        }
        rms_norm(&self.device, norm.x, norm.weight, norm.eps, room)?;
        self.run(room, 1, y)
    }

    /// The same by `wgmma.cu` cut as `tiling` says, for benches that look for the best.
    pub fn run_hopper(
        &self,
        x: &Buffer<u16>,
        m: usize,
        y: &Output<'_>,
        tiling: HopperTiling,
    ) -> CudaResult<()> {
        let mut scratch = self.device.scratch();
        let (x, scale) = self.activations(&mut scratch, x, m)?;
        self.run_wgmma_as(tiling, Activations { x, scale }, m, y)
    }

    /// Addresses of x as the products take it, and of its tokens' scales, 0 where there are none.
    fn activations(
        &self,
        scratch: &mut Scratch,
        x: &Buffer<u16>,
        m: usize,
    ) -> CudaResult<(u64, u64)> {
        let (device, k) = (&self.device, self.k_padded);
        let as_bf16 = match (&self.data, self.path(m)) {
            (Data::Codes4 { float8: true, .. }, _) => "quantize_e4m3_codes",
            (Data::Rows8 { float8: None, .. }, Path::Few) => "quantize_int8_codes",
            (Data::Rows8 { .. }, Path::Wgmma | Path::Library) => "",
            _ => return Ok((x.address(), 0)),
        };
        let scale: Buffer<f32> = scratch.take(device, 0, m)?;
        if !as_bf16.is_empty() {
            let codes: Buffer<u16> = scratch.take(device, 1, m * k)?;
            let kernel = device.kernel(&QUANTIZE, &[], as_bf16)?;
            // Zeros behind K change neither the largest value nor any sum.
            let arguments = [x.into(), (&codes).into(), (&scale).into(), int(k), int(k)];
            kernel.launch(Grid::line(m, 512), &arguments)?;
            return Ok((codes.address(), scale.address()));
        }
        let codes: Buffer<u8> = scratch.take(device, 1, m * k)?;
        match &self.data {
            Data::Rows8 { float8: Some(Float8Scales::All), .. } => {
                let amax: Buffer<u32> = scratch.take(device, 2, 1)?;
                quantize_all(device, x, k, (&codes, &scale, &amax))?;
            }
            Data::Rows8 { float8: Some(_), .. } => {
                quantize_rows_into(device, "quantize_e4m3_rows", x, k, (&codes, &scale))?;
            }
            _ => quantize_rows_into(device, "quantize_int8_rows", x, k, (&codes, &scale))?,
        }
        Ok((codes.address(), scale.address()))
    }

    /// The same by `few_tokens.cu` cut as `tiling` says, for benches that look for the best.
    pub fn run_few(
        &self,
        x: &Buffer<u16>,
        m: usize,
        y: &Output<'_>,
        tiling: Tiling,
    ) -> CudaResult<()> {
        let mut scratch = self.device.scratch();
        let (x, token_scale) = self.activations(&mut scratch, x, m)?;
        self.few((x, 0, 0.0), token_scale, m, y, tiling)
    }

    /// `x` with the norm's weight, 0 where there is none, and eps.
    fn few(
        &self,
        (x, norm, eps): (u64, u64, f32),
        token_scale: u64,
        m: usize,
        y: &Output<'_>,
        tiling: Tiling,
    ) -> CudaResult<()> {
        let device = &self.device;
        let (bits, w, params, row_scale, group) = match &self.data {
            Data::Codes4 { packed, params, group, .. } => {
                (4, packed.address(), params.address(), None, *group)
            }
            Data::Codes8 { packed, scale, .. } => (8, packed.address(), 0, Some(scale), 0),
            Data::Rows8 { q, scale, .. } => (8, q.address(), 0, Some(scale), 0),
            Data::Bf16 { w } => (16, w.address(), 0, None, 0),
            Data::TwoOfFour(_) | Data::Blocks(_) => {
                return Err(super::no_kernel(self.n, self.k));
            }
        };
        let mut tiling = tiling;
        let mut defines = tiling.defines(bits);
        if norm != 0 {
            defines.push("AO_NORM".to_owned());
        }
        let mut table = [0_u32; 8];
        match &self.data {
            Data::Codes8 { float8, .. } => {
                defines.push("AO_PACKED".to_owned());
                if *float8 {
                    defines.push("AO_FLOAT8".to_owned());
                }
            }
            Data::Codes4 { table: Some(bytes), .. } => {
                defines.push("AO_TABLE".to_owned());
                table = *bytes;
            }
            _ => {}
        }
        if let Data::Codes4 { group, bf16, .. } = self.data {
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
                token_scale.into(),
                self.bias.as_ref().into(),
                x.into(),
                y.address().into(),
                int(m),
                int(self.n),
                int(self.k_padded),
                int(self.k_padded),
                int(self.outputs()),
                int(group),
                int(epilogue(y, self.rows)),
                table.into(),
                norm.into(),
                eps.into(),
            ],
        )
    }

    fn run_many(&self, x: u64, token_scale: u64, m: usize, y: &Output<'_>) -> CudaResult<()> {
        if self.rows == Rows::GatePairs {
            let both = self.device.uninit::<u16>(m * self.n)?;
            self.product(x, token_scale, m, &Output::Bf16(&both))?;
            return silu_mul(&self.device, &both, m, self.n / 2, self.n / 2, y.address());
        }
        if let Output::AddF32(sum) = y {
            let product = self.device.uninit::<u16>(m * self.n)?;
            self.product(x, token_scale, m, &Output::Bf16(&product))?;
            let kernel = self.device.kernel(&SMALL, &[], "add_rows")?;
            let arguments = [(*sum).into(), (&product).into(), (sum.len() as u64).into()];
            return kernel.launch(Grid::line(sum.len().div_ceil(256), 256), &arguments);
        }
        self.product(x, token_scale, m, y)
    }

    /// The product and its bias, through cuBLASLt.
    fn product(&self, x: u64, token_scale: u64, m: usize, y: &Output<'_>) -> CudaResult<()> {
        let device = &self.device;
        let (shape, n) = (self.at(m), int(self.n));
        let is_f32 = int(usize::from(matches!(y, Output::F32(_))));
        let dense =
            if matches!(y, Output::F32(_)) { DenseType::Bf16ToF32 } else { DenseType::Bf16 };
        match &self.data {
            Data::Rows8 { q, scale, .. } => {
                let sums = device.uninit::<i32>(m * self.n)?;
                let operands = Operands { x, w: q.address(), y: sums.address() };
                device.matmul(DenseType::Int8, shape, &operands, None)?;
                let kernel = device.kernel(&QUANTIZE, &[], "scale_int32")?;
                let grid = Grid { blocks: (self.n.div_ceil(256), m, 1), threads: 256, shared: 0 };
                let factors = [(&sums).into(), token_scale.into(), scale.into()];
                kernel.launch(grid, &[&factors[..], &[y.address().into(), n, is_f32]].concat())?;
            }
            Data::Bf16 { w } => {
                let operands = Operands { x, w: w.address(), y: y.address() };
                device.matmul(dense, shape, &operands, None)?;
            }
            _ => {
                let w = self.to_bf16()?;
                let operands = Operands { x, w: w.address(), y: y.address() };
                device.matmul(dense, shape, &operands, None)?;
                if token_scale != 0 {
                    let kernel = device.kernel(&SMALL, &[], "scale_rows")?;
                    let grid =
                        Grid { blocks: (self.n.div_ceil(256), m, 1), threads: 256, shared: 0 };
                    kernel.launch(grid, &[y.address().into(), token_scale.into(), n, is_f32])?;
                }
            }
        }
        if let Some(bias) = &self.bias {
            let kernel = device.kernel(&SMALL, &[], "add_bias")?;
            let len = (m * self.n) as u64;
            let arguments = [y.address().into(), bias.into(), n, len.into(), is_f32];
            kernel.launch(Grid::line((m * self.n).div_ceil(256), 256), &arguments)?;
        }
        Ok(())
    }

    /// W as bf16 rows (N, [`Linear::k_padded`]); scales of rows are in it.
    fn to_bf16(&self) -> CudaResult<Buffer<u16>> {
        let device = &self.device;
        let w = device.uninit::<u16>(self.n * self.k_padded)?;
        let (n, k) = (int(self.n), int(self.k_padded));
        let pairs = int(usize::from(self.rows == Rows::GatePairs));
        match &self.data {
            Data::Codes4 { packed, params, bf16, group, table, .. } => {
                let kernel = device.kernel(&PACK, &[], "unpack_codes4")?;
                let (f32_params, has_table) = (usize::from(!bf16), usize::from(table.is_some()));
                let flags = [int(*group), int(f32_params), pairs, int(has_table)];
                let table: Arg = table.unwrap_or_default().into();
                let first = [packed.into(), params.into(), (&w).into(), n, k];
                let arguments = [&first[..], &flags, &[table]].concat();
                kernel.launch(Grid::line(packed.len().div_ceil(256), 256), &arguments)?;
            }
            Data::Codes8 { packed, scale, float8 } => {
                let kernel = device.kernel(&PACK, &[], "unpack_codes8")?;
                let is_float8 = int(usize::from(*float8));
                let arguments = [packed.into(), scale.into(), (&w).into(), n, k, pairs, is_float8];
                kernel.launch(Grid::line(packed.len().div_ceil(256), 256), &arguments)?;
            }
            Data::Bf16 { w: rows } => w.copy_from(rows)?,
            Data::Rows8 { .. } | Data::TwoOfFour(_) | Data::Blocks(_) => {
                return Err(super::no_kernel(self.n, self.k));
            }
        }
        Ok(w)
    }
}

/// All of x to e4m3 with one scale.
fn quantize_all(
    device: &Device,
    x: &Buffer<u16>,
    k: usize,
    (q, scale, amax): (&Buffer<u8>, &Buffer<f32>, &Buffer<u32>),
) -> CudaResult<()> {
    let m = scale.len();
    amax.fill_bytes(0)?;
    let kernel = device.kernel(&QUANTIZE, &[], "largest_of_all")?;
    kernel.launch(Grid::line(m, 512), &[x.into(), amax.into(), int(k)])?;
    let kernel = device.kernel(&QUANTIZE, &[], "quantize_e4m3_all")?;
    let arguments = [x.into(), q.into(), amax.into(), scale.into(), int(k)];
    kernel.launch(Grid::line(m, 512), &arguments)
}

/// Rows of x as `kernel` quantizes them, and their scales; K is a multiple of 8.
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

/// `silu(gate) · up` of (M, 2 F) to (M, `ldy`) at `y`.
pub(super) fn silu_mul(
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
