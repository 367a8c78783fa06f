//! Matrix products: rows times weights that were cut into panels when the model was loaded.
//!
//! In:  a weight matrix [gates · units, K] as [`Panels`], and rows in blocks (`rows.rs`).
//! Out: for 16 units and some rows, all gates of every row: [rows][gates][16], every element written.
//! Every element is one chain of multiply-adds over k = 0..K, whatever the tile that computes it: the bits of a row
//! depend neither on the number of rows, nor on its neighbours, nor on threads.
//! Not here: what is done with the sums (`cell.rs`), who computes which units (`direction.rs`).

use bytemuck::Pod;
use half::f16;
use pulp::{Arch, Simd, WithSimd};

use super::lines::Lines;
use super::prefetch::Fetch;
use super::rows::{LANES, Rows, blocks};
use crate::options::Precision;

/// Rows of the largest tile.
const TILE_ROWS: usize = 6;

/// A weight matrix [gates · units, K] as panels of 16 units, [⌈units / 16⌉][K][gates][16] where a tile takes all gates at
/// once, so that it reads one stretch of memory; [⌈units / 16⌉][gates][K][16] otherwise. The last units are padded with
/// zeros.
pub(super) struct Panels {
    k: usize,
    gates: usize,
    /// Gates that lie beside each other: all, or one.
    together: usize,
    precision: Precision,
    /// Of f32 or, as bytes, of f16.
    values: Lines,
}

impl Panels {
    /// Cuts `weight` [gates · units, K]. Rows that it is multiplied with consist of `parts`, each in blocks of its own;
    /// their widths add up to K. For halves, the weights are already rounded.
    pub(super) fn new(weight: &[f32], gates: usize, units: usize, parts: &[usize], precision: Precision) -> Self {
        let width: usize = parts.iter().sum();
        assert_eq!(weight.len(), gates * units * width);
        // All parts but the last end with a whole block.
        let ends = parts.iter().scan(0, |start, &part| {
            let first = *start;
            *start += blocks(part) * LANES;
            Some((first, part))
        });
        let places: Vec<usize> = ends.flat_map(|(first, part)| first..first + part).collect();
        let k = places.last().map_or(0, |last| last + 1);
        let together = Arch::new().dispatch(GatesAtOnce(gates));
        let len = blocks(units) * gates * k * LANES;
        let mut values = Lines::zeros(match precision {
            Precision::F32 => len,
            Precision::F16Weights => (len / 2).next_multiple_of(LANES),
        });
        let numbers: &mut [f32] = &mut values;
        for (row, weights) in weight.chunks_exact(width.max(1)).enumerate() {
            let (gate, unit) = (row / units, row % units);
            let panel = (unit / LANES * gates + gate / together * together) * k * LANES;
            let first = panel + gate % together * LANES + unit % LANES;
            let places = places.iter().map(|place| first + place * together * LANES);
            match precision {
                Precision::F32 => places.zip(weights).for_each(|(place, &w)| numbers[place] = w),
                Precision::F16Weights => {
                    let halves: &mut [f16] = bytemuck::cast_slice_mut(numbers);
                    places.zip(weights).for_each(|(place, &w)| halves[place] = f16::from_f32(w));
                }
            }
        }
        Self { k, gates, together, precision, values }
    }

    /// Numbers of a row of the result: gates · 16.
    pub(super) fn row_len(&self) -> usize {
        self.gates * LANES
    }

    /// Multiply-adds for a row.
    pub(super) fn multiply_adds(&self) -> usize {
        self.num_bytes() / self.weight_bytes()
    }

    fn weight_bytes(&self) -> usize {
        match self.precision {
            Precision::F32 => size_of::<f32>(),
            Precision::F16Weights => size_of::<f16>(),
        }
    }

    /// The weights of the 16 units `block`; there may be no such block.
    pub(super) fn block(&self, block: usize) -> &[u8] {
        let len = self.gates * self.k * LANES * self.weight_bytes();
        bytemuck::cast_slice(&self.values).get(block * len..(block + 1) * len).unwrap_or_default()
    }

    /// Bytes of all weights.
    pub(super) fn num_bytes(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }

