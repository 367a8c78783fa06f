//! A matrix that several threads fill at once, each some of its columns.
//!
//! In:  how many rows and columns.
//! Out: ranges of columns that do not overlap, so that each may be written without asking; the matrix, when all are.
//! Memory is not filled with zeros first: that is work for one thread, as long as a run of some small batches.

#![allow(
    unsafe_code,
    reason = "columns of a row-major matrix are disjoint, but no slice can say so, nor that all of them were written"
)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::rows::LANES;
use super::team::Team;

/// A matrix in the making.
pub(super) struct Matrix {
    /// Its capacity is that of the matrix, its length 0.
    values: Vec<f32>,
    rows: usize,
    width: usize,
    /// Their product.
    len: usize,
}

impl Matrix {
    /// Memory for `rows` of `width` numbers.
    pub(super) fn new(rows: usize, width: usize) -> Self {
        let len = rows.checked_mul(width).expect("a matrix that can be addressed");
        let mut matrix = Self { values: Vec::with_capacity(len), rows, width, len };
        if cfg!(debug_assertions) {
            matrix.places().fill(MaybeUninit::new(f32::NAN)); // what is forgotten shows
        }
        matrix
    }

    fn places(&mut self) -> &mut [MaybeUninit<f32>] {
        &mut self.values.spare_capacity_mut()[..self.len]
    }

    /// All columns.
    pub(super) fn columns(&mut self) -> Columns<'_> {
        let (rows, width) = (self.rows, self.width);
        Columns { start: self.places().as_mut_ptr(), rows, stride: width, width, matrix: PhantomData }
    }

    /// The matrix, with zeros in the rows that nobody `wrote`.
    ///
    /// # Safety
    ///
    /// Of every other row all columns were written.
    pub(super) unsafe fn finish(mut self, team: &Team, wrote: impl Fn(usize) -> bool + Sync) -> Vec<f32> {
        const NUMBERS_AT_ONCE: usize = 1 << 14;
        let width = self.width.max(1);
        let rows_each = (NUMBERS_AT_ONCE / width).max(1);
        let mut parts: Vec<_> = self.places().chunks_mut(rows_each * width).collect();
        team.each(&mut parts, |part, places| {
            for (i, row) in places.chunks_exact_mut(width).enumerate() {
                if !wrote(part * rows_each + i) {
                    row.fill(MaybeUninit::new(0.0));
                }
            }
        });
        // SAFETY: the vector has so much capacity; every row was filled just now, or written, as the caller promises.
        unsafe { self.values.set_len(self.len) };
        self.values
    }
}

/// Some columns of all rows of a matrix.
pub(super) struct Columns<'a> {
    /// Of the first of these columns in the first row.
    start: *mut MaybeUninit<f32>,
    rows: usize,
    /// From a row to the next.
    stride: usize,
    width: usize,
    matrix: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

// SAFETY: it stands for exclusive references to the numbers of its columns, which may be sent.
unsafe impl Send for Columns<'_> {}

impl Columns<'_> {
    /// The first `width` columns, or as many as there are, and the others.
    pub(super) fn split(self, width: usize) -> (Self, Self) {
        let width = width.min(self.width);
        let rest = Self { start: self.start.wrapping_add(width), width: self.width - width, ..self };
        (Self { width, ..self }, rest)
    }

    /// Writes the columns in row `r`: as many values as there are columns.
    pub(super) fn write(&mut self, r: usize, values: &[f32]) {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        assert_eq!(values.len(), self.width, "values of row {r}");
        // SAFETY: the columns lie within the row, `start + r·stride` on, and row r lies within the matrix. No other
        // `Columns` has any of them: `split` divides them, and `self` is borrowed for as long as the slice.
        let row = unsafe { std::slice::from_raw_parts_mut(self.start.add(r * self.stride), self.width) };
        match (values.first_chunk::<LANES>(), row.first_chunk_mut::<LANES>()) {
            (Some(values), Some(row)) if self.width == LANES => *row = values.map(MaybeUninit::new), // without a call
            _ => row.iter_mut().zip(values).for_each(|(place, &v)| *place = MaybeUninit::new(v)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_belongs_to_one_range() {
        for threads in [1, 3] {
            let mut matrix = Matrix::new(700, 37);
            let (mut left, rest) = matrix.columns().split(16);
            let (mut middle, mut right) = rest.split(16);
            std::thread::scope(|scope| {
                for (columns, len, v) in [(&mut left, 16, 1.0), (&mut middle, 16, 2.0), (&mut right, 5, 3.0)] {
                    scope.spawn(move || (0..700).filter(|r| r % 3 > 0).for_each(|r| columns.write(r, &[v; 16][..len])));
                }
            });
            // SAFETY: all columns of the rows that are no multiples of 3 were written.
            let values = Team::of(threads, |team| unsafe { matrix.finish(team, |r| r % 3 > 0) });
            assert_eq!(values.len(), 700 * 37);
            for (r, row) in values.chunks_exact(37).enumerate() {
                let expected = |i: usize| if r % 3 > 0 { (i / 16 + 1) as f32 } else { 0.0 };
                assert!(row.iter().enumerate().all(|(i, &v)| v == expected(i)), "{r}: {row:?}");
            }
        }
    }

    #[test]
    fn there_may_be_nothing_to_write() {
        let mut matrix = Matrix::new(3, 5);
        let (_, mut none) = matrix.columns().split(9);
        none.write(2, &[]);
        for (rows, width) in [(0, 5), (3, 0), (3, 5)] {
            // SAFETY: no row counts as written.
            let values = Team::of(1, |team| unsafe { Matrix::new(rows, width).finish(team, |_| false) });
            assert_eq!(values, vec![0.0; rows * width]);
        }
    }

    #[test]
    #[should_panic(expected = "row 5 of 5")]
    fn a_row_past_the_end_is_refused() {
        Matrix::new(5, 3).columns().write(5, &[0.0; 3]);
    }

    #[test]
    #[should_panic(expected = "values of row 4")]
    fn a_row_of_another_width_is_refused() {
        Matrix::new(5, 3).columns().write(4, &[0.0; 2]);
    }
}
