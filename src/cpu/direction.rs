//! One direction of one layer, for one group of sequences.
//!
//! In:  the rows of the layer's input, `h` and `c` of every sequence.
//! Out: [`DirectionOutput`], and the output rows where the caller wants them.
//! The units are dealt to the team in blocks of 16: whoever computes a block multiplies the active rows of `h` with the
//! block's weights and goes on with its part of the cell, so a timestep is one parallel loop (two where it has a second
//! product). The input projection of a chunk of timesteps is part of the chunk's first loop. A chunk bounds the memory
//! of gates, whatever the lengths, and keeps them in the cache.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use pulp::Arch;

use super::Group;
use super::cell::{Elementwise, Step};
use super::columns::Columns;
use super::lines::Lines;
use super::panels::Panels;
use super::rows::{LANES, Rows, blocks, put};
use super::team::Team;
use crate::batch::{SequenceBatch, all_finite};
use crate::cell::CellSpec;
use crate::options::Precision;
use crate::spec::LayerSpec;
use crate::weights::CellWeights;

/// Rows whose sums are computed before their cells, so that the sums stay next to the core.
const ROWS_AT_ONCE: usize = 48;

/// Rows whose gates a thread keeps room for from one run to the next.
const SCRATCH_ROWS: usize = 1024;

/// The weights of a cell as the products read them.
pub(super) struct Weights {
    layer: LayerSpec,
    reverse: bool,
    weight_ih: Panels,
    /// All gates; r and z of a GRU that is not linear before reset.
    weight_hh: Panels,
    /// What a step's second product reads, if there is one.
    second: Option<Second>,
    elementwise: Elementwise,
}

/// The block that a member needs after `u`, unless its range ends or another member is quicker.
fn following(u: usize, backwards: bool) -> Option<usize> {
    if backwards { u.checked_sub(1) } else { Some(u + 1) }
}

/// The weights of block `u`, if there is one, to be fetched while so many rows are multiplied with the weights that are
/// used before them.
fn ahead(panels: &Panels, u: Option<usize>, rows: usize) -> &[u8] {
    match u {
        // A single row reads its weights once, as fast as the memory gives them: no time is left to fetch others.
        Some(u) if rows > 1 => panels.block(u),
        _ => &[],
    }
}

/// The second product of a step.
enum Second {
    /// W_hr of a projection, and its bias [⌈P / 16⌉ · 16], if it has one.
    Projection(Panels, Option<Vec<f32>>),
    /// W_hn of a GRU that is not linear before reset.
    Candidate(Panels),
}

/// What to keep besides the final state.
#[derive(Clone, Copy)]
pub(super) struct Collect {
    pub(super) last: bool,
    pub(super) cells: bool,
}

/// How many timesteps are projected at once: at most as many as have gates of so many bytes, or so many rows where that is
/// more; one at least.
#[derive(Clone, Copy)]
pub(super) struct ChunkSize {
    pub(super) bytes: usize,
    /// The weights of the input are read once for all rows of a chunk.
    pub(super) rows: usize,
}

/// The results of one direction, in blocks (`rows.rs`).
pub(super) struct DirectionOutput {
    /// Of every sequence, H or P units, if collected.
    pub(super) last: Lines,
    /// Of every row, H units, if collected. Rows are stored timestep after timestep, only valid ones.
    pub(super) cells: Lines,
    /// Of every sequence, H or P units.
    pub(super) h: Lines,
    /// Of every sequence, H units; empty without a cell state.
    pub(super) c: Lines,
}

