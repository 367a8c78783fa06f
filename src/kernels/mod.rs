//! Host half of each shader: the pieces of its source, bindings, constants and parameter structs.
//!
//! In:  nothing but constants.
//! Out: [`KernelId::source`], the WGSL text; [`LayerLayout`], the places of the weights; [`Kernel`], what the host promises to bind; the structs that
//!      uniforms are filled from.
//! Afterwards the plan speaks of kernels by [`KernelId`] only.
//! Not here: pipelines (`gpu::pipelines`), the choice of tiles (`plan::tiles`). No wgpu types.

mod layout;
pub mod params;
mod rows;

pub use layout::{LayerLayout, ModelPart};
use rows::RowFunctions;

/// k is summed in segments of this many elements: sequentially inside a segment, then the segment sums in
/// order. Every kernel walks or owns whole segments, so a tile never changes a bit.
pub const SEGMENT: usize = 32;
/// Rows are padded to whole vec4.
pub const ROW_ALIGN: usize = 4;
/// Gates per hidden unit, in the order i f g o: one vec4.
pub const GATES: usize = 4;
/// An offset that means "not stored", `NONE` in the shaders.
pub const NONE: u32 = u32::MAX;
/// Row tiles that a plan may choose: batch rows per invocation.
pub const ROW_TILES: [u32; 3] = [1, 4, 8];
/// Workgroup widths that a plan may choose; the height fills `WORKGROUP_SIZE`.
pub const LANE_TILES: [u32; 2] = [16, 64];
/// Invocations per workgroup of the tiled kernels.
pub const WORKGROUP_SIZE: u32 = 64;

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
    /// `shaders/input_projection.wgsl`
    InputProjection,
    /// `shaders/recurrent_step.wgsl` with `emit_h`
    RecurrentStep,
    /// `shaders/recurrent_step.wgsl` with `emit_m`
    RecurrentStepProjected,
    /// `shaders/projection_step.wgsl`
    ProjectionStep,
    /// `shaders/copy_rows.wgsl`
    CopyRows,
    /// `shaders/self_test.wgsl`
    SelfTest,
}

impl Kernel {
    /// All kernels.
    pub const ALL: [Kernel; 6] = [
        Kernel::InputProjection,
        Kernel::RecurrentStep,
        Kernel::RecurrentStepProjected,
        Kernel::ProjectionStep,
        Kernel::CopyRows,
        Kernel::SelfTest,
    ];

    /// Name of the entry point, the file and, after `lstm.`, the label.
    pub fn entry_point(self) -> &'static str {
        match self {
            Kernel::InputProjection => "input_projection",
            Kernel::RecurrentStep | Kernel::RecurrentStepProjected => "recurrent_step",
            Kernel::ProjectionStep => "projection_step",
            Kernel::CopyRows => "copy_rows",
            Kernel::SelfTest => "self_test",
        }
    }

    /// The name of the kernel with its variant.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::RecurrentStepProjected => "recurrent_step_projected",
            other => other.entry_point(),
        }
    }

    /// The binding table of group 0, by binding number.
    pub fn bindings(self) -> &'static [Binding] {
        use params::{CopyParams, InputParams, SelfTestParams, Step};
        match self {
            Kernel::InputProjection => {
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
            Kernel::RecurrentStep | Kernel::RecurrentStepProjected => {
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
            Kernel::CopyRows => {
                const { &[dynamic_uniform::<CopyParams>("params"), read("table"), read("src"), read_write("dst")] }
            }
            Kernel::SelfTest => {
                const { &[uniform::<SelfTestParams>("params"), read("probes"), read_write("counts"), read_write("values")] }
            }
        }
    }

    /// Whether ROWS, WG_X and WG_Y apply.
    fn is_tiled(self) -> bool {
        !matches!(self, Kernel::SelfTest)
    }

    /// Whether the kernel sums over k and has a row tile.
    pub fn has_row_tile(self) -> bool {
        !matches!(self, Kernel::SelfTest | Kernel::CopyRows)
    }
}

