//! The choice of tiles, from shapes and limits alone: never from a measurement on a software adapter.

use super::PlanLimits;
use crate::kernels::{
    CellCode, Form, Kernel, KernelId, LANE_TILES, LayerLayout, ModelPart, NARROW_INPUT, ROW_TILES, SEGMENT,
    SEQUENCE_LANES, SEQUENCE_UNITS, SLICE_TILES, SLICED_LANES, WORKGROUP_SIZE, loop_trips, padded,
};

/// Units up to which a processor of a wide device keeps the weights of a layer next to it: 147 KB of f32.
pub(crate) const NEAR_UNITS: usize = 96;

/// Tiles fixed by a test instead of being chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TileOverride {
    /// One of [`ROW_TILES`].
    pub rows: Option<u32>,
    /// One of [`LANE_TILES`].
    pub lanes: Option<u32>,
    /// One of [`SLICE_TILES`]; more than one wins over the others.
    pub slices: Option<u32>,
    /// Whether layers that can run many timesteps in a dispatch do.
    pub sequence: Option<bool>,
    /// Whether steps that can sum over a narrow input do.
    pub narrow: Option<bool>,
    /// Whether stacks that can run side by side do.
    pub wave: Option<bool>,
}

/// What a dispatch computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Batch rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Products in a sum; 0 for a kernel that sums nothing.
    pub k: usize,
}

/// The most sums, counted as batch rows times columns, that are cut into slices: more of them fill any device as they are,
/// and then weights are better shared by more rows.
const SLICED_SUMS: usize = 1 << 18;
/// The most batch rows of a kernel with slices; its workgroups have four at most.
const SLICED_ROWS: usize = 4096;

/// The variant of `kernel` for a shape, with the options of a cell if it has any.
///
/// More rows per invocation re-use each weight more often but leave fewer invocations; a narrow workgroup wastes fewer
/// lanes on a small hidden size. On a wide device, which has far more lanes than a small batch has units, the segments of
/// a sum are dealt to several invocations.
pub fn choose(kernel: Kernel, cell: CellCode, shape: Shape, limits: &PlanLimits, fixed: TileOverride) -> KernelId {
    let Shape { rows, columns, k } = shape;
    let cell = if kernel.has_cell() { cell } else { CellCode::default() };
    let few = rows <= SLICED_ROWS && rows * columns <= SLICED_SUMS;
    let slices = match fixed.slices {
        _ if !kernel.has_row_tile() => 1,
        Some(slices) => slices,
        None if limits.wide && few && fixed.rows.is_none() => slices_of(k),
        None => 1,
    };
    let halves = limits.halves && kernel.has_row_tile();
    if slices > 1 {
        let rows = if rows <= 2 { ROW_TILES[0] } else { ROW_TILES[1] };
        return KernelId { kernel, cell, rows, lanes: SLICED_LANES, slices, halves };
    }
    let by_rows = match (kernel.has_row_tile(), rows) {
        (false, _) | (true, 0..=2) => ROW_TILES[0],
        (true, 3..=31) => ROW_TILES[1],
        (true, _) => ROW_TILES[2],
    };
    let by_columns = if columns <= 32 { LANE_TILES[0] } else { LANE_TILES[1] };
    KernelId {
        kernel,
        cell,
        rows: if kernel.has_row_tile() { fixed.rows.unwrap_or(by_rows) } else { 1 },
        lanes: if kernel.is_tiled() { fixed.lanes.unwrap_or(by_columns) } else { WORKGROUP_SIZE },
        slices,
        halves,
    }
}

/// Whether a layer runs many timesteps in one dispatch: a workgroup goes through them for some sequences, and reads the
/// weights once a timestep. For a layer whose weights stay near one processor, and for a plain LSTM.
pub fn takes_sequence(layout: &LayerLayout, limits: &PlanLimits, fixed: TileOverride) -> bool {
    let able = is_plain(layout)
        && padded(layout.hidden_size) <= SEQUENCE_UNITS
        && layout.num_ranges(ModelPart::WeightsHh) == 1;
    able && steps_within_loops(layout, limits) > 0
        && fixed.sequence.unwrap_or(limits.wide && layout.hidden_size <= NEAR_UNITS)
}

/// Whether a layer is an LSTM without projection, peepholes and normalisation.
pub(super) fn is_plain(layout: &LayerLayout) -> bool {
    layout.form == Form::Lstm && !layout.is_normalized() && !layout.has_peepholes() && !layout.has_inner
}