/// The input of a layer.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// The first layer's: rows of the batch in its own layout, and whether all that were read so far are acceptable.
    Batch(&'a SequenceBatch<'a>, &'a AtomicBool),
    /// A later layer's: rows in blocks, stored timestep after timestep.
    Rows(Rows<'a>),
}

/// Where the output rows of a direction go.
pub(super) enum Output<'a> {
    /// Nobody wants them.
    None,
    /// In blocks, stored timestep after timestep; all zeros before.
    Blocks(&'a mut [f32]),
    /// Where the batch's layout has them, columns of this direction alone.
    Padded(Columns<'a>, &'a SequenceBatch<'a>),
}

impl<'a> Output<'a> {
    /// The part of the first 16 units, and that of the others.
    fn split(self, num_rows: usize) -> (Self, Self) {
        match self {
            Output::None => (Output::None, Output::None),
            Output::Blocks(values) => {
                let (first, rest) = values.split_at_mut(num_rows * LANES);
                (Output::Blocks(first), Output::Blocks(rest))
            }
            Output::Padded(columns, batch) => {
                let (first, rest) = columns.split(LANES);
                (Output::Padded(first, batch), Output::Padded(rest, batch))
            }
        }
    }

    /// Writes the rows of a timestep, 16 places each.
    fn keep(&mut self, group: &Group, place: Place, values: &[f32], valid: usize) {
        match self {
            Output::None => {}
            Output::Blocks(rows) => keep(rows, place.row, values, valid),
            Output::Padded(columns, batch) => {
                let row = |b| batch.layout().row(place.t, b, batch.seq_len(), batch.batch_size());
                for (&b, values) in group.sequences.iter().zip(values.chunks_exact(LANES)) {
                    columns.write(row(b), &values[..valid]);
                }
            }
        }
    }
}

impl Weights {
    /// Direction `d` of the layer in storage order; `parts` are the widths that the layer's input consists of.
    pub(super) fn new(layer: &LayerSpec, d: usize, cell: &CellWeights, parts: &[usize], precision: Precision) -> Self {
        let (gates, hidden_size) = (layer.cell.num_gates(), layer.hidden_size);
        let after_reset = matches!(&layer.cell, CellSpec::Gru(cell) if !cell.linear_before_reset);
        let with_h = if after_reset { 2 } else { gates };
        let (weight_hh, weight_hn) = cell.weight_hh.split_at(with_h * hidden_size * layer.h_size());
        let second = match &cell.weight_hr {
            Some(w) => {
                let bias = cell.bias_hr.clone().map(|mut bias| {
                    bias.resize(blocks(layer.h_size()) * LANES, 0.0);
                    bias
                });
                Some(Second::Projection(Panels::new(w, 1, layer.h_size(), &[hidden_size], precision), bias))
            }
            None if after_reset => {
                Some(Second::Candidate(Panels::new(weight_hn, 1, hidden_size, &[hidden_size], precision)))
            }
            None => None,
        };
        Self {
            layer: *layer,
            reverse: layer.direction.is_reverse()[d],
            weight_ih: Panels::new(&cell.weight_ih, gates, hidden_size, parts, precision),
            weight_hh: Panels::new(weight_hh, with_h, hidden_size, &[layer.h_size()], precision),
            second,
            elementwise: Elementwise::new(layer, d, cell),
        }
    }

    fn second_panels(&self) -> Option<&Panels> {
        match &self.second {
            Some(Second::Projection(panels, _) | Second::Candidate(panels)) => Some(panels),
            None => None,
        }
    }

    /// Multiply-adds of a step for one sequence, without the input projection.
    pub(super) fn step_multiply_adds(&self) -> usize {
        self.weight_hh.multiply_adds() + self.second_panels().map_or(0, Panels::multiply_adds)
    }

    /// Multiply-adds of the input projection of one row.
    pub(super) fn projection_multiply_adds(&self) -> usize {
        self.weight_ih.multiply_adds()
    }

    /// Runs all timesteps from the states `h` and `c`, both in blocks.
    #[allow(clippy::too_many_arguments, reason = "the parts of a run, named at the only call")]
    pub(super) fn run(
        &self,
        team: &Team,
        group: &Group,
        input: Input<'_>,
        (h, c): (Lines, Lines),
        mut y: Output<'_>,
        collect: Collect,
        chunk: ChunkSize,
    ) -> DirectionOutput {
        let layer = &self.layer;
        let sequences = group.sequences.len();
        let num_rows = group.starts[group.seq_len()];
        let room = |wanted: bool, rows: usize, units: usize| {
            Lines::zeros(if wanted { blocks(units) * rows * LANES } else { 0 })
        };
        let mut last = room(collect.last, sequences, layer.h_size());
        let mut cells = room(collect.cells, num_rows, layer.c_size());
        let mut c = c;
        if num_rows == 0 {
            return DirectionOutput { last, cells, h, c };
        }
        let row_len = self.weight_ih.row_len();
        let row_bytes = blocks(layer.hidden_size) * row_len * size_of::<f32>();
        let chunks = chunks(group, (chunk.bytes / row_bytes).max(chunk.rows), self.reverse);
        let chunk_rows = |chunk: &Range<usize>| group.starts[chunk.end] - group.starts[chunk.start];
        let needs_all = self.elementwise.needs_all_units();
        // Whether the gates of a chunk are still needed when another block's have been computed, or are too many for a
        // thread to keep their memory.
        let keeps = needs_all || matches!(self.second, Some(Second::Candidate(_)));
        let stored = |chunk: &Range<usize>| keeps || chunk.len() > 1 || chunk_rows(chunk) > SCRATCH_ROWS;
        let most_rows = chunks.iter().filter(|chunk| stored(chunk)).map(chunk_rows).max().unwrap_or(0);
        let mut next_y = || {
            let (first, rest) = std::mem::replace(&mut y, Output::None).split(num_rows);
            y = rest;
            first
        };
        let mut cell_rows = cells.chunks_mut(num_rows * LANES);
        let mut states = c.chunks_mut(sequences * LANES);
        let projected: Vec<Output<'_>> = match &self.second {
            Some(Second::Projection(..)) => (0..blocks(layer.h_size())).map(|_| next_y()).collect(),
            _ => Vec::new(),
        };
        let parts: Vec<Part<'_>> = (0..blocks(layer.hidden_size))
            .map(|_| Part {
                x_gates: Lines::zeros(most_rows * row_len),
                sums: Lines::zeros(if needs_all { sequences * self.weight_hh.row_len() } else { 0 }),
                c: states.next().unwrap_or_default(),
                y: if projected.is_empty() { next_y() } else { Output::None },
                cells: cell_rows.next().unwrap_or_default(),
            })
            .collect();
        let hidden = room(self.second.is_some(), sequences, layer.hidden_size);
        let mut steps =
            Steps { weights: self, arch: Arch::new(), team, group, h_next: h.clone(), h, hidden, parts, projected };
        let mut gathered = Lines::default();
        for chunk in chunks {
            let first_row = group.starts[chunk.start];
            let rows = input.chunk(team, group, chunk.clone(), layer.input_size, &mut gathered);
            if !input.is_acceptable() {
                break; // the run is refused
            }
            let mut x = Some((rows, chunk_rows(&chunk)));
            for s in 0..chunk.len() {
                let t = if self.reverse { chunk.end - 1 - s } else { chunk.start + s };
                let (active, row) = (group.active(t), group.starts[t]);
                let place = Place { t, active, row, row_in_chunk: row - first_row };
                steps.run(x.take(), place, stored(&chunk));
                let ending = group.active(t + 1)..active;
                if !ending.is_empty() {
                    steps.end(ending, &mut last);
                }
            }
        }
        let Steps { h, parts, projected, .. } = steps;
        drop((parts, projected));
        DirectionOutput { last, cells, h, c }
    }
}

/// Where the rows of a timestep are.
#[derive(Clone, Copy)]
struct Place {
    t: usize,
    active: usize,
    /// Among all rows, and among those of the chunk.
    row: usize,
    row_in_chunk: usize,
}

/// What a thread needs until the cells of a block are computed: the same memory for each block, so that it stays next to
/// the core.
#[derive(Default)]
struct Scratch {
    /// [rows of a timestep][gates][16], at most `SCRATCH_ROWS` rows
    x_gates: Lines,
    /// [rows at once][gates][16]
    sums: Lines,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// 16 units, and all that only they write.
struct Part<'a> {
    /// [rows of a chunk][gates][16], where they are stored.
    x_gates: Lines,
    /// [sequences][gates][16], where the cells need the sums of all units.
    sums: Lines,
    /// [sequences][16]
    c: &'a mut [f32],
    /// Unless these are the units before a projection.
    y: Output<'a>,
    /// [rows][16], if wanted.
    cells: &'a mut [f32],
}

/// The timesteps of a run, with all that changes from one to the next.
struct Steps<'a> {
    weights: &'a Weights,
    arch: Arch,
    team: &'a Team,
    group: &'a Group,
    /// In blocks; the rows that are not active are the same in both.
    h: Lines,
    h_next: Lines,
    /// Between the two products of a step, in blocks: o·h(c) before the projection, or r·h.
    hidden: Lines,
    parts: Vec<Part<'a>>,
    /// Of 16 units each, where there is a projection.
    projected: Vec<Output<'a>>,
}

