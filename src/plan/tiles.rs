//! The choice of tiles, from shapes and limits alone: never from a measurement on a software adapter.

use crate::kernels::{CellCode, Kernel, KernelId, LANE_TILES, ROW_TILES, WORKGROUP_SIZE};

/// Tiles fixed by a test instead of being chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TileOverride {
    /// One of [`ROW_TILES`].
    pub rows: Option<u32>,
    /// One of [`LANE_TILES`].
    pub lanes: Option<u32>,
}

/// The variant of `kernel` for `rows` batch rows and `columns` columns, with the options of a cell if it has any.
///
/// More rows per invocation re-use each weight more often but leave fewer invocations; a narrow workgroup
/// wastes fewer lanes on a small hidden size.
pub fn choose(kernel: Kernel, cell: CellCode, rows: usize, columns: usize, fixed: TileOverride) -> KernelId {
    let by_rows = match (kernel.has_row_tile(), rows) {
        (false, _) | (true, 0..=2) => ROW_TILES[0],
        (true, 3..=31) => ROW_TILES[1],
        (true, _) => ROW_TILES[2],
    };
    let by_columns = if columns <= 32 { LANE_TILES[0] } else { LANE_TILES[1] };
    KernelId {
        kernel,
        cell: if kernel.has_cell() { cell } else { CellCode::default() },
        rows: if kernel.has_row_tile() { fixed.rows.unwrap_or(by_rows) } else { 1 },
        lanes: if kernel.is_tiled() { fixed.lanes.unwrap_or(by_columns) } else { WORKGROUP_SIZE },
    }
}

/// The fewest batch rows that one dispatch reaches per unit of its workgroup limit when it has many rows.
pub fn rows_per_dispatch(fixed: TileOverride) -> u32 {
    fixed.rows.unwrap_or(ROW_TILES[ROW_TILES.len() - 1])
}

/// All variants of `kernel` that [`choose`] may return for `columns` columns.
pub fn variants(kernel: Kernel, cell: CellCode, columns: usize) -> impl Iterator<Item = KernelId> {
    let tiles: &[u32] = if kernel.has_row_tile() { &ROW_TILES } else { &[1] };
    tiles.iter().map(move |&rows| choose(kernel, cell, 1, columns, TileOverride { rows: Some(rows), lanes: None }))
}
