//! Matrix products: rows times weights that were cut into panels when the model was loaded.
//!
//! In:  rows [M, K], and a weight matrix [N, K] as [`Panels`].
//! Out: their product [M, N], every element written.
//! Every element is one chain of multiply-adds over k = 0..K, whatever the tile that computes it: the bits of a row depend
//! neither on M, nor on its neighbours, nor on threads.
//! Not here: how many threads a product may use (`mod.rs`).

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Columns of a panel: one to four vectors.
const PANEL: usize = 16;
/// Rows of the largest tile: with two vectors a row, twelve chains that do not wait for each other.
const TILE_ROWS: usize = 6;
/// Rows that share a pass over the panels, so that they stay in the cache next to the core.
const BLOCK_ROWS: usize = 8 * TILE_ROWS;

/// A weight matrix [N, K] as panels of 16 columns, each [K, 16], the last one padded with zeros.
pub(super) struct Panels {
    k: usize,
    n: usize,
    values: Vec<f32>,
}

impl Panels {
    /// Cuts `weight` [N, K].
    pub(super) fn new(weight: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weight.len(), n * k);
        let mut values = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
        for (column, row) in weight.chunks_exact(k).enumerate() {
            let panel = &mut values[column / PANEL * k * PANEL..][..k * PANEL];
            for (to, &v) in panel.iter_mut().skip(column % PANEL).step_by(PANEL).zip(row) {
                *to = v;
            }
        }
        Self { k, n, values }
    }

    /// N.
    pub(super) fn columns(&self) -> usize {
        self.n
    }

    /// out [M, N] = rows [M, K] · self [K, N]
    pub(super) fn multiply(&self, arch: Arch, rows: &[f32], out: &mut [f32], threads: usize) {
        /// A thread costs about as much as this many multiply-adds.
        const WORTH_A_THREAD: usize = 100_000;
        let m = rows.len() / self.k;
        assert_eq!((rows.len(), out.len()), (m * self.k, m * self.n));
        if m == 0 {
            return;
        }
        let threads = threads.min(m * self.k * self.n / WORTH_A_THREAD).max(1);
        let panel_len = self.k * PANEL;
        if threads == 1 {
            arch.dispatch(Product { panels: &self.values, k: self.k, rows, out, n: self.n });
        } else if m >= 2 * threads * TILE_ROWS {
            // Whole tiles for each thread.
            let each = m.div_ceil(threads).next_multiple_of(TILE_ROWS);
            let parts = rows.par_chunks(each * self.k).zip(out.par_chunks_mut(each * self.n));
            parts.for_each(|(rows, out)| {
                arch.dispatch(Product { panels: &self.values, k: self.k, rows, out, n: self.n });
            });
        } else {
            // Few rows are bound by reading the weights, so each thread reads its own.
            let each = self.values.len().div_ceil(panel_len).div_ceil(threads);
            if m == 1 {
                let parts = self.values.par_chunks(each * panel_len).zip(out.par_chunks_mut(each * PANEL));
                parts.for_each(|(panels, out)| {
                    let n = out.len();
                    arch.dispatch(Product { panels, k: self.k, rows, out, n });
                });
                return;
            }
            let parts: Vec<Vec<f32>> = self
                .values
                .par_chunks(each * panel_len)
                .enumerate()
                .map(|(part, panels)| {
                    let n = (self.n - part * each * PANEL).min(each * PANEL);
                    let mut out = vec![0.0; m * n];
                    arch.dispatch(Product { panels, k: self.k, rows, out: &mut out, n });
                    out
                })
                .collect();
            for (part, columns) in parts.iter().enumerate() {
                let n = columns.len() / m;
                for (row, columns) in out.chunks_exact_mut(self.n).zip(columns.chunks_exact(n)) {
                    row[part * each * PANEL..][..n].copy_from_slice(columns);
                }
            }
        }
    }
}

/// A product on one thread, with the widest vectors of the processor.
struct Product<'a> {
    /// Of the columns of `out`.
    panels: &'a [f32],
    k: usize,
    rows: &'a [f32],
    out: &'a mut [f32],
    n: usize,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 1>(simd),
            8 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run_scalar(simd),
        }
    }
}

impl Product<'_> {
    /// V vectors to a panel.
    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Self { panels, k, rows, out, n } = self;
        let panel_len = k * PANEL;
        for (rows, out) in rows.chunks(BLOCK_ROWS * k).zip(out.chunks_mut(BLOCK_ROWS * n)) {
            let m = rows.len() / k;
            let whole = m / TILE_ROWS * TILE_ROWS;
            for (p, panel) in panels.chunks_exact(panel_len).enumerate().take(if whole > 0 { usize::MAX } else { 0 }) {
                for first in (0..whole).step_by(TILE_ROWS) {
                    tile::<S, TILE_ROWS, 1, V>(simd, [panel], &rows[first * k..], k, &mut out[first * n..], n, p);
                }
            }
            let (rows, out) = (&rows[whole * k..], &mut out[whole * n..]);
            match m - whole {
                1 => pass::<S, 1, 4, V>(simd, panels, rows, k, out, n),
                2 => pass::<S, 2, 2, V>(simd, panels, rows, k, out, n),
                3 => pass::<S, 3, 2, V>(simd, panels, rows, k, out, n),
                4 => pass::<S, 4, 1, V>(simd, panels, rows, k, out, n),
                5 => pass::<S, 5, 1, V>(simd, panels, rows, k, out, n),
                _ => {}
            }
        }
    }

    /// Without vectors: the same chains.
    #[inline(always)]
    fn run_scalar<S: Simd>(self, simd: S) {
        for (row, out) in self.rows.chunks_exact(self.k).zip(self.out.chunks_exact_mut(self.n)) {
            for (j, out) in out.iter_mut().enumerate() {
                let panel = &self.panels[j / PANEL * self.k * PANEL..][..self.k * PANEL];
                let weights = panel.iter().skip(j % PANEL).step_by(PANEL);
                let one = |v: f32| simd.splat_f32s(v);
                let chain =
                    row.iter().zip(weights).fold(one(0.0), |sum, (&x, &w)| simd.mul_add_e_f32s(one(x), one(w), sum));
                *out = bytemuck::bytes_of(&chain).first_chunk().map_or(f32::NAN, |b| f32::from_ne_bytes(*b));
            }
        }
    }
}

