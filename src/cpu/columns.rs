//! A matrix that several threads fill at once, each some of its columns.
//!
//! In:  the rows, one after the other, and how many columns they have.
//! Out: ranges of columns that do not overlap, so that each may be written without asking.

#![allow(unsafe_code, reason = "columns of a row-major matrix are disjoint, but no slice can say so")]

use std::marker::PhantomData;

/// Some columns of all rows of a matrix.
pub(super) struct Columns<'a> {
    /// Of the first of these columns in the first row.
    start: *mut f32,
    rows: usize,
    /// From a row to the next.
    stride: usize,
    width: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for exclusive references to the numbers of its columns, which may be sent.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// All columns of a matrix whose rows have `width` numbers.
    pub(super) fn new(values: &'a mut [f32], width: usize) -> Self {
        let rows = values.len().checked_div(width).unwrap_or(0);
        Self { start: values.as_mut_ptr(), rows, stride: width, width, matrix: PhantomData }
    }

    /// The first `width` columns, or as many as there are, and the others.
    pub(super) fn split(self, width: usize) -> (Self, Self) {
        let width = width.min(self.width);
        let rest = Self { start: self.start.wrapping_add(width), width: self.width - width, ..self };
        (Self { width, ..self }, rest)
    }

    /// The columns in row `r`.
    pub(super) fn row(&mut self, r: usize) -> &mut [f32] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: the columns lie within the row, `start + r·stride` on, and row r lies within the matrix. No other
        // `Columns` has any of them: `split` divides them, and `self` is borrowed for as long as the result.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(r * self.stride), self.width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_belongs_to_one_range() {
        let mut values = vec![0.0; 5 * 37];
        let (mut left, rest) = Columns::new(&mut values, 37).split(16);
        let (mut middle, mut right) = rest.split(16);
        std::thread::scope(|scope| {
            for (columns, v) in [(&mut left, 1.0), (&mut middle, 2.0), (&mut right, 3.0)] {
                scope.spawn(move || (0..5).for_each(|r| columns.row(r).iter_mut().for_each(|x| *x += v)));
            }
        });
        assert_eq!((left.row(4).len(), right.row(0).len()), (16, 5));
        for row in values.chunks_exact(37) {
            assert!(row.iter().enumerate().all(|(i, &v)| v == (i / 16 + 1) as f32), "{row:?}");
        }
        let (_, mut none) = Columns::new(&mut values, 37).split(40);
        assert!(none.row(2).is_empty());
    }

    #[test]
    #[should_panic(expected = "row 5 of 5")]
    fn a_row_past_the_end_is_refused() {
        let mut values = vec![0.0; 5 * 3];
        Columns::new(&mut values, 3).row(5);
    }
}
