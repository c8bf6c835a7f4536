//! The operations between products.

use super::super::launch::int;
use super::super::sources::{TRAIN_LOSS, TRAIN_NORMS, TRAIN_SMALL};
use super::super::{Buffer, CudaError, CudaResult, Device, Grid};
use crate::rope::Order;

/// Columns that a thread of a norm keeps.
const KEPT: usize = 16;

/// Threads of a row of `k`, and whether its columns are taken four at a time.
fn norm_threads(k: usize) -> CudaResult<(usize, bool)> {
    if k == 0 || k > 512 * KEPT {
        return Err(CudaError::new(format!(
            "a norm over {k} numbers has no kernel; up to {} have one",
            512 * KEPT
        )));
    }
    let wide = k.is_multiple_of(4);
    let fewest = k.div_ceil(KEPT).next_multiple_of(32);
    // Eight columns a thread where there are enough threads.
    let good = k.div_ceil(if wide { 8 } else { KEPT }).next_multiple_of(32);
    Ok((good.clamp(fewest, 512), wide))
}

/// `y (M, K) = x (M, K) · weight · inv_rms`, `inv_rms (M) = 1 / √(mean x² + eps)`; with `amax`, the largest |y| there, too.
pub fn rms_norm_forward(
    device: &Device,
    (x, weight, eps): (&Buffer<f32>, &Buffer<f32>, f32),
    y: &Buffer<u16>,
    inv_rms: &Buffer<f32>,
    amax: Option<&Buffer<u32>>,
) -> CudaResult<()> {
    let (m, k) = (inv_rms.len(), weight.len());
    assert!(x.len() == m * k && y.len() == m * k, "x and y must be {m} rows of {k}");
    let (threads, wide) = norm_threads(k)?;
    let name = if wide { "rms_norm_forward4" } else { "rms_norm_forward1" };
    let arguments =
        [x.into(), weight.into(), y.into(), inv_rms.into(), amax.into(), int(k), eps.into()];
    device.kernel(&TRAIN_NORMS, &[], name)?.launch(Grid::line(m, threads), &arguments)
}

/// Where the gradient of a norm goes.
#[derive(Clone, Copy, Debug)]
pub struct NormGradient<'a> {
    /// (M, K) of x.
    pub dx: &'a Buffer<f32>,
    /// Whether it is added to what is there.
    pub add: bool,
    /// `dx` rounded, where it is wanted.
    pub rounded: Option<&'a Buffer<u16>>,
    /// (K) of the weight, added to what is there.
    pub dweight: &'a Buffer<f32>,
    /// The largest |dx|, where it is wanted.
    pub amax: Option<&'a Buffer<u32>>,
}

/// The gradient of [`rms_norm_forward`] from `dy (M, K)`.
pub fn rms_norm_backward(
    device: &Device,
    (x, weight, inv_rms): (&Buffer<f32>, &Buffer<f32>, &Buffer<f32>),
    dy: &Buffer<u16>,
    to: &NormGradient<'_>,
) -> CudaResult<()> {
    let (m, k) = (inv_rms.len(), weight.len());
    let whole = [x.len(), dy.len(), to.dx.len()].iter().all(|len| *len == m * k);
    assert!(whole && to.dweight.len() == k, "x, dy and dx must be {m} rows of {k}");
    assert!(to.rounded.is_none_or(|r| r.len() == m * k), "rounded must be {m} rows of {k}");
    let (threads, wide) = norm_threads(k)?;
    let name = if wide { "rms_norm_backward4" } else { "rms_norm_backward1" };
    let blocks = m.min(4 * device.multiprocessors());
    let parts = device.uninit::<f32>(blocks * k)?;
    let arguments = [
        x.into(),
        weight.into(),
        inv_rms.into(),
        dy.into(),
        to.dx.into(),
        to.rounded.into(),
        (&parts).into(),
        to.amax.into(),
        int(m),
        int(k),
        int(usize::from(to.add)),
    ];
    device.kernel(&TRAIN_NORMS, &[], name)?.launch(Grid::line(blocks, threads), &arguments)?;
    let kernel = device.kernel(&TRAIN_NORMS, &[], "sum_parts")?;
    let arguments = [(&parts).into(), to.dweight.into(), int(blocks), int(k)];
    kernel.launch(Grid::line(k.div_ceil(64), 64), &arguments)
}

/// Turns the first `heads` heads of each row of `x (M, stride)`, in place, by their place in sequences of `tokens`; back with `back`.
/// cos and sin are (tokens, head_dim / 2).
pub fn rope(
    device: &Device,
    x: &Buffer<u16>,
    [cos, sin]: [&Buffer<f32>; 2],
    (tokens, stride, heads): (usize, usize, usize),
    order: Order,
    back: bool,
) -> CudaResult<()> {
    assert!(tokens > 0 && stride > 0 && x.len().is_multiple_of(stride), "rows of {stride}");
    let pairs = cos.len() / tokens;
    assert!(cos.len() == tokens * pairs && sin.len() == cos.len(), "tables of {tokens} rows");
    assert!(heads * 2 * pairs <= stride, "{heads} heads of {} in rows of {stride}", 2 * pairs);
    let sign = if back { -1.0_f32 } else { 1.0 };
    let interleaved = int(usize::from(order == Order::Interleaved));
    let arguments = [
        x.into(),
        cos.into(),
        sin.into(),
        int(tokens),
        int(stride),
        int(heads),
        int(pairs),
        interleaved,
        sign.into(),
    ];
    let kernel = device.kernel(&TRAIN_SMALL, &[], "rope")?;
    kernel.launch(Grid::line(x.len() / stride, 256), &arguments)
}

