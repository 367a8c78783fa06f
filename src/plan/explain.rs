//! A plan in words: what runs, in which pieces, in how much memory, and why.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use super::{BufferId, Content, Plan, PlanLimits, Upload};
use crate::kernels::Kernel;

/// How the timesteps of some layers were cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupNote {
    /// The layers that a chunk passes through together.
    pub layers: Range<usize>,
    /// Whether a layer has a reverse direction, and the whole sequence enters and leaves it.
    pub whole: bool,
    /// The number of chunks.
    pub chunks: usize,
    /// The most rows of a chunk in one direction.
    pub rows: usize,
    /// What kept chunks from being larger.
    pub limited_by: &'static str,
}

/// `1.5 MiB`
fn bytes(n: u64) -> String {
    match n {
        0..=9_999 => format!("{n} B"),
        10_000..=10_485_759 => format!("{:.1} KiB", n as f64 / 1024.0),
        _ => format!("{:.1} MiB", n as f64 / 1_048_576.0),
    }
}

/// `1.5 MFLOP`
fn operations(n: u64) -> String {
    match n {
        0..=9_999_999 => format!("{:.3} MFLOP", n as f64 / 1e6),
        _ => format!("{:.2} GFLOP", n as f64 / 1e9),
    }
}

impl Plan {
    /// The plan in words, several lines; for people, the text may change.
    pub fn explain(&self, limits: &PlanLimits) -> String {
        let mut text = String::new();
        self.write_words(&mut text, limits).expect("writing to a String cannot fail");
        text
    }

    fn write_words(&self, out: &mut String, limits: &PlanLimits) -> std::fmt::Result {
        let s = &self.schedule;
        let padded = s.batch_size() * s.num_steps();
        writeln!(
            out,
            "batch: {} sequences of up to {} timesteps; {} rows are computed, padding would make them {padded}",
            s.batch_size(),
            s.num_steps(),
            s.num_rows()
        )?;
        let any = |is: fn(Kernel) -> bool| self.kernels.iter().any(|id| is(id.kernel));
        let mut parts = Vec::new();
        if any(|kernel| matches!(kernel, Kernel::InputProjection | Kernel::InputProjectionSum)) {
            parts.push("the input's share of all gates in one product per chunk, layer and direction");
        }
        if any(|kernel| kernel.has_cell() && !kernel.is_sequence() && kernel != Kernel::Wave) {
            parts.push("one step per timestep and layer, both directions together");
        }
        if any(Kernel::is_sequence) {
            parts.push("many timesteps of a small layer in one dispatch, a workgroup for one or four sequences");
        }
        if any(|kernel| kernel == Kernel::Wave) {
            parts.push("a timestep of each layer of a stack in one dispatch, each one behind the layer below");
        }
        writeln!(out, "strategy: {}; a chunk is one submit", parts.join(", then "))?;
        if any(Kernel::is_narrow) {
            writeln!(out, "          a narrow input is summed over in the steps themselves")?;
        }
        for group in &self.groups {
            let last = group.layers.end - 1;
            let layers = match group.layers.start == last {
                true => format!("layer {last}"),
                false => format!("layers {} to {last}", group.layers.start),
            };
            let way = if group.whole { "the whole sequence at a time" } else { "chunk by chunk" };
            writeln!(
                out,
                "{layers}: {way}, {} chunk{} of up to {} rows; {}",
                group.chunks,
                if group.chunks == 1 { "" } else { "s" },
                group.rows,
                group.limited_by
            )?;
        }

        let mut kernels: BTreeMap<usize, (usize, u64)> = BTreeMap::new();
        let (mut longest, mut num_dispatches) = (0, 0);
        for dispatch in self.submits.iter().flat_map(|s| &s.dispatches) {
            let entry = kernels.entry(dispatch.kernel).or_default();
            *entry = (entry.0 + 1, entry.1 + dispatch.flops);
            longest = longest.max(dispatch.flops);
            num_dispatches += 1;
        }
        for (index, (count, flops)) in kernels {
            let id = self.kernels[index];
            let tile = match id.kernel.has_row_tile() {
                true => format!(
                    "{} rows × {} columns per workgroup, {} per invocation",
                    id.rows_per_workgroup(),
                    id.lanes,
                    id.rows
                ),
                false => "no tile".to_owned(),
            };
            writeln!(out, "  {} × {count}: {}, {tile}", id.name(), operations(flops))?;
        }
        writeln!(
            out,
            "work: {} submits, {num_dispatches} dispatches, {} in all, {} in the longest dispatch",
            self.submits.len(),
            operations(self.flops()),
            operations(longest)
        )?;

        let split = |id: &BufferId| matches!(id, BufferId::Model { range, .. } if *range > 0);
        let ranges: std::collections::BTreeSet<_> =
            self.bind_groups.iter().flat_map(|g| g.ranges.iter().map(|r| r.buffer)).filter(split).collect();
        if !ranges.is_empty() {
            writeln!(
                out,
                "weights: larger than a binding of {}, split into {} more ranges of columns",
                bytes(limits.binding_bytes),
                ranges.len()
            )?;
        }
        writeln!(out, "working memory: {} of a budget of {}", bytes(self.scratch_bytes()), bytes(limits.budget_bytes))?;
        let mut buffers: Vec<_> = self.scratch.iter().map(|b| (b.size_bytes, b.label.as_str())).collect();
        buffers.sort_by(|a, b| b.cmp(a));
        let largest: Vec<_> = buffers.iter().take(6).map(|(size, label)| format!("{label} {}", bytes(*size))).collect();
        let more = buffers.len().saturating_sub(6);
        let others = if more > 0 { format!(" and {more} more") } else { String::new() };
        writeln!(out, "  {}{others}", largest.join(", "))?;

        let (mut up, mut down) = (0, 0);
        for submit in &self.submits {
            up += submit.uploads.iter().map(|u| self.upload_bytes(u)).sum::<u64>();
            down += submit.reads.iter().map(|r| r.range.size_bytes).sum::<u64>();
        }
        let rows = |r: &super::Read| matches!(r.content, Content::Rows { .. });
        let of_rows: u64 =
            self.submits.iter().flat_map(|s| &s.reads).filter(|r| rows(r)).map(|r| r.range.size_bytes).sum();
        writeln!(out, "transfers: {} to the device, {} back ({} of them rows)", bytes(up), bytes(down), bytes(of_rows))
    }

    /// Bytes that an upload brings to the device.
    pub fn upload_bytes(&self, upload: &Upload) -> u64 {
        let size = |id: &BufferId| id.scratch().map_or(0, |i| self.scratch[i].size_bytes);
        match upload {
            Upload::Uniforms { bytes, .. } => bytes.len() as u64,
            Upload::InputRows { rows, stride, .. } => 4 * (rows.len() * stride) as u64,
            Upload::RowTable { rows, .. } => 4 * rows.len() as u64,
            Upload::StateTable { buffer } | Upload::PoolTable { buffer } => size(buffer),
            Upload::InitialState { h_places, state_places, .. } => 4 * (2 * h_places.1 + state_places.1) as u64,
            Upload::Clear { .. } => 0,
        }
    }

    /// Dispatches that copy rows and states.
    pub fn num_copies(&self) -> usize {
        let copies = |d: &&super::Dispatch| self.kernels[d.kernel].kernel == Kernel::CopyRows;
        self.submits.iter().flat_map(|s| &s.dispatches).filter(copies).count()
    }
}
