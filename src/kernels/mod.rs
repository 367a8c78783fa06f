//! Host half of each shader: the pieces of its source, bindings, constants and parameter structs.
//!
//! In:  nothing but constants.
//! Out: [`KernelId::source`], the WGSL text; [`LayerLayout`], the places of the weights; [`Kernel`], what the host promises to bind; the structs that
//!      uniforms are filled from.
//! Afterwards the plan speaks of kernels by [`KernelId`] only.
//! Not here: pipelines (`gpu::pipelines`), the choice of tiles (`plan::tiles`). No wgpu types.

mod cell;
mod layout;
pub mod params;
mod rows;

pub use cell::CellCode;
pub use layout::{Form, LayerLayout, ModelPart, StackPlaces};
use rows::RowFunctions;

/// k is summed in segments of this many elements: sequentially inside a segment, then the segment sums in
/// order. Every kernel walks or owns whole segments, so a tile never changes a bit.
pub const SEGMENT: usize = 32;
/// Rows are padded to whole vec4.
pub const ROW_ALIGN: usize = 4;
/// Numbers per column of weights: one vec4.
pub const COLUMN: usize = 4;
/// An offset that means "not stored", `NONE` in the shaders.
pub const NONE: u32 = u32::MAX;
/// Row tiles that a plan may choose: batch rows per invocation.
pub const ROW_TILES: [u32; 3] = [1, 4, 8];
/// Workgroup widths that a plan may choose; the height fills `WORKGROUP_SIZE`.
pub const LANE_TILES: [u32; 2] = [16, 64];
/// Slices that a plan may choose: invocations that share one sum over k; 1 is none. A kernel with slices has 1 or 4 rows
/// and `SLICED_LANES` columns, so that its workgroup memory stays within WebGPU's default of 16 KiB.
pub const SLICE_TILES: [u32; 3] = [1, 8, 16];
/// WG_X of a kernel with slices.
pub const SLICED_LANES: u32 = 16;
/// Workgroup widths of [`Kernel::Sequence`], which has 1 or 4 rows.
pub const SEQUENCE_LANES: [u32; 2] = [64, 256];
/// The most units of a layer that [`Kernel::Sequence`] takes, padded; `UNITS` of the shader.
pub const SEQUENCE_UNITS: usize = 256;
/// The most values of an input that a step sums over itself, padded: one segment.
pub const NARROW_INPUT: usize = SEGMENT;
/// Invocations per workgroup of the tiled kernels without slices.
pub const WORKGROUP_SIZE: u32 = 64;
/// The most invocations of a workgroup, of kernels with slices and [`Kernel::Sequence`]; WebGPU's default limit.
pub const LARGEST_WORKGROUP: u32 = 256;

/// `size` rounded up to whole vec4.
pub const fn padded(size: usize) -> usize {
    size.next_multiple_of(ROW_ALIGN)
}

/// The most loop trips of one invocation for sums over `k4` vec4 in total, as the drivers that end loops count
/// them: all loops together, and once more for the exit of each. A sum has one loop over its segments and in it
/// one over the k of the segment; there are at most two planes, each with a segment that may be short.
pub fn loop_trips(k4: usize) -> usize {
    let segments = k4.div_ceil(SEGMENT / ROW_ALIGN) + 1;
    k4 + 2 * segments + 2
}

/// How a kernel sees a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BindingKind {
    /// A uniform of this many bytes, bound with a dynamic offset.
    DynamicUniform {
        /// Bytes of the struct.
        size_bytes: u32,
    },
    /// A uniform of this many bytes.
    Uniform {
        /// Bytes of the struct.
        size_bytes: u32,
    },
    /// A storage buffer that the kernel reads.
    Read,
    /// A storage buffer that the kernel reads and writes.
    ReadWrite,
}

/// One row of a kernel's binding table; the index is the binding number in group 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Binding {
    /// The variable's name in the shader.
    pub name: &'static str,
    /// How it is bound.
    pub kind: BindingKind,
}

const fn read(name: &'static str) -> Binding {
    Binding { name, kind: BindingKind::Read }
}

const fn read_write(name: &'static str) -> Binding {
    Binding { name, kind: BindingKind::ReadWrite }
}

