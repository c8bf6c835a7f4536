//! One pass forward and back over the sequences of a batch.

use aolab_kernels::Shape;
use aolab_kernels::cuda::training::{
    AttentionShape, Gradient, Into, NormGradient, Places, Products, add_to_loss,
    attention_backward, attention_forward, cross_entropy, embedding_backward, rms_norm_backward,
    rms_norm_forward, rope, swiglu_backward, swiglu_forward,
};
use aolab_kernels::cuda::{Buffer, CudaResult, Device, ops};
use aolab_kernels::rope::Order;

use super::layout::{Block, Layout, NetworkShape, Place};
use super::linear::{CodedWeight, Factor, Kept, Layer, MatmulKind};

/// Logits at a time: 512 MB of them, and half as much of their gradients.
const LOGITS: usize = 1 << 27;

/// What a pass reads and writes besides activations.
pub(super) struct Pass<'a> {
    pub(super) device: &'a Device,
    pub(super) shape: &'a NetworkShape,
    pub(super) layout: &'a Layout,
    pub(super) kind: MatmulKind,
    pub(super) attention: AttentionShape,
    /// The parameters, and in bf16.
    pub(super) parameters: &'a Buffer<f32>,
    pub(super) copy: &'a Buffer<u16>,
    pub(super) gradient: &'a Buffer<f32>,
    /// cos and sin.
    pub(super) tables: [&'a Buffer<f32>; 2],
    /// Of each block: q·k·v, o, gate·up, down.
    pub(super) coded: &'a [[Option<CodedWeight>; 4]],
    /// Whether gradients begin anew.
    pub(super) first: bool,
    /// The sum of losses.
    pub(super) loss: &'a Buffer<f32>,
}

/// What a block leaves for its gradient.
pub(super) struct Saved {
    x: Buffer<f32>,
    inv_rms: [Buffer<f32>; 2],
    qkv: Buffer<u16>,
    attended: Buffer<u16>,
    lse: Buffer<f32>,
    middle: Buffer<f32>,
    gate_up: Buffer<u16>,
    /// The inputs of q·k·v, o, gate·up and down.
    kept: [Kept; 4],
}

/// The tokens of a batch on the GPU.
pub(super) struct Tokens {
    pub(super) inputs: Buffer<i32>,
    pub(super) targets: Buffer<i32>,
    pub(super) places: Places,
    /// What a token's loss is multiplied by.
    pub(super) scale: f32,
}