fn feed_forward_grid(m: usize, f: usize) -> CudaResult<Grid> {
    if f == 0 || !f.is_multiple_of(8) {
        return Err(CudaError::new(format!("SwiGLU of {f} numbers; wanted a multiple of 8")));
    }
    Ok(Grid { blocks: (m, f.div_ceil(2048), 1), threads: 256, shared: 0 })
}

/// `h (M, F) = silu(gate) · up` of `gate_up (M, 2 F)`: gate, then up. F is a multiple of 8.
pub fn swiglu_forward(
    device: &Device,
    gate_up: &Buffer<u16>,
    f: usize,
    h: &Buffer<u16>,
    amax: Option<&Buffer<u32>>,
) -> CudaResult<()> {
    let m = h.len() / f.max(1);
    assert!(h.len() == m * f && gate_up.len() == 2 * m * f, "{m} rows of {f} and of twice that");
    let kernel = device.kernel(&TRAIN_SMALL, &[], "swiglu_forward")?;
    kernel.launch(feed_forward_grid(m, f)?, &[gate_up.into(), h.into(), amax.into(), int(f)])
}

/// The gradient of [`swiglu_forward`]: `d (M, 2 F)` from `dh (M, F)`.
pub fn swiglu_backward(
    device: &Device,
    (gate_up, dh): (&Buffer<u16>, &Buffer<u16>),
    f: usize,
    d: &Buffer<u16>,
    amax: Option<&Buffer<u32>>,
) -> CudaResult<()> {
    let m = dh.len() / f.max(1);
    let whole = dh.len() == m * f && gate_up.len() == 2 * m * f && d.len() == 2 * m * f;
    assert!(whole, "{m} rows of {f} and of twice that");
    let kernel = device.kernel(&TRAIN_SMALL, &[], "swiglu_backward")?;
    let arguments = [gate_up.into(), dh.into(), d.into(), amax.into(), int(f)];
    kernel.launch(feed_forward_grid(m, f)?, &arguments)
}

/// Where each token of a batch stands, so that its gradients are added up in one order.
#[derive(Debug)]
pub struct Places {
    tokens: Buffer<i32>,
    starts: Buffer<i32>,
    places: Buffer<i32>,
}

impl Places {
    /// Of the tokens of a batch.
    pub fn of(device: &Device, tokens: &[i32]) -> CudaResult<Places> {
        let number = |i: usize| i32::try_from(i).map_err(|_| CudaError::new("too many tokens"));
        let mut sorted = Vec::with_capacity(tokens.len());
        for (i, token) in tokens.iter().enumerate() {
            sorted.push((*token, number(i)?));
        }
        sorted.sort_unstable();
        let (mut which, mut starts) = (Vec::new(), Vec::new());
        for (i, (token, _)) in sorted.iter().enumerate() {
            if which.last() != Some(token) {
                which.push(*token);
                starts.push(number(i)?);
            }
        }
        starts.push(number(tokens.len())?);
        let places: Vec<i32> = sorted.into_iter().map(|(_, place)| place).collect();
        Ok(Places {
            tokens: device.upload(&which)?,
            starts: device.upload(&starts)?,
            places: device.upload(&places)?,
        })
    }
}

/// `dtable (V, K)[token] += Σ dx (M, K)` over the places of each token; every token must be below V.
pub fn embedding_backward(
    device: &Device,
    dx: &Buffer<f32>,
    places: &Places,
    dtable: &Buffer<f32>,
    k: usize,
) -> CudaResult<()> {
    assert!(dx.len() == places.places.len() * k, "dx must have a row for each token");
    assert!(dtable.len().is_multiple_of(k), "the table must have whole rows of {k}");
    let Places { tokens, starts, places } = places;
    let kernel = device.kernel(&TRAIN_SMALL, &[], "embedding_backward")?;
    let arguments = [dx.into(), tokens.into(), starts.into(), places.into(), dtable.into(), int(k)];
    kernel.launch(Grid::line(tokens.len(), 256), &arguments)
}

/// `losses (M) = scale · (log Σ exp logits − logits[target])` and its gradient `d (M, N)`; targets below 0 are not counted.
pub fn cross_entropy(
    device: &Device,
    logits: &Buffer<f32>,
    targets: &Buffer<i32>,
    scale: f32,
    (losses, d): (&Buffer<f32>, &Buffer<u16>),
) -> CudaResult<()> {
    let m = targets.len();
    let n = logits.len() / m.max(1);
    assert!(logits.len() == m * n && n > 0, "logits must be {m} rows");
    assert!(losses.len() == m && d.len() == m * n, "a loss a row, a gradient a logit");
    let kernel = device.kernel(&TRAIN_LOSS, &[], "cross_entropy")?;
    let arguments = [logits.into(), targets.into(), d.into(), losses.into(), int(n), scale.into()];
    kernel.launch(Grid::line(m, 512), &arguments)
}

/// `sum[0] += Σ losses`.
pub fn add_to_loss(device: &Device, losses: &Buffer<f32>, sum: &Buffer<f32>) -> CudaResult<()> {
    assert!(!sum.is_empty(), "the sum wants a place");
    let kernel = device.kernel(&TRAIN_SMALL, &[], "sum_all")?;
    kernel.launch(Grid::line(1, 256), &[losses.into(), sum.into(), int(losses.len())])
}

/// `to[i] = from[0]`.
pub fn repeat(device: &Device, from: &Buffer<f32>, to: &Buffer<f32>) -> CudaResult<()> {
    assert!(from.len() == 1, "one number");
    let kernel = device.kernel(&TRAIN_SMALL, &[], "repeat_one")?;
    let arguments = [from.into(), to.into(), int(to.len())];
    kernel.launch(Grid::line(to.len().div_ceil(256), 256), &arguments)
}