const fn uniform<T>(name: &'static str) -> Binding {
    Binding { name, kind: BindingKind::Uniform { size_bytes: size_of::<T>() as u32 } }
}

const fn dynamic_uniform<T>(name: &'static str) -> Binding {
    Binding { name, kind: BindingKind::DynamicUniform { size_bytes: size_of::<T>() as u32 } }
}

/// A kernel: one row of the kernel table in `shaders/README.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kernel {
    /// `shaders/input_projection.wgsl` with `planes_concat`
    InputProjection,
    /// `shaders/input_projection.wgsl` with `planes_sum`
    InputProjectionSum,
    /// `shaders/recurrent_step.wgsl` with `cell_lstm`, `no_peepholes` and `emit_h`
    RecurrentStep,
    /// `shaders/recurrent_step.wgsl` with `cell_lstm`, `no_peepholes` and `emit_m`
    RecurrentStepProjected,
    /// `shaders/recurrent_step.wgsl` with `cell_lstm`, `peepholes` and `emit_h`
    PeepholeStep,
    /// `shaders/recurrent_step.wgsl` with `cell_lstm`, `peepholes` and `emit_m`
    PeepholeStepProjected,
    /// `shaders/gate_sums.wgsl`
    GateSums,
    /// `shaders/normalized_cell.wgsl` with `emit_h`
    NormalizedCell,
    /// `shaders/normalized_cell.wgsl` with `emit_m`
    NormalizedCellProjected,
    /// `shaders/projection_step.wgsl` with `no_projection_bias`
    ProjectionStep,
    /// `shaders/projection_step.wgsl` with `projection_bias`
    ProjectionStepBias,
    /// `shaders/recurrent_step.wgsl` with `cell_gru` and `emit_h`
    GruStep,
    /// `shaders/gru_reset.wgsl`
    GruReset,
    /// `shaders/gru_candidate.wgsl`
    GruCandidate,
    /// `shaders/rnn_step.wgsl`
    RnnStep,
    /// `shaders/sequence.wgsl` with `cell_lstm` and `no_peepholes`
    Sequence,
    /// [`Kernel::RecurrentStep`] with `gates_narrow` in place of `gates_stored`
    NarrowStep,
    /// [`Kernel::RecurrentStepProjected`] with `gates_narrow` in place of `gates_stored`
    NarrowStepProjected,
    /// [`Kernel::GruStep`] with `gates_narrow` in place of `gates_stored`
    NarrowGruStep,
    /// [`Kernel::Sequence`] with `gates_narrow` in place of `gates_stored`
    NarrowSequence,
    /// `shaders/wave.wgsl` with `cell_lstm` and `no_peepholes`
    Wave,
    /// `shaders/copy_rows.wgsl`
    CopyRows,
    /// `shaders/pool_rows.wgsl`
    PoolRows,
    /// `shaders/self_test.wgsl`
    SelfTest,
    /// `shaders/measure.wgsl`
    Measure,
}

impl Kernel {
    /// All kernels.
    pub const ALL: [Kernel; 25] = [
        Kernel::InputProjection,
        Kernel::InputProjectionSum,
        Kernel::RecurrentStep,
        Kernel::RecurrentStepProjected,
        Kernel::PeepholeStep,
        Kernel::PeepholeStepProjected,
        Kernel::GateSums,
        Kernel::NormalizedCell,
        Kernel::NormalizedCellProjected,
        Kernel::ProjectionStep,
        Kernel::ProjectionStepBias,
        Kernel::GruStep,
        Kernel::GruReset,
        Kernel::GruCandidate,
        Kernel::RnnStep,
        Kernel::Sequence,
        Kernel::NarrowStep,
        Kernel::NarrowStepProjected,
        Kernel::NarrowGruStep,
        Kernel::NarrowSequence,
        Kernel::Wave,
        Kernel::CopyRows,
        Kernel::PoolRows,
        Kernel::SelfTest,
        Kernel::Measure,
    ];

