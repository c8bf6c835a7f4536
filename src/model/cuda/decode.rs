//! One token after another, as one captured graph that feeds itself.

use aolab_kernels::cuda::linear::Output;
use aolab_kernels::cuda::ops::{self, DecodeScratch, HeadNorms, Position};
use aolab_kernels::cuda::{Buffer, CudaResult, Device, Graph};

use super::{GpuContext, Placed};
use crate::error::{Context as _, Error, Result};

/// What a token needs on its way, and the graph of that way.
#[derive(Debug)]
pub(super) struct Step {
    room: Room,
    graph: Graph,
}

/// Device memory of a step. Every step uses the same, which is what lets it be captured.
#[derive(Debug)]
struct Room {
    token: Buffer<i32>,
    position: Position,
    x: Buffer<f32>,
    normed: Buffer<u16>,
    qkv: Buffer<u16>,
    mixed: Buffer<u16>,
    activated: Buffer<u16>,
    logits: Buffer<f32>,
    keys: Buffer<u64>,
    scratch: DecodeScratch,
}

impl GpuContext {
    /// Captures the step behind `past` positions, if it was not yet, and puts the sequence there.
    fn prepare(&mut self, token: u32, past: usize) -> Result<()> {
        let device = self.placed.device.clone();
        if self.step.is_none() {
            let room = self.room(&device)?;
            // Once without a graph: kernels are compiled and libraries make their plans. It writes the cache at `past`, as the step will.
            room.start(token, past)?;
            self.run(&room).map_err(Error::from).within("one token on the GPU")?;
            device.synchronize()?;
            let graph = device.capture(|| self.run(&room))?;
            self.step = Some(Step { room, graph });
        }
        if let Some(step) = &self.step {
            step.room.start(token, past)?;
        }
        Ok(())
    }

    fn room(&self, device: &Device) -> Result<Room> {
        let (shape, heads) = (self.placed.shape, self.heads);
        Ok(Room {
            token: device.zeros(1)?,
            position: Position {
                length: device.zeros(1)?,
                history: device.zeros(heads.capacity + 1)?,
            },
            x: device.uninit(shape.hidden)?,
            normed: device.uninit(shape.hidden)?,
            qkv: device.uninit(heads.qkv())?,
            mixed: device.uninit(heads.heads * heads.head_dim)?,
            activated: device.uninit(shape.ffn)?,
            logits: device.uninit(shape.vocab)?,
            keys: device.uninit(ops::argmax_keys(1))?,
            scratch: DecodeScratch::new(device, &heads)?,
        })
    }

    /// Puts a step's kernels into the stream: `token` in, the next token out, the sequence one longer. Nothing waits for the GPU.
    fn run(&self, room: &Room) -> CudaResult<()> {
        let Placed { device, layers, embed, norm, head, shape, .. } = &*self.placed;
        ops::embedding(device, &room.token, embed, (shape.vocab, shape.hidden), &room.x)?;
        for (layer, cache) in layers.iter().zip(&self.caches) {
            ops::rms_norm(device, &room.x, &layer.input_norm, shape.eps, &room.normed)?;
            layer.qkv.run(&room.normed, 1, &Output::Bf16(&room.qkv))?;
            let norms = HeadNorms { q: layer.q_norm.as_ref(), k: layer.k_norm.as_ref() };
            let state = (&room.position.length, &room.scratch);
            let around = (cache, &self.rotary, norms);
            ops::attention_decode(device, &self.heads, &room.qkv, around, state, &room.mixed)?;
            layer.o.run(&room.mixed, 1, &Output::AddF32(&room.x))?;
            ops::rms_norm(device, &room.x, &layer.post_norm, shape.eps, &room.normed)?;
            layer.gate_up.run(&room.normed, 1, &Output::Bf16(&room.activated))?;
            layer.down.run(&room.activated, 1, &Output::AddF32(&room.x))?;
        }
        ops::rms_norm(device, &room.x, norm, shape.eps, &room.normed)?;
        head.run(&room.normed, 1, &Output::F32(&room.logits))?;
        let position = Some(&room.position);
        ops::argmax(device, &room.logits, shape.vocab, &room.keys, &room.token, position)
    }

    /// Reads one token behind `past` positions and gives its logits; the likeliest next token stays on the GPU.
    pub(in crate::model) fn step(&mut self, token: u32, past: usize) -> Result<Vec<f32>> {
        self.prepare(token, past)?;
        let step = self.step.as_mut().ok_or_else(|| Error::invalid("no step was captured"))?;
        step.graph.launch()?;
        Ok(step.room.logits.read()?)
    }

    /// Reads `token` behind `past` positions and then whatever is likeliest, `count` tokens in all; gives what was chosen.
    pub(in crate::model) fn decode(
        &mut self,
        token: u32,
        past: usize,
        count: usize,
    ) -> Result<Vec<u32>> {
        self.prepare(token, past)?;
        let step = self.step.as_mut().ok_or_else(|| Error::invalid("no step was captured"))?;
        for _ in 0..count {
            step.graph.launch()?;
        }
        let history = step.room.position.history.part(past + 1..past + 1 + count).read()?;
        Ok(history.into_iter().map(i32::cast_unsigned).collect())
    }

    /// Microseconds of one token behind `past` positions: the median of `count` replays, each between two events.
    pub(in crate::model) fn time_step(
        &mut self,
        token: u32,
        past: usize,
        count: usize,
    ) -> Result<(f64, usize)> {
        self.prepare(token, past)?;
        let device = self.placed.device.clone();
        let step = self.step.as_mut().ok_or_else(|| Error::invalid("no step was captured"))?;
        let us = device.time_us(count, || step.graph.launch())?;
        Ok((us, step.graph.nodes()?))
    }
}

impl Room {
    fn start(&self, token: u32, past: usize) -> Result<()> {
        self.token.write(&[token.cast_signed()])?;
        let past = i32::try_from(past).map_err(|_| Error::invalid("too many positions"))?;
        self.position.length.write(&[past])?;
        Ok(())
    }
}
