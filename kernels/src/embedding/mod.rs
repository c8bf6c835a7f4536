//! `y[m, k] = table[ids[m], k]`, widened to f32.
//! ids (M) u32 · table (V, K) f32, bf16 or f16 → y (M, K) f32. Row-major.
//! Each row is copied; nothing is computed.
//! Error: none. Source: `torch.nn.functional.embedding`.

use crate::dtypes::{bf16_to_f32, f16_to_f32};
use crate::{Cost, Cpu, Isa};
use half::{bf16, f16};

/// The rows to choose from.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// As they will come out.
    F32(&'a [f32]),
    /// Widened on the way.
    Bf16(&'a [bf16]),
    /// Widened on the way.
    F16(&'a [f16]),
}

impl Table<'_> {
    fn len(&self) -> usize {
        match self {
            Table::F32(table) => table.len(),
            Table::Bf16(table) => table.len(),
            Table::F16(table) => table.len(),
        }
    }
}

/// Copies row `ids[m]` of `table` to row m of `y`; K is `y.len() / ids.len()`.
pub fn gather(cpu: &Cpu, table: Table<'_>, ids: &[u32], y: &mut [f32]) {
    if ids.is_empty() {
        assert!(y.is_empty(), "embedding: no ids, so y must be empty");
        return;
    }
    let k = y.len() / ids.len();
    assert!(k > 0 && y.len() == k * ids.len(), "embedding: y must be (M, K)");
    assert!(table.len().is_multiple_of(k), "embedding: the table must hold whole rows of K = {k}");
    let rows = table.len() / k;
    let row = |id: u32| usize::try_from(id).unwrap_or(usize::MAX);
    assert!(ids.iter().all(|&id| row(id) < rows), "embedding: an id is beyond the {rows} rows");
    // The conversion chooses by `cpu.isa()`; copying leaves nothing to choose.
    for (&id, y) in ids.iter().zip(y.chunks_exact_mut(k)) {
        let row = row(id) * k..row(id) * k + k;
        match table {
            Table::F32(table) => y.copy_from_slice(&table[row]),
            Table::Bf16(table) => bf16_to_f32(cpu, &table[row], y),
            Table::F16(table) => f16_to_f32(cpu, &table[row], y),
        }
    }
}

/// What one call moves, `element_nbytes` being the table's.
pub fn cost(m: usize, k: usize, element_nbytes: usize) -> Cost {
    Cost { bytes: (m * (4 + k * (element_nbytes + 4))) as u64, flops: 0 }
}

/// The kernel that runs on `isa`.
pub fn kernel_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Scalar | Isa::Neon(_) => "scalar-embedding-f32",
        Isa::Avx2(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_) => "x86-embedding-f32-avx2",
    }
}

/// (V, M, K) of tests and benches.
pub const SHAPES: &[(usize, usize, usize)] = &[(1, 1, 1), (5, 3, 7), (11, 20, 31), (300, 64, 576)];

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "copies are exact")]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn rows_are_copied_on_every_isa() {
        let mut sample = Sample(5);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            println!("embedding on {}: {}", isa.name(), kernel_name(isa));
            for &(v, m, k) in SHAPES {
                let table = sample.vec(v * k, 1.0);
                let bf: Vec<bf16> = table.iter().map(|&x| bf16::from_f32(x)).collect();
                let fp: Vec<f16> = table.iter().map(|&x| f16::from_f32(x)).collect();
                let ids: Vec<u32> = (0..m).map(|_| sample.below(v)).collect();
                let [mut y, mut y_bf, mut y_fp] = [(); 3].map(|()| vec![f32::NAN; m * k]);
                gather(&cpu, Table::F32(&table), &ids, &mut y);
                gather(&cpu, Table::Bf16(&bf), &ids, &mut y_bf);
                gather(&cpu, Table::F16(&fp), &ids, &mut y_fp);
                for i in 0..m * k {
                    let at = ids[i / k] as usize * k + i % k;
                    let want = [table[at], bf[at].to_f32(), fp[at].to_f32()];
                    assert_eq!([y[i], y_bf[i], y_fp[i]], want);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "beyond the 2 rows")]
    fn an_id_beyond_the_table_is_refused() {
        gather(&Cpu::new(Some(1)), Table::F32(&[0.0; 6]), &[0, 2], &mut [0.0; 6]);
    }
}
