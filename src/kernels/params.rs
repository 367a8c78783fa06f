//! The structs that uniforms are filled from: members, order and offsets are those of the WGSL structs, which
//! the contract test compares by reflection.

#![allow(missing_docs, reason = "the members are documented where the kernels read them, in shaders/")]

use bytemuck::{Pod, Zeroable};

/// `Params` of `shaders/input_projection.wgsl`; lengths in vec4.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct InputParams {
    pub rows: u32,
    pub columns: u32,
    pub x0_first: u32,
    pub x0_k4: u32,
    pub x1_first: u32,
    pub x1_k4: u32,
    pub gates_first: u32,
    pub x0_stride: u32,
    pub x1_stride: u32,
    pub column_first: u32,
    pub column_end: u32,
    pub weight_first: u32,
    pub weight_columns: u32,
}

/// `DirectionStep` of `shaders/lib/step.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct DirectionStep {
    pub gates_first: u32,
    pub num_active: u32,
    pub y_row: u32,
    pub final_from: u32,
    pub last_from: u32,
    pub x_k4: u32,
    pub padding_0: u32,
    pub padding_1: u32,
}

/// `Step` of `shaders/lib/step.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Step {
    pub hidden_size: u32,
    pub hidden_stride: u32,
    pub h_stride: u32,
    pub batch_size: u32,
    pub y_stride: u32,
    pub y_h: u32,
    pub y_c: u32,
    pub state_h_n: u32,
    pub state_last: u32,
    pub column_first: u32,
    pub column_end: u32,
    pub weight_first: u32,
    pub weight_columns: u32,
    pub num_steps: u32,
    pub record_first: u32,
    pub record_words: u32,
    pub directions: [DirectionStep; 2],
}

/// `WaveStep` of `shaders/wave.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct WaveStep {
    pub step: Step,
    pub below_first: u32,
    pub below_k4: u32,
    pub w_ih_first: u32,
    pub w_hh_first: u32,
    pub bias_first: u32,
    pub h_first: u32,
    pub state_first: u32,
    pub padding_0: u32,
}

/// `Params` of `shaders/copy_rows.wgsl`; lengths in f32.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct CopyParams {
    pub rows: u32,
    pub width: u32,
    pub dst_width: u32,
    pub scatter: u32,
    pub src_first: u32,
    pub src_stride: u32,
    pub dst_first: u32,
    pub dst_stride: u32,
    pub first_row: u32,
    pub table_first: u32,
    pub listed_first: u32,
    pub listed_end: u32,
}

/// `Params` of `shaders/pool_rows.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct PoolParams {
    pub ranks: u32,
    pub rank_first: u32,
    pub width4: u32,
    pub t_first: u32,
    pub t_end: u32,
    pub row_first: u32,
    pub y_stride: u32,
    pub y_h: u32,
    pub pooled_first: u32,
    pub is_max: u32,
    pub sums_planes: u32,
    pub is_end: u32,
}

/// `Params` of `shaders/measure.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct MeasureParams {
    pub iterations: u32,
    pub num_values: u32,
    pub padding_0: u32,
    pub padding_1: u32,
}

/// `Params` of `shaders/self_test.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct SelfTestParams {
    pub num_probes: u32,
    pub long_loop: u32,
    pub outer_loop: u32,
    pub inner_loop: u32,
}
