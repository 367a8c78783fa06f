//! Stage 3, pack: canonical weights, sequences and states → the layout that the kernels read, and back.
//!
//! In:  [`LstmWeights`](crate::LstmWeights), [`SequenceBatch`](crate::SequenceBatch), a [`Schedule`](crate::schedule::Schedule).
//! Out: flat f32 buffers; widths padded to whole vec4 with zeros, rows in the schedule's order.
//! Afterwards no code asks about gate order, axis order or lengths again.
//! Not here: uploading (`gpu`), choosing sizes (`kernels::layout`, `plan`). What is packed has an inverse,
//! which the tests compose with it.

mod rows;
mod weights;

pub use rows::{
    Plane, pack_input_rows, pack_state, pack_state_buffer, put_row, row_table, scatter_plane, unpack_state,
};
pub use weights::{PackedLayer, pack_layer, unpack_layer};
