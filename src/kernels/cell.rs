//! The generator of the functions that the options of a cell decide: activations with their clips, the forget gate and
//! the bound of the cell state.
//!
//! What varies in code is text, numbers are override constants; a cell with the default options has neither overrides
//! nor branches. The text of three cells is snapshot-tested.

use std::fmt::Write;

use crate::activation::Activation;
use crate::cell::{CellSpec, LstmCell};

/// What the text depends on, and the values of its constants; the default is that of a plain LSTM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CellCode {
    /// f, g and h of both directions; those that a cell does not have repeat f.
    functions: [[Function; 3]; 2],
    /// f32 as bits, so that it can be a key.
    activation_clip: Option<u32>,
    clip_output: bool,
    cell_clip: Option<u32>,
    coupled: bool,
}

/// An activation as a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Function {
    name: &'static str,
    alpha: Option<u32>,
    beta: Option<u32>,
}

impl From<Activation> for Function {
    fn from(activation: Activation) -> Self {
        let (alpha, beta) = activation.parameters();
        Self { name: activation.name(), alpha: alpha.map(f32::to_bits), beta: beta.map(f32::to_bits) }
    }
}

impl Default for CellCode {
    fn default() -> Self {
        Self::of(&CellSpec::default())
    }
}

impl CellCode {
    /// The code of a cell.
    pub fn of(cell: &CellSpec) -> Self {
        let functions = [0, 1].map(|d| {
            let listed = cell.activations(d);
            [0, 1, 2].map(|role| Function::from(listed.get(role).unwrap_or(&listed[0]).1))
        });
        let (activation_clip, lstm) = match cell {
            CellSpec::Lstm(cell) => (cell.activation_clip, *cell),
            CellSpec::Gru(cell) => (cell.activation_clip, LstmCell::default()),
            CellSpec::Rnn(cell) => (cell.activation_clip, LstmCell::default()),
        };
        Self {
            functions,
            activation_clip: activation_clip.map(f32::to_bits),
            clip_output: activation_clip.is_some() && lstm.clip_output_activation,
            cell_clip: lstm.cell_clip.map(f32::to_bits),
            coupled: lstm.coupled_input_forget,
        }
    }

    /// Two that between them have every function and every option.
    pub fn examples() -> [CellCode; 2] {
        let mut both = LstmCell {
            coupled_input_forget: true,
            activation_clip: Some(3.0),
            cell_clip: Some(2.0),
            ..LstmCell::default()
        };
        let [mut first, mut second] = both.activations;
        (first.f, first.g, first.h) = (Activation::ALL[3], Activation::ALL[4], Activation::ALL[5]);
        (second.f, second.g, second.h) = (Activation::ALL[6], Activation::ALL[7], Activation::ALL[8]);
        both.activations = [first, second];
        (first.f, first.g, first.h) = (Activation::ALL[9], Activation::ALL[10], Activation::ALL[2]);
        let same =
            LstmCell { coupled_input_forget: false, clip_output_activation: false, activations: [first; 2], ..both };
        [both, same].map(|cell| Self::of(&CellSpec::Lstm(cell)))
    }

    /// The override constants that the text declares.
    pub fn constants(&self) -> Vec<(&'static str, f64)> {
        const NAMES: [[[&str; 2]; 3]; 2] = [
            [["F0_ALPHA", "F0_BETA"], ["G0_ALPHA", "G0_BETA"], ["H0_ALPHA", "H0_BETA"]],
            [["F1_ALPHA", "F1_BETA"], ["G1_ALPHA", "G1_BETA"], ["H1_ALPHA", "H1_BETA"]],
        ];
        let value = |bits: u32| f64::from(f32::from_bits(bits));
        let mut constants = Vec::new();
        for (d, roles) in NAMES.iter().enumerate().take(self.num_texts()) {
            for (role, [alpha, beta]) in roles.iter().enumerate() {
                let function = &self.functions[d][role];
                constants.extend(function.alpha.map(|bits| (*alpha, value(bits))));
                constants.extend(function.beta.map(|bits| (*beta, value(bits))));
            }
        }
        constants.extend(self.activation_clip.map(|bits| ("CLIP", value(bits))));
        constants.extend(self.cell_clip.map(|bits| ("CELL_CLIP", value(bits))));
        constants
    }

    /// `default`, or what is different.
    pub fn name(&self) -> String {
        if *self == Self::default() {
            return "default".to_owned();
        }
        let mut parts: Vec<String> = self.functions[..self.num_texts()]
            .iter()
            .map(|roles| roles.map(|f| f.name.to_lowercase()).join("-"))
            .collect();
        parts.extend(self.constants().into_iter().map(|(name, value)| format!("{}{value}", name.to_lowercase())));
        parts.extend((self.activation_clip.is_some() && !self.clip_output).then(|| "unclipped_output".to_owned()));
        parts.extend(self.coupled.then(|| "coupled".to_owned()));
        parts.join("_")
    }

