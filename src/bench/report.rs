//! The measurements as tables.

use super::decode::READ_SPOTS;
use super::{DecodeResult, LinearResult, Peaks, PrefillResult};
use crate::error::Result;
use crate::table::{Cell, Table};

/// What the last column holds.
const PEAK: &str =
    "peak RSS: the most that this process held from before the first token on, its model included";

impl DecodeResult {
    /// One row; rows of several models can be appended to each other.
    pub fn table(&self, model: &str) -> Result<Table> {
        let mut table = Table::new("decode")
            .column("model")
            .column_unit("speed", "tok/s")
            .column_unit("median", "ms/token")
            .column_unit("90 %", "ms/token")
            .column("bytes/token")
            .column_unit("bandwidth", "GB/s")
            .column_unit("of read bandwidth", "%")
            .column("KV cache")
            .column("peak RSS")
            .with_note(format!(
                "batch 1, {} tokens behind a context of {}; bytes: every weight once, what goes in and out of \
                 the layers, and the {} keys and values of the middle token",
                self.tokens, self.context, self.kv_cache
            ))
            .with_note(PEAK)
            .with_note(format!(
                "read bandwidth: 256 MiB read before, between and after the timed tokens, the median of up to {READ_SPOTS} \
                 times: {:.1} GB/s",
                self.read_gb_per_s
            ));
        table.push([
            Cell::Text(model.to_owned()),
            Cell::Float(self.tokens_per_s),
            Cell::Float(self.ms_per_token),
            Cell::Float(self.ms_per_token_p90),
            Cell::Bytes(self.bytes_per_token),
            Cell::Float(self.gb_per_s),
            Cell::Float(100.0 * self.gb_per_s / self.read_gb_per_s),
            Cell::Bytes(self.kv_cache_bytes),
            self.peak_rss_bytes.map_or(Cell::Missing, Cell::Bytes),
        ])?;
        Ok(table)
    }
}

impl PrefillResult {
    /// One row; rows of several models can be appended to each other.
    pub fn table(&self, model: &str) -> Result<Table> {
        let mut table = Table::new("prefill")
            .column("model")
            .column_unit("speed", "tok/s")
            .column_unit("median", "ms")
            .column_unit("a token", "ms/token")
            .column_unit("rate", "GFLOP/s")
            .column_unit("of f32 peak", "%")
            .column_unit("bandwidth", "GB/s")
            .column_unit("of read bandwidth", "%")
            .column("peak RSS")
            .with_note(format!(
                "one prompt of {} tokens, logits of its last; the rate counts the linear layers; bytes: every \
                 weight once, what goes in and out of the layers, and the cache",
                self.tokens
            ))
            .with_note(PEAK)
            .with_note(format!(
                "measured in this run: f32 multiply-add peak {:.1} GFLOP/s, read bandwidth {:.1} GB/s (256 MiB read \
                 before each prompt, the median)",
                self.peak_gflop_per_s, self.read_gb_per_s
            ));
        table.push([
            Cell::Text(model.to_owned()),
            Cell::Float(self.tokens_per_s),
            Cell::Float(self.ms),
            Cell::Float(self.ms_per_token),
            Cell::Float(self.gflop_per_s),
            Cell::Float(100.0 * self.gflop_per_s / self.peak_gflop_per_s),
            Cell::Float(self.gb_per_s),
            Cell::Float(100.0 * self.gb_per_s / self.read_gb_per_s),
            self.peak_rss_bytes.map_or(Cell::Missing, Cell::Bytes),
        ])?;
        Ok(table)
    }
}

impl LinearResult {
    /// One row beside the ceilings; rows of several cases can be appended to each other.
    pub fn table(&self, peaks: &Peaks) -> Result<Table> {
        let mut table = Table::new("linear layers")
            .column("workflow")
            .column("N")
            .column("K")
            .column("M")
            .column("caches")
            .column("kernel")
            .column_unit("time", "µs")
            .column_unit("bandwidth", "GB/s")
            .column_unit("read in turn", "GB/s")
            .column_unit("of read", "%")
            .column_unit("rate", "GFLOP/s")
            .column_unit("of f32 peak", "%")
            .with_note(
                "read in turn: as many bytes read in the same rounds by a loop that does nothing else, as cold and \
                 in large pages; medians of both. Warm calls stand beside the read bandwidth below",
            )
            .with_note(format!(
                "measured in this run: read bandwidth {:.1} GB/s; peaks of f32 multiply-adds {:.1} \
                 GFLOP/s, of bf16 dot products {:.1}, of int8 dot products {:.1} GOP/s",
                peaks.read_gb_per_s,
                peaks.f32_gflop_per_s,
                peaks.bf16_gflop_per_s,
                peaks.int8_gop_per_s
            ))
            .with_note("bytes: weights, scales, activations and results once; 2·M·N·K operations");
        if self.rival.is_some() {
            table = table
                .column("against")
                .column_unit("its time", "µs")
                .column_unit("its time ÷ ours", "×")
                .with_note(
                    "against: another library in the same rounds, on as many threads and as cold",
                );
        }
        let mut cells = vec![
            Cell::Text(self.workflow.clone()),
            self.n.into(),
            self.k.into(),
            self.m.into(),
            Cell::Text(if self.cold { "cold" } else { "warm" }.to_owned()),
            Cell::Text(self.kernel.clone()),
            Cell::Float(self.us),
            Cell::Float(self.gb_per_s),
            self.read_gb_per_s.map_or(Cell::Missing, Cell::Float),
            Cell::Float(100.0 * self.gb_per_s / self.read_gb_per_s.unwrap_or(peaks.read_gb_per_s)),
            Cell::Float(self.gflop_per_s),
            Cell::Float(100.0 * self.gflop_per_s / peaks.f32_gflop_per_s),
        ];
        if let Some((name, us)) = &self.rival {
            cells.extend([name.as_str().into(), Cell::Float(*us), Cell::Float(us / self.us)]);
        }
        table.push(cells)?;
        Ok(table)
    }
}
