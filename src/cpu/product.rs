//! A product of rows with a matrix that is packed once, on the calling thread: for what is too small for several.
//!
//! In:  a weight matrix [N, K]; rows [M, K].
//! Out: [M, N].
//! Not here: cells, and products of recurrent layers (`direction.rs`).

use pulp::Arch;

use super::panels::Panels;
use super::rows::{LANES, Rows, blocks, to_blocks};
use crate::options::Precision;

/// A matrix [N, K], packed.
pub(crate) struct Product {
    panels: Panels,
    n: usize,
    k: usize,
    units: usize,
}

impl Product {
    /// Gates of a recurrent layer are what a tile takes at once; of any other matrix it takes as many quarters.
    const QUARTERS: usize = 4;

    /// Packs `weight` [N, K].
    pub(crate) fn new(weight: &[f32], n: usize, k: usize) -> Self {
        let units = n.div_ceil(Self::QUARTERS);
        let mut padded = weight.to_vec();
        padded.resize(units * Self::QUARTERS * k, 0.0);
        Self { panels: Panels::new(&padded, Self::QUARTERS, units, &[k], Precision::F32), n, k, units }
    }

    /// `rows` [M, K] · weightᵀ, [M, N].
    pub(crate) fn run(&self, rows: &[f32], count: usize) -> Vec<f32> {
        let mut result = vec![0.0; count * self.n];
        if count == 0 || self.n == 0 {
            return result;
        }
        let packed = to_blocks((0..count).map(|r| &rows[r * self.k..][..self.k]), self.k);
        let mut sums = vec![0.0; count * self.panels.row_len()];
        for block in 0..blocks(self.units) {
            let ahead = self.panels.block(block + 1);
            self.panels.multiply(Arch::new(), block, Rows::new(&packed, count), count, &mut sums, ahead);
            let (first, in_block) = (block * LANES, LANES.min(self.units - block * LANES));
            for (r, sums) in sums.chunks_exact(self.panels.row_len()).enumerate() {
                for (quarter, sums) in sums.chunks_exact(LANES).enumerate() {
                    let at = quarter * self.units + first;
                    // The last quarter may end early.
                    let size = in_block.min(self.n.saturating_sub(at));
                    result[r * self.n + at.min(self.n)..][..size].copy_from_slice(&sums[..size]);
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        for (m, n, k) in [(1, 1, 1), (1, 258, 256), (3, 16, 5), (5, 67, 33), (2, 4, 0), (0, 4, 3), (7, 65, 17)] {
            let weight: Vec<f32> = (0..n * k).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect();
            let rows: Vec<f32> = (0..m * k).map(|i| ((i * 5 + 1) % 13) as f32 - 6.0).collect();
            let found = Product::new(&weight, n, k).run(&rows, m);
            let of = |i: usize| -> f32 {
                let (r, c) = (i / n, i % n);
                (0..k).map(|x| rows[r * k + x] * weight[c * k + x]).sum()
            };
            assert_eq!(found, (0..m * n).map(of).collect::<Vec<f32>>(), "{m} × {n} × {k}");
        }
    }
}