impl Steps<'_> {
    /// One timestep. The first of a chunk projects the chunk's rows `x`, so many; they are `stored` or used at once.
    fn run(&mut self, x: Option<(Rows<'_>, usize)>, place: Place, stored: bool) {
        let Self { weights, arch, team, group, h, h_next, hidden, parts, projected } = self;
        let (arch, sequences) = (*arch, group.sequences.len());
        let Place { active, row, row_in_chunk, .. } = place;
        let backwards = place.t % 2 == 1;
        let row_len = weights.weight_ih.row_len();
        let h_prev = Rows::new(h, sequences);
        let (h_size, hidden_size) = (weights.layer.h_size(), weights.layer.hidden_size);
        let has_c = weights.layer.c_size() > 0;
        let needs_all = weights.elementwise.needs_all_units();

        let first = |u: usize, part: &mut Part<'_>, out: &mut [f32], scratch: &mut Scratch| {
            let x_gates = if stored { &mut part.x_gates } else { &mut scratch.x_gates };
            if let Some((x, count)) = x {
                x_gates.grow(count * row_len);
                let ahead = ahead(&weights.weight_hh, Some(u), count);
                weights.weight_ih.multiply(arch, u, x, count, x_gates, ahead);
            }
            let panels = if x.is_some() { &weights.weight_ih } else { &weights.weight_hh };
            let ahead = ahead(panels, following(u, backwards), active);
            if needs_all {
                return weights.weight_hh.multiply(arch, u, h_prev, active, &mut part.sums, ahead);
            }
            for (first, count, ahead) in pieces(active, ahead) {
                let sums = scratch.sums.first(count * weights.weight_hh.row_len());
                weights.weight_hh.multiply(arch, u, h_prev.from(first), count, sums, ahead);
                let x_gates = &mut x_gates[(row_in_chunk + first) * row_len..][..count * row_len];
                let places = first * LANES..(first + count) * LANES;
                let c = if has_c { &mut part.c[places.clone()] } else { &mut [] };
                let before = if has_c { &[][..] } else { &h_prev.values[u * h_prev.stride..][places.clone()] };
                let step = Step { block: u, x_gates, sums, c, h_prev: before, h: &mut out[places] };
                weights.elementwise.advance(arch, step);
            }
            if has_c {
                keep(part.cells, row, &part.c[..active * LANES], valid(hidden_size, u));
            }
            if weights.second.is_none() {
                part.y.keep(group, place, &out[..active * LANES], valid(hidden_size, u));
            }
        };
        let first =
            |u: usize, part: &mut Part<'_>, out: &mut [f32]| SCRATCH.with_borrow_mut(|s| first(u, part, out, s));
        match &weights.second {
            _ if needs_all => {
                // With a projection the cell's h goes between the products.
                let out = if projected.is_empty() { &mut *h_next } else { &mut *hidden };
                team.each_with(parts, out, sequences * LANES, backwards, first);
                all_units(weights, arch, parts, out, group, place);
            }
            None => team.each_with(parts, h_next, sequences * LANES, backwards, first),
            Some(_) => team.each_with(parts, hidden, sequences * LANES, backwards, first),
        }
        match &weights.second {
            None => {}
            Some(Second::Projection(panels, bias)) => {
                let m = Rows::new(hidden, sequences);
                team.each_with(projected, h_next, sequences * LANES, backwards, |u, y, out| {
                    for (first, count, ahead) in pieces(active, ahead(panels, following(u, backwards), active)) {
                        let out = &mut out[first * LANES..][..count * LANES];
                        panels.multiply(arch, u, m.from(first), count, out, ahead);
                        if let Some(bias) = bias {
                            let bias = &bias[u * LANES..][..LANES];
                            out.chunks_exact_mut(LANES).for_each(|h| h.iter_mut().zip(bias).for_each(|(h, b)| *h += b));
                        }
                    }
                    y.keep(group, place, &out[..active * LANES], valid(h_size, u));
                });
            }
            Some(Second::Candidate(panels)) => {
                let m = Rows::new(hidden, sequences);
                team.each_with(parts, h_next, sequences * LANES, backwards, |u, part, out| {
                    SCRATCH.with_borrow_mut(|scratch| {
                        for (first, count, ahead) in pieces(active, ahead(panels, following(u, backwards), active)) {
                            let sums = scratch.sums.first(count * LANES);
                            panels.multiply(arch, u, m.from(first), count, sums, ahead);
                            let x_gates = &mut part.x_gates[(row_in_chunk + first) * row_len..][..count * row_len];
                            let places = first * LANES..(first + count) * LANES;
                            let h_prev = &h_prev.values[u * h_prev.stride..][places.clone()];
                            let step = Step { block: u, x_gates, sums, c: &mut [], h_prev, h: &mut out[places] };
                            weights.elementwise.finish(arch, step);
                        }
                    });
                    part.y.keep(group, place, &out[..active * LANES], valid(h_size, u));
                });
            }
        }
        std::mem::swap(&mut self.h, &mut self.h_next);
    }

    /// The sequences `ending` have their last timestep behind them, or, backwards, their first.
    fn end(&mut self, ending: Range<usize>, last: &mut [f32]) {
        let places = ending.start * LANES..ending.end * LANES;
        let block_len = self.group.sequences.len() * LANES;
        let now = self.h.chunks_exact(block_len);
        for (now, next) in now.clone().zip(self.h_next.chunks_exact_mut(block_len)) {
            next[places.clone()].copy_from_slice(&now[places.clone()]);
        }
        for (now, last) in now.zip(last.chunks_exact_mut(block_len)) {
            last[places.clone()].copy_from_slice(&now[places.clone()]);
        }
    }
}

