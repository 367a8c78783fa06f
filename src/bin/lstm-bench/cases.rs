//! The table of cases, and what a case runs on.

use clap::ValueEnum;
use serde::Deserialize;
use wgpu_lstm::{
    Activation, CellSpec, Direction, GruCell, Layout, LstmActivations, LstmCell, LstmSpec, LstmWeights, Merge, RnnCell,
    SequenceBatch,
};

use crate::common::failure::{Failure, Result, fail};
use crate::common::precision::WeightsName;
use crate::common::random::Random;

/// The table of this repository.
pub(crate) const TABLE: &str = include_str!("../../../benches/cases.toml");

/// Left out unless a group is asked for.
const ONLY_ON_REQUEST: [&str; 3] = ["tiny", "anchors", "padded"];

/// One row of the table; the fields are described there.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) group: String,
    pub(crate) name: Option<String>,
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) input: usize,
    pub(crate) hidden: usize,
    #[serde(default = "one")]
    pub(crate) layers: usize,
    #[serde(default)]
    pub(crate) cell: CellName,
    #[serde(default)]
    pub(crate) direction: DirectionName,
    #[serde(default)]
    pub(crate) sum: bool,
    pub(crate) projection: Option<usize>,
    #[serde(default = "yes")]
    pub(crate) bias: bool,
    pub(crate) min_len: Option<usize>,
    #[serde(default)]
    pub(crate) carried: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DirectionName {
    #[default]
    Forward,
    Reverse,
    Bidirectional,
}

/// A cell, or a plain LSTM with one option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CellName {
    #[default]
    Lstm,
    Peepholes,
    Coupled,
    Clipped,
    /// HardSigmoid gates and Softsign for both others.
    Functions,
    LayerNorm,
    Gru,
    /// Not linear before reset.
    GruLegacy,
    Rnn,
}

impl CellName {
    /// As in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            CellName::Lstm => "lstm",
            CellName::Peepholes => "peepholes",
            CellName::Coupled => "coupled",
            CellName::Clipped => "clipped",
            CellName::Functions => "functions",
            CellName::LayerNorm => "layer_norm",
            CellName::Gru => "gru",
            CellName::GruLegacy => "gru_legacy",
            CellName::Rnn => "rnn",
        }
    }

    fn spec(self) -> CellSpec {
        let plain = LstmCell::default();
        let functions = LstmActivations {
            f: Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
            g: Activation::Softsign,
            h: Activation::Softsign,
        };
        match self {
            CellName::Lstm => CellSpec::Lstm(plain),
            CellName::Peepholes => CellSpec::Lstm(LstmCell { peepholes: true, ..plain }),
            CellName::Coupled => CellSpec::Lstm(LstmCell { coupled_input_forget: true, ..plain }),
            CellName::Clipped => CellSpec::Lstm(LstmCell { activation_clip: Some(3.0), cell_clip: Some(3.0), ..plain }),
            CellName::Functions => CellSpec::Lstm(LstmCell { activations: [functions; 2], ..plain }),
            CellName::LayerNorm => CellSpec::Lstm(LstmCell { layer_norm: true, ..plain }),
            CellName::Gru => CellSpec::Gru(GruCell::default()),
            CellName::GruLegacy => CellSpec::Gru(GruCell { linear_before_reset: false, ..GruCell::default() }),
            CellName::Rnn => CellSpec::Rnn(RnnCell::default()),
        }
    }
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
}

/// Reads a table.
pub(crate) fn parse(text: &str) -> Result<Vec<Case>> {
    let table: Table = toml::from_str(text).map_err(|e| Failure::Data(format!("cases: {e}")))?;
    for case in &table.case {
        if case.batch == 0 || case.len == 0 || case.min_len.is_some_and(|n| n > case.len) {
            fail!("cases: {}: expected batch and len of at least 1 and min_len up to len", case.id());
        }
        case.spec().map_err(|f| f.context(format!("cases: {}", case.id())))?;
    }
    Ok(table.case)
}

