//! Sequences of packed rows in buffers: a chunk of one, or a whole one, in as many pieces as bindings ask for.

use std::ops::Range;

use super::BufferId;
use crate::schedule::Schedule;

/// Rows of one direction, in order. Pieces start and end at a timestep, so a timestep lies in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plane {
    pieces: Vec<Piece>,
}

/// A buffer with the packed rows that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) buffer: BufferId,
    pub(super) rows: Range<usize>,
}

impl Plane {
    /// Rows in one buffer.
    pub(super) fn one(buffer: BufferId, rows: Range<usize>) -> Self {
        Self { pieces: vec![Piece { buffer, rows }] }
    }

    /// The buffers `buffers` with the rows of [`cut`].
    pub(super) fn of(buffers: impl IntoIterator<Item = BufferId>, cuts: &[Range<usize>]) -> Self {
        let pieces = buffers.into_iter().zip(cuts).map(|(buffer, rows)| Piece { buffer, rows: rows.clone() });
        Self { pieces: pieces.collect() }
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The piece that holds `row`.
    pub(super) fn at(&self, row: usize) -> &Piece {
        let index = self.pieces.partition_point(|p| p.rows.end <= row);
        &self.pieces[index.min(self.pieces.len() - 1)]
    }

    /// The pieces that hold some of `rows`, by index, each with what it holds of them.
    pub(super) fn within(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let part = move |p: &Piece| p.rows.start.max(rows.start)..p.rows.end.min(rows.end);
        self.pieces.iter().enumerate().map(move |(i, p)| (i, part(p))).filter(|(_, part)| !part.is_empty())
    }
}

/// All rows of a schedule in runs of whole timesteps of at most `most` rows; a timestep of more is a run by itself.
pub(super) fn cut(schedule: &Schedule, most: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for t in 0..schedule.num_steps() {
        let step = schedule.rows(t..t + 1);
        match runs.last_mut() {
            Some(run) if step.end - run.start <= most => run.end = step.end,
            _ => runs.push(step),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_rows_and_split_no_timestep() {
        let schedule = Schedule::new(&[5, 3, 3, 1]);
        // Timesteps of 4, 3, 3, 1 and 1 rows.
        let runs = |most| cut(&schedule, most).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(runs(100), [(0, 12)]);
        assert_eq!(cut(&schedule, 7), [0..7, 7..12]);
        assert_eq!(cut(&schedule, 4), [0..4, 4..7, 7..11, 11..12]);
        assert_eq!(cut(&schedule, 1), [0..4, 4..7, 7..10, 10..11, 11..12]);
        let plane = Plane::of([3, 4, 5, 6].map(BufferId::Scratch), &cut(&schedule, 4));
        for row in 0..12 {
            assert!(plane.at(row).rows.contains(&row));
        }
        assert_eq!(plane.within(2..11).collect::<Vec<_>>(), [(0, 2..4), (1, 4..7), (2, 7..11)]);
        assert_eq!(plane.within(4..7).collect::<Vec<_>>(), [(1, 4..7)]);
        assert_eq!(plane.within(0..0).count(), 0);
    }
}
