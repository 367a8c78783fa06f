//! Matrix products with the `gemm` crate, behind checked slices.
//!
//! In:  rows [M, K], and a weight matrix that was transposed to [K, N] when the model was loaded.
//! Out: their product [M, N], every element written.
//! Not here: how many threads a product may use (`mod.rs`).

use gemm::Parallelism;
use rayon::prelude::*;

/// The transpose of a weight matrix: [K, N], so that `gemm` reads it along its vectors without packing.
pub(super) struct Transposed {
    k: usize,
    n: usize,
    /// From one row to the next: an odd number of cache lines, because rows a power of two apart would share
    /// their places in the cache. Measured on Zen 3: 1.6 to 2 times the speed at K 256 to 1024.
    stride: usize,
    values: Vec<f32>,
}

impl Transposed {
    /// Transposes `weight` [N, K].
    pub(super) fn new(weight: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weight.len(), n * k);
        const LINE: usize = 16;
        let stride = (n.div_ceil(LINE) | 1) * LINE;
        let mut values = vec![0.0; k * stride];
        for (r, row) in weight.chunks_exact(k).enumerate() {
            for (c, &v) in row.iter().enumerate() {
                values[c * stride + r] = v;
            }
        }
        Self { k, n, stride, values }
    }

    /// N.
    pub(super) fn columns(&self) -> usize {
        self.n
    }

    /// out [M, N] = rows [M, K] · self [K, N]
    pub(super) fn multiply(&self, rows: &[f32], out: &mut [f32], threads: usize) {
        let m = rows.len() / self.k;
        assert_eq!((rows.len(), out.len()), (m * self.k, m * self.n));
        let (threads, columns) = split(m, self.k, self.n, threads);
        if m == 1 && columns < self.n {
            // One row is bound by reading the weights, and `gemm` would read them with one thread.
            out.par_chunks_mut(columns).enumerate().for_each(|(s, out)| self.product(rows, s * columns, out, 1, 1));
        } else if m > 0 {
            self.product(rows, 0, out, m, threads);
        }
    }

    /// out [M, columns] = rows · self[.., from..][.., ..columns]
    #[allow(unsafe_code, reason = "gemm takes pointers; the sizes are checked against the slices here")]
    fn product(&self, rows: &[f32], from: usize, out: &mut [f32], m: usize, threads: usize) {
        let (k, n) = (self.k, self.n);
        let columns = out.len() / m;
        assert!(rows.len() == m * k && out.len() == m * columns && from + columns <= n);
        assert!(n <= self.stride && self.values.len() == k * self.stride);
        let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
        // SAFETY: `gemm` reads m × k elements at rows[i·k + j], k × columns at values[from + i·stride + j], and writes
        // m × columns at out[i·columns + j]; the assertions above put all of them inside their slices. `out` is
        // borrowed mutably, so it overlaps neither input.
        unsafe {
            gemm::gemm(
                m,
                columns,
                k,
                out.as_mut_ptr(),
                1,
                columns as isize,
                false,
                rows.as_ptr(),
                1,
                k as isize,
                self.values[from..].as_ptr(),
                1,
                self.stride as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// How many of `threads` are worth their barrier, and how many columns each takes of a single row.
fn split(m: usize, k: usize, n: usize, threads: usize) -> (usize, usize) {
    const WORTH_A_THREAD: usize = 100_000;
    let threads = threads.min(m * k * n / WORTH_A_THREAD).max(1);
    (threads, n.div_ceil(threads).next_multiple_of(64))
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
            (70, 33, 100, 2),
        ] {
            let value = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0; // sums stay exact
            let weight: Vec<f32> = (0..n * k).map(value).collect();
            let rows: Vec<f32> = (0..m * k).map(|i| value(i + 5)).collect();
            let mut out = vec![f32::NAN; m * n];
            Transposed::new(&weight, n, k).multiply(&rows, &mut out, threads);
            for i in 0..m {
                for j in 0..n {
                    let expected: f32 = (0..k).map(|l| rows[i * k + l] * weight[j * k + l]).sum();
                    assert_eq!(out[i * n + j], expected, "{m} × {k} × {n}, element ({i}, {j})");
                }
            }
        }
    }
}
