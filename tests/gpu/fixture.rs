//! A batch with its model, owned; and the list of cases that every adapter runs.

use wgpu_lstm::{Direction, LayerSpec, Layout, LstmSpec, LstmWeights, Outputs, SequenceBatch, SequenceOutput};

use crate::support::data::{Rng, distinct_weights};

/// What lies beyond the lengths: reading it would be seen.
const JUNK: f32 = 1.0e4;

/// A model and a batch for it.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    pub weights: LstmWeights,
    pub lengths: Vec<usize>,
    pub seq_len: usize,
    pub layout: Layout,
    pub x: Vec<f32>,
    pub h_0: Option<Vec<f32>>,
    pub c_0: Option<Vec<f32>>,
    pub outputs: Outputs,
}

impl Case {
    /// A case with junk beyond the lengths and, if asked for, distinct initial states.
    pub fn new(name: &str, spec: &LstmSpec, lengths: &[usize], seq_len: usize, initial: bool, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let layout = Layout::BatchMajor;
        let (batch_size, input_size) = (lengths.len(), spec.input_size());
        let mut x = vec![JUNK; seq_len * batch_size * input_size];
        for (b, &length) in lengths.iter().enumerate() {
            for t in 0..length {
                let row = layout.row(t, b, seq_len, batch_size) * input_size;
                x[row..row + input_size].iter_mut().for_each(|v| *v = rng.symmetric(1.5));
            }
        }
        let (h_size, c_size) = spec.state_sizes();
        let mut state = |size: usize, bound: f32| -> Option<Vec<f32>> {
            initial.then(|| (0..size * batch_size).map(|_| rng.symmetric(bound)).collect())
        };
        Self {
            name: name.to_owned(),
            weights: distinct_weights(spec, seed),
            lengths: lengths.to_vec(),
            seq_len,
            layout,
            x,
            h_0: state(h_size, 0.9),
            c_0: state(c_size, 1.5),
            outputs: Outputs { sequence: SequenceOutput::All, final_state: true, cells: true },
        }
    }

    pub fn spec(&self) -> &LstmSpec {
        self.weights.spec()
    }

    pub fn batch_size(&self) -> usize {
        self.lengths.len()
    }

    pub fn batch(&self) -> SequenceBatch<'_> {
        let shape = self.layout.shape(self.seq_len, self.batch_size(), self.spec().input_size());
        let mut batch = SequenceBatch::new(&self.x, shape, self.layout)
            .and_then(|b| b.lengths(&self.lengths))
            .expect("the case is well-formed")
            .outputs(self.outputs);
        if let Some(h_0) = &self.h_0 {
            batch = batch.h_0(h_0);
        }
        if let Some(c_0) = &self.c_0 {
            batch = batch.c_0(c_0);
        }
        batch
    }

    /// The same sequences in the other axis order.
    pub fn time_major(&self) -> Self {
        let mut other = self.clone();
        other.layout = Layout::TimeMajor;
        let (batch_size, input_size) = (self.batch_size(), self.spec().input_size());
        for b in 0..batch_size {
            for t in 0..self.seq_len {
                let from = self.layout.row(t, b, self.seq_len, batch_size) * input_size;
                let to = other.layout.row(t, b, self.seq_len, batch_size) * input_size;
                other.x[to..to + input_size].copy_from_slice(&self.x[from..from + input_size]);
            }
        }
        other
    }

    /// The sequences `chosen`, in this order, with room for `seq_len` steps.
    pub fn select(&self, chosen: &[usize], seq_len: usize) -> Self {
        let mut other = self.clone();
        other.lengths = chosen.iter().map(|&b| self.lengths[b]).collect();
        other.seq_len = seq_len;
        let input_size = self.spec().input_size();
        other.x = vec![-JUNK; seq_len * chosen.len() * input_size];
        for (to_b, &b) in chosen.iter().enumerate() {
            for t in 0..self.lengths[b] {
                let from = self.layout.row(t, b, self.seq_len, self.batch_size()) * input_size;
                let to = self.layout.row(t, to_b, seq_len, chosen.len()) * input_size;
                other.x[to..to + input_size].copy_from_slice(&self.x[from..from + input_size]);
            }
        }
        let pick = |state: &Option<Vec<f32>>, width: fn(&LayerSpec) -> usize| {
            state.as_ref().map(|s| select_state(self.spec(), s, self.batch_size(), chosen, width))
        };
        other.h_0 = pick(&self.h_0, LayerSpec::h_size);
        other.c_0 = pick(&self.c_0, |l| l.hidden_size);
        other
    }
}