    /// sums [count][gates][16] of the 16 units `block`, for the first `count` of `rows`; meanwhile the weights `ahead` are
    /// fetched.
    pub(super) fn multiply(
        &self,
        arch: Arch,
        block: usize,
        rows: Rows<'_>,
        count: usize,
        sums: &mut [f32],
        ahead: &[u8],
    ) {
        let panels = self.block(block);
        let sums = &mut sums[..count * self.gates * LANES];
        if self.k == 0 {
            sums.fill(0.0);
        } else if count > 0 {
            let Self { k, gates, together, precision, .. } = *self;
            arch.dispatch(Product { panels, precision, k, gates, together, rows, count, sums, ahead });
        }
    }
}

/// How many of so many gates lie beside each other, as the tiles of the processor want it.
struct GatesAtOnce(usize);

impl WithSimd for GatesAtOnce {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        // See `Product`: a tile of 24 chains has six rows of four vectors.
        if S::F32_LANES == LANES { self.0 } else { 1 }
    }
}

/// A product on one thread, with the widest vectors of the processor.
struct Product<'a> {
    /// Of f32 or f16.
    panels: &'a [u8],
    precision: Precision,
    k: usize,
    gates: usize,
    together: usize,
    rows: Rows<'a>,
    count: usize,
    sums: &'a mut [f32],
    ahead: &'a [u8],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.precision {
            _ if S::F32_LANES == 1 => self.run_scalar(simd),
            Precision::F32 => self.choose(simd, Singles),
            #[cfg(target_arch = "x86_64")]
            Precision::F16Weights if S::F32_LANES == LANES => {
                // The vectors have 16 lanes because the processor has these instructions.
                if let Some(simd_x86) = pulp::x86::V4::try_new() {
                    self.choose(simd, HalvesV4(simd_x86));
                }
            }
            Precision::F16Weights => self.choose_halves(simd),
        }
    }
}

/// How a vector of weights lies in memory, and how it becomes one of f32.
trait Stored<S: Simd>: Copy {
    type Packed: Pod;
    fn unpack(self, packed: Self::Packed) -> S::f32s;
}

/// As f32.
#[derive(Clone, Copy)]
struct Singles;

impl<S: Simd> Stored<S> for Singles {
    type Packed = S::f32s;

    #[inline(always)]
    fn unpack(self, packed: S::f32s) -> S::f32s {
        packed
    }
}

/// As f16, which the processor converts.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct HalvesV4(pulp::x86::V4);

#[cfg(target_arch = "x86_64")]
impl<S: Simd> Stored<S> for HalvesV4 {
    type Packed = std::arch::x86_64::__m256i;

    #[inline(always)]
    fn unpack(self, packed: Self::Packed) -> S::f32s {
        bytemuck::cast(self.0.avx512f._mm512_cvtph_ps(packed))
    }
}

/// As f16, in vectors of N.
#[derive(Clone, Copy)]
struct Halves<const N: usize>;

impl<S: Simd, const N: usize> Stored<S> for Halves<N>
where
    [u16; N]: Pod,
    [f32; N]: Pod,
{
    type Packed = [u16; N];

    #[inline(always)]
    fn unpack(self, packed: [u16; N]) -> S::f32s {
        let mut values = [0.0; N];
        for (value, half) in values.iter_mut().zip(packed) {
            *value = widened(half);
        }
        bytemuck::cast(values)
    }
}

/// A finite f16 as f32, in operations that become vectors.
#[inline(always)]
fn widened(half: u16) -> f32 {
    // 2^112: an f16's exponent is less by 112 than an f32's.
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    // Sign, three places that are none of the number, five of the exponent, ten of the fraction.
    let bits = (i32::from(half as i16) << 13) as u32 & 0x8fff_e000;
    f32::from_bits(bits) * SCALE
}

