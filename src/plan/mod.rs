//! Stage 4, plan: spec + batch shape + limits → buffers and dispatches, as plain data.
//!
//! In:  [`PlanRequest`].
//! Out: [`Plan`]: the scratch buffers, and for every submit its uploads, dispatches and reads.
//! Afterwards recording is a loop over the plan: no size is computed and no layout is chosen any more.
//! Not here: wgpu types, weight values, sequence values.

mod copies;
mod explain;
mod layers;
mod planes;
mod planner;
mod sequence;
pub mod tiles;
mod wave;

use std::fmt::Write;
use std::ops::Range;

use crate::batch::Outputs;
use crate::error::Result;
use crate::kernels::{Binding, Kernel, KernelId, LayerLayout, ModelPart, padded};
use crate::schedule::Schedule;
use crate::spec::{LayerSpec, LstmSpec};
pub use explain::GroupNote;
pub use layers::{LayerKernels, groups, sum_len};
pub use tiles::TileOverride;
pub use wave::Stack;
pub(crate) use wave::WAVE_ROWS;

/// What the plan must stay within; read from the adapter and the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanLimits {
    /// `max_storage_buffer_binding_size`
    pub binding_bytes: u64,
    /// `max_buffer_size`
    pub buffer_bytes: u64,
    /// `max_compute_workgroups_per_dimension`
    pub workgroups: u32,
    /// `min_uniform_buffer_offset_alignment`
    pub uniform_alignment: u32,
    /// For all scratch buffers of one run together.
    pub budget_bytes: u64,
    /// The most loop trips of an invocation that the driver completes; `None` if none was found.
    pub loop_trips: Option<u32>,
    /// Whether the device has far more lanes than a small batch has units; see [`crate::Tuning`].
    pub wide: bool,
    /// Whether weights lie on the device as halves.
    pub halves: bool,
    /// Whether kernels of one timestep get their record as immediates instead of a uniform.
    pub immediates: bool,
    /// Whether the host reads rows where the kernels wrote them, in memory that it shares with the device.
    pub shared_memory: bool,
}

#[cfg(test)]
impl PlanLimits {
    /// WebGPU's default limits.
    pub(crate) fn defaults(wide: bool) -> Self {
        Self {
            binding_bytes: 128 << 20,
            buffer_bytes: 256 << 20,
            workgroups: 65535,
            uniform_alignment: 256,
            budget_bytes: 1 << 30,
            loop_trips: None,
            wide,
            halves: false,
            immediates: false,
            shared_memory: false,
        }
    }
}

impl PlanLimits {
    /// The layout of layer `l` of `layers` in bindings and buffers of this size.
    pub fn layout(&self, layers: &[LayerSpec], l: usize) -> LayerLayout {
        LayerLayout::new(layers, l).halves(self.halves).within(self.binding_bytes, self.buffer_bytes)
    }
}

/// Where the rows of input or output lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsAt {
    /// On the host; packed and unpacked there.
    Host,
    /// In buffers of the caller on the device, dense, in the order that the row table says.
    Device,
}

/// Where initial or final states lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatesAt {
    /// On the host; packed and unpacked there.
    Host,
    /// In two buffers of the caller on the device, h and c, [L·D, B, size].
    Arrays,
    /// In one buffer of the caller, a row per slot: h of all layers, then c of all layers.
    Slots {
        /// Slots of the buffer.
        num_slots: usize,
    },
}

/// A buffer of the caller, by what it is to the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Caller {
    /// Input rows, [.., I].
    Input,
    /// Rows of all hidden states, [.., D·H].
    Output,
    /// Rows of all cell states, [.., D·H].
    Cells,
    /// Hidden states at the last valid steps, or pooled, [B, D·H].
    Last,
    /// Initial hidden states.
    H0,
    /// Initial cell states.
    C0,
    /// Final hidden states.
    HN,
    /// Final cell states.
    CN,
    /// Slots of a stream, which hold initial and final states.
    Slots,
}

impl Caller {
    /// All of them.
    pub const ALL: [Caller; 9] = [
        Caller::Input,
        Caller::Output,
        Caller::Cells,
        Caller::Last,
        Caller::H0,
        Caller::C0,
        Caller::HN,
        Caller::CN,
        Caller::Slots,
    ];

    /// Its place in [`Caller::ALL`].
    pub fn index(self) -> usize {
        Self::ALL.iter().position(|&c| c == self).expect("ALL lists every buffer")
    }

    fn name(self) -> &'static str {
        match self {
            Caller::Input => "caller_input",
            Caller::Output => "caller_output",
            Caller::Cells => "caller_cells",
            Caller::Last => "caller_last",
            Caller::H0 => "caller_h_0",
            Caller::C0 => "caller_c_0",
            Caller::HN => "caller_h_n",
            Caller::CN => "caller_c_n",
            Caller::Slots => "caller_slots",
        }
    }
}