impl Case {
    /// `b32_t128_i256_h256_fwd`, with `_l2` and `_p64` before the direction and `_sum`, `_gru` (the cell), `_from10`
    /// (ragged), `_nobias` and `_carried` after it.
    pub(crate) fn id(&self) -> String {
        let mut id = format!("b{}_t{}_i{}_h{}", self.batch, self.len, self.input, self.hidden);
        if self.layers != 1 {
            id += &format!("_l{}", self.layers);
        }
        if let Some(p) = self.projection {
            id += &format!("_p{p}");
        }
        id += match self.direction {
            DirectionName::Forward => "_fwd",
            DirectionName::Reverse => "_rev",
            DirectionName::Bidirectional => "_bi",
        };
        if self.sum {
            id += "_sum";
        }
        if self.cell != CellName::Lstm {
            id += &format!("_{}", self.cell.name());
        }
        if let Some(n) = self.min_len {
            id += &format!("_from{n}");
        }
        if !self.bias {
            id += "_nobias";
        }
        if self.carried {
            id += "_carried";
        }
        id
    }

    /// Whether the command line chooses it.
    pub(crate) fn matches(&self, groups: &[String], filter: Option<&str>) -> bool {
        let group = if groups.is_empty() {
            !ONLY_ON_REQUEST.contains(&self.group.as_str())
        } else {
            groups.contains(&self.group)
        };
        let name = self.name.as_deref().unwrap_or_default();
        group && filter.is_none_or(|text| self.id().contains(text) || name.contains(text))
    }

    fn spec(&self) -> Result<LstmSpec> {
        let direction = match self.direction {
            DirectionName::Forward => Direction::Forward,
            DirectionName::Reverse => Direction::Reverse,
            DirectionName::Bidirectional => Direction::Bidirectional,
        };
        let stack = LstmSpec::stack(self.input, self.hidden, self.layers);
        let merge = if self.sum { Merge::Sum } else { Merge::Concat };
        let stack = stack.cell(self.cell.spec()).merge(merge);
        Ok(stack.direction(direction).projection(self.projection).bias(self.bias).build()?)
    }

    /// Random weights, input and lengths, the same in every run of the program.
    pub(crate) fn inputs(&self) -> Result<Inputs> {
        let spec = self.spec()?;
        let mut random = Random::new(1);
        let (h_size, c_size) = spec.state_sizes();
        let lengths = match self.min_len {
            Some(min) => random.lengths(self.batch, min, self.len),
            None => vec![self.len; self.batch],
        };
        Ok(Inputs {
            x: random.values(self.batch * self.len * self.input),
            shape: [self.batch, self.len, self.input],
            lengths,
            state: self.carried.then(|| [random.values(self.batch * h_size), random.values(self.batch * c_size)]),
            weights: LstmWeights::random(&spec, 2),
            weights_as_drawn: LstmWeights::random(&spec, 2),
        })
    }
}

/// A size that a sweep changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sweep {
    Hidden,
    Batch,
    Length,
}

impl Sweep {
    /// The group of its cases.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Sweep::Hidden => "sweep hidden",
            Sweep::Batch => "sweep batch",
            Sweep::Length => "sweep length",
        }
    }

    /// What it changes in a case of its group.
    pub(crate) fn size(self, case: &Case) -> usize {
        match self {
            Sweep::Hidden => case.hidden,
            Sweep::Batch => case.batch,
            Sweep::Length => case.len,
        }
    }

    /// The cases in between which only this size changes; the input is as wide as the hidden state.
    pub(crate) fn cases(self) -> Vec<Case> {
        let sizes: &[usize] = match self {
            Sweep::Hidden => &[32, 64, 128, 256, 512, 1024],
            Sweep::Batch => &[1, 2, 4, 8, 16, 32, 64, 128, 256],
            Sweep::Length => &[1, 4, 16, 64, 256, 1024],
        };
        let case = |&size: &usize| {
            let mut case = Case {
                group: self.group().to_owned(),
                name: None,
                batch: 16,
                len: 64,
                input: 256,
                hidden: 256,
                layers: 1,
                cell: CellName::default(),
                direction: DirectionName::default(),
                sum: false,
                projection: None,
                bias: true,
                min_len: None,
                carried: false,
            };
            match self {
                Sweep::Hidden => (case.input, case.hidden) = (size, size),
                Sweep::Batch => case.batch = size,
                Sweep::Length => case.len = size,
            }
            case
        };
        sizes.iter().map(case).collect()
    }
}

/// What a case runs on.
pub(crate) struct Inputs {
    x: Vec<f32>,
    /// [B, T, I]
    shape: [usize; 3],
    lengths: Vec<usize>,
    /// h_0 and c_0 of the first run, if states are carried.
    pub(crate) state: Option<[Vec<f32>; 2]>,
    /// Those that devices compute with.
    pub(crate) weights: LstmWeights,
    pub(crate) weights_as_drawn: LstmWeights,
}