impl Product<'_> {
    #[inline(always)]
    fn choose_halves<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.choose(simd, Halves::<16>),
            8 => self.choose(simd, Halves::<8>),
            _ => self.choose(simd, Halves::<4>),
        }
    }

    #[inline(always)]
    fn choose<S: Simd, W: Stored<S>>(self, simd: S, stored: W) {
        // Chains that do not wait for each other: about 24 where there are 32 registers, 12 where there are 16.
        match (S::F32_LANES, self.together) {
            (16, 4) => self.run::<S, W, 1, 4, 4, 4, 4>(simd, stored),
            (16, 3) => self.run::<S, W, 1, 3, 3, 3, 3>(simd, stored),
            (16, 2) => self.run::<S, W, 1, 2, 2, 2, 2>(simd, stored),
            (16, _) => self.run::<S, W, 1, 1, 1, 1, 1>(simd, stored),
            (8, _) => self.run::<S, W, 2, 1, 1, 2, 4>(simd, stored),
            (4, _) if cfg!(target_arch = "aarch64") => self.run::<S, W, 4, 1, 1, 2, 4>(simd, stored),
            _ => self.run::<S, W, 4, 1, 1, 1, 2>(simd, stored),
        }
    }

    /// V vectors to a panel, G gates beside each other; as many panels at once for tiles of three rows and more, two, and
    /// one.
    #[inline(always)]
    fn run<
        S: Simd,
        W: Stored<S>,
        const V: usize,
        const G: usize,
        const MANY: usize,
        const TWO: usize,
        const ONE: usize,
    >(
        self,
        simd: S,
        stored: W,
    ) {
        let Self { panels, k, gates, rows, count, sums, ahead, .. } = self;
        let panels: &[W::Packed] = bytemuck::cast_slice(panels);
        // Tiles whose heights differ by one at most.
        let tiles = count.div_ceil(TILE_ROWS);
        let first_row = |tile: usize| tile * (count / tiles) + tile.min(count % tiles);
        let share = ahead.len() / tiles;
        for tile in 0..tiles {
            let (first, end) = (first_row(tile), first_row(tile + 1));
            let (rows, sums) = (rows.from(first), &mut sums[first * gates * LANES..]);
            let ahead = &ahead[tile * share..][..share];
            match end - first {
                1 => pass::<S, W, 1, ONE, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
                2 => pass::<S, W, 2, TWO, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
                3 => pass::<S, W, 3, MANY, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
                4 => pass::<S, W, 4, MANY, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
                5 => pass::<S, W, 5, MANY, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
                _ => pass::<S, W, TILE_ROWS, MANY, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
            }
        }
    }

    /// Without vectors: the same chains.
    #[inline(always)]
    fn run_scalar<S: Simd>(self, simd: S) {
        let one = |v: f32| simd.splat_f32s(v);
        let weight = |i: usize| match self.precision {
            Precision::F32 => bytemuck::cast_slice::<u8, f32>(self.panels)[i],
            Precision::F16Weights => bytemuck::cast_slice::<u8, f16>(self.panels)[i].to_f32(),
        };
        for (r, sums) in self.sums.chunks_exact_mut(self.gates * LANES).enumerate() {
            for (gate, sums) in sums.chunks_exact_mut(LANES).enumerate() {
                let panel = gate / self.together * self.together * self.k * LANES + gate % self.together * LANES;
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let chain = (0..self.k).fold(one(0.0), |sum, k| {
                        let x = self.rows.block(k / LANES, r)[k % LANES];
                        let w = weight(panel + k * self.together * LANES + lane);
                        simd.mul_add_e_f32s(one(x), one(w), sum)
                    });
                    *sum = bytemuck::bytes_of(&chain).first_chunk().map_or(f32::NAN, |b| f32::from_ne_bytes(*b));
                }
            }
        }
    }
}

/// M rows times all panels, P at a time.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "what a tile is made of")]
fn pass<S: Simd, W: Stored<S>, const M: usize, const P: usize, const V: usize, const G: usize>(
    simd: S,
    stored: W,
    panels: &[W::Packed],
    k: usize,
    gates: usize,
    rows: Rows<'_>,
    sums: &mut [f32],
    ahead: &[u8],
) {
    let mut gate = 0;
    while gate < gates {
        let panels = &panels[gate * k * V..];
        let sums = &mut sums[gate * LANES..];
        let share = ahead.len() / gates;
        let ahead = &ahead[gate * share..gates.min(gate + P) * share];
        match P.min(gates - gate) {
            4 => tile::<S, W, M, 4, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
            3 => tile::<S, W, M, 3, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
            2 => tile::<S, W, M, 2, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
            _ => tile::<S, W, M, 1, V, G>(simd, stored, panels, k, gates, rows, sums, ahead),
        }
        gate += P;
    }
}

