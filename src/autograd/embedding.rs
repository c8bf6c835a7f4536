//! Rows of a table by their numbers.

use super::float::Float;
use super::{Tape, Var};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::tensor::Tensor;

impl Tape {
    /// The rows `ids` of `table (entries, width)`: an embedding, or a gather along the first dimension.
    pub fn embedding(&self, table: &Var, ids: &[u32]) -> Result<Var> {
        let (entries, width) = table.value.dims2()?;
        let places = ids.iter().map(|id| {
            let place = usize::try_from(*id).ok().filter(|place| *place < entries);
            place.ok_or_else(|| Error::invalid(format!("embedding: id {id} of {entries} entries")))
        });
        let places = places.collect::<Result<Vec<usize>>>()?;
        let is_f64 = self.is_f64("embedding", &[table])?;
        let (gather, scatter) = if is_f64 {
            (gather::<f64> as Gather, scatter::<f64> as Scatter)
        } else {
            (gather::<f32> as Gather, scatter::<f32> as Scatter)
        };
        let rows = gather(&self.cpu, &table.value, &places, width)?;
        self.custom("embedding", &[table], rows, move |up, dy| {
            Ok(vec![Some(scatter(up.cpu, &dy, &places, [entries, width])?)])
        })
    }
}

type Gather = fn(&Cpu, &Tensor, &[usize], usize) -> Result<Tensor>;
type Scatter = fn(&Cpu, &Tensor, &[usize], [usize; 2]) -> Result<Tensor>;

fn gather<T: Float>(cpu: &Cpu, table: &Tensor, places: &[usize], width: usize) -> Result<Tensor> {
    let table = table.as_slice::<T>()?;
    let mut rows = T::room(cpu, places.len() * width);
    for (row, place) in rows.chunks_exact_mut(width.max(1)).zip(places) {
        row.copy_from_slice(&table[place * width..][..width]);
    }
    T::tensor(rows, &[places.len(), width])
}

/// Rows of the same entry are added in their order.
fn scatter<T: Float>(
    cpu: &Cpu,
    dy: &Tensor,
    places: &[usize],
    shape: [usize; 2],
) -> Result<Tensor> {
    let width = shape[1];
    let mut table = T::room(cpu, shape[0] * width);
    table.fill(T::default());
    for (place, dy) in places.iter().zip(dy.as_slice::<T>()?.chunks_exact(width.max(1))) {
        let row = &mut table[place * width..][..width];
        row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += *dy);
    }
    T::tensor(table, &shape)
}