    /// Name of the entry point, the file and, after `lstm.`, the label.
    pub fn entry_point(self) -> &'static str {
        match self {
            Kernel::InputProjection | Kernel::InputProjectionSum => "input_projection",
            Kernel::RecurrentStep
            | Kernel::RecurrentStepProjected
            | Kernel::PeepholeStep
            | Kernel::PeepholeStepProjected
            | Kernel::GruStep
            | Kernel::NarrowStep
            | Kernel::NarrowStepProjected
            | Kernel::NarrowGruStep => "recurrent_step",
            Kernel::GateSums => "gate_sums",
            Kernel::NormalizedCell | Kernel::NormalizedCellProjected => "normalized_cell",
            Kernel::ProjectionStep | Kernel::ProjectionStepBias => "projection_step",
            Kernel::GruReset => "gru_reset",
            Kernel::GruCandidate => "gru_candidate",
            Kernel::RnnStep => "rnn_step",
            Kernel::Sequence | Kernel::NarrowSequence => "sequence",
            Kernel::Wave => "wave",
            Kernel::CopyRows => "copy_rows",
            Kernel::PoolRows => "pool_rows",
            Kernel::SelfTest => "self_test",
            Kernel::Measure => "measure",
        }
    }

    /// The name of the kernel with its variant.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::InputProjectionSum => "input_projection_sum",
            Kernel::RecurrentStepProjected => "recurrent_step_projected",
            Kernel::PeepholeStep => "peephole_step",
            Kernel::PeepholeStepProjected => "peephole_step_projected",
            Kernel::NormalizedCellProjected => "normalized_cell_projected",
            Kernel::ProjectionStepBias => "projection_step_bias",
            Kernel::GruStep => "gru_step",
            Kernel::NarrowStep => "narrow_step",
            Kernel::NarrowStepProjected => "narrow_step_projected",
            Kernel::NarrowGruStep => "narrow_gru_step",
            Kernel::NarrowSequence => "narrow_sequence",
            other => other.entry_point(),
        }
    }

    /// The binding table of group 0, by binding number.
    pub fn bindings(self) -> &'static [Binding] {
        use params::{CopyParams, InputParams, MeasureParams, PoolParams, SelfTestParams, Step, WaveStep};
        match self {
            Kernel::InputProjection | Kernel::InputProjectionSum => {
                const {
                    &[
                        dynamic_uniform::<InputParams>("params"),
                        read("x0"),
                        read("x1"),
                        read("weights"),
                        read("bias"),
                        read_write("x_gates"),
                    ]
                }
            }
            Kernel::RecurrentStep | Kernel::RecurrentStepProjected | Kernel::GruStep => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("x_gates"),
                        read("w_hh"),
                        read("h_prev"),
                        read_write("next"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                    ]
                }
            }
            Kernel::Sequence => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("x_gates"),
                        read("w_hh"),
                        read("steps"),
                        read_write("h"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                    ]
                }
            }
            Kernel::NarrowStep | Kernel::NarrowStepProjected | Kernel::NarrowGruStep => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("x"),
                        read("w_hh"),
                        read("h_prev"),
                        read_write("next"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                        read("input_weights"),
                    ]
                }
            }
            Kernel::NarrowSequence => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("x"),
                        read("w_hh"),
                        read("steps"),
                        read_write("h"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                        read("input_weights"),
                    ]
                }
            }
            Kernel::Wave => {
                const {
                    &[
                        dynamic_uniform::<WaveStep>("first_record"),
                        read("x_gates"),
                        read("weights"),
                        read("bias"),
                        read("steps"),
                        read("h_prev"),
                        read_write("next"),
                        read_write("state"),
                        read_write("y0"),
                    ]
                }
            }
            Kernel::PeepholeStep | Kernel::PeepholeStepProjected => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("x_gates"),
                        read("w_hh"),
                        read("h_prev"),
                        read_write("next"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                        read("peepholes"),
                    ]
                }
            }
            Kernel::GateSums => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("x_gates"),
                        read("w_hh"),
                        read("h_prev"),
                        read_write("sums"),
                    ]
                }
            }
            Kernel::NormalizedCell | Kernel::NormalizedCellProjected => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("sums"),
                        read("cell_vectors"),
                        read_write("next"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                    ]
                }
            }
            Kernel::ProjectionStep => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("w_hr"),
                        read("m"),
                        read_write("h_next"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                    ]
                }
            }
            Kernel::ProjectionStepBias => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("w_hr"),
                        read("m"),
                        read_write("h_next"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                        read("b_hr"),
                    ]
                }
            }
            Kernel::GruReset => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("x_gates"),
                        read("w_hh"),
                        read("h_prev"),
                        read_write("m"),
                        read_write("state"),
                    ]
                }
            }
            Kernel::GruCandidate => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("x_gates"),
                        read("w_hn"),
                        read("m"),
                        read("h_prev"),
                        read_write("h_next"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                    ]
                }
            }
            Kernel::RnnStep => {
                const {
                    &[
                        dynamic_uniform::<Step>("timestep"),
                        read("x_gates"),
                        read("w_hh"),
                        read("h_prev"),
                        read_write("h_next"),
                        read_write("state"),
                        read_write("y0"),
                        read_write("y1"),
                    ]
                }
            }
            Kernel::CopyRows => {
                const { &[dynamic_uniform::<CopyParams>("params"), read("table"), read("src"), read_write("dst")] }
            }
            Kernel::PoolRows => {
                const {
                    &[
                        dynamic_uniform::<PoolParams>("params"),
                        read("table"),
                        read("y0"),
                        read("y1"),
                        read_write("pooled"),
                    ]
                }
            }
            Kernel::Measure => const { &[uniform::<MeasureParams>("params"), read_write("values")] },
            Kernel::SelfTest => {
                const { &[uniform::<SelfTestParams>("params"), read("probes"), read_write("counts"), read_write("values")] }
            }
        }
    }

    /// Whether its record, binding 0, may come as immediates instead: one of a single timestep.
    pub fn takes_immediates(self) -> bool {
        self.bindings()[0].name == "timestep" && !self.is_sequence()
    }

    /// Whether WG_X and WG_Y apply.
    pub fn is_tiled(self) -> bool {
        !matches!(
            self,
            Kernel::Sequence
                | Kernel::NarrowSequence
                | Kernel::SelfTest
                | Kernel::Measure
                | Kernel::NormalizedCell
                | Kernel::NormalizedCellProjected
        )
    }

    /// Whether the kernel sums over k and has a row tile.
    pub fn has_row_tile(self) -> bool {
        self.is_sequence() || (self.is_tiled() && !matches!(self, Kernel::CopyRows | Kernel::PoolRows))
    }

    /// Whether it takes many timesteps.
    pub fn is_sequence(self) -> bool {
        matches!(self, Kernel::Sequence | Kernel::NarrowSequence)
    }

    /// Whether it sums over a narrow input itself.
    pub fn is_narrow(self) -> bool {
        matches!(
            self,
            Kernel::NarrowStep | Kernel::NarrowStepProjected | Kernel::NarrowGruStep | Kernel::NarrowSequence
        )
    }

    /// The kernel that sums over a narrow input itself, where there is one.
    pub fn narrow(self) -> Option<Kernel> {
        match self {
            Kernel::RecurrentStep => Some(Kernel::NarrowStep),
            Kernel::RecurrentStepProjected => Some(Kernel::NarrowStepProjected),
            Kernel::GruStep => Some(Kernel::NarrowGruStep),
            Kernel::Sequence => Some(Kernel::NarrowSequence),
            _ => None,
        }
    }

    /// Whether the options of a cell decide a part of its text.
    pub fn has_cell(self) -> bool {
        match self {
            Kernel::RecurrentStep
            | Kernel::RecurrentStepProjected
            | Kernel::PeepholeStep
            | Kernel::PeepholeStepProjected
            | Kernel::NormalizedCell
            | Kernel::NormalizedCellProjected
            | Kernel::GruStep
            | Kernel::GruReset
            | Kernel::GruCandidate
            | Kernel::RnnStep
            | Kernel::Sequence
            | Kernel::NarrowStep
            | Kernel::NarrowStepProjected
            | Kernel::NarrowGruStep
            | Kernel::NarrowSequence
            | Kernel::Wave => true,
            Kernel::InputProjection
            | Kernel::InputProjectionSum
            | Kernel::GateSums
            | Kernel::ProjectionStep
            | Kernel::ProjectionStepBias
            | Kernel::CopyRows
            | Kernel::PoolRows
            | Kernel::SelfTest
            | Kernel::Measure => false,
        }
    }
}