/// What is to be planned.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'a> {
    /// The model.
    pub spec: &'a LstmSpec,
    /// The lengths, `[B]`; at least one is not 0.
    pub lengths: &'a [usize],
    /// Rows of the caller's arrays: T·B, or the number of valid rows if there are no others.
    pub array_rows: usize,
    /// What is to be returned.
    pub outputs: Outputs,
    /// Where initial states lie; `None` for zero.
    pub initial: Option<StatesAt>,
    /// Where final states go, if asked for.
    pub finals: StatesAt,
    /// Where the input lies.
    pub input: RowsAt,
    /// Where rows and last rows go.
    pub output: RowsAt,
    /// Whether all submits become one, so that nothing may be written twice before it.
    pub recorded: bool,
    /// First f32 of each buffer of the caller in its binding, by [`Caller::index`].
    pub caller_first: [u32; Caller::ALL.len()],
    /// About the most floating-point operations of one dispatch.
    pub dispatch_flops: u64,
    /// Whether a refusal says what would fit, which takes some forty plans.
    pub advises: bool,
    /// Limits.
    pub limits: PlanLimits,
    /// Tiles fixed by a test.
    pub tiles: TileOverride,
}

impl<'a> PlanRequest<'a> {
    /// A batch whose rows and states lie on the host; zero initial states.
    pub fn new(spec: &'a LstmSpec, lengths: &'a [usize], limits: PlanLimits) -> Self {
        Self {
            spec,
            lengths,
            array_rows: lengths.iter().sum(),
            outputs: Outputs::default(),
            initial: None,
            finals: StatesAt::Host,
            input: RowsAt::Host,
            output: RowsAt::Host,
            recorded: false,
            caller_first: [0; Caller::ALL.len()],
            dispatch_flops: u64::MAX,
            advises: true,
            limits,
            tiles: TileOverride::default(),
        }
    }
}

/// A buffer that the plan refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BufferId {
    /// A part of the loaded model.
    Model {
        /// Layer index.
        layer: usize,
        /// Which part.
        part: ModelPart,
        /// Which range of its columns; 0 if it is not split.
        range: usize,
    },
    /// Weights of a stack of layers once more, in the layout of `kernels::StackPlaces`.
    Stack {
        /// The first layer of the stack.
        layer: usize,
        /// The biases instead of the matrices.
        vectors: bool,
    },
    /// An index into [`Plan::scratch`].
    Scratch(usize),
    /// A few unused bytes, for bindings that a variant does not need.
    Dummy,
    /// A buffer of the caller on the device.
    Caller(Caller),
}

impl BufferId {
    fn scratch(self) -> Option<usize> {
        match self {
            BufferId::Scratch(index) => Some(index),
            _ => None,
        }
    }
}

/// A range of a buffer; `size_bytes` 0 means to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferRange {
    /// The buffer.
    pub buffer: BufferId,
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes; 0 for the rest.
    pub size_bytes: u64,
}

impl BufferRange {
    /// `3` for a scratch buffer, `w_hh.l0`-like for the model, with the offset if there is one.
    fn short(&self) -> String {
        let name = match self.buffer {
            BufferId::Model { layer, part, range: 0 } => format!("{}.l{layer}", part.name()),
            BufferId::Model { layer, part, range } => format!("{}.l{layer}.{range}", part.name()),
            BufferId::Stack { layer, vectors: false } => format!("stack.l{layer}"),
            BufferId::Stack { layer, vectors: true } => format!("stack_bias.l{layer}"),
            BufferId::Scratch(index) => index.to_string(),
            BufferId::Dummy => "dummy".to_owned(),
            BufferId::Caller(caller) => caller.name().to_owned(),
        };
        if self.offset_bytes > 0 { format!("{name}@{}", self.offset_bytes) } else { name }
    }
}

impl From<BufferId> for BufferRange {
    fn from(buffer: BufferId) -> Self {
        Self { buffer, offset_bytes: 0, size_bytes: 0 }
    }
}

/// A scratch buffer of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScratchBuffer {
    /// Its label, after `lstm.`.
    pub label: String,
    /// Bytes, a multiple of 16.
    pub size_bytes: u64,
    /// Whether it holds uniforms instead of storage.
    pub uniform: bool,
    /// Whether the host reads it.
    pub mapped: bool,
}

/// The bindings of a dispatch; shared by all dispatches that bind the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BindGroup {
    /// The kernel, for the layout.
    pub kernel: Kernel,
    /// One range per binding, from binding 1 on where the record comes as immediates.
    pub ranges: Vec<BufferRange>,
}

