//! Sequences and states: the caller's axis order → packed rows by rank, and back.

use std::ops::Range;

use crate::batch::RowOrder;
use crate::kernels::padded;
use crate::schedule::Schedule;
use crate::spec::Merge;

/// The packed rows `rows` of an input of `width` columns, [rows, stride], columns past the width zero.
pub fn pack_input_rows(
    input: &[f32],
    width: usize,
    order: RowOrder<'_>,
    schedule: &Schedule,
    rows: Range<usize>,
    stride: usize,
) -> Vec<f32> {
    let first = rows.start;
    let mut packed = vec![0.0; rows.len() * stride];
    for (row, t, b) in schedule.walk(rows) {
        packed[(row - first) * stride..][..width].copy_from_slice(&input[order.row(t, b) * width..][..width]);
    }
    packed
}

/// For each of the packed rows `rows`, its row in the caller's order.
pub fn row_table(schedule: &Schedule, rows: Range<usize>, order: RowOrder<'_>) -> Vec<u32> {
    schedule.walk(rows).map(|(_, t, b)| order.row(t, b) as u32).collect()
}

/// The columns `column..column + width` of packed rows of one direction.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a> {
    /// [rows, stride]
    pub values: &'a [f32],
    /// f32 from one row to the next.
    pub stride: usize,
    /// The first column.
    pub column: usize,
    /// The number of columns.
    pub width: usize,
}

/// The packed rows `rows` of a plane → their places in an array of the caller's layout, which is zero where the first
/// direction of a sum comes to. The inverse of packing.
pub fn scatter_plane(
    plane: &Plane<'_>,
    schedule: &Schedule,
    rows: Range<usize>,
    place: impl Fn(usize, usize) -> usize,
    merge: Merge,
    out: &mut [f32],
) {
    let first = rows.start;
    for (row, t, b) in schedule.walk(rows) {
        let from = &plane.values[(row - first) * plane.stride + plane.column..][..plane.width];
        put_row(merge, &mut out[place(t, b)..][..plane.width], from);
    }
}

/// Writes a row of one direction, or adds it where directions are summed.
pub fn put_row(merge: Merge, to: &mut [f32], from: &[f32]) {
    match merge {
        Merge::Concat => to.copy_from_slice(from),
        Merge::Sum => to.iter_mut().zip(from).for_each(|(sum, v)| *sum += v),
    }
}

/// States of one layer, [D, B, width] by sequence → [D, B by rank, padded width]; `None` is zero.
pub fn pack_state(state: Option<&[f32]>, schedule: &Schedule, directions: usize, width: usize) -> Vec<f32> {
    let batch = schedule.batch_size();
    let stride = padded(width);
    let mut packed = vec![0.0; directions * batch * stride];
    if let Some(state) = state {
        for d in 0..directions {
            for (rank, &b) in schedule.order().iter().enumerate() {
                packed[(d * batch + rank) * stride..][..width]
                    .copy_from_slice(&state[(d * batch + b) * width..][..width]);
            }
        }
    }
    packed
}

/// The inverse of [`pack_state`].
pub fn unpack_state(packed: &[f32], schedule: &Schedule, directions: usize, width: usize) -> Vec<f32> {
    let batch = schedule.batch_size();
    let stride = padded(width);
    let mut state = vec![0.0; directions * batch * width];
    for d in 0..directions {
        for (rank, &b) in schedule.order().iter().enumerate() {
            state[(d * batch + b) * width..][..width].copy_from_slice(&packed[(d * batch + rank) * stride..][..width]);
        }
    }
    state
}

/// The whole state buffer of a layer: c, then h_n, then zeros up to `len`.
pub fn pack_state_buffer(c: &[f32], h: &[f32], len: usize) -> Vec<f32> {
    let mut buffer = Vec::with_capacity(len);
    buffer.extend_from_slice(c);
    buffer.extend_from_slice(h);
    buffer.resize(len, 0.0);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;

    #[test]
    fn scattering_inverts_packing_in_both_layouts() {
        let lengths = [2, 0, 4, 1];
        let (seq_len, batch_size, width) = (5, 4, 3);
        let x: Vec<f32> = (1..=seq_len * batch_size * width).map(|n| n as f32).collect();
        for layout in [Layout::TimeMajor, Layout::BatchMajor] {
            let order = RowOrder::Layout { layout, seq_len, batch_size, first: 0 };
            let schedule = Schedule::new(&lengths);
            let mut back = vec![0.0; x.len()];
            // In two chunks, as a long batch is.
            for steps in [0..2, 2..4] {
                let rows = schedule.rows(steps);
                let packed = pack_input_rows(&x, width, order, &schedule, rows.clone(), 4);
                assert!(packed.chunks_exact(4).all(|row| row[3] == 0.0));
                let place = |t, b| layout.row(t, b, seq_len, batch_size) * width;
                let table = row_table(&schedule, rows.clone(), order);
                let places: Vec<_> = schedule.walk(rows.clone()).map(|(_, t, b)| place(t, b) / width).collect();
                assert_eq!(table.iter().map(|&r| r as usize).collect::<Vec<_>>(), places);
                let plane = Plane { values: &packed, stride: 4, column: 0, width };
                scatter_plane(&plane, &schedule, rows, place, Merge::Concat, &mut back);
            }
            for (b, &length) in lengths.iter().enumerate() {
                for t in 0..seq_len {
                    let at = layout.row(t, b, seq_len, batch_size) * width;
                    let expected: &[f32] = if t < length { &x[at..at + width] } else { &[0.0; 3] };
                    assert_eq!(&back[at..at + width], expected, "{layout:?} b {b} t {t}");
                }
            }
        }
    }

    #[test]
    fn unpacking_a_state_inverts_packing() {
        let schedule = Schedule::new(&[1, 3, 2]);
        let state: Vec<f32> = (0..2 * 3 * 5).map(|n| n as f32).collect();
        let packed = pack_state(Some(&state), &schedule, 2, 5);
        assert_eq!(packed.len(), 2 * 3 * 8);
        assert_eq!(packed[..5], state[5..10], "rank 0 is the longest sequence");
        assert_eq!(unpack_state(&packed, &schedule, 2, 5), state);
    }
}
