//! A batch with its model, owned; and the list of cases that every adapter runs.

use wgpu_lstm::{
    Activation, CellSpec, Direction, GruActivations, GruCell, LayerSpec, Layout, LstmActivations, LstmCell, LstmSpec,
    LstmWeights, Merge, Outputs, RnnCell, SequenceBatch, SequenceOutput,
};

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
            outputs: Outputs {
                sequence: SequenceOutput::All,
                final_state: true,
                cells: spec.last_layer().c_size() > 0,
            },
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
        other.c_0 = pick(&self.c_0, LayerSpec::c_size);
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

/// Functions with parameters that are not the defaults, and whose slopes are at most 1.
pub const FUNCTIONS: [Activation; 11] = [
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::Relu,
    Activation::Affine { alpha: 0.4, beta: 0.15 },
    Activation::LeakyRelu { alpha: 0.3 },
    Activation::ThresholdedRelu { alpha: 0.1 },
    Activation::ScaledTanh { alpha: 0.8, beta: 0.9 },
    Activation::HardSigmoid { alpha: 0.3, beta: 0.4 },
    Activation::Elu { alpha: 0.6 },
    Activation::Softsign,
    Activation::Softplus,
];

/// Every option of every cell, alone and together; the name says which.
pub fn variant_layers() -> Vec<(String, Vec<LayerSpec>)> {
    let plain = LstmCell::default();
    let all = LstmCell {
        peepholes: true,
        coupled_input_forget: true,
        activation_clip: Some(0.5),
        cell_clip: Some(0.6),
        ..plain
    };
    let functions = |n: usize| LstmActivations {
        // A gate that may leave [0, 1] would let the state grow.
        f: [Activation::Sigmoid, FUNCTIONS[7], FUNCTIONS[3]][n % 3],
        g: FUNCTIONS[n % 11],
        h: FUNCTIONS[(n * 4 + 1) % 11],
    };
    let mut differing = all;
    differing.activations = [functions(4), functions(8)];
    let gru = GruCell::default();
    let legacy = GruCell { linear_before_reset: false, ..gru };
    let of_gru = |n: usize, cell: GruCell| GruCell {
        activations: [0, 5].map(|d| GruActivations { f: FUNCTIONS[[0, 7][n % 2]], g: FUNCTIONS[(n + d) % 11] }),
        ..cell
    };
    let [forward, reverse, both] = [Direction::Forward, Direction::Reverse, Direction::Bidirectional];
    let stack = |cell: CellSpec, input, hidden, layers, direction, projection: Option<usize>, merge| {
        let stack = LstmSpec::stack(input, hidden, layers).cell(cell).direction(direction).projection(projection);
        stack.merge(merge).build().expect("sizes are valid").layers().to_vec()
    };
    let mut variants = Vec::new();
    let mut add = |name: &str, layers| variants.push((name.to_owned(), layers));
    let lstm = |cell, input, hidden, direction, projection| {
        stack(CellSpec::Lstm(cell), input, hidden, 1, direction, projection, Merge::Concat)
    };
    add("peepholes", lstm(LstmCell { peepholes: true, ..plain }, 5, 17, both, None));
    add("peepholes_projected", lstm(LstmCell { peepholes: true, ..plain }, 5, 33, forward, Some(7)));
    add("coupled", lstm(LstmCell { coupled_input_forget: true, ..plain }, 13, 3, reverse, None));
    add("activation_clip", lstm(LstmCell { activation_clip: Some(0.4), ..plain }, 4, 65, forward, None));
    let onnxruntime = LstmCell { activation_clip: Some(0.2), clip_output_activation: false, ..plain };
    add("activation_clip_before_output_only", lstm(onnxruntime, 4, 16, both, None));
    add("cell_clip", lstm(LstmCell { cell_clip: Some(0.3), ..plain }, 33, 25, both, Some(5)));
    add("all_options", lstm(all, 3, 27, both, None));
    add("all_options_with_differing_functions", lstm(differing, 6, 35, both, Some(12)));
    add("projection_bias", lstm(LstmCell { projection_bias: true, ..plain }, 5, 15, both, Some(6)));
    for (n, function) in FUNCTIONS.iter().enumerate() {
        let cell = LstmCell { activations: [functions(n); 2], ..plain };
        add(&format!("functions_{}", function.name()), lstm(cell, 3 + n, 5 + 3 * n, [forward, reverse][n % 2], None));
        let cell = RnnCell { activations: [*function; 2], activation_clip: (n % 4 == 3).then_some(0.5) };
        let direction = [forward, both, reverse][n % 3];
        let layers = stack(CellSpec::Rnn(cell), 5, [1, 4, 63, 17][n % 4], 1 + n % 2, direction, None, Merge::Concat);
        add(&format!("rnn_{}", function.name()), layers);
        let cell = of_gru(n, if n % 2 == 0 { gru } else { legacy });
        let layers = stack(CellSpec::Gru(cell), 4 + n, [1, 3, 17, 32, 65][n % 5], 1, both, None, Merge::Concat);
        add(&format!("gru_{}", function.name()), layers);
    }
    let norm = LstmCell { layer_norm: true, ..plain };
    add("layer_norm", lstm(norm, 9, 64, forward, None));
    add("layer_norm_of_one_unit", lstm(norm, 3, 1, both, None));
    add("layer_norm_wide", lstm(LstmCell { peepholes: true, ..norm }, 9, 131, reverse, None));
    let cell = LstmCell { peepholes: true, coupled_input_forget: true, projection_bias: true, ..norm };
    add("layer_norm_with_everything", lstm(LstmCell { cell_clip: Some(0.5), ..cell }, 9, 27, both, Some(8)));
    add("sum", stack(CellSpec::Lstm(plain), 6, 19, 3, both, None, Merge::Sum));
    add("sum_projected", stack(CellSpec::Lstm(plain), 6, 20, 2, both, Some(5), Merge::Sum));
    add("gru", stack(CellSpec::Gru(gru), 7, 25, 3, forward, None, Merge::Concat));
    add("gru_legacy", stack(CellSpec::Gru(legacy), 7, 25, 3, forward, None, Merge::Concat));
    add(
        "gru_clipped_sum",
        stack(CellSpec::Gru(GruCell { activation_clip: Some(0.4), ..gru }), 7, 16, 2, both, None, Merge::Sum),
    );
    add(
        "gru_legacy_clipped",
        stack(CellSpec::Gru(GruCell { activation_clip: Some(0.4), ..legacy }), 7, 5, 2, both, None, Merge::Concat),
    );
    add("rnn_sum", stack(CellSpec::Rnn(RnnCell::default()), 7, 13, 2, both, None, Merge::Sum));
    // Cells of all kinds on one another.
    let layer = |input_size, hidden_size, cell, direction| LayerSpec {
        cell,
        direction,
        ..LayerSpec::new(input_size, hidden_size)
    };
    let mixed = vec![
        layer(6, 10, CellSpec::Rnn(RnnCell::default()), forward),
        LayerSpec { bias: false, ..layer(10, 21, CellSpec::Gru(legacy), forward) },
        LayerSpec { merge: Merge::Sum, ..layer(21, 9, CellSpec::Gru(gru), both) },
        LayerSpec { projection_size: Some(5), ..layer(9, 12, CellSpec::Lstm(all), both) },
        LayerSpec { bias: false, ..layer(10, 18, CellSpec::Rnn(RnnCell::default()), reverse) },
        layer(18, 14, CellSpec::Lstm(norm), forward),
    ];
    add("mixed_cells", mixed);
    variants
}

/// A ragged batch for each of [`variant_layers`].
pub fn variant_cases() -> Vec<Case> {
    let mut rng = Rng::new(12);
    let case = |(n, (name, layers)): (usize, (String, Vec<LayerSpec>))| {
        let spec = LstmSpec::new(layers).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (batch_size, steps) = (BATCH[(n * 4 + 2) % BATCH.len()].max(2), STEPS[n % 4].min(17));
        let mut lengths: Vec<usize> = (0..batch_size).map(|_| rng.below(steps + 1)).collect();
        lengths[n % batch_size] = steps;
        let case = Case::new(&name, &spec, &lengths, steps + n % 2, n % 3 != 0, 300 + n as u64);
        if n % 4 == 1 { case.time_major() } else { case }
    };
    variant_layers().into_iter().enumerate().map(case).collect()
}
