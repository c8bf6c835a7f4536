//! The types of numbers that are multiplied, and memory for them.

use std::ops::DerefMut;

use half::bf16;

use super::{Matrix, Precision, multiply, multiply_add, oracle};
use crate::Cpu;
use crate::buffers::Buffer;
use crate::real::Real;

/// f32 by the kernels of this folder, f64 by [`oracle`].
pub trait Multiply: Real {
    /// Memory for results.
    type Room: DerefMut<Target = [Self]> + Sync;

    /// Room for `len` numbers; there are any in it until they are written.
    fn room(cpu: &Cpu, len: usize) -> Self::Room;

    /// `c = a · b`; f64 is not rounded, whatever the precision.
    fn multiply(
        cpu: &Cpu,
        precision: Precision,
        a: Matrix<'_, Self>,
        b: Matrix<'_, Self>,
        c: &mut [Self],
    );

    /// `c += a · b`; f64 is not rounded, whatever the precision.
    fn multiply_add(
        cpu: &Cpu,
        precision: Precision,
        a: Matrix<'_, Self>,
        b: Matrix<'_, Self>,
        c: &mut [Self],
    );
}

impl Multiply for f32 {
    type Room = Buffer;

    fn room(cpu: &Cpu, len: usize) -> Buffer {
        cpu.buffer(len)
    }

    fn multiply(
        cpu: &Cpu,
        precision: Precision,
        a: Matrix<'_, f32>,
        b: Matrix<'_, f32>,
        c: &mut [f32],
    ) {
        multiply(cpu, precision, a, b, c);
    }

    fn multiply_add(
        cpu: &Cpu,
        precision: Precision,
        a: Matrix<'_, f32>,
        b: Matrix<'_, f32>,
        c: &mut [f32],
    ) {
        multiply_add(cpu, precision, a, b, c);
    }
}

impl Multiply for f64 {
    type Room = Vec<f64>;

    fn room(_cpu: &Cpu, len: usize) -> Vec<f64> {
        vec![0.0; len]
    }

    fn multiply(
        _cpu: &Cpu,
        _precision: Precision,
        a: Matrix<'_, f64>,
        b: Matrix<'_, f64>,
        c: &mut [f64],
    ) {
        oracle(a, b, c);
    }

    fn multiply_add(
        _cpu: &Cpu,
        _precision: Precision,
        a: Matrix<'_, f64>,
        b: Matrix<'_, f64>,
        c: &mut [f64],
    ) {
        let mut product = vec![0.0; c.len()];
        oracle(a, b, &mut product);
        c.iter_mut().zip(product).for_each(|(c, p)| *c += p);
    }
}

/// What factors are packed as.
pub(super) trait Packed: Copy + Default + Send + Sync {
    type Room: DerefMut<Target = [Self]> + Sync;

    /// Memory for panels.
    fn room(cpu: &Cpu, len: usize) -> Self::Room;
}

impl Packed for f32 {
    type Room = Buffer;

    fn room(cpu: &Cpu, len: usize) -> Buffer {
        cpu.buffer(len)
    }
}

impl Packed for bf16 {
    type Room = Vec<bf16>;

    fn room(_cpu: &Cpu, len: usize) -> Vec<bf16> {
        vec![bf16::ZERO; len]
    }
}
