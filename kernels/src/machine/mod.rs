//! What this machine can do at most, measured on the spot with the threads of a [`Cpu`].
//!
//! Every speed that aolab reports is put beside one of these numbers, taken in the same run. Each
//! function measures rounds for `seconds` (at least one round) and gives the best round: a ceiling is
//! what the machine can do, not what it did while another program had a core.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::{Cpu, Isa};

/// Bytes that the memory tests read: 256 MiB, several times a last-level cache.
const STREAMED_NBYTES: usize = 256 << 20;

/// Numbers that a thread reads at a time at most: 1 MiB, so that threads end together.
const PART: usize = (1 << 20) / size_of::<u64>();

/// Numbers in a cache line.
const LINE: usize = 64 / size_of::<u64>();

/// Steps of a multiply loop that a thread takes at a time: some tens of microseconds.
const STEPS: usize = 4096;

/// Parts of a multiply loop in a round, per thread, so that threads end together.
const PARTS: usize = 32;

/// How long [`loop_start_us`] waits for a thread.
const PATIENCE: Duration = Duration::from_micros(200);

/// Memory that is only read, in large pages as weights are: what reading so many bytes costs at this minute.
#[derive(Debug)]
pub struct Memory {
    numbers: Vec<u64>,
}

impl Memory {
    /// Memory of `nbytes`, filled up to whole numbers of eight.
    pub fn new(cpu: &Cpu, nbytes: usize) -> Memory {
        // Written before it is read: untouched pages would all be the one page of zeros.
        let mut numbers = vec![0_u64; nbytes.div_ceil(size_of::<u64>())];
        crate::pages::expect(&numbers);
        cpu.threads().chunks_mut(&mut numbers, PART, |i, part| {
            if !cpu.stopped() {
                part.fill(i as u64);
            }
        });
        // What is read of work that was stopped counts for nothing.
        if !cpu.stopped() {
            crate::pages::gather(&numbers);
        }
        Memory { numbers }
    }

    /// Bytes that [`Memory::read`] reads.
    pub fn nbytes(&self) -> usize {
        size_of_val(self.numbers.as_slice())
    }

    /// Reads everything once with all threads; the seconds that took.
    pub fn read(&self, cpu: &Cpu) -> f64 {
        let numbers = &self.numbers;
        // As the kernels: eight parts a thread even out cores that others slow down.
        let part = cpu.threads().share(numbers.len().div_ceil(8), LINE).min(PART);
        let start = Instant::now();
        cpu.threads().run(numbers.len().div_ceil(part.max(1)), |i| {
            let end = numbers.len().min((i + 1) * part);
            black_box(read(cpu.isa(), &numbers[i * part..end]));
        });
        start.elapsed().as_secs_f64()
    }
}

/// Bytes read from memory, in GB/s (10⁹ bytes): 256 MiB summed once a round, nothing written.
pub fn read_bandwidth(cpu: &Cpu, seconds: f64) -> f64 {
    if cpu.stopped() {
        return f64::NAN;
    }
    let memory = Memory::new(cpu, STREAMED_NBYTES);
    let time = best(cpu, seconds, || {
        memory.read(cpu);
    });
    memory.nbytes() as f64 / time * 1e-9
}

/// Bytes read plus bytes written while one half of 256 MiB is copied to the other, in GB/s.
pub fn copy_bandwidth(cpu: &Cpu, seconds: f64) -> f64 {
    if cpu.stopped() {
        return f64::NAN;
    }
    let from: Vec<u64> = (0..STREAMED_NBYTES as u64 / 16).collect();
    let mut to = vec![1_u64; from.len()];
    let share = cpu.threads().share(to.len(), PART);
    let time = best(cpu, seconds, || {
        cpu.threads().chunks_mut(&mut to, share, |i, to| {
            to.copy_from_slice(&from[i * share..][..to.len()]);
        });
        black_box(&to);
    });
    2.0 * size_of_val(from.as_slice()) as f64 / time * 1e-9
}

/// Fused multiply-adds of f32 in registers, in GFLOP/s; one counts two.
pub fn f32_peak(cpu: &Cpu, seconds: f64) -> f64 {
    let isa = cpu.isa();
    peak(cpu, seconds, || match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => x86::f32_avx2(isa, STEPS),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => x86::f32_avx512(isa, STEPS),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(isa) => x86::f32_avx512(isa.avx512(), STEPS),
        _ => f32_any(STEPS),
    })
}

/// Products of bf16 summed in f32, in GFLOP/s; a multiply-add counts two.
///
/// Where the processor has no such instruction, they are f32 multiply-adds: [`f32_peak`].
pub fn bf16_peak(cpu: &Cpu, seconds: f64) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512Vnni(isa) = cpu.isa() {
        return peak(cpu, seconds, || x86::bf16_avx512(isa, STEPS));
    }
    f32_peak(cpu, seconds)
}