    /// Whether a function other than sigmoid, tanh and relu is called.
    pub(super) fn needs_functions(&self) -> bool {
        self.functions.iter().flatten().any(|f| !["Sigmoid", "Tanh", "Relu", "Affine", "ScaledTanh"].contains(&f.name))
    }

    /// 1 where both directions have the same functions.
    fn num_texts(&self) -> usize {
        if self.functions[0] == self.functions[1] { 1 } else { 2 }
    }

    /// The WGSL text.
    pub(super) fn source(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a String cannot fail");
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "// Generated by src/kernels/cell.rs for the options of a cell.")?;
        for (name, _) in self.constants() {
            writeln!(out, "override {name}: f32;")?;
        }
        for (role, (function, letter)) in [("gate_f", 'F'), ("candidate_g", 'G'), ("output_h", 'H')].iter().enumerate() {
            let clipped = self.activation_clip.is_some() && (role < 2 || self.clip_output);
            let argument = if clipped { "clamp(x, -CLIP, CLIP)" } else { "x" };
            writeln!(out, "\nfn {function}(direction: u32, x: f32) -> f32 {{")?;
            let call = |d: usize| self.functions[d][role].call(argument, *letter, d);
            if self.num_texts() == 2 {
                writeln!(out, "    if direction == 1u {{\n        return {};\n    }}", call(1))?;
            }
            writeln!(out, "    return {};\n}}", call(0))?;
        }
        let forget = if self.coupled { "1.0 - i" } else { "gate_f(direction, f)" };
        writeln!(out, "\nfn forget(direction: u32, i: f32, f: f32) -> f32 {{\n    return {forget};\n}}")?;
        let bound = if self.cell_clip.is_some() { "clamp(c, -CELL_CLIP, CELL_CLIP)" } else { "c" };
        writeln!(out, "\nfn bound_cell(c: f32) -> f32 {{\n    return {bound};\n}}")
    }
}

impl Function {
    /// The function of `argument`, of role `letter` in direction `d`.
    fn call(&self, argument: &str, letter: char, d: usize) -> String {
        let (alpha, beta) = (format!("{letter}{d}_ALPHA"), format!("{letter}{d}_BETA"));
        match self.name {
            "Sigmoid" => format!("sigmoid({argument})"),
            "Tanh" => format!("tanh_exp({argument})"),
            "Relu" => format!("max({argument}, 0.0)"),
            "Affine" => format!("fma({alpha}, {argument}, {beta})"),
            "LeakyRelu" => format!("leaky_relu({argument}, {alpha})"),
            "ThresholdedRelu" => format!("thresholded_relu({argument}, {alpha})"),
            "ScaledTanh" => format!("{alpha} * tanh_exp({beta} * ({argument}))"),
            "HardSigmoid" => format!("hard_sigmoid({argument}, {alpha}, {beta})"),
            "Elu" => format!("elu({argument}, {alpha})"),
            "Softsign" => format!("softsign({argument})"),
            "Softplus" => format!("softplus({argument})"),
            other => unreachable!("Activation::name has no {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{GruCell, RnnCell};

    #[test]
    fn the_default_has_no_constants_and_no_branches() {
        let code = CellCode::default();
        assert_eq!((code.constants(), code.name().as_str()), (vec![], "default"));
        assert!(!code.source().contains("override") && !code.source().contains("if "));
        assert!(!code.needs_functions());
    }

    #[test]
    fn options_that_change_the_result_change_the_key() {
        let lstm = |cell: LstmCell| CellCode::of(&CellSpec::Lstm(cell));
        let plain = LstmCell::default();
        let mut differing = plain;
        differing.activations[1].h = Activation::Elu { alpha: 0.5 };
        let mut other = differing;
        other.activations[1].h = Activation::Elu { alpha: 0.25 };
        let clip = LstmCell { activation_clip: Some(2.0), ..plain };
        let codes = [
            lstm(plain),
            lstm(differing),
            lstm(other),
            lstm(clip),
            lstm(LstmCell { clip_output_activation: false, ..clip }),
            lstm(LstmCell { cell_clip: Some(2.0), ..plain }),
            lstm(LstmCell { coupled_input_forget: true, ..plain }),
            CellCode::of(&CellSpec::Rnn(RnnCell::default())),
        ];
        for (n, code) in codes.iter().enumerate() {
            assert!(codes[n + 1..].iter().all(|c| c != code && c.name() != code.name()), "{}", code.name());
        }
        // Its functions are those of a plain LSTM.
        assert_eq!(CellCode::of(&CellSpec::Gru(GruCell::default())).source().matches("sigmoid").count(), 2);
    }
}