/// M rows times all panels, P at a time, so that there are chains enough.
#[inline(always)]
fn pass<S: Simd, const M: usize, const P: usize, const V: usize>(
    simd: S,
    panels: &[f32],
    rows: &[f32],
    k: usize,
    out: &mut [f32],
    n: usize,
) {
    let panel_len = k * PANEL;
    let mut groups = panels.chunks_exact(P * panel_len);
    let mut p = 0;
    for group in &mut groups {
        let group: [&[f32]; P] = std::array::from_fn(|i| &group[i * panel_len..][..panel_len]);
        tile::<S, M, P, V>(simd, group, rows, k, out, n, p);
        p += P;
    }
    for panel in groups.remainder().chunks_exact(panel_len) {
        tile::<S, M, 1, V>(simd, [panel], rows, k, out, n, p);
        p += 1;
    }
}

/// The product of the first M of `rows` and P panels, from panel `first` of `out` on.
#[inline(always)]
fn tile<S: Simd, const M: usize, const P: usize, const V: usize>(
    simd: S,
    panels: [&[f32]; P],
    rows: &[f32],
    k: usize,
    out: &mut [f32],
    n: usize,
    first: usize,
) {
    let panels = panels.map(|panel| S::as_simd_f32s(&panel[..k * PANEL]).0);
    let rows: [&[f32]; M] = std::array::from_fn(|r| &rows[r * k..][..k]);
    let mut sums = [[[simd.splat_f32s(0.0); V]; P]; M];
    for i in 0..k {
        let weights: [[S::f32s; V]; P] = std::array::from_fn(|p| std::array::from_fn(|v| panels[p][i * V + v]));
        for r in 0..M {
            let x = simd.splat_f32s(rows[r][i]);
            for p in 0..P {
                for v in 0..V {
                    sums[r][p][v] = simd.mul_add_e_f32s(x, weights[p][v], sums[r][p][v]);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (p, sums) in sums.iter().enumerate() {
            let column = (first + p) * PANEL;
            let width = (n - column).min(PANEL);
            let sums: &[f32] = bytemuck::cast_slice(sums);
            out[r * n + column..][..width].copy_from_slice(&sums[..width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        for (m, k, n, threads) in [
            (0, 3, 4, 1),
            (1, 1, 4, 1),
            (1, 7, 12, 4),
            (5, 3, 8, 1),
            (9, 300, 260, 2),
            (1, 700, 1100, 3),
            (4, 700, 1100, 3),
            (70, 33, 100, 2),
            (200, 33, 100, 2),
        ] {
            let value = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0; // sums stay exact
            let weight: Vec<f32> = (0..n * k).map(value).collect();
            let rows: Vec<f32> = (0..m * k).map(|i| value(i + 5)).collect();
            let mut out = vec![f32::NAN; m * n];
            Panels::new(&weight, n, k).multiply(Arch::new(), &rows, &mut out, threads);
            for i in 0..m {
                for j in 0..n {
                    let expected: f32 = (0..k).map(|l| rows[i * k + l] * weight[j * k + l]).sum();
                    assert_eq!(out[i * n + j], expected, "{m} × {k} × {n}, element ({i}, {j})");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_whoever_its_neighbours() {
        let (k, n) = (301, 137);
        let value = |i: usize| ((i * 7919 % 1009) as f32 * 0.37).sin();
        let weight: Vec<f32> = (0..n * k).map(value).collect();
        let panels = Panels::new(&weight, n, k);
        let rows: Vec<f32> = (0..200 * k).map(|i| value(i + 31)).collect();
        let product = |arch: Arch, rows: &[f32], threads| {
            let mut out = vec![f32::NAN; rows.len() / k * n];
            panels.multiply(arch, rows, &mut out, threads);
            out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let whole = product(Arch::new(), &rows, 1);
        assert_eq!(product(Arch::new(), &rows, 3), whole, "threads");
        for (first, m) in [(0, 1), (7, 2), (11, 3), (5, 4), (50, 5), (9, 6), (13, 7), (40, 53), (100, 100)] {
            let part = product(Arch::new(), &rows[first * k..][..m * k], 1 + m % 3);
            assert_eq!(part, whole[first * n..][..m * n], "{m} rows from {first}");
        }
    }
}