impl Pass<'_> {
    fn vector(&self, range: &std::ops::Range<usize>) -> Buffer<f32> {
        self.parameters.part(range.clone())
    }

    fn amax(&self) -> CudaResult<Option<Buffer<u32>>> {
        if self.kind.wants_amax() { Ok(Some(self.device.zeros(1)?)) } else { Ok(None) }
    }

    fn room(&self, columns: usize) -> CudaResult<Buffer<u16>> {
        self.device.uninit(self.attention.rows() * columns)
    }

    fn stream(&self) -> CudaResult<Buffer<f32>> {
        self.device.uninit(self.attention.rows() * self.shape.hidden)
    }

    /// Layer `which` of block `i`.
    fn layer<'a>(&'a self, i: usize, which: usize, weight: &'a Buffer<u16>) -> Layer<'a> {
        let place = self.place(i, which);
        let coded = self.coded.get(i).and_then(|block| block[which].as_ref());
        Layer { device: self.device, kind: self.kind, place, weight, coded }
    }

    fn place(&self, i: usize, which: usize) -> &Place {
        let Block { qkv, o, gate_up, down, .. } = &self.layout.blocks[i];
        [qkv, o, gate_up, down][which]
    }

    fn weight(&self, place: &Place) -> Buffer<u16> {
        self.copy.part(place.range.clone())
    }

    /// Norms x; gives what is normed, `1 / rms`, and the largest number where it is wanted.
    fn norm(
        &self,
        x: &Buffer<f32>,
        weight: &std::ops::Range<usize>,
        amax: Option<&Buffer<u32>>,
    ) -> CudaResult<(Buffer<u16>, Buffer<f32>)> {
        let y = self.room(self.shape.hidden)?;
        let inv_rms = self.device.uninit(self.attention.rows())?;
        let of = (x, &self.vector(weight), self.shape.eps);
        rms_norm_forward(self.device, of, &y, &inv_rms, amax)?;
        Ok((y, inv_rms))
    }

    fn linear(
        &self,
        products: &mut Products,
        (i, which): (usize, usize),
        x: Factor<'_>,
        y: &Into<'_>,
    ) -> CudaResult<Kept> {
        let weight = self.weight(self.place(i, which));
        self.layer(i, which, &weight).forward(products, x, y)
    }

    /// Block `i` of the residual stream.
    fn block(
        &self,
        products: &mut Products,
        i: usize,
        x: Buffer<f32>,
    ) -> CudaResult<(Saved, Buffer<f32>)> {
        let (device, shape) = (self.device, self.shape);
        let block = &self.layout.blocks[i];
        let amax = self.amax()?;
        let (normed, inv_rms) = self.norm(&x, &block.input_norm, amax.as_ref())?;
        let qkv = self.room(shape.qkv())?;
        let factor = Factor { x: &normed, amax: amax.as_ref() };
        let kept_qkv = self.linear(products, (i, 0), factor, &Into::Bf16(&qkv))?;
        let heads = (self.attention.tokens, shape.qkv(), shape.heads + shape.kv_heads);
        rope(device, &qkv, self.tables, heads, Order::Half, false)?;
        let attended = self.room(shape.attended())?;
        let lse = device.uninit(self.attention.statistics())?;
        attention_forward(device, &self.attention, &qkv, &attended, &lse)?;
        let middle = self.stream()?;
        let sum = Into::Sum { to: &middle, onto: &x };
        let kept_o = self.linear(products, (i, 1), (&attended).into(), &sum)?;

        let amax = self.amax()?;
        let (normed, post_rms) = self.norm(&middle, &block.post_norm, amax.as_ref())?;
        let gate_up = self.room(2 * shape.ffn)?;
        let factor = Factor { x: &normed, amax: amax.as_ref() };
        let kept_gate_up = self.linear(products, (i, 2), factor, &Into::Bf16(&gate_up))?;
        let amax = self.amax()?;
        let h = self.room(shape.ffn)?;
        swiglu_forward(device, &gate_up, shape.ffn, &h, amax.as_ref())?;
        let out = self.stream()?;
        let sum = Into::Sum { to: &out, onto: &middle };
        let factor = Factor { x: &h, amax: amax.as_ref() };
        let kept_down = self.linear(products, (i, 3), factor, &sum)?;
        let saved = Saved {
            x,
            inv_rms: [inv_rms, post_rms],
            qkv,
            attended,
            lse,
            middle,
            gate_up,
            kept: [kept_qkv, kept_o, kept_gate_up, kept_down],
        };
        Ok((saved, out))
    }

    /// The blocks' states and the stream behind them.
    fn blocks(
        &self,
        products: &mut Products,
        tokens: &Tokens,
        keep: bool,
    ) -> CudaResult<(Vec<Saved>, Buffer<f32>)> {
        let NetworkShape { vocab, hidden, .. } = *self.shape;
        let mut x = self.stream()?;
        let table = self.weight(&self.layout.embed);
        ops::embedding(self.device, &tokens.inputs, &table, (vocab, hidden), &x)?;
        let mut all = Vec::new();
        for i in 0..self.shape.layers {
            let (saved, out) = self.block(products, i, x)?;
            if keep {
                all.push(saved);
            }
            x = out;
        }
        Ok((all, x))
    }

    /// Adds the loss; with `dn` the gradient of the normed stream goes there and that of the head to the gradients.
    fn head(
        &self,
        products: &mut Products,
        tokens: &Tokens,
        normed: &Buffer<u16>,
        dn: Option<&Buffer<u16>>,
    ) -> CudaResult<()> {
        let (device, h, vocab) = (self.device, self.shape.hidden, self.shape.vocab);
        let rows = self.attention.rows();
        let most = (LOGITS / vocab).clamp(1, rows);
        let head = self.weight(&self.layout.head);
        let dhead = self.gradient.part(self.layout.head.range.clone());
        let losses = device.uninit::<f32>(rows)?;
        for first in (0..rows).step_by(most) {
            let part = first..rows.min(first + most);
            let m = part.len();
            let shape = Shape { m, n: vocab, k: h };
            let x = normed.part(part.start * h..part.end * h);
            let logits = device.uninit::<f32>(m * vocab)?;
            products.forward(shape, &x, &head, &Into::F32(&logits))?;
            let dlogits = device.uninit::<u16>(m * vocab)?;
            let to = (&losses.part(part.clone()), &dlogits);
            cross_entropy(device, &logits, &tokens.targets.part(part.clone()), tokens.scale, to)?;
            drop(logits);
            let Some(dn) = dn else { continue };
            let dw = match self.first && first == 0 {
                true => Into::F32(&dhead),
                false => Into::Sum { to: &dhead, onto: &dhead },
            };
            products.weight_gradient(shape, &dlogits, &x, &dw)?;
            let dx = dn.part(part.start * h..part.end * h);
            products.input_gradient(shape, &dlogits, &head, &Into::Bf16(&dx))?;
        }
        add_to_loss(device, &losses, self.loss)
    }

    /// Adds the loss of a batch to the sum.
    pub(super) fn evaluate(&self, products: &mut Products, tokens: &Tokens) -> CudaResult<()> {
        let (_, x) = self.blocks(products, tokens, false)?;
        let (normed, _) = self.norm(&x, &self.layout.norm, None)?;
        self.head(products, tokens, &normed, None)
    }

    /// Adds the loss of a batch to the sum and its gradient to the gradients.
    pub(super) fn train(&self, products: &mut Products, tokens: &Tokens) -> CudaResult<()> {
        let (saved, x) = self.blocks(products, tokens, true)?;
        let (normed, inv_rms) = self.norm(&x, &self.layout.norm, None)?;
        let dn = self.room(self.shape.hidden)?;
        self.head(products, tokens, &normed, Some(&dn))?;
        drop(normed);
        let (dx, mut rounded) = (self.stream()?, self.room(self.shape.hidden)?);
        let mut amax = self.amax()?;
        let dnorm = self.gradient.part(self.layout.norm.clone());
        let to = NormGradient {
            dx: &dx,
            add: false,
            rounded: Some(&rounded),
            dweight: &dnorm,
            amax: amax.as_ref(),
        };
        let of = (&x, &self.vector(&self.layout.norm), &inv_rms);
        rms_norm_backward(self.device, of, &dn, &to)?;
        drop(x);
        for (i, saved) in saved.into_iter().enumerate().rev() {
            (rounded, amax) = self.block_back(products, i, saved, &dx, (rounded, amax))?;
        }
        let dtable = self.gradient.part(self.layout.embed.range.clone());
        embedding_backward(self.device, &dx, &tokens.places, &dtable, self.shape.hidden)
    }

    fn linear_back(
        &self,
        products: &mut Products,
        (i, which): (usize, usize),
        dy: Factor<'_>,
        kept: &Kept,
    ) -> CudaResult<Buffer<u16>> {
        let place = self.place(i, which);
        let (weight, dw) = (self.weight(place), self.gradient.part(place.range.clone()));
        let dx = self.room(place.columns)?;
        let to = match self.first {
            true => Into::F32(&dw),
            false => Into::Sum { to: &dw, onto: &dw },
        };
        self.layer(i, which, &weight).backward(products, dy, kept, &dx, &to)?;
        Ok(dx)
    }

    /// Adds the gradient of a norm's input to the stream's; gives that rounded, with its largest number.
    fn norm_back(
        &self,
        (x, inv_rms): (&Buffer<f32>, &Buffer<f32>),
        weight: &std::ops::Range<usize>,
        dy: &Buffer<u16>,
        dx: &Buffer<f32>,
    ) -> CudaResult<(Buffer<u16>, Option<Buffer<u32>>)> {
        let (rounded, amax) = (self.room(self.shape.hidden)?, self.amax()?);
        let dweight = self.gradient.part(weight.clone());
        let to = NormGradient {
            dx,
            add: true,
            rounded: Some(&rounded),
            dweight: &dweight,
            amax: amax.as_ref(),
        };
        rms_norm_backward(self.device, (x, &self.vector(weight), inv_rms), dy, &to)?;
        Ok((rounded, amax))
    }

    /// Takes the stream's gradient `dx` behind block `i` to the one before it.
    fn block_back(
        &self,
        products: &mut Products,
        i: usize,
        saved: Saved,
        dx: &Buffer<f32>,
        (rounded, amax): (Buffer<u16>, Option<Buffer<u32>>),
    ) -> CudaResult<(Buffer<u16>, Option<Buffer<u32>>)> {
        let (device, shape) = (self.device, self.shape);
        let block = &self.layout.blocks[i];
        let [kept_qkv, kept_o, kept_gate_up, kept_down] = saved.kept;
        let dy = Factor { x: &rounded, amax: amax.as_ref() };
        let dh = self.linear_back(products, (i, 3), dy, &kept_down)?;
        drop(kept_down);
        let (both, amax) = (self.room(2 * shape.ffn)?, self.amax()?);
        swiglu_backward(device, (&saved.gate_up, &dh), shape.ffn, &both, amax.as_ref())?;
        drop((dh, saved.gate_up, rounded));
        let dy = Factor { x: &both, amax: amax.as_ref() };
        let dn = self.linear_back(products, (i, 2), dy, &kept_gate_up)?;
        drop((both, kept_gate_up));
        let of = (&saved.middle, &saved.inv_rms[1]);
        let (rounded, amax) = self.norm_back(of, &block.post_norm, &dn, dx)?;
        drop((dn, saved.middle));

        let dy = Factor { x: &rounded, amax: amax.as_ref() };
        let dout = self.linear_back(products, (i, 1), dy, &kept_o)?;
        let dqkv = self.room(shape.qkv())?;
        let of = Gradient {
            qkv: &saved.qkv,
            out: &saved.attended,
            lse: &saved.lse,
            dout: &dout,
            dqkv: &dqkv,
        };
        attention_backward(device, &self.attention, &of)?;
        let heads = (self.attention.tokens, shape.qkv(), shape.heads + shape.kv_heads);
        rope(device, &dqkv, self.tables, heads, Order::Half, true)?;
        drop((dout, saved.qkv, saved.attended, kept_o));
        let dn = self.linear_back(products, (i, 0), (&dqkv).into(), &kept_qkv)?;
        self.norm_back((&saved.x, &saved.inv_rms[0]), &block.input_norm, &dn, dx)
    }
}