/// A kernel with its tile: one pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelId {
    /// The kernel.
    pub kernel: Kernel,
    /// Batch rows per invocation, one of [`ROW_TILES`]; 1 for kernels without a row tile.
    pub rows: u32,
    /// WG_X, one of [`LANE_TILES`].
    pub lanes: u32,
}

impl KernelId {
    /// Every variant that a plan can choose, and the self-test.
    pub fn all() -> Vec<KernelId> {
        let mut ids = Vec::new();
        for kernel in Kernel::ALL {
            let rows: &[u32] = if kernel.has_row_tile() { &ROW_TILES } else { &[1] };
            let lanes: &[u32] = if kernel.is_tiled() { &LANE_TILES } else { &[64] };
            for &rows in rows {
                for &lanes in lanes {
                    ids.push(KernelId { kernel, rows, lanes });
                }
            }
        }
        ids
    }

    /// WG_Y.
    pub fn workgroup_rows(self) -> u32 {
        WORKGROUP_SIZE / self.lanes
    }

    /// Batch rows per workgroup.
    pub fn rows_per_workgroup(self) -> u32 {
        self.rows * self.workgroup_rows()
    }

    /// The override constants of the pipeline.
    pub fn constants(self) -> Vec<(&'static str, f64)> {
        if self.kernel.is_tiled() {
            vec![("WG_X", f64::from(self.lanes)), ("WG_Y", f64::from(self.workgroup_rows()))]
        } else {
            Vec::new()
        }
    }

    /// `recurrent_step.rows4.x64`
    pub fn name(self) -> String {
        format!("{}.rows{}.x{}", self.kernel.name(), self.rows, self.lanes)
    }

    /// The label of its GPU objects.
    pub fn label(self) -> String {
        format!("lstm.{}", self.name())
    }

    /// The WGSL source: the kernel's file, the pieces it lists and the text generated for its row tile.
    pub fn source(self) -> String {
        const ACTIVATION: &str = include_str!("../../shaders/lib/activation.wgsl");
        const STEP: &str = include_str!("../../shaders/lib/step.wgsl");
        const EMIT_H: &str = include_str!("../../shaders/lib/emit_h.wgsl");
        const EMIT_M: &str = include_str!("../../shaders/lib/emit_m.wgsl");
        const INPUT_PROJECTION: &str = include_str!("../../shaders/input_projection.wgsl");
        const RECURRENT_STEP: &str = include_str!("../../shaders/recurrent_step.wgsl");
        const PROJECTION_STEP: &str = include_str!("../../shaders/projection_step.wgsl");
        const COPY_ROWS: &str = include_str!("../../shaders/copy_rows.wgsl");
        const SELF_TEST: &str = include_str!("../../shaders/self_test.wgsl");
        let (pieces, rows): (&[&str], Option<RowFunctions>) = match self.kernel {
            Kernel::InputProjection => (
                &[INPUT_PROJECTION],
                Some(RowFunctions {
                    weights: "weights",
                    inputs: &[("dot_x0", "x0"), ("dot_x1", "x1")],
                    finish_leading: &[],
                }),
            ),
            Kernel::RecurrentStep => (&[RECURRENT_STEP, EMIT_H, STEP, ACTIVATION], Some(RowFunctions::STEP)),
            Kernel::RecurrentStepProjected => (&[RECURRENT_STEP, EMIT_M, STEP, ACTIVATION], Some(RowFunctions::STEP)),
            Kernel::ProjectionStep => (
                &[PROJECTION_STEP, STEP],
                Some(RowFunctions { weights: "w_hr", inputs: &[("dot_m", "m")], finish_leading: &["direction"] }),
            ),
            Kernel::CopyRows => (&[COPY_ROWS], None),
            Kernel::SelfTest => (&[SELF_TEST, ACTIVATION], None),
        };
        let mut source = pieces.join("\n");
        if let Some(functions) = rows {
            source.push('\n');
            source.push_str(&functions.source(self.rows));
        }
        source
    }
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
