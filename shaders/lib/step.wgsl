// step: what one timestep of one layer needs to know; one record per step, bound with a dynamic offset.
//
// Lengths are in elements of the bound array: vec4 for x_gates and h, f32 for state and y.
// NONE as an offset means: not stored. A bound that is never reached is written as batch_size.

const NONE: u32 = 0xffffffffu;

// One direction's share of the step. Ranks are positions in the order of descending length.
struct DirectionStep {
    // First element of this step's rows of x_gates, or of x where the step sums over the input itself.
    gates_first: u32,
    // Ranks below this are valid at this timestep.
    num_active: u32,
    // This step's first row in y.
    y_row: u32,
    // Ranks from here to num_active take their final state from this step.
    final_from: u32,
    // Ranks from here to num_active are at their last valid timestep.
    last_from: u32,
    // The size of a row of x then.
    x_k4: u32,
    padding_0: u32,
    padding_1: u32,
}

struct Step {
    hidden_size: u32,
    // hidden_size and the size of h rounded up to whole vec4, in f32.
    hidden_stride: u32,
    h_stride: u32,
    batch_size: u32,
    // Row length of y in f32 and the places of h and c in a row.
    y_stride: u32,
    y_h: u32,
    y_c: u32,
    // First elements of the final h and of the last valid h in `state`; c starts at 0.
    state_h_n: u32,
    state_last: u32,
    // The columns of this dispatch, the first column of the bound range of weights, and how many it has. Columns past the
    // range pad a row.
    column_first: u32,
    column_end: u32,
    weight_first: u32,
    weight_columns: u32,
    // For a kernel that takes many timesteps: how many, where the record of the first lies in the bound window of uniforms, and
    // from one record to the next; in words.
    num_steps: u32,
    record_first: u32,
    record_words: u32,
    directions: array<DirectionStep, 2>,
}