/// The rows in pieces: the first and the number of each, with its share of what is fetched meanwhile.
fn pieces(rows: usize, ahead: &[u8]) -> impl Iterator<Item = (usize, usize, &[u8])> {
    let mut rest = ahead;
    (0..rows).step_by(ROWS_AT_ONCE).map(move |first| {
        let count = ROWS_AT_ONCE.min(rows - first);
        let (share, others) = rest.split_at(rest.len() / (rows - first) * count);
        rest = others;
        (first, count, share)
    })
}

/// How many of `units` block `u` has.
fn valid(units: usize, u: usize) -> usize {
    (units - u * LANES).min(LANES)
}

/// Copies the valid units of a block to the rows from `row` on, if these are wanted.
fn keep(kept: &mut [f32], row: usize, values: &[f32], valid: usize) {
    if kept.is_empty() || values.is_empty() {
        return;
    }
    let kept = &mut kept[row * LANES..][..values.len()];
    if valid == LANES {
        return kept.copy_from_slice(values);
    }
    // The other places stay zero: a product with several parts reads them.
    for (kept, values) in kept.chunks_exact_mut(LANES).zip(values.chunks_exact(LANES)) {
        kept[..valid].copy_from_slice(&values[..valid]);
    }
}

/// The elementwise half of a step that needs all units of a row at once, row after row.
fn all_units(weights: &Weights, arch: Arch, parts: &mut [Part<'_>], out: &mut [f32], group: &Group, place: Place) {
    let units = weights.layer.hidden_size;
    let row_len = weights.weight_ih.row_len();
    let mut x_gates = vec![0.0; units * row_len / LANES];
    let mut sums = x_gates.clone();
    let (mut c, mut h) = (vec![0.0; units], vec![0.0; units]);
    let block_len = group.sequences.len() * LANES;
    for s in 0..place.active {
        for (u, part) in parts.iter().enumerate() {
            let valid = valid(units, u);
            for gate in 0..row_len / LANES {
                let to = gate * units + u * LANES..gate * units + u * LANES + valid;
                let from = &part.x_gates[(place.row_in_chunk + s) * row_len + gate * LANES..];
                x_gates[to.clone()].copy_from_slice(&from[..valid]);
                sums[to].copy_from_slice(&part.sums[s * row_len + gate * LANES..][..valid]);
            }
            c[u * LANES..][..valid].copy_from_slice(&part.c[s * LANES..][..valid]);
        }
        let step = Step { block: 0, x_gates: &mut x_gates, sums: &sums, c: &mut c, h_prev: &[], h: &mut h };
        weights.elementwise.advance(arch, step);
        for (u, (part, out)) in parts.iter_mut().zip(out.chunks_exact_mut(block_len)).enumerate() {
            put(&mut part.c[s * LANES..][..LANES], &c, u);
            put(&mut out[s * LANES..][..LANES], &h, u);
        }
    }
    for (u, (part, out)) in parts.iter_mut().zip(out.chunks_exact(block_len)).enumerate() {
        keep(part.cells, place.row, &part.c[..place.active * LANES], valid(units, u));
        part.y.keep(group, place, &out[..place.active * LANES], valid(units, u));
    }
}

impl<'a> Input<'a> {
    /// Whether no value was found that the batch refuses.
    fn is_acceptable(self) -> bool {
        match self {
            Input::Batch(_, acceptable) => acceptable.load(Ordering::Relaxed),
            Input::Rows(_) => true,
        }
    }

    /// The rows of a chunk of timesteps, gathered if they lie apart.
    fn chunk<'b>(
        self,
        team: &Team,
        group: &Group,
        chunk: Range<usize>,
        width: usize,
        gathered: &'b mut Lines,
    ) -> Rows<'b>
    where
        'a: 'b,
    {
        let (batch, acceptable) = match self {
            Input::Rows(rows) => return rows.from(group.starts[chunk.start]),
            Input::Batch(batch, acceptable) => (batch, acceptable),
        };
        let count = group.starts[chunk.end] - group.starts[chunk.start];
        let len = blocks(width) * count * LANES;
        gathered.grow(len);
        // A stretch of columns to each member, which reads it row after row.
        let blocks_each = blocks(width).div_ceil(team.size());
        let mut parts: Vec<&mut [f32]> = gathered[..len].chunks_mut(blocks_each * count * LANES).collect();
        team.each(&mut parts, |part, columns| {
            let first = part * blocks_each;
            let columns_of = first * LANES..width.min((first + blocks_each) * LANES);
            let mut at = 0;
            for t in chunk.clone() {
                for &b in &group.sequences[..group.active(t)] {
                    let row = &batch.input_row(t, b)[columns_of.clone()];
                    if batch.checks_finite() && !all_finite(row) {
                        acceptable.store(false, Ordering::Relaxed);
                    }
                    for (block, column) in columns.chunks_exact_mut(count * LANES).enumerate() {
                        put(&mut column[at..at + LANES], row, block);
                    }
                    at += LANES;
                }
            }
        });
        Rows::new(&gathered[..len], count)
    }
}