/// M rows times the first P of `panels`; P is G where G is more than one.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "what a tile is made of")]
#[allow(clippy::needless_range_loop, reason = "i also counts in the panels")]
fn tile<S: Simd, W: Stored<S>, const M: usize, const P: usize, const V: usize, const G: usize>(
    simd: S,
    stored: W,
    panels: &[W::Packed],
    k: usize,
    gates: usize,
    rows: Rows<'_>,
    sums: &mut [f32],
    ahead: &[u8],
) {
    if G > 1 && P != G {
        return; // never called so; keeps the compiler from making it
    }
    // Where several gates lie beside each other there is one stream of them.
    let streams: [&[W::Packed]; P] = std::array::from_fn(|p| {
        let first = if G > 1 { 0 } else { p * k * V };
        &panels[first..][..k * G * V]
    });
    let mut chains = [[[simd.splat_f32s(0.0); V]; P]; M];
    if M == 1 && rows.stride == LANES {
        // A row of its own lies in one stretch. A loop of unknown length stays a loop; unrolled over whole blocks, the
        // compiler puts the links of each chain one after the other.
        let weights: [&[W::Packed]; P] = std::array::from_fn(|p| &streams[p][..k * V * G]);
        for (i, &x) in rows.values[..k].iter().enumerate() {
            step::<S, W, M, P, V, G>(simd, stored, weights, [x; M], i, &mut chains);
        }
        return store::<S, M, P, V>(&chains, gates, sums);
    }
    let whole = k / LANES;
    let fetch = Fetch::new(ahead, whole * LANES, bytemuck::cast_slice(panels));
    for block in 0..whole {
        let x = rows.values[block * rows.stride..][..M * LANES].as_chunks::<LANES>().0;
        let weights: [&[W::Packed]; P] = std::array::from_fn(|p| &streams[p][block * LANES * V * G..][..LANES * V * G]);
        for i in 0..LANES {
            fetch.at(block * LANES + i);
            step::<S, W, M, P, V, G>(simd, stored, weights, std::array::from_fn(|r| x[r][i]), i, &mut chains);
        }
    }
    let rest = k - whole * LANES;
    if rest > 0 {
        let x = rows.values[whole * rows.stride..][..M * LANES].as_chunks::<LANES>().0;
        let weights: [&[W::Packed]; P] = std::array::from_fn(|p| &streams[p][whole * LANES * V * G..][..rest * V * G]);
        for i in 0..rest {
            step::<S, W, M, P, V, G>(simd, stored, weights, std::array::from_fn(|r| x[r][i]), i, &mut chains);
        }
    }
    store::<S, M, P, V>(&chains, gates, sums);
}

/// Writes the sums of a tile.
#[inline(always)]
fn store<S: Simd, const M: usize, const P: usize, const V: usize>(
    chains: &[[[S::f32s; V]; P]; M],
    gates: usize,
    sums: &mut [f32],
) {
    for (r, chains) in chains.iter().enumerate() {
        for (p, chains) in chains.iter().enumerate() {
            sums[(r * gates + p) * LANES..][..LANES].copy_from_slice(bytemuck::cast_slice(chains));
        }
    }
}