/// A kernel with its cell and its tile: one pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelId {
    /// The kernel.
    pub kernel: Kernel,
    /// The options of the cell; the default for kernels that do not depend on them.
    pub cell: CellCode,
    /// Batch rows per invocation, one of [`ROW_TILES`]; 1 for kernels without a row tile.
    pub rows: u32,
    /// WG_X, one of [`LANE_TILES`].
    pub lanes: u32,
    /// One of [`SLICE_TILES`]; 1 for kernels without a row tile.
    pub slices: u32,
    /// Whether weights are halves, two in a u32; never for kernels without a row tile.
    pub halves: bool,
}

impl KernelId {
    /// Every tile of every kernel with the default options of a cell (of those with slices the smallest and the largest, of
    /// those for a narrow input and for stacks one or two), and of kernels that depend on the options one tile with each of
    /// [`CellCode::examples`]. Other options make more.
    pub fn all() -> Vec<KernelId> {
        let mut ids: Vec<KernelId> = CellCode::examples().into_iter().flat_map(Self::with_options).collect();
        for kernel in Kernel::ALL {
            if kernel == Kernel::Sequence {
                let tiles = [(ROW_TILES[0], SEQUENCE_LANES[0], true), (ROW_TILES[1], SEQUENCE_LANES[1], false)];
                let cell = CellCode::default();
                ids.extend(tiles.map(|(rows, lanes, halves)| KernelId {
                    kernel,
                    cell,
                    rows,
                    lanes,
                    slices: 1,
                    halves,
                }));
                continue;
            }
            if kernel == Kernel::NarrowSequence {
                let (cell, rows, lanes) = (CellCode::default(), ROW_TILES[1], SEQUENCE_LANES[0]);
                ids.push(KernelId { kernel, cell, rows, lanes, slices: 1, halves: true });
                continue;
            }
            if kernel.is_narrow() || kernel == Kernel::Wave {
                // They differ from the others in a few lines, whatever the tile.
                let (cell, lanes) = (CellCode::default(), SLICED_LANES);
                ids.push(KernelId { kernel, cell, rows: ROW_TILES[1], lanes, slices: SLICE_TILES[1], halves: true });
                ids.push(KernelId { kernel, cell, rows: ROW_TILES[2], lanes: 64, slices: 1, halves: false });
                continue;
            }
            let rows: &[u32] = if kernel.has_row_tile() { &ROW_TILES } else { &[1] };
            let lanes: &[u32] = if kernel.is_tiled() { &LANE_TILES } else { &[64] };
            for &rows in rows {
                for &lanes in lanes {
                    ids.push(KernelId { kernel, cell: CellCode::default(), rows, lanes, slices: 1, halves: false });
                }
            }
            if kernel.has_row_tile() {
                let (cell, lanes) = (CellCode::default(), SLICED_LANES);
                ids.extend(
                    [(ROW_TILES[0], SLICE_TILES[1]), (ROW_TILES[1], SLICE_TILES[2])].map(|(rows, slices)| KernelId {
                        kernel,
                        cell,
                        rows,
                        lanes,
                        slices,
                        halves: false,
                    }),
                );
                ids.push(KernelId { kernel, cell, rows: ROW_TILES[1], lanes, slices: SLICE_TILES[0], halves: true });
            }
        }
        ids
    }

