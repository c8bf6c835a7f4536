//! Which tiling of `few_tokens.cu` is fastest: `cuda_tilings BITS M [N K]`. Weights rotate through more than the L2 cache holds,
//! calls run in one graph, and the median of its replays is told with the read ceiling of the same run.
#![allow(clippy::print_stdout, reason = "a program that measures prints")]

use aolab_kernels::cuda::linear::{HostWeight, Linear, Output, Rows, Tiling};
use aolab_kernels::cuda::{CudaResult, Device, Options, ops, search_folders};

const SHAPES: [(usize, usize); 4] = [(14336, 4096), (4096, 14336), (4096, 4096), (8192, 8192)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> =
        std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let [bits, m, rest @ ..] = numbers.as_slice() else {
        return Err("wanted: BITS M [N K]".into());
    };
    let shapes: Vec<(usize, usize)> =
        if let [n, k] = rest { vec![(*n, *k)] } else { SHAPES.to_vec() };
    let device = Device::open(&Options {
        library_folders: search_folders(&[], &[], &[]),
        ..Options::default()
    })?;
    println!("{device:?}: {bits} bits, M = {m}");
    for shape in shapes {
        measure(&device, *bits, *m, shape)?;
    }
    Ok(())
}

/// A weight of random codes.
fn layer(device: &Device, bits: usize, (n, k): (usize, usize), seed: u64) -> CudaResult<Linear> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut bytes = |len: usize| -> Vec<u8> { (0..len).map(|_| next().to_le_bytes()[0]).collect() };
    match bits {
        4 => {
            let q = bytes(n * k / 2);
            let scale = vec![0.01; n * k / 128];
            let zero = vec![0.001; n * k / 128];
            let weight =
                HostWeight::Int4 { q: &q, scale: &scale, zero: &zero, group_size: 128, bf16: true };
            Linear::new(device, &[(weight, n)], k, Rows::Plain, None)
        }
        8 => {
            let q: Vec<i8> = bytes(n * k).into_iter().map(u8::cast_signed).collect();
            let weight = HostWeight::Int8 { q: &q, scale: &vec![0.01; n] };
            Linear::new(device, &[(weight, n)], k, Rows::Plain, None)
        }
        _ => {
            let w: Vec<u16> = bytes(n * k).into_iter().map(|b| 0x3c00 | u16::from(b)).collect();
            Linear::new(device, &[(HostWeight::Bf16(&w), n)], k, Rows::Plain, None)
        }
    }
}

fn measure(device: &Device, bits: usize, m: usize, (n, k): (usize, usize)) -> CudaResult<()> {
    let copies = (160_usize << 20).div_ceil(n * k * bits / 8).clamp(2, 24);
    let layers: Vec<Linear> =
        (0..copies).map(|i| layer(device, bits, (n, k), i as u64)).collect::<CudaResult<_>>()?;
    let x = device.upload(&vec![0x3f80_u16; m * layers[0].k_padded()])?;
    let y = device.uninit::<u16>(m * n)?;
    let bytes = layers[0].nbytes() + 2 * m * (n + k);
    let whole = device.uninit::<u8>(layers[0].nbytes().next_multiple_of(16) * copies)?;
    let out = device.zeros::<u32>(1)?;
    let part = whole.len() / copies;
    let read = |i: usize| ops::read_memory(device, &whole.part(i * part..(i + 1) * part), &out);
    let ceiling = graph_us(device, copies, read)?;
    println!(
        "{n} × {k}: reading takes {ceiling:.2} us, 3.10 TB/s would take {:.2}",
        bytes as f64 / 3.1e6
    );
    let mut all = Vec::new();
    for tiling in tilings(m) {
        let run = |i: usize| layers[i].run_few(&x, m, &Output::Bf16(&y), tiling);
        if let Ok(us) = graph_us(device, copies, run) {
            all.push((us, tiling));
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (us, t) in all.iter().take(6) {
        let gb = bytes as f64 / us / 1e3;
        println!(
            "  {us:.2} us {gb:.0} GB/s ({:.0} %)  tiles {} rows {} columns {} unroll {} blocks {}",
            gb / 31.0,
            t.row_tiles,
            t.row_warps,
            t.k_warps,
            t.unroll,
            t.blocks
        );
    }
    let chosen = Tiling::choose(bits, m, n, k);
    if let Some((us, _)) = all.iter().find(|(_, tiling)| *tiling == chosen) {
        println!("  chosen: {us:.2} us {chosen:?}");
    }
    Ok(())
}

/// All that could be fast for `m` tokens.
fn tilings(m: usize) -> Vec<Tiling> {
    let token_tiles = m.div_ceil(8).next_power_of_two();
    let mut all = Vec::new();
    for (row_tiles, blocks) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        for (row_warps, k_warps) in
            [(1, 4), (1, 8), (1, 16), (2, 2), (2, 4), (2, 8), (4, 2), (4, 4), (8, 2)]
        {
            let fits = 32 * row_warps * k_warps * blocks <= 1024 && (row_warps > 1 || m <= 4);
            let unrolls: &[usize] = if fits { &[1, 2, 4] } else { &[] };
            all.extend(unrolls.iter().map(|&unroll| Tiling {
                token_tiles,
                row_tiles,
                row_warps,
                k_warps,
                unroll,
                stages: 3,
                blocks,
                params: 64,
            }));
        }
    }
    all
}

/// Time of one of `copies` calls in a graph.
fn graph_us(
    device: &Device,
    copies: usize,
    call: impl Fn(usize) -> CudaResult<()>,
) -> CudaResult<f64> {
    call(0)?;
    device.synchronize()?;
    let mut graph = device.capture(|| (0..copies).try_for_each(&call))?;
    Ok(device.time_us(9, || graph.launch())? / copies as f64)
}
