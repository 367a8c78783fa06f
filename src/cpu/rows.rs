//! Rows of numbers as the products read them: in blocks of 16 columns.
//!
//! In:  rows one after the other, as callers have them.
//! Out: blocks [⌈width / 16⌉][rows][16]: the numbers of many rows that belong to the same columns lie together, so a
//! thread that computes 16 units writes one stretch of memory.
//! The places past the width hold anything; nothing reads them.

use super::lines::Lines;

/// Columns of a block.
pub(super) use super::lines::LANES;

/// Some rows of blocks.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// From the first of the rows in the first block on.
    pub(super) values: &'a [f32],
    /// Numbers from a block to the next.
    pub(super) stride: usize,
}

impl<'a> Rows<'a> {
    /// All `rows` of `values`.
    pub(super) fn new(values: &'a [f32], rows: usize) -> Self {
        Self { values, stride: rows * LANES }
    }

    /// The rows from `first` on.
    pub(super) fn from(self, first: usize) -> Self {
        Self { values: &self.values[(first * LANES).min(self.values.len())..], ..self }
    }

    /// Row `r` in block `block`.
    pub(super) fn block(self, block: usize, r: usize) -> &'a [f32; LANES] {
        self.values[block * self.stride + r * LANES..].first_chunk().expect("a row of the block")
    }

    /// Row `r`, one after the other.
    pub(super) fn copy_to(self, r: usize, row: &mut [f32]) {
        let (whole, rest) = row.as_chunks_mut::<LANES>();
        for (block, to) in whole.iter_mut().enumerate() {
            *to = *self.block(block, r);
        }
        if !rest.is_empty() {
            rest.copy_from_slice(&self.block(whole.len(), r)[..rest.len()]);
        }
    }

    /// Adds row `r`, one after the other, to `row`.
    pub(super) fn add_to(self, r: usize, row: &mut [f32]) {
        for (block, to) in row.chunks_mut(LANES).enumerate() {
            to.iter_mut().zip(self.block(block, r)).for_each(|(sum, v)| *sum += v);
        }
    }
}

/// The number of blocks of `width` columns.
pub(super) fn blocks(width: usize) -> usize {
    width.div_ceil(LANES)
}

/// Rows of `width` numbers as blocks.
pub(super) fn to_blocks<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, width: usize) -> Lines {
    let block_len = rows.len() * LANES;
    let mut values = Lines::zeros(blocks(width) * block_len);
    for (r, row) in rows.enumerate() {
        for block in 0..blocks(width) {
            put(&mut values[block * block_len + r * LANES..][..LANES], row, block);
        }
    }
    values
}

/// Copies what a row has of block `block`.
pub(super) fn put(to: &mut [f32], row: &[f32], block: usize) {
    let row = &row[block * LANES..];
    match (row.first_chunk::<LANES>(), to.first_chunk_mut::<LANES>()) {
        (Some(row), Some(to)) => *to = *row, // without a call
        _ => to[..row.len()].copy_from_slice(row),
    }
}

/// The reverse of [`to_blocks`].
pub(super) fn from_blocks(values: &[f32], count: usize, width: usize) -> Vec<f32> {
    let mut rows = vec![0.0; count * width];
    for (r, row) in rows.chunks_exact_mut(width.max(1)).enumerate() {
        Rows::new(values, count).copy_to(r, row);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_all_rows() {
        for width in [0, 1, 15, 16, 17, 40] {
            for count in [0, 1, 3] {
                let rows: Vec<f32> = (0..count * width).map(|i| i as f32).collect();
                let values = to_blocks((0..count).map(|r| &rows[r * width..][..width]), width);
                assert_eq!(values.len(), blocks(width) * count * 16);
                assert_eq!(from_blocks(&values, count, width), rows, "{count} × {width}");
                if width == 40 && count == 3 {
                    let second = Rows::new(&values, count).from(1);
                    assert_eq!(second.block(2, 0)[..8], rows[40 + 32..][..8]);
                }
            }
        }
    }
}