    fn with_options(cell: CellCode) -> impl Iterator<Item = KernelId> {
        let kernels = Kernel::ALL
            .into_iter()
            .filter(|&kernel| kernel.has_cell() && !kernel.is_narrow() && kernel != Kernel::Wave);
        kernels.map(move |kernel| {
            let rows = if kernel.has_row_tile() { 4 } else { 1 };
            KernelId { kernel, cell, rows, lanes: 64, slices: 1, halves: false }
        })
    }

    /// WG_Y: the slices, if there are any, otherwise row tiles.
    pub fn workgroup_height(self) -> u32 {
        if self.slices > 1 { self.slices } else { WORKGROUP_SIZE / self.lanes }
    }

    /// Batch rows per workgroup.
    pub fn rows_per_workgroup(self) -> u32 {
        if self.slices > 1 { self.rows } else { self.rows * self.workgroup_height() }
    }

    /// The override constants of the pipeline.
    pub fn constants(self) -> Vec<(&'static str, f64)> {
        let mut constants = if self.kernel.has_cell() { self.cell.constants() } else { Vec::new() };
        if self.kernel.is_sequence() {
            constants.push(("WG_X", f64::from(self.lanes)));
        }
        if self.kernel.is_tiled() {
            constants.extend([("WG_X", f64::from(self.lanes)), ("WG_Y", f64::from(self.workgroup_height()))]);
        }
        constants
    }

