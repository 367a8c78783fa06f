//! A spec in words and in work.

use wgpu_lstm::{CellSpec, Direction, LayerSpec, LstmSpec, Merge};

/// `forward`, `reverse` or `bidirectional`.
pub(crate) fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Reverse => "reverse",
        Direction::Bidirectional => "bidirectional",
    }
}

/// `LSTM 12 → 32, 2 layers, bidirectional, projection 8, no bias, peepholes`.
pub(crate) fn describe(spec: &LstmSpec) -> String {
    let first = &spec.layers()[0];
    let mut text = format!("{} {} → {}", first.cell.name(), first.input_size, first.hidden_size);
    match spec.num_layers() {
        1 => text += ", 1 layer",
        n => text += &format!(", {n} layers"),
    }
    text += &format!(", {}", direction_name(first.direction));
    if let Some(p) = first.projection_size {
        text += &format!(", projection {p}");
    }
    if !first.bias {
        text += ", no bias";
    }
    for option in options(first) {
        text += &format!(", {option}");
    }
    let alike = |l: &LayerSpec| LayerSpec { input_size: first.input_size, ..*l } == *first;
    if !spec.layers()[1..].iter().all(alike) {
        text += " in the first layer, others differ";
    }
    text
}

/// What a layer has besides PyTorch's `nn.LSTM`, `nn.GRU` or `nn.RNN`, in words.
pub(crate) fn options(layer: &LayerSpec) -> Vec<String> {
    let mut options = Vec::new();
    let mut add = |wanted: bool, text: String| options.extend(wanted.then_some(text));
    add(layer.merge == Merge::Sum, "directions summed".into());
    let mut clip = None;
    let default = match &layer.cell {
        CellSpec::Lstm(cell) => {
            add(cell.peepholes, "peepholes".into());
            add(cell.coupled_input_forget, "coupled input and forget gates".into());
            add(cell.layer_norm, "layer-normalised gates".into());
            add(cell.projection_bias, "projection bias".into());
            clip = cell.activation_clip;
            add(cell.cell_clip.is_some(), format!("cell clip {}", cell.cell_clip.unwrap_or(0.0)));
            add(clip.is_some() && !cell.clip_output_activation, "no clip before the output activation".into());
            CellSpec::Lstm(Default::default())
        }
        CellSpec::Gru(cell) => {
            add(!cell.linear_before_reset, "reset before the product".into());
            clip = cell.activation_clip.or(clip);
            CellSpec::Gru(Default::default())
        }
        CellSpec::Rnn(cell) => {
            clip = cell.activation_clip.or(clip);
            CellSpec::Rnn(Default::default())
        }
    };
    add(clip.is_some(), format!("activation clip {}", clip.unwrap_or(0.0)));
    for d in 0..layer.num_directions() {
        let (own, usual) = (layer.cell.activations(d), default.activations(d));
        if own != usual {
            let names: Vec<String> = own.iter().map(|(role, f)| format!("{role} {f}")).collect();
            add(true, format!("activations {}{}", names.join(" "), if d == 1 { " in reverse" } else { "" }));
        }
    }
    options
}

/// Multiply-adds of one timestep of one sequence through all layers and directions: G·H·(I + H or P) with G gates, and
/// P·H with projection.
pub(crate) fn multiply_adds_per_row(spec: &LstmSpec) -> f64 {
    let of_layer = |l: &LayerSpec| {
        let gates = l.gate_rows() as f64 * (l.input_size + l.h_size()) as f64;
        let projection = l.projection_size.map_or(0.0, |p| (p * l.hidden_size) as f64);
        l.num_directions() as f64 * (gates + projection)
    };
    spec.layers().iter().map(of_layer).sum()
}

/// Floating-point operations of `valid_rows` timesteps, two per multiply-add; elementwise work is not counted.
pub(crate) fn flops(spec: &LstmSpec, valid_rows: usize) -> f64 {
    2.0 * valid_rows as f64 * multiply_adds_per_row(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu_lstm::{Activation, GruCell, LstmCell};

    #[test]
    fn flops_count_layers_directions_and_projection() {
        // The figure of W2: 2 · 32 · 128 · 4 · 256 · 512.
        let spec = LstmSpec::stack(256, 256, 1).build().unwrap();
        assert_eq!(flops(&spec, 32 * 128), 4_294_967_296.0);
        let spec = LstmSpec::stack(5, 4, 2).direction(Direction::Bidirectional).projection(3).build().unwrap();
        let (first, second) = (16 * (5 + 3) + 12, 16 * (6 + 3) + 12);
        assert_eq!(flops(&spec, 1), f64::from(2 * 2 * (first + second)));
        let gru = LstmSpec::stack(5, 4, 1).cell(CellSpec::Gru(GruCell::default())).build().unwrap();
        assert_eq!(flops(&gru, 1), f64::from(2 * 12 * 9));
    }

    #[test]
    fn descriptions_name_every_option() {
        let spec = LstmSpec::stack(12, 32, 2).direction(Direction::Bidirectional).projection(8).bias(false);
        assert_eq!(describe(&spec.build().unwrap()), "LSTM 12 → 32, 2 layers, bidirectional, projection 8, no bias");
        let gru = GruCell { linear_before_reset: false, activation_clip: Some(3.0), ..GruCell::default() };
        let spec = LstmSpec::stack(12, 32, 1).direction(Direction::Bidirectional).merge(Merge::Sum);
        assert_eq!(
            describe(&spec.cell(CellSpec::Gru(gru)).build().unwrap()),
            "GRU 12 → 32, 1 layer, bidirectional, directions summed, reset before the product, activation clip 3"
        );
        let mut cell = LstmCell {
            peepholes: true,
            coupled_input_forget: true,
            activation_clip: Some(2.0),
            clip_output_activation: false,
            cell_clip: Some(1.5),
            layer_norm: true,
            projection_bias: true,
            ..LstmCell::default()
        };
        cell.activations[1].h = Activation::Elu { alpha: 0.5 };
        let spec = LstmSpec::stack(12, 32, 1).direction(Direction::Bidirectional).projection(8);
        assert_eq!(
            options(&spec.cell(CellSpec::Lstm(cell)).build().unwrap().layers()[0]),
            [
                "peepholes",
                "coupled input and forget gates",
                "layer-normalised gates",
                "projection bias",
                "cell clip 1.5",
                "no clip before the output activation",
                "activation clip 2",
                "activations f Sigmoid g Tanh h Elu(alpha 0.5) in reverse",
            ]
        );
    }
}
