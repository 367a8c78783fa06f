//! A spec in words and in work.

use wgpu_lstm::{CellSpec, Direction, LstmSpec};

/// `forward`, `reverse` or `bidirectional`.
pub(crate) fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Reverse => "reverse",
        Direction::Bidirectional => "bidirectional",
    }
}

/// `LSTM 12 → 32, 2 layers, bidirectional, projection 8, no bias`.
pub(crate) fn describe(spec: &LstmSpec) -> String {
    let first = &spec.layers()[0];
    let mut text = format!("{} {} → {}", first.cell.name(), first.input_size, first.hidden_size);
    match spec.num_layers() {
        1 => text += ", 1 layer",
        n => text += &format!(", {n} layers"),
    }
    text += &format!(", {}", direction_name(first.direction));
    if let CellSpec::Rnn(cell) = first.cell {
        text += &format!(", {}", cell.activations[0]);
    }
    if let Some(p) = first.projection_size {
        text += &format!(", projection {p}");
    }
    if !first.bias {
        text += ", no bias";
    }
    if spec.layers()[1..].iter().any(|l| (l.hidden_size, l.direction) != (first.hidden_size, first.direction)) {
        text += " in the first layer, others differ";
    }
    text
}

/// Multiply-adds of one timestep of one sequence through all layers and directions: G·(I + H or P), and P·H
/// with projection.
pub(crate) fn multiply_adds_per_row(spec: &LstmSpec) -> f64 {
    let of_layer = |l: &wgpu_lstm::LayerSpec| {
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
    use wgpu_lstm::RnnCell;

    #[test]
    fn flops_count_gates_layers_directions_and_projection() {
        // The figure of W2: 2 · 32 · 128 · 4 · 256 · 512.
        let spec = LstmSpec::stack(256, 256, 1).build().unwrap();
        assert_eq!(flops(&spec, 32 * 128), 4_294_967_296.0);
        let spec = LstmSpec::stack(5, 4, 2).direction(Direction::Bidirectional).projection(3).build().unwrap();
        let (first, second) = (16 * (5 + 3) + 12, 16 * (6 + 3) + 12);
        assert_eq!(flops(&spec, 1), f64::from(2 * 2 * (first + second)));
        let spec = LstmSpec::stack(5, 4, 1).cell(CellSpec::Rnn(RnnCell::default())).build().unwrap();
        assert_eq!(flops(&spec, 1), f64::from(2 * 4 * (5 + 4)));
    }

    #[test]
    fn descriptions_name_every_option() {
        let spec = LstmSpec::stack(12, 32, 2).direction(Direction::Bidirectional).projection(8).bias(false);
        assert_eq!(describe(&spec.build().unwrap()), "LSTM 12 → 32, 2 layers, bidirectional, projection 8, no bias");
        let spec = LstmSpec::stack(12, 32, 1).cell(CellSpec::Rnn(RnnCell::default())).build().unwrap();
        assert_eq!(describe(&spec), "RNN 12 → 32, 1 layer, forward, Tanh");
    }
}
