//! The Thai segmenter of ICU4X: its weights as a model, its dictionary, its last layer, and the 30 strings whose tags are
//! known. `tests/data/icu4x/README.md` says where they are from.

use std::collections::BTreeMap;

use serde_json::Value;
use wgpu_lstm::{CellWeights, Direction, Layout, LstmSpec, LstmWeights, Outputs, SequenceBatch, SequenceOutput};

const INPUT: usize = 40;
const HIDDEN: usize = 27;
/// Begin, inside, end of a word, single.
pub const TAGS: [char; 4] = ['b', 'i', 'e', 's'];

/// The model around its LSTM.
#[derive(Debug)]
pub struct Segmenter {
    pub weights: LstmWeights,
    numbers: BTreeMap<char, usize>,
    /// [74, 40]; the last row is of what has no number.
    embedding: Vec<f32>,
    /// [2, 4, 27], forward and backward.
    time_w: Vec<f32>,
    /// `[4]`
    time_b: Vec<f32>,
}

/// Strings as one ragged batch.
#[derive(Debug)]
pub struct Embedded {
    x: Vec<f32>,
    lengths: Vec<usize>,
}

impl Embedded {
    fn seq_len(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    pub fn batch(&self) -> SequenceBatch<'_> {
        let shape = [self.lengths.len(), self.seq_len(), INPUT];
        let batch = SequenceBatch::new(&self.x, shape, Layout::BatchMajor).and_then(|b| b.lengths(&self.lengths));
        let outputs = Outputs { sequence: SequenceOutput::All, final_state: false, cells: false };
        batch.expect("sizes agree").outputs(outputs)
    }
}

/// A file of `tests/data/icu4x`.
pub fn file(name: &str) -> String {
    // A test binary may run on another machine, from the root of a copy of the repository.
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/icu4x");
    let folder = if std::path::Path::new(built_in).exists() { built_in } else { "tests/data/icu4x" };
    std::fs::read_to_string(format!("{folder}/{name}")).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub const WEIGHTS: &str = "Thai_codepoints_exclusive_model4_heavy.json";

/// (string, its tags)
pub fn known_tags() -> Vec<(String, String)> {
    let cases: Value = serde_json::from_str(&file("thai_testcases.json")).expect("json");
    let text = |case: &Value, key: &str| case[key].as_str().expect(key).to_owned();
    let cases = cases["testcases"].as_array().expect("testcases");
    cases.iter().map(|case| (text(case, "unseg"), text(case, "expected_bies"))).collect()
}

impl Segmenter {
    pub fn load() -> Self {
        let model: Value = serde_json::from_str(&file(WEIGHTS)).expect("json");
        let model = &model["Float32"];
        assert_eq!(model["model"], "Codepoints");
        let matrix = |name: &str, dims: &[usize]| -> Vec<f32> {
            assert_eq!(model[name]["dims"], serde_json::json!(dims), "{name}");
            let data = model[name]["data"].as_array().expect(name);
            data.iter().map(|v| v.as_f64().expect(name) as f32).collect()
        };
        // i f c o is this crate's order too. One bias; the other is zero.
        let cell = |side: &str| CellWeights {
            weight_ih: matrix(&format!("{side}_w"), &[4, HIDDEN, INPUT]),
            weight_hh: matrix(&format!("{side}_u"), &[4, HIDDEN, HIDDEN]),
            bias_ih: Some(matrix(&format!("{side}_b"), &[4, HIDDEN])),
            bias_hh: Some(vec![0.0; 4 * HIDDEN]),
            ..CellWeights::default()
        };
        let spec = LstmSpec::stack(INPUT, HIDDEN, 1).direction(Direction::Bidirectional).build().expect("a valid spec");
        let numbers = model["dic"].as_object().expect("dic").iter().map(|(text, number)| {
            let mut characters = text.chars();
            let character = characters.next().expect("a code point");
            assert!(characters.next().is_none(), "{text}: one code point");
            (character, number.as_u64().expect("a number") as usize)
        });
        let numbers: BTreeMap<char, usize> = numbers.collect();
        Self {
            weights: LstmWeights::new(spec, vec![cell("fw"), cell("bw")]).expect("the shapes are those of the spec"),
            embedding: matrix("embedding", &[numbers.len() + 1, INPUT]),
            time_w: matrix("time_w", &[2, 4, HIDDEN]),
            time_b: matrix("time_b", &[4]),
            numbers,
        }
    }

    /// The code points that the model knows.
    pub fn alphabet(&self) -> Vec<char> {
        self.numbers.keys().copied().collect()
    }

    pub fn embed(&self, texts: &[&str]) -> Embedded {
        let lengths: Vec<usize> = texts.iter().map(|text| text.chars().count()).collect();
        let seq_len = lengths.iter().copied().max().unwrap_or(0);
        let mut x = vec![f32::NAN; texts.len() * seq_len * INPUT];
        for (b, text) in texts.iter().enumerate() {
            for (t, character) in text.chars().enumerate() {
                let number = self.numbers.get(&character).copied().unwrap_or(self.numbers.len());
                let row = (b * seq_len + t) * INPUT;
                x[row..row + INPUT].copy_from_slice(&self.embedding[number * INPUT..][..INPUT]);
            }
        }
        Embedded { x, lengths }
    }

    /// The tags of every string from the output [B, T, 54] of the LSTM, and by how much the largest score exceeds the
    /// second largest where they are nearest.
    pub fn tags(&self, strings: &Embedded, output: &[f64]) -> (Vec<String>, f64) {
        let (seq_len, mut nearest) = (strings.seq_len(), f64::INFINITY);
        let mut tag = |row: &[f64]| {
            let side = |d: usize, k: usize| {
                let weights = &self.time_w[(d * 4 + k) * HIDDEN..][..HIDDEN];
                weights.iter().zip(&row[d * HIDDEN..]).map(|(w, h)| f64::from(*w) * h).sum::<f64>()
            };
            let mut scores = [0, 1, 2, 3].map(|k| (side(0, k) + side(1, k) + f64::from(self.time_b[k]), TAGS[k]));
            scores.sort_by(|a, b| b.0.total_cmp(&a.0));
            nearest = nearest.min(scores[0].0 - scores[1].0);
            scores[0].1
        };
        let lengths = strings.lengths.iter().enumerate();
        let tags = lengths
            .map(|(b, &length)| {
                let row = |t: usize| (b * seq_len + t) * 2 * HIDDEN;
                (0..length).map(|t| tag(&output[row(t)..][..2 * HIDDEN])).collect()
            })
            .collect();
        (tags, nearest)
    }
}