    /// `recurrent_step.rows4.x64`, with the options of the cell if they are not the default.
    pub fn name(self) -> String {
        let mut tile = format!("{}.rows{}.x{}", self.kernel.name(), self.rows, self.lanes);
        if self.slices > 1 {
            tile += &format!(".slices{}", self.slices);
        }
        if self.halves {
            tile += ".halves";
        }
        if self.cell == CellCode::default() { tile } else { format!("{tile}.{}", self.cell.name()) }
    }

    /// The label of its GPU objects.
    pub fn label(self) -> String {
        format!("lstm.{}", self.name())
    }

    /// The WGSL source: the kernel's file, the pieces it lists, and the text generated for its cell and its row tile.
    pub fn source(self) -> String {
        self.source_with(text::RECORD_UNIFORM)
    }

    /// The same for a kernel that [takes immediates](Kernel::takes_immediates), on a device that has them: they take the
    /// place of binding 0.
    pub fn source_with_immediates(self) -> String {
        self.source_with(text::RECORD_IMMEDIATES)
    }

    /// With the piece that declares the record, where the kernel's file does not.
    fn source_with(self, record: &str) -> String {
        let pieces: &[&str] = match self.kernel {
            Kernel::InputProjection => &[text::INPUT_PROJECTION, text::PLANES_CONCAT],
            Kernel::InputProjectionSum => &[text::INPUT_PROJECTION, text::PLANES_SUM],
            Kernel::RecurrentStep | Kernel::NarrowStep => &[
                text::RECURRENT_STEP,
                text::UPDATE_UNIT,
                text::CELL_LSTM,
                text::C_IN_STATE,
                text::NO_PEEPHOLES,
                text::EMIT_H,
                text::EMIT_ROWS,
                text::STORE_Y,
                text::STEP,
            ],
            Kernel::RecurrentStepProjected | Kernel::NarrowStepProjected => &[
                text::RECURRENT_STEP,
                text::UPDATE_UNIT,
                text::CELL_LSTM,
                text::C_IN_STATE,
                text::NO_PEEPHOLES,
                text::EMIT_M,
                text::STORE_Y,
                text::STEP,
            ],
            Kernel::PeepholeStep => &[
                text::RECURRENT_STEP,
                text::UPDATE_UNIT,
                text::CELL_LSTM,
                text::C_IN_STATE,
                text::PEEPHOLES,
                text::EMIT_H,
                text::EMIT_ROWS,
                text::STORE_Y,
                text::STEP,
            ],
            Kernel::PeepholeStepProjected => &[
                text::RECURRENT_STEP,
                text::UPDATE_UNIT,
                text::CELL_LSTM,
                text::C_IN_STATE,
                text::PEEPHOLES,
                text::EMIT_M,
                text::STORE_Y,
                text::STEP,
            ],
            Kernel::GateSums => &[text::GATE_SUMS, text::STEP],
            Kernel::NormalizedCell => {
                &[text::NORMALIZED_CELL, text::EMIT_H, text::EMIT_ROWS, text::STORE_Y, text::STEP]
            }
            Kernel::NormalizedCellProjected => &[text::NORMALIZED_CELL, text::EMIT_M, text::STORE_Y, text::STEP],
            Kernel::ProjectionStep => &[text::PROJECTION_STEP, text::NO_PROJECTION_BIAS, text::EMIT4, text::STEP],
            Kernel::ProjectionStepBias => &[text::PROJECTION_STEP, text::PROJECTION_BIAS, text::EMIT4, text::STEP],
            Kernel::GruStep | Kernel::NarrowGruStep => &[
                text::RECURRENT_STEP,
                text::UPDATE_UNIT,
                text::CELL_GRU,
                text::EMIT_H,
                text::EMIT_ROWS,
                text::STORE_Y,
                text::STEP,
            ],
            Kernel::GruReset => &[text::GRU_RESET, text::STEP],
            Kernel::GruCandidate => &[text::GRU_CANDIDATE, text::EMIT4, text::STEP],
            Kernel::RnnStep => &[text::RNN_STEP, text::EMIT4, text::STEP],
            Kernel::Sequence | Kernel::NarrowSequence => &[
                text::SEQUENCE,
                text::UPDATE_UNIT,
                text::CELL_LSTM,
                text::NO_PEEPHOLES,
                text::EMIT_ROWS,
                text::STORE_Y,
                text::STEP,
            ],
            Kernel::Wave => {
                &[text::WAVE, text::UPDATE_UNIT, text::CELL_LSTM, text::NO_PEEPHOLES, text::EMIT_ROWS, text::STEP]
            }
            Kernel::CopyRows => &[text::COPY_ROWS],
            Kernel::PoolRows => &[text::POOL_ROWS],
            Kernel::SelfTest => &[text::SELF_TEST, text::ACTIVATION],
            Kernel::Measure => &[text::MEASURE],
        };
        let mut source = pieces.join("\n");
        let mut add = |text: &str| {
            source.push('\n');
            source.push_str(text);
        };
        if self.kernel.takes_immediates() {
            add(record);
        }
        if pieces.contains(&text::UPDATE_UNIT) && self.kernel != Kernel::Wave {
            add(if self.kernel.is_narrow() { text::GATES_NARROW } else { text::GATES_STORED });
        }
        if self.kernel.has_cell() {
            add(text::ACTIVATION);
            if self.cell.needs_functions() {
                add(text::FUNCTIONS);
            }
            add(&self.cell.source());
        }
        if let Some(functions) = self.row_functions() {
            add(if self.halves { HALVES } else { WHOLES });
            let slices = if self.kernel.is_tiled() { Some(self.slices) } else { None };
            add(&functions.source(self.rows, slices, self.lanes));
        }
        source
    }