/// Cuts the timesteps into chunks of at most `max_rows` rows, but at least one timestep; in the order of the
/// direction.
fn chunks(group: &Group, max_rows: usize, reverse: bool) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < group.seq_len() {
        let fitting = group.starts.partition_point(|&s| s <= group.starts[start] + max_rows) - 1;
        let end = fitting.clamp(start + 1, group.seq_len());
        chunks.push(start..end);
        start = end;
    }
    if reverse {
        chunks.reverse();
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_that_come_next_are_fetched() {
        let panels = Panels::new(&[1.0; 4 * 40 * 5], 4, 40, &[5], Precision::F32);
        let found = |u, backwards, rows| ahead(&panels, following(u, backwards), rows);
        let is = |found: &[u8], u| std::ptr::eq(found, panels.block(u)) && !found.is_empty();
        assert!(is(found(0, false, 2), 1) && is(found(1, false, 24), 2));
        assert!(is(found(2, true, 48), 1) && is(found(1, true, 2), 0));
        assert!(found(2, false, 48).is_empty() && found(0, true, 48).is_empty(), "there is no such block");
        assert!(found(0, false, 1).is_empty(), "a single row");
    }

    #[test]
    fn pieces_are_all_rows_and_share_what_is_fetched() {
        let bytes: Vec<u8> = (0..=255).cycle().take(9600).collect();
        for rows in [1, 47, 48, 49, 96, 100] {
            let found: Vec<_> = pieces(rows, &bytes).collect();
            let mut next = 0;
            for (first, count, _) in &found {
                assert_eq!(*first, next);
                next += count;
            }
            assert_eq!(next, rows);
            let shares = found.iter().map(|p| p.2).collect::<Vec<_>>().concat();
            assert!(bytes.starts_with(&shares) && shares.len() + rows > bytes.len(), "{} of {rows}", shares.len());
        }
        assert_eq!(pieces(0, &bytes).count(), 0);
    }

    #[test]
    fn chunks_cover_every_timestep_once() {
        let group = Group::new(vec![2, 0, 1, 3], &[4, 2, 5, 0]);
        assert_eq!(group.starts, [0, 3, 6, 8, 10, 11]);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|t| group.active(t)), [3, 3, 2, 2, 1, 0]);
        assert_eq!(chunks(&group, 0, false), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(chunks(&group, 5, false), [0..1, 1..3, 3..5]);
        assert_eq!(chunks(&group, 6, true), [2..5, 0..2]);
        assert_eq!(chunks(&group, 10, true), [4..5, 0..4]);
        assert_eq!(chunks(&Group::new(vec![0], &[0]), 9, false), []);
        assert_eq!(chunks(&Group::new(vec![], &[]), 9, false), []);
    }
}