/// The columns `chosen` of a state of `batch_size` sequences.
pub fn select_state(
    spec: &LstmSpec,
    state: &[f32],
    batch_size: usize,
    chosen: &[usize],
    width: fn(&LayerSpec) -> usize,
) -> Vec<f32> {
    let mut picked = Vec::new();
    let mut first = 0;
    for (_, layer, _) in spec.cells() {
        let width = width(layer);
        for &b in chosen {
            picked.extend_from_slice(&state[first + b * width..][..width]);
        }
        first += batch_size * width;
    }
    picked
}

/// The rows of the sequences `chosen` up to their lengths, from an output in `layout`.
pub fn valid_rows(output: &[f32], lengths: &[usize], seq_len: usize, layout: Layout, chosen: &[usize]) -> Vec<f32> {
    let features = output.len() / (seq_len * lengths.len()).max(1);
    let rows = chosen.iter().flat_map(|&b| (0..lengths[b]).map(move |t| (t, b)));
    rows.flat_map(|(t, b)| output[layout.row(t, b, seq_len, lengths.len()) * features..][..features].to_vec()).collect()
}

/// Sizes around the tiles: 1, tile − 1, tile, tile + 1, 2 · tile + 3 of 4, 16, 32 and 64, and some that trained
/// models have.
const HIDDEN: [usize; 14] = [1, 3, 4, 5, 15, 16, 17, 25, 27, 32, 35, 63, 65, 131];
const INPUT: [usize; 8] = [1, 3, 4, 5, 13, 33, 64, 70];
/// Batch sizes around the row tiles 1, 4, 8 and the workgroup heights 4 and 1.
const BATCH: [usize; 9] = [1, 2, 3, 4, 5, 9, 17, 33, 67];
const STEPS: [usize; 4] = [1, 2, 17, 40];

/// Cases that between them pair every value of each dimension with every value of each other dimension of few
/// values (direction, projection, layers, bias, initial state), and walk through the sizes.
pub fn parity_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut rng = Rng::new(11);
    for n in 0..54usize {
        let direction = [Direction::Forward, Direction::Reverse, Direction::Bidirectional][n % 3];
        let num_layers = [1, 2, 3][n / 3 % 3];
        let projected = n / 9 % 2 == 1;
        let bias = (n / 18 + n) % 2 == 0;
        let initial = (n / 9 + n / 3) % 2 == 0;
        let hidden = HIDDEN[n % HIDDEN.len()];
        let input = INPUT[(n / 2 + n) % INPUT.len()];
        let batch_size = BATCH[(n / 3 + n) % BATCH.len()];
        let steps = STEPS[(n / 5 + n) % STEPS.len()];
        let projection = (projected && hidden > 1).then(|| 1 + rng.below(hidden - 1));
        let spec = LstmSpec::stack(input, hidden, num_layers).direction(direction).bias(bias).projection(projection);
        let spec = spec.build().expect("sizes are valid");
        let mut lengths: Vec<usize> = (0..batch_size).map(|_| rng.below(steps + 1)).collect();
        let longest = rng.below(batch_size);
        lengths[longest] = steps;
        let name = format!(
            "i{input}_h{hidden}_p{}_l{num_layers}_{}_b{batch_size}_t{steps}{}{}",
            projection.unwrap_or(0),
            ["fwd", "rev", "bi"][n % 3],
            if bias { "" } else { "_nobias" },
            if initial { "_init" } else { "" },
        );
        let case = Case::new(&name, &spec, &lengths, steps + n % 2, initial, 100 + n as u64);
        cases.push(if n % 4 == 1 { case.time_major() } else { case });
    }
    // Layers that differ in size, direction and projection.
    let layer = |input_size, hidden_size, direction, projection_size, bias| LayerSpec {
        direction,
        bias,
        projection_size,
        ..LayerSpec::new(input_size, hidden_size)
    };
    let mixed = LstmSpec::new(vec![
        layer(6, 20, Direction::Forward, None, true),
        layer(20, 9, Direction::Forward, Some(5), false),
        layer(5, 12, Direction::Bidirectional, Some(7), true),
        layer(14, 33, Direction::Reverse, None, true),
        layer(33, 8, Direction::Forward, None, true),
    ]);
    let mixed = mixed.expect("sizes chain");
    cases.push(Case::new("mixed_layers", &mixed, &[9, 0, 23, 4, 23, 1], 23, true, 7));
    cases
}