/// Whether the steps of a layer sum over its input themselves instead of reading gates that an input projection left: on a
/// wide device, since a software adapter gains nothing and compiles the sum once for each row of a tile.
pub fn takes_narrow(layout: &LayerLayout, limits: &PlanLimits, fixed: TileOverride) -> bool {
    layout.is_narrow() && fixed.narrow.unwrap_or(limits.wide)
}

/// The most timesteps of a dispatch for a driver that ends loops.
pub fn steps_within_loops(layout: &LayerLayout, limits: &PlanLimits) -> usize {
    /// Trips of the loops before and after the timesteps: four rows of units, four to an invocation of the narrowest.
    const AROUND: usize = 2 * (4 * SEQUENCE_UNITS / SEQUENCE_LANES[0] as usize + 1) + 2;
    let stride = padded(layout.hidden_size);
    let units = stride.div_ceil(sequence_lanes(stride) as usize);
    let narrow = 4 * (NARROW_INPUT / 4 + 1);
    let of_step = units * (loop_trips(stride / 4) + 1 + narrow) + 2;
    limits.loop_trips.map_or(usize::MAX, |limit| (limit as usize).saturating_sub(AROUND) / of_step)
}

/// Sequences of a workgroup of [`Kernel::Sequence`], unless there are one or two.
pub const SEQUENCE_ROWS: u32 = ROW_TILES[1];

fn sequence_lanes(stride: usize) -> u32 {
    if stride <= SEQUENCE_LANES[0] as usize { SEQUENCE_LANES[0] } else { SEQUENCE_LANES[1] }
}

/// The variant of a kernel of many timesteps for so many sequences and units, padded.
pub fn sequence(kernel: Kernel, cell: CellCode, sequences: usize, stride: usize, limits: &PlanLimits) -> KernelId {
    KernelId {
        kernel,
        cell,
        rows: if sequences <= 2 { ROW_TILES[0] } else { SEQUENCE_ROWS },
        lanes: sequence_lanes(stride),
        slices: 1,
        halves: limits.halves,
    }
}

/// As many slices as a sum has segments, about.
fn slices_of(k: usize) -> u32 {
    match k.div_ceil(SEGMENT) {
        0 | 1 => SLICE_TILES[0],
        2..=8 => SLICE_TILES[1],
        _ => SLICE_TILES[2],
    }
}

/// The fewest batch rows that one dispatch reaches per unit of its workgroup limit when it has many rows.
pub fn rows_per_dispatch(fixed: TileOverride) -> u32 {
    match fixed {
        TileOverride { slices: Some(2..), .. } => ROW_TILES[1],
        _ => fixed.rows.unwrap_or(ROW_TILES[ROW_TILES.len() - 1]),
    }
}

/// All variants of `kernel` that [`choose`] may return for `columns` columns and sums over `k`.
pub fn variants(
    kernel: Kernel,
    cell: CellCode,
    columns: usize,
    k: usize,
    limits: &PlanLimits,
) -> impl Iterator<Item = KernelId> {
    // One number of rows from each side of every threshold.
    let rows = [1, 3, SLICED_SUMS / columns.max(1) + 1, SLICED_ROWS + 1, 32];
    let limits = *limits;
    rows.into_iter().map(move |rows| choose(kernel, cell, Shape { rows, columns, k }, &limits, TileOverride::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_is_among_the_variants() {
        for (wide, columns, k) in [true, false].into_iter().flat_map(|wide| {
            [1, 16, 33, 512, 9000, 300_000].into_iter().flat_map(move |c| [5, 64, 256, 300].map(|k| (wide, c, k)))
        }) {
            let all: Vec<KernelId> =
                variants(Kernel::RecurrentStep, CellCode::default(), columns, k, &PlanLimits::defaults(wide)).collect();
            for rows in (1..70).chain((70..10_000).step_by(61)) {
                let shape = Shape { rows, columns, k };
                let id = choose(
                    Kernel::RecurrentStep,
                    CellCode::default(),
                    shape,
                    &PlanLimits::defaults(wide),
                    TileOverride::default(),
                );
                assert!(all.contains(&id), "{} for {shape:?}", id.name());
                assert!(wide || id.slices == 1);
            }
        }
    }
}