impl Inputs {
    /// The batch with this initial state.
    pub(crate) fn batch<'a>(&'a self, state: Option<&'a [Vec<f32>; 2]>) -> Result<SequenceBatch<'a>> {
        let batch = SequenceBatch::new(&self.x, self.shape, Layout::BatchMajor)?.lengths(&self.lengths)?;
        Ok(match state {
            Some([h_0, c_0]) => batch.h_0(h_0).c_0(c_0),
            None => batch,
        })
    }

    /// With weights kept so.
    pub(crate) fn keeping(mut self, weights: WeightsName) -> Result<Self> {
        self.weights = weights.of(self.weights)?;
        Ok(self)
    }

    /// The first `len` timesteps of all sequences.
    pub(crate) fn truncated(&self, len: usize) -> Self {
        let [batch_size, seq_len, input_size] = self.shape;
        let len = len.min(seq_len);
        let rows = self.x.chunks_exact(seq_len * input_size).flat_map(|sequence| &sequence[..len * input_size]);
        Self {
            x: rows.copied().collect(),
            shape: [batch_size, len, input_size],
            lengths: self.lengths.iter().map(|&n| n.min(len)).collect(),
            state: self.state.clone(),
            weights: self.weights.clone(),
            weights_as_drawn: self.weights_as_drawn.clone(),
        }
    }

    pub(crate) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    pub(crate) fn valid_rows(&self) -> usize {
        self.lengths.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_and_ids_are_unique() {
        let cases = parse(TABLE).unwrap();
        let mut ids: Vec<String> = cases.iter().map(Case::id).collect();
        for expected in ["b32_t128_i256_h256_fwd", "b256_t500_i40_h256_l3_fwd_from10", "b1_t1_i512_h512_fwd_carried"] {
            assert!(ids.iter().any(|id| id == expected), "{expected}");
        }
        for w in 1..=12 {
            assert!(cases.iter().any(|c| c.name.as_deref() == Some(&format!("W{w}"))), "W{w}");
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), cases.len());
    }

    #[test]
    fn cases_are_chosen_by_group_and_text() {
        let cases = parse(TABLE).unwrap();
        let count = |groups: &[&str], filter| {
            let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
            cases.iter().filter(|c| c.matches(&groups, filter)).count()
        };
        assert_eq!(count(&["tiny"], None), 4);
        assert_eq!(count(&[], None) + count(&["tiny", "anchors", "padded"], None), cases.len());
        assert_eq!(count(&["shapes"], Some("W7")), 1);
        assert_eq!(count(&[], Some("_p64_")), 1);
    }

    #[test]
    fn a_sweep_changes_one_size_and_meets_the_others_in_the_middle() {
        for sweep in [Sweep::Hidden, Sweep::Batch, Sweep::Length] {
            let cases = sweep.cases();
            assert!(cases.iter().any(|case| case.id() == "b16_t64_i256_h256_fwd"), "{sweep:?}");
            assert!(cases.windows(2).all(|pair| sweep.size(&pair[0]) < sweep.size(&pair[1])), "{sweep:?}");
        }
    }

    #[test]
    fn bad_tables_are_named() {
        let good = "[[case]]\ngroup = \"g\"\nbatch = 2\nlen = 3\ninput = 4\nhidden = 5\n";
        assert_eq!(parse(good).unwrap().len(), 1);
        for (bad, needle) in [
            ("projection = 5", "projection_size"),
            ("min_len = 4", "min_len"),
            ("direction = \"up\"", "up"),
            ("hiden = 5", "hiden"),
            ("layers = 0", "num_layers"),
            ("cell = \"gruu\"", "gruu"),
            ("sum = true", "merge"),
        ] {
            let error = parse(&format!("{good}{bad}\n")).unwrap_err().to_string();
            assert!(error.contains(needle) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn truncation_keeps_the_first_steps() {
        let case = parse(TABLE).unwrap().into_iter().find(|c| c.min_len == Some(0)).unwrap();
        let inputs = case.inputs().unwrap();
        let short = inputs.truncated(2);
        assert!(short.lengths().iter().all(|&n| n <= 2));
        let (long_batch, short_batch) = (inputs.batch(None).unwrap(), short.batch(None).unwrap());
        for b in 0..case.batch {
            assert_eq!(long_batch.input_row(1, b), short_batch.input_row(1, b));
        }
    }
}
