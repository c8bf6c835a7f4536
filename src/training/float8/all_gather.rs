//! Sharded weights, gathered in float8 (F05, F06): one byte a number crosses the network, and one reduction finds all scales.
//!
//! torchao's `precompute_float8_dynamic_scale_for_fsdp` reduces the largest numbers of all weights at once, after the optimizer's
//! step; each rank then casts its rows with the scale of the whole weight, and what is gathered is, bit for bit, what a cast of the
//! whole weight gives. Scales are tensorwise: it is those that `enable_fsdp_float8_all_gather` allows.

use super::cast::{Axis, Cast, Format};
use crate::error::{Error, Result};
use crate::kernels::dtypes;
use crate::training::distributed::Group;

/// A weight that ranks share row by row: rank r has `rows[r]` rows.
#[derive(Clone, Debug)]
pub struct Shard {
    /// This rank's rows.
    pub values: Vec<f32>,
    /// Rows of each rank.
    pub rows: Vec<usize>,
    /// Numbers of a row.
    pub k: usize,
}

/// A weight in e4m3 with one scale: `code / scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gathered {
    /// One code a number, all rows.
    pub codes: Vec<u8>,
    /// What numbers were multiplied by.
    pub scale: f32,
}

const CAST: Cast = Cast { format: Format::E4m3, axis: Axis::All, power_of_two: false };

/// The scale of each whole weight, found with one reduction for all of them.
pub fn precompute_float8_dynamic_scales(
    group: &mut Group,
    shards: &[Shard],
    power_of_two: bool,
) -> Result<Vec<f32>> {
    let larger = |most: f32, x: &f32| if x.abs() > most || x.is_nan() { x.abs() } else { most };
    let mut amaxes: Vec<f32> =
        shards.iter().map(|shard| shard.values.iter().fold(0.0, larger)).collect();
    group.all_reduce_max(&mut amaxes)?;
    let cast = Cast { power_of_two, ..CAST };
    Ok(amaxes.into_iter().map(|amax| cast.scale(amax)).collect())
}

/// Every weight whole, on every rank.
pub fn float8_all_gather(
    group: &mut Group,
    shards: &[Shard],
    power_of_two: bool,
) -> Result<Vec<Gathered>> {
    let scales = precompute_float8_dynamic_scales(group, shards, power_of_two)?;
    let gather = |(shard, scale): (&Shard, f32)| -> Result<Gathered> {
        let own = shard.rows.get(group.rank()).copied().unwrap_or(0);
        if shard.values.len() != own * shard.k {
            return Err(Error::invalid(format!(
                "rank {} has {} numbers of a weight, wanted {own} rows of {}",
                group.rank(),
                shard.values.len(),
                shard.k
            )));
        }
        let code = |x: &f32| dtypes::e4m3fn_encode_saturating(x * scale);
        let own: Vec<u8> = shard.values.iter().map(code).collect();
        let lengths: Vec<usize> = shard.rows.iter().map(|rows| rows * shard.k).collect();
        Ok(Gathered { codes: group.all_gather(&own, &lengths)?, scale })
    };
    shards.iter().zip(scales).map(gather).collect()
}

impl Gathered {
    /// The numbers that the codes stand for.
    pub fn dequantize(&self) -> Vec<f32> {
        self.codes.iter().map(|code| dtypes::e4m3fn_decode(*code) / self.scale).collect()
    }
}