impl BindGroup {
    /// Whether the records of its dispatches come as immediates.
    pub fn takes_immediates(&self) -> bool {
        self.ranges.len() < self.kernel.bindings().len()
    }

    /// Each range with the number of its binding and what the kernel says of it.
    pub fn bound(&self) -> impl Iterator<Item = (u32, &Binding, &BufferRange)> {
        let bindings = self.kernel.bindings();
        let first = bindings.len() - self.ranges.len();
        bindings[first..].iter().zip(&self.ranges).zip(first as u32..).map(|((binding, range), n)| (n, binding, range))
    }
}

/// One launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispatch {
    /// An index into [`Plan::kernels`].
    pub kernel: usize,
    /// An index into [`Plan::bind_groups`].
    pub bind_group: usize,
    /// The record of the dispatch: the dynamic offset of the uniform, or the first byte in the submit's immediates.
    pub record_offset_bytes: u32,
    /// Workgroups in x, y, z.
    pub workgroups: [u32; 3],
    /// Floating-point operations of its sums.
    pub flops: u64,
    /// Bytes that it moves at least: each weight, and each row of input, gates, states and output, once.
    pub bytes: u64,
}

/// What is written before a submit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upload {
    /// Uniforms of the submit's dispatches.
    Uniforms {
        /// Destination.
        buffer: BufferId,
        /// First byte of it.
        offset_bytes: u64,
        /// Content.
        bytes: Vec<u8>,
    },
    /// Packed rows of the input, from the host.
    InputRows {
        /// Destination, from its start.
        buffer: BufferId,
        /// Packed rows.
        rows: Range<usize>,
        /// Row length in f32; columns past the input size are zero.
        stride: usize,
    },
    /// For packed rows of the chunk, their rows in the caller's layout.
    RowTable {
        /// Destination, u32 each.
        buffer: BufferId,
        /// First entry.
        first: usize,
        /// Packed rows.
        rows: Range<usize>,
    },
    /// For each rank the row that its state comes from, then the row that it goes to (both may be `NONE`), then its
    /// sequence; [3, B].
    StateTable {
        /// Destination, u32 each.
        buffer: BufferId,
    },
    /// The length at each rank, then the first packed row of each timestep, [B + T + 1].
    PoolTable {
        /// Destination, u32 each.
        buffer: BufferId,
    },
    /// Initial states of one layer: both h buffers, and the whole state buffer (c or zeros, h_n, and zeros).
    InitialState {
        /// Layer index.
        layer: usize,
        /// f32 before h_n in the layer's part of the state buffer.
        c_len: usize,
        /// The two h buffers, [D, B, h_stride].
        h: [BufferId; 2],
        /// The first f32 of the layer in them, and how many.
        h_places: (usize, usize),
        /// The state buffer.
        state: BufferId,
        /// The first f32 of the layer in it, and how many.
        state_places: (usize, usize),
    },
    /// Zero a buffer.
    Clear {
        /// The buffer.
        buffer: BufferId,
    },
}

/// What a range that is read back contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Rows of one direction of the last layer: h at `h_column` and c at `c_column` of each row, where present.
    Rows {
        /// 0 or 1.
        direction: usize,
        /// Packed rows.
        rows: Range<usize>,
    },
    /// Final cell states of a layer, [D, B by rank, hidden_stride].
    CellN {
        /// Layer index.
        layer: usize,
    },
    /// Final hidden states of a layer, [D, B by rank, h_stride].
    HiddenN {
        /// Layer index.
        layer: usize,
    },
    /// Last valid rows of the last layer, or its pooled ones, [D, B by rank, h_stride].
    Last,
}

/// A range that is read back after a submit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// What it is.
    pub content: Content,
    /// Where it lies on the device.
    pub range: BufferRange,
    /// How the host gets at it.
    pub way: Readback,
}

/// How the host gets at a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readback {
    /// It is copied to a staging buffer.
    Staged {
        /// Which one of the submit.
        buffer: usize,
        /// Where in it.
        offset_bytes: u64,
    },
    /// Its buffer is mapped.
    InPlace,
}

/// One submit: uploads, then one compute pass, then copies to staging buffers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Submit {
    /// In order, before the pass.
    pub uploads: Vec<Upload>,
    /// In order.
    pub dispatches: Vec<Dispatch>,
    /// The records of those dispatches that get theirs as immediates, one after the other.
    pub immediates: Vec<u8>,
    /// After the pass.
    pub reads: Vec<Read>,
    /// Sizes of the staging buffers; each is within the device's limit.
    pub staging_bytes: Vec<u64>,
}