/// Products of u8 and i8 summed in i32, in GOP/s; a multiply-add counts two.
///
/// With VNNI that is one instruction; with AVX2 or AVX-512 three (`maddubs`, `madd`, `add`).
pub fn int8_peak(cpu: &Cpu, seconds: f64) -> f64 {
    let isa = cpu.isa();
    peak(cpu, seconds, || match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => x86::int8_avx2(isa, STEPS),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => x86::int8_avx512(isa, STEPS),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(isa) => x86::int8_vnni(isa, STEPS),
        _ => int8_any(STEPS),
    })
}

/// What it costs to start a loop, have every thread join it and end it, in microseconds: the median
/// of 1000.
pub fn loop_start_us(cpu: &Cpu) -> f64 {
    let count = cpu.threads().count();
    let one = || {
        let joined = AtomicUsize::new(0);
        let start = Instant::now();
        cpu.threads().run(count, |_| {
            joined.fetch_add(1, Ordering::Relaxed);
            // A thread that another program holds up is not waited for longer than this.
            while joined.load(Ordering::Relaxed) < count && start.elapsed() < PATIENCE {
                std::hint::spin_loop();
            }
        });
        start.elapsed().as_secs_f64()
    };
    let mut times: Vec<f64> = (0..1000).map(|_| one()).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2] * 1e6
}

/// The shortest time of a round, measured for `seconds` or until the work is stopped.
fn best(cpu: &Cpu, seconds: f64, mut round: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || (begin.elapsed().as_secs_f64() < seconds && !cpu.stopped()) {
        let start = Instant::now();
        round();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// `work` does some operations and says how many; all threads do it.
fn peak(cpu: &Cpu, seconds: f64, work: impl Fn() -> u64 + Sync) -> f64 {
    if cpu.stopped() {
        return f64::NAN;
    }
    let parts = PARTS * cpu.threads().count();
    let operations = work() as f64 * parts as f64;
    let time = best(cpu, seconds, || {
        cpu.threads().run(parts, |_| {
            black_box(work());
        });
    });
    operations / time * 1e-9
}

fn read(isa: Isa, data: &[u64]) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => x86::read(isa, data),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => x86::read(isa.avx2(), data),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(isa) => x86::read(isa.avx512().avx2(), data),
        _ => xor(data),
    }
}

/// Reads everything: 256 bytes a step, in as many independent sums as registers allow.
#[inline(always)]
fn xor(data: &[u64]) -> u64 {
    let mut sums = [0; 32];
    for group in data.as_chunks::<32>().0 {
        sums.iter_mut().zip(group).for_each(|(sum, v)| *sum ^= v);
    }
    sums.into_iter().fold(0, |all, sum| all ^ sum)
}

/// Plain Rust with 32 independent sums, for the compiler to put into vectors.
fn f32_any(steps: usize) -> u64 {
    let mut sums = [1.0_f32; 32];
    let factor = black_box(0.5_f32);
    for _ in 0..steps {
        sums.iter_mut().for_each(|sum| *sum = *sum * factor + 1.0);
    }
    black_box(sums);
    2 * 32 * steps as u64
}

fn int8_any(steps: usize) -> u64 {
    let (a, b) = (black_box([3_u8; 512]), black_box([-2_i8; 512]));
    let mut sums = [0_i32; 32];
    for step in 0..steps {
        let at = step % 16 * 32;
        for (sum, (a, b)) in sums.iter_mut().zip(a[at..].iter().zip(&b[at..])) {
            *sum += i32::from(*a) * i32::from(*b);
        }
    }
    black_box(sums);
    2 * 32 * steps as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ceiling_is_a_speed() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            let name = isa.name();
            for (what, speed) in [
                ("f32", f32_peak(&cpu, 0.01)),
                ("bf16", bf16_peak(&cpu, 0.01)),
                ("int8", int8_peak(&cpu, 0.01)),
                ("read", read_bandwidth(&cpu, 0.0)),
                ("copy", copy_bandwidth(&cpu, 0.0)),
            ] {
                println!("{name} {what}: {speed:.1}");
                assert!(speed.is_finite() && speed > 0.1, "{name} {what}: {speed}");
                assert!(
                    speed < 1e6,
                    "{name} {what}: {speed} means that the work was optimized away"
                );
            }
            assert!(loop_start_us(&cpu) > 0.0);
        }
    }

    #[test]
    fn memory_of_every_size_is_read() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            for nbytes in [0, 1, 64, 1000, (1 << 20) + 8, 5_000_000] {
                let memory = Memory::new(&cpu, nbytes);
                assert!(memory.nbytes() - nbytes < 8, "{nbytes}");
                assert!(memory.read(&cpu) >= 0.0, "{nbytes}");
            }
        }
    }

    #[test]
    fn everything_is_read() {
        let data: Vec<u64> =
            (0..4096).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let all = data.iter().fold(0, |all, v| all ^ v);
        for isa in Isa::available() {
            assert_eq!(read(isa, &data), all, "{}", isa.name());
        }
    }
}