    /// What is generated for the row tile.
    fn row_functions(self) -> Option<RowFunctions> {
        const STEP: RowFunctions = RowFunctions {
            weights: "w_hh",
            inputs: &[("dot_h", &["h_prev"])],
            finish_leading: &["direction"],
            sums: &["sum"],
        };
        Some(match self.kernel {
            Kernel::InputProjection => RowFunctions {
                weights: "weights",
                inputs: &[("dot_x0", &["x0"]), ("dot_x1", &["x1"])],
                finish_leading: &[],
                ..STEP
            },
            Kernel::InputProjectionSum => {
                RowFunctions { weights: "weights", inputs: &[("dot_x", &["x0", "x1"])], finish_leading: &[], ..STEP }
            }
            Kernel::Wave => RowFunctions {
                weights: "weights",
                inputs: &[("dot_h", &["h_prev"])],
                finish_leading: &[],
                sums: &["below", "sum"],
            },
            Kernel::RecurrentStep
            | Kernel::RecurrentStepProjected
            | Kernel::PeepholeStep
            | Kernel::PeepholeStepProjected
            | Kernel::GateSums
            | Kernel::GruStep
            | Kernel::GruReset
            | Kernel::RnnStep
            | Kernel::NarrowStep
            | Kernel::NarrowStepProjected
            | Kernel::NarrowGruStep => STEP,
            Kernel::Sequence | Kernel::NarrowSequence => RowFunctions { inputs: &[("dot_h", &["h4"])], ..STEP },
            Kernel::ProjectionStep | Kernel::ProjectionStepBias => {
                RowFunctions { weights: "w_hr", inputs: &[("dot_m", &["m"])], ..STEP }
            }
            Kernel::GruCandidate => RowFunctions { weights: "w_hn", inputs: &[("dot_m", &["m"])], ..STEP },
            Kernel::NormalizedCell
            | Kernel::NormalizedCellProjected
            | Kernel::CopyRows
            | Kernel::PoolRows
            | Kernel::SelfTest
            | Kernel::Measure => return None,
        })
    }
}

/// A column of weights, as it lies in memory and as it is used. Unpacking halves is exact.
const WHOLES: &str = "alias Weight = vec4f;

fn weight(packed: Weight) -> vec4f {
    return packed;
}
";
const HALVES: &str = "alias Weight = vec2u;

fn weight(packed: Weight) -> vec4f {
    return vec4f(unpack2x16float(packed.x), unpack2x16float(packed.y));
}
";