impl Submit {
    /// Floating-point operations of all sums.
    pub fn flops(&self) -> u64 {
        self.dispatches.iter().map(|d| d.flops).sum()
    }

    /// Bytes that all dispatches together move at least.
    pub fn bytes(&self) -> u64 {
        self.dispatches.iter().map(|d| d.bytes).sum()
    }
}

/// Row layout of the last layer's stored sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLayout {
    /// f32 per row; 0 if no rows are stored.
    pub stride: usize,
    /// Where h starts in a row, if stored.
    pub h_column: Option<usize>,
    /// Where c starts in a row, if stored.
    pub c_column: Option<usize>,
}

impl RowLayout {
    /// A row with the parts that are wanted, h first.
    fn new(layer: &LayerSpec, h: bool, c: bool) -> Self {
        let h_width = if h { padded(layer.h_size()) } else { 0 };
        let c_width = if c { padded(layer.c_size()) } else { 0 };
        Self { stride: h_width + c_width, h_column: h.then_some(0), c_column: c.then_some(h_width) }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Order of sequences and rows.
    pub schedule: Schedule,
    /// Buffers that live for the run.
    pub scratch: Vec<ScratchBuffer>,
    /// Distinct pipelines.
    pub kernels: Vec<KernelId>,
    /// Distinct bindings.
    pub bind_groups: Vec<BindGroup>,
    /// Submits, in order.
    pub submits: Vec<Submit>,
    /// Row layout of what the last layer stores.
    pub rows: RowLayout,
    /// How timesteps were cut, and why.
    pub groups: Vec<GroupNote>,
}

impl Plan {
    /// Makes the plan.
    ///
    /// # Errors
    /// [`DeviceLimit`](crate::ErrorKind::DeviceLimit) if the batch does not fit the adapter's limits or the
    /// budget even in the smallest chunks; the message names the limit and the largest batch or what would help.
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if a sum needs more loop trips than the driver completes.
    pub fn new(request: &PlanRequest<'_>) -> Result<Plan> {
        planner::plan(request)
    }

    /// Floating-point operations of all sums.
    pub fn flops(&self) -> u64 {
        self.submits.iter().map(Submit::flops).sum()
    }

    /// Bytes of all scratch buffers.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch.iter().map(|b| b.size_bytes).sum()
    }

    /// The plan as text: one line per buffer, upload, run of equal dispatches and read.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a String cannot fail");
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let s = &self.schedule;
        writeln!(out, "batch {} steps {} rows {}", s.batch_size(), s.num_steps(), s.num_rows())?;
        for (i, b) in self.scratch.iter().enumerate() {
            let kind = match (b.uniform, b.mapped) {
                (true, _) => "uniform",
                (false, true) => "storage, mapped",
                (false, false) => "storage",
            };
            writeln!(out, "scratch {i}: {} {} B {kind}", b.label, b.size_bytes)?;
        }
        for (i, group) in self.bind_groups.iter().enumerate() {
            let ranges: Vec<_> = group.ranges.iter().map(BufferRange::short).collect();
            writeln!(out, "bind group {i}: {} {}", group.kernel.name(), ranges.join(" "))?;
        }
        for (i, submit) in self.submits.iter().enumerate() {
            writeln!(out, "submit {i}")?;
            for upload in &submit.uploads {
                match upload {
                    Upload::Uniforms { buffer, bytes, offset_bytes } => {
                        let at = if *offset_bytes > 0 { format!(" at {offset_bytes}") } else { String::new() };
                        writeln!(out, "  upload uniforms {} B to {buffer:?}{at}", bytes.len())?
                    }
                    other => writeln!(out, "  upload {other:?}")?,
                }
            }
            if !submit.immediates.is_empty() {
                writeln!(out, "  immediates {} B", submit.immediates.len())?;
            }
            let mut at = 0;
            while at < submit.dispatches.len() {
                let first = submit.dispatches[at];
                let same = submit.dispatches[at..]
                    .iter()
                    .take_while(|d| d.kernel == first.kernel && d.workgroups == first.workgroups)
                    .count();
                let groups: Vec<_> = submit.dispatches[at..at + same].iter().take(3).map(|d| d.bind_group).collect();
                let name = self.kernels[first.kernel].name();
                writeln!(out, "  {name} {:?} × {same}, bind groups {groups:?}", first.workgroups)?;
                at += same;
            }
            for read in &submit.reads {
                write!(out, "  read {:?} {} B ", read.content, read.range.size_bytes)?;
                match read.way {
                    Readback::Staged { buffer, offset_bytes } => {
                        writeln!(out, "to staging {buffer} at {offset_bytes}")?
                    }
                    Readback::InPlace => writeln!(out, "in place")?,
                }
            }
        }
        Ok(())
    }
}
