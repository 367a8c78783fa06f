//! The order in which sequences and timesteps are packed.
//!
//! Sequences are sorted by length, longest first; a sequence's place in that order is its *rank*. At timestep t
//! the valid sequences are then the ranks 0..active[t], in both directions: a reverse layer walks t downwards
//! and a sequence joins when t falls below its length. Rows are packed time-major without padding: the row of
//! (t, rank) is row_offset[t] + rank.

use std::ops::Range;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The sequence at each rank, [B].
    order: Vec<usize>,
    /// The number of valid sequences at each timestep, [T] with T the longest length; not increasing.
    active: Vec<usize>,
    /// The first packed row of each timestep, [T + 1].
    row_offset: Vec<usize>,
}

impl Schedule {
    /// The schedule of sequences with these lengths.
    pub fn new(lengths: &[usize]) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&b| std::cmp::Reverse(lengths[b]));
        let longest = order.first().map_or(0, |&b| lengths[b]);
        let mut active = Vec::with_capacity(longest);
        let mut row_offset = Vec::with_capacity(longest + 1);
        let (mut num_active, mut row) = (order.len(), 0);
        for t in 0..longest {
            while num_active > 0 && lengths[order[num_active - 1]] <= t {
                num_active -= 1;
            }
            active.push(num_active);
            row_offset.push(row);
            row += num_active;
        }
        row_offset.push(row);
        Self { order, active, row_offset }
    }

    /// The sequence at each rank, [B].
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// B.
    pub fn batch_size(&self) -> usize {
        self.order.len()
    }

    /// The number of timesteps of the longest sequence.
    pub fn num_steps(&self) -> usize {
        self.active.len()
    }

    /// The number of sequences that are valid at `t`; 0 past the longest.
    pub fn active(&self, t: usize) -> usize {
        self.active.get(t).copied().unwrap_or(0)
    }

    /// The number of valid rows in all.
    pub fn num_rows(&self) -> usize {
        self.row_offset[self.active.len()]
    }

    /// The packed rows of the timesteps `steps`.
    pub fn rows(&self, steps: Range<usize>) -> Range<usize> {
        self.row_offset[steps.start]..self.row_offset[steps.end]
    }

    /// The timesteps whose rows lie in `rows`, which start and end at a timestep.
    pub fn steps_of(&self, rows: &Range<usize>) -> Range<usize> {
        let at = |row: usize| self.row_offset.partition_point(|&r| r < row);
        at(rows.start)..at(rows.end)
    }

    /// The first packed row of each timestep, and their number, [T + 1].
    pub fn row_offsets(&self) -> &[usize] {
        &self.row_offset
    }

    /// (packed row, timestep, sequence) of the packed rows `rows`, which start and end at a timestep.
    pub fn walk(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let first = self.row_offset.partition_point(|&r| r < rows.start);
        (first..self.num_steps()).take_while(move |&t| self.row_offset[t] < rows.end).flat_map(move |t| {
            self.order[..self.active[t]].iter().enumerate().map(move |(rank, &b)| (self.row_offset[t] + rank, t, b))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_lengths_pack_without_padding() {
        let s = Schedule::new(&[2, 0, 4, 2]);
        assert_eq!(s.order(), [2, 0, 3, 1]);
        assert_eq!((0..5).map(|t| s.active(t)).collect::<Vec<_>>(), [3, 3, 1, 1, 0]);
        assert_eq!(s.num_rows(), 8);
        assert_eq!(s.rows(1..3), 3..7);
        assert_eq!(s.steps_of(&(3..7)), 1..3);
        assert_eq!(s.steps_of(&(0..8)), 0..4);
        let walked: Vec<_> = s.walk(s.rows(1..3)).collect();
        assert_eq!(walked, [(3, 1, 2), (4, 1, 0), (5, 1, 3), (6, 2, 2)]);
    }

    #[test]
    fn empty_batches_have_no_steps() {
        for lengths in [&[][..], &[0, 0][..]] {
            let s = Schedule::new(lengths);
            assert_eq!((s.num_steps(), s.num_rows(), s.batch_size()), (0, 0, lengths.len()));
            assert_eq!(s.walk(0..0).count(), 0);
        }
    }
}