/// One k of a tile.
#[inline(always)]
fn step<S: Simd, W: Stored<S>, const M: usize, const P: usize, const V: usize, const G: usize>(
    simd: S,
    stored: W,
    weights: [&[W::Packed]; P],
    x: [f32; M],
    i: usize,
    chains: &mut [[[S::f32s; V]; P]; M],
) {
    // Loops: `from_fn` is not always inlined, and then the conversions are not either.
    let mut unpacked = [[simd.splat_f32s(0.0); V]; P];
    for p in 0..P {
        let first = if G > 1 { (i * G + p) * V } else { i * V };
        for v in 0..V {
            unpacked[p][v] = stored.unpack(weights[p][first + v]);
        }
    }
    for r in 0..M {
        let x = simd.splat_f32s(x[r]);
        for p in 0..P {
            for v in 0..V {
                chains[r][p][v] = simd.mul_add_e_f32s(x, unpacked[p][v], chains[r][p][v]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::rows::to_blocks;

    fn product(panels: &Panels, rows: &[f32], width: usize, units: usize) -> Vec<f32> {
        let count = rows.len() / width;
        let x = to_blocks(rows.chunks_exact(width), width);
        let mut out = vec![f32::NAN; count * panels.gates * units];
        for block in 0..blocks(units) {
            let mut sums = vec![f32::NAN; count * panels.row_len()];
            panels.multiply(Arch::new(), block, Rows::new(&x, count), count, &mut sums, panels.block(block + 1));
            for (r, gate) in (0..count).flat_map(|r| (0..panels.gates).map(move |g| (r, g))) {
                let to = &mut out[(r * panels.gates + gate) * units..][..units];
                let end = units.min((block + 1) * LANES);
                let from = &sums[(r * panels.gates + gate) * LANES..][..end - block * LANES];
                to[block * LANES..end].copy_from_slice(from);
            }
        }
        out
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for (m, k, units, gates) in [
            (1, 1, 4, 1),
            (5, 3, 8, 3),
            (9, 300, 65, 4),
            (13, 33, 25, 2),
            (70, 16, 16, 4),
            (2, 47, 1, 3),
            (3, 64, 33, 1),
        ] {
            let value = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0; // sums stay exact
            let weight: Vec<f32> = (0..gates * units * k).map(value).collect();
            let rows: Vec<f32> = (0..m * k).map(|i| value(i + 5)).collect();
            for precision in [Precision::F32, Precision::F16Weights] {
                let out = product(&Panels::new(&weight, gates, units, &[k], precision), &rows, k, units);
                for (i, j) in (0..m).flat_map(|i| (0..gates * units).map(move |j| (i, j))) {
                    let expected: f32 = (0..k).map(|l| rows[i * k + l] * weight[j * k + l]).sum();
                    let found = out[i * gates * units + j];
                    assert_eq!(found, expected, "{precision:?}: {m} × {k} × {gates}·{units}, element ({i}, {j})");
                }
            }
        }
    }

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(widened(bits).to_bits(), half.to_f32().to_bits(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn parts_of_a_row_lie_in_blocks_of_their_own() {
        let (parts, units) = ([20usize, 20], 5);
        let value = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0;
        let weight: Vec<f32> = (0..4 * units * 40).map(value).collect();
        let row: Vec<f32> = (0..40).map(|i| value(i + 5)).collect();
        let panels = Panels::new(&weight, 4, units, &parts, Precision::F32);
        let [first, second] = [&row[..20], &row[20..]].map(|part| to_blocks(std::iter::once(part), 20));
        let x = [&*first, &*second].concat();
        let mut sums = vec![f32::NAN; panels.row_len()];
        panels.multiply(Arch::new(), 0, Rows::new(&x, 1), 1, &mut sums, &[]);
        for (gate, unit) in (0..4).flat_map(|g| (0..units).map(move |u| (g, u))) {
            let expected: f32 = row.iter().zip(&weight[(gate * units + unit) * 40..]).map(|(x, w)| x * w).sum();
            assert_eq!(sums[gate * LANES + unit], expected);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_whoever_its_neighbours() {
        let (k, units, gates) = (301, 37, 4);
        let value = |i: usize| ((i * 7919 % 1009) as f32 * 0.37).sin();
        // Halves of all magnitudes, the subnormal ones too.
        let scale = |i: usize| 2.0f32.powi((i % 37) as i32 - 24);
        let weight: Vec<f32> = (0..gates * units * k).map(|i| f16::from_f32(value(i) * scale(i)).to_f32()).collect();
        let panels = Panels::new(&weight, gates, units, &[k], Precision::F32);
        let rows: Vec<f32> = (0..200 * k).map(|i| value(i + 31)).collect();
        let halves = Panels::new(&weight, gates, units, &[k], Precision::F16Weights);
        assert_eq!(product(&halves, &rows, k, units), product(&panels, &rows, k, units));
        let bits =
            |rows: &[f32]| -> Vec<u32> { product(&panels, rows, k, units).iter().map(|v| v.to_bits()).collect() };
        let whole = bits(&rows);
        for (first, m) in [(0, 1), (7, 2), (11, 3), (5, 4), (50, 5), (9, 6), (13, 7), (40, 53), (100, 100)] {
            let n = gates * units;
            assert_eq!(bits(&rows[first * k..][..m * k]), whole[first * n..][..m * n], "{m} rows from {first}");
        }
    }
}
