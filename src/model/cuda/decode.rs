//! One token after another, as one captured graph that feeds itself.

use aolab_kernels::cuda::linear::{Norm, Output};
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
        let streams = self.placed.layers.iter().all(|layer| layer.qkv.streams());
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
            scratch: DecodeScratch::new(device, &heads)?.between_streams(streams),
        })
    }

    /// Puts a step's kernels into the stream: `token` in, the next token out, the sequence one longer. Nothing waits for the GPU.
    fn run(&self, room: &Room) -> CudaResult<()> {
        self.run_part(room, Part::Embedding)?;
        for index in 0..self.placed.layers.len() {
            for part in Part::OF_A_LAYER {
                self.run_layer_part(room, index, part)?;
            }
        }
        self.run_part(room, Part::Head)?;
        self.run_part(room, Part::Argmax)
    }

    /// A part that a step has once.
    fn run_part(&self, room: &Room, part: Part) -> CudaResult<()> {
        let Placed { device, embed, norm, head, shape, .. } = &*self.placed;
        match part {
            Part::Embedding => {
                let table = (shape.vocab, shape.hidden);
                ops::embedding(device, &room.token, embed, table, &room.x)
            }
            Part::Head => {
                let norm = Norm { x: &room.x, weight: norm, eps: shape.eps };
                head.run_normed(&norm, &room.normed, &Output::F32(&room.logits))
            }
            _ => {
                let position = Some(&room.position);
                ops::argmax(device, &room.logits, shape.vocab, &room.keys, &room.token, position)
            }
        }
    }

    /// A part that every layer has.
    fn run_layer_part(&self, room: &Room, index: usize, part: Part) -> CudaResult<()> {
        let Placed { device, layers, shape, .. } = &*self.placed;
        let (layer, cache) = (&layers[index], &self.caches[index]);
        let norm = |weight| Norm { x: &room.x, weight, eps: shape.eps };
        match part {
            Part::Qkv => {
                let input = norm(&layer.input_norm);
                layer.qkv.run_normed(&input, &room.normed, &Output::Bf16(&room.qkv))
            }
            Part::Attention => {
                let norms = HeadNorms { q: layer.q_norm.as_ref(), k: layer.k_norm.as_ref() };
                let state = (&room.position.length, &room.scratch);
                let around = (cache, &self.rotary, norms);
                ops::attention_decode(device, &self.heads, &room.qkv, around, state, &room.mixed)
            }
            Part::Output => layer.o.run(&room.mixed, 1, &Output::AddF32(&room.x)),
            Part::GateUp => {
                let input = norm(&layer.post_norm);
                layer.gate_up.run_normed(&input, &room.normed, &Output::Bf16(&room.activated))
            }
            _ => layer.down.run(&room.activated, 1, &Output::AddF32(&room.x)),
        }
    }

    /// One step: the graph, or its kernels one by one where they are recorded.
    fn advance(&mut self) -> Result<()> {
        if self.placed.device.is_recording()
            && let Some(step) = &self.step
        {
            return Ok(self.run(&step.room)?);
        }
        let step = self.step.as_mut().ok_or_else(|| Error::invalid("no step was captured"))?;
        Ok(step.graph.launch()?)
    }

    /// Reads one token behind `past` positions and gives its logits; the likeliest next token stays on the GPU.
    pub(in crate::model) fn step(&mut self, token: u32, past: usize) -> Result<Vec<f32>> {
        self.prepare(token, past)?;
        self.advance()?;
        let step = self.step.as_ref().ok_or_else(|| Error::invalid("no step was captured"))?;
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
        for _ in 0..count {
            self.advance()?;
        }
        let step = self.step.as_ref().ok_or_else(|| Error::invalid("no step was captured"))?;
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

    /// Microseconds that each part of a step takes by itself, all layers one after another in a graph of their own; the parts overlap
    /// in a step, so that it takes less than their sum. What they compute is not a token's.
    pub(in crate::model) fn time_parts(
        &mut self,
        token: u32,
        past: usize,
        count: usize,
    ) -> Result<Vec<PartTime>> {
        self.prepare(token, past)?;
        let device = self.placed.device.clone();
        let layers = self.placed.layers.len();
        let mut times = Vec::new();
        for part in Part::ALL {
            let Some(step) = &self.step else { return Err(Error::invalid("no step was captured")) };
            step.room.start(token, past)?;
            let of_layers = Part::OF_A_LAYER.contains(&part);
            let mut graph = device.capture(|| match of_layers {
                true => (0..layers).try_for_each(|i| self.run_layer_part(&step.room, i, part)),
                false => self.run_part(&step.room, part),
            })?;
            // The argmax moves the sequence on, which the cache has no room for many times.
            let count = if part == Part::Argmax { count.min(4) } else { count };
            let us = device.time_us(count, || graph.launch())?;
            let calls = if of_layers { layers } else { 1 };
            times.push(PartTime { name: part.name(), calls, kernels: graph.nodes()?, us });
        }
        if let Some(step) = &self.step {
            step.room.start(token, past)?;
        }
        Ok(times)
    }
}

/// What a step consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Embedding,
    Qkv,
    Attention,
    Output,
    GateUp,
    Down,
    Head,
    Argmax,
}

impl Part {
    const OF_A_LAYER: [Part; 5] =
        [Part::Qkv, Part::Attention, Part::Output, Part::GateUp, Part::Down];
    const ALL: [Part; 8] = [
        Part::Embedding,
        Part::Qkv,
        Part::Attention,
        Part::Output,
        Part::GateUp,
        Part::Down,
        Part::Head,
        Part::Argmax,
    ];

    fn name(self) -> &'static str {
        match self {
            Part::Embedding => "embedding",
            Part::Qkv => "norm, q, k, v",
            Part::Attention => "rotation, cache, attention",
            Part::Output => "output, added",
            Part::GateUp => "norm, gate, up, silu",
            Part::Down => "down, added",
            Part::Head => "norm, head",
            Part::Argmax => "argmax",
        }
    }
}

/// How long a part of a step takes by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartTime {
    /// What it does.
    pub name: &'static str,
    /// How often a step does it.
    pub calls: usize,
    /// Kernels of all calls.
    pub kernels: usize,
    /// Microseconds of all calls.
    pub us: f64,
}

impl Room {
    fn start(&self, token: u32, past: usize) -> Result<()> {
        self.token.write(&[token.cast_signed()])?;
        let past = i32::try_from(past).map_err(|_| Error::invalid("too many positions"))?;
        self.position.length.write(&[past])?;
        Ok(())
    }
}