/// The files of `shaders/`.
mod text {
    pub(super) const ACTIVATION: &str = include_str!("../../shaders/lib/activation.wgsl");
    pub(super) const C_IN_STATE: &str = include_str!("../../shaders/lib/c_in_state.wgsl");
    pub(super) const CELL_GRU: &str = include_str!("../../shaders/lib/cell_gru.wgsl");
    pub(super) const CELL_LSTM: &str = include_str!("../../shaders/lib/cell_lstm.wgsl");
    pub(super) const COPY_ROWS: &str = include_str!("../../shaders/copy_rows.wgsl");
    pub(super) const EMIT4: &str = include_str!("../../shaders/lib/emit4.wgsl");
    pub(super) const EMIT_H: &str = include_str!("../../shaders/lib/emit_h.wgsl");
    pub(super) const EMIT_M: &str = include_str!("../../shaders/lib/emit_m.wgsl");
    pub(super) const UPDATE_UNIT: &str = include_str!("../../shaders/lib/update_unit.wgsl");
    pub(super) const EMIT_ROWS: &str = include_str!("../../shaders/lib/emit_rows.wgsl");
    pub(super) const FUNCTIONS: &str = include_str!("../../shaders/lib/functions.wgsl");
    pub(super) const GATES_NARROW: &str = include_str!("../../shaders/lib/gates_narrow.wgsl");
    pub(super) const GATES_STORED: &str = include_str!("../../shaders/lib/gates_stored.wgsl");
    pub(super) const GATE_SUMS: &str = include_str!("../../shaders/gate_sums.wgsl");
    pub(super) const GRU_CANDIDATE: &str = include_str!("../../shaders/gru_candidate.wgsl");
    pub(super) const GRU_RESET: &str = include_str!("../../shaders/gru_reset.wgsl");
    pub(super) const INPUT_PROJECTION: &str = include_str!("../../shaders/input_projection.wgsl");
    pub(super) const NORMALIZED_CELL: &str = include_str!("../../shaders/normalized_cell.wgsl");
    pub(super) const NO_PEEPHOLES: &str = include_str!("../../shaders/lib/no_peepholes.wgsl");
    pub(super) const NO_PROJECTION_BIAS: &str = include_str!("../../shaders/lib/no_projection_bias.wgsl");
    pub(super) const PEEPHOLES: &str = include_str!("../../shaders/lib/peepholes.wgsl");
    pub(super) const PLANES_CONCAT: &str = include_str!("../../shaders/lib/planes_concat.wgsl");
    pub(super) const PLANES_SUM: &str = include_str!("../../shaders/lib/planes_sum.wgsl");
    pub(super) const POOL_ROWS: &str = include_str!("../../shaders/pool_rows.wgsl");
    pub(super) const PROJECTION_BIAS: &str = include_str!("../../shaders/lib/projection_bias.wgsl");
    pub(super) const PROJECTION_STEP: &str = include_str!("../../shaders/projection_step.wgsl");
    pub(super) const RECORD_IMMEDIATES: &str = include_str!("../../shaders/lib/record_immediates.wgsl");
    pub(super) const RECORD_UNIFORM: &str = include_str!("../../shaders/lib/record_uniform.wgsl");
    pub(super) const RECURRENT_STEP: &str = include_str!("../../shaders/recurrent_step.wgsl");
    pub(super) const RNN_STEP: &str = include_str!("../../shaders/rnn_step.wgsl");
    pub(super) const MEASURE: &str = include_str!("../../shaders/measure.wgsl");
    pub(super) const SELF_TEST: &str = include_str!("../../shaders/self_test.wgsl");
    pub(super) const SEQUENCE: &str = include_str!("../../shaders/sequence.wgsl");
    pub(super) const STEP: &str = include_str!("../../shaders/lib/step.wgsl");
    pub(super) const WAVE: &str = include_str!("../../shaders/wave.wgsl");
    pub(super) const STORE_Y: &str = include_str!("../../shaders/lib/store_y.wgsl");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_trips_count_the_exits() {
        // Mesa 22 completes 65,534 trips. Sums of 200,000 came out right there and of 220,000 wrong.
        assert!(loop_trips(200_000 / 4) <= 65_534);
        assert!(loop_trips(220_000 / 4) > 65_534);
        // One segment of 8: 8 trips and the exit, one of the outer loop and its exit.
        assert!(loop_trips(8) >= 11);
    }
}
