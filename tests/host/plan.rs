//! Plans as text, and what must hold of every plan.

use proptest::prelude::*;
use wgpu_lstm::internals::params::Step;
use wgpu_lstm::internals::{
    BindGroup, Binding, BindingKind, BufferId, BufferRange, Content, Dispatch, Kernel, ModelPart, Plan, PlanLimits,
    PlanRequest, Readback, RowsAt, Schedule, StatesAt, Submit, Upload,
};
use wgpu_lstm::{Direction, ErrorKind, LayerSpec, LstmSpec, Merge, Outputs, SequenceOutput};

use crate::fixture::variant_layers;
use crate::snapshot;

/// WebGPU's default limits.
const DEFAULTS: PlanLimits = PlanLimits {
    binding_bytes: 128 << 20,
    buffer_bytes: 256 << 20,
    workgroups: 65535,
    uniform_alignment: 256,
    budget_bytes: 1 << 30,
    loop_trips: None,
    wide: false,
    halves: false,
    immediates: false,
    shared_memory: false,
};

fn request<'a>(spec: &'a LstmSpec, lengths: &'a [usize], limits: PlanLimits) -> PlanRequest<'a> {
    PlanRequest::new(spec, lengths, limits)
}

#[test]
fn plans_are_as_reviewed() {
    let small = LstmSpec::stack(5, 7, 2).build().unwrap();
    let plan = Plan::new(&request(&small, &[3, 0, 5], DEFAULTS)).unwrap();
    snapshot::check("plan_forward_two_layers.txt", &plan.describe());

    let bidirectional = LstmSpec::stack(12, 32, 2).direction(Direction::Bidirectional).projection(8).build().unwrap();
    let mut last = request(&bidirectional, &[4, 2], DEFAULTS);
    last.outputs = Outputs { sequence: SequenceOutput::Last, final_state: false, cells: false };
    last.initial = Some(StatesAt::Host);
    snapshot::check("plan_bidirectional_projected_last.txt", &Plan::new(&last).unwrap().describe());

    let long = LstmSpec::stack(40, 256, 3).build().unwrap();
    let wide = PlanLimits { wide: true, ..DEFAULTS };
    snapshot::check(
        "plan_many_lanes.txt",
        &[(&small, &[3, 0, 5]), (&long, &[2, 1, 2])]
            .map(|(spec, l)| Plan::new(&request(spec, l, wide)).unwrap().describe())
            .concat(),
    );

    let immediates = PlanLimits { immediates: true, ..DEFAULTS };
    snapshot::check("plan_immediates.txt", &Plan::new(&request(&small, &[3, 0, 5], immediates)).unwrap().describe());

    // Rows are read where they lie, states are copied.
    let shared = PlanLimits { shared_memory: true, ..DEFAULTS };
    snapshot::check("plan_shared_memory.txt", &Plan::new(&request(&small, &[3, 0, 5], shared)).unwrap().describe());

    let limits = PlanLimits { budget_bytes: 4 << 20, ..DEFAULTS };
    snapshot::check(
        "plan_long_in_chunks.txt",
        &Plan::new(&request(&long, &[900, 500, 10], limits)).unwrap().describe(),
    );
}

#[test]
fn a_batch_that_does_not_fit_names_the_limit() {
    let spec = LstmSpec::stack(40, 1024, 1).build().unwrap();
    let lengths = vec![1; 1000];
    let limited = |limits| Plan::new(&request(&spec, &lengths, limits)).unwrap_err();
    let error = limited(PlanLimits { binding_bytes: 4 << 20, ..DEFAULTS });
    assert_eq!(error.kind(), ErrorKind::DeviceLimit);
    assert!(error.to_string().contains("max_storage_buffer_binding_size"), "{error}");
    let error = limited(PlanLimits { budget_bytes: 20 << 20, ..DEFAULTS });
    assert!(
        error.to_string().contains("memory budget")
            && error.to_string().contains("longest of these 1000 sequences would fit"),
        "{error}"
    );
    let error = limited(PlanLimits { loop_trips: Some(100), ..DEFAULTS });
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("ends loops after 100"), "{error}");
}

#[test]
fn records_end_where_dynamic_offsets_do() {
    let spec = LstmSpec::stack(40, 64, 1).build().unwrap();
    // 300 records of 16 MiB.
    let large = PlanLimits { buffer_bytes: 1 << 40, budget_bytes: 1 << 40, uniform_alignment: 16 << 20, ..DEFAULTS };
    let error = Plan::new(&request(&spec, &[300], large)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeviceLimit);
    assert!(error.to_string().contains("the largest dynamic offset: uniforms needs"), "{error}");
}

#[test]
fn no_dispatch_has_more_workgroups_than_the_device_allows() {
    let limits = PlanLimits { wide: true, budget_bytes: 1 << 34, ..DEFAULTS };
    for (layers, batch, is_sequence) in [(1, 4 * 65535, true), (1, 4 * 65535 + 1, false), (2, 4 * 65535 + 1, false)] {
        let spec = LstmSpec::stack(4, 8, layers).build().unwrap();
        let lengths = vec![1; batch];
        let plan = Plan::new(&request(&spec, &lengths, limits)).unwrap();
        for dispatch in plan.submits.iter().flat_map(|s| &s.dispatches) {
            assert!(dispatch.workgroups.iter().all(|&n| n <= 65535), "{batch}: {dispatch:?}");
        }
        let sequences = plan.kernels.iter().filter(|id| id.kernel.is_sequence()).count();
        assert_eq!(sequences > 0, is_sequence, "{layers} layers, batch {batch}");
    }
}

#[test]
fn steps_in_several_dispatches_have_room_for_their_records() {
    // The step's own sum fits a dispatch with 128 columns, with a narrow input only with 64.
    let spec = LstmSpec::stack(32, 128, 1).build().unwrap();
    let lengths = [17; 700];
    let mut request = request(&spec, &lengths, DEFAULTS);
    request.dispatch_flops = 100_000_000;
    request.tiles.narrow = Some(true);
    let plan = Plan::new(&request).unwrap();
    assert_eq!(plan.submits.iter().map(|submit| submit.dispatches.len()).sum::<usize>(), 2 * 17);
    for upload in plan.submits.iter().flat_map(|submit| &submit.uploads) {
        if let Upload::Uniforms { buffer: BufferId::Scratch(index), offset_bytes, bytes } = upload {
            let (end, room) = (*offset_bytes + bytes.len() as u64, plan.scratch[*index].size_bytes);
            assert!(end <= room, "{end} bytes of records in {room}");
        }
    }
}

#[test]
fn layers_of_a_stack_run_side_by_side_for_few_sequences() {
    let wide = PlanLimits { wide: true, ..DEFAULTS };
    let dispatches = |spec: &LstmSpec, batch_size, limits| {
        let lengths = vec![100; batch_size];
        let plan = Plan::new(&request(spec, &lengths, limits)).unwrap();
        plan.submits.iter().map(|submit| submit.dispatches.len()).sum::<usize>()
    };
    let stack = LstmSpec::stack(40, 128, 3).build().unwrap();
    // The input projection, and 100 timesteps with each layer one behind the one below.
    assert_eq!(dispatches(&stack, 1, wide), 1 + 100 + 2);
    assert_eq!(dispatches(&stack, 32, wide), 1 + 100 + 2);
    for (spec, batch_size, limits) in [
        (stack.clone(), 33, wide),
        (stack.clone(), 1, DEFAULTS),
        // Too many weights, and options that differ.
        (LstmSpec::stack(40, 512, 3).build().unwrap(), 1, wide),
        (LstmSpec::stack(40, 128, 3).projection(20).build().unwrap(), 1, wide),
    ] {
        assert!(dispatches(&spec, batch_size, limits) >= 303, "{spec:?}, batch of {batch_size}");
    }
    // A layer with a reverse direction needs all of the one below.
    let turning = LstmSpec::stack(40, 128, 2).direction(Direction::Bidirectional).build().unwrap();
    assert!(dispatches(&turning, 1, wide) >= 204);
}

#[test]
fn a_narrow_input_needs_no_room_for_gates() {
    let lengths = [100; 50];
    let scratch = |input_size, binding_bytes| {
        let spec = LstmSpec::stack(input_size, 256, 1).direction(Direction::Bidirectional).build().unwrap();
        Plan::new(&request(&spec, &lengths, PlanLimits { binding_bytes, wide: true, ..DEFAULTS })).unwrap().scratch
    };
    let has_gates = |input_size, limit| scratch(input_size, limit).iter().any(|buffer| buffer.label == "x_gates");
    assert!(!has_gates(32, 8 << 20) && has_gates(33, 8 << 20));
    // An input in several pieces is projected: steps of both directions may read different ones.
    assert!(scratch(32, 500_000).iter().any(|buffer| buffer.label == "x.1") && has_gates(32, 500_000));
}

#[test]
fn what_was_not_asked_for_is_not_read() {
    let spec = LstmSpec::stack(5, 7, 1).direction(Direction::Bidirectional).build().unwrap();
    let contents = |outputs| {
        let mut request = request(&spec, &[3, 5], DEFAULTS);
        request.outputs = outputs;
        let plan = Plan::new(&request).unwrap();
        plan.submits.iter().flat_map(|s| s.reads.iter().map(|r| r.content.clone())).collect::<Vec<_>>()
    };
    let none = Outputs { sequence: SequenceOutput::None, final_state: false, cells: false };
    assert_eq!(contents(none), []);
    assert_eq!(contents(Outputs { sequence: SequenceOutput::Last, ..none }), [Content::Last]);
    assert_eq!(
        contents(Outputs { final_state: true, ..none }),
        [Content::CellN { layer: 0 }, Content::HiddenN { layer: 0 }]
    );
    let rows = |direction| Content::Rows { direction, rows: 0..8 };
    assert_eq!(contents(Outputs { sequence: SequenceOutput::All, ..none }), [rows(0), rows(1)]);
    assert_eq!(contents(Outputs { cells: true, ..none }), [rows(0), rows(1)]);
}

#[test]
fn staging_is_split_where_it_would_exceed_the_largest_buffer() {
    // Two planes of 8 · 256 rows of 16 values, 128 KiB each.
    let spec = LstmSpec::stack(16, 16, 1).direction(Direction::Bidirectional).build().unwrap();
    let lengths = [256; 8];
    let limit = 160 << 10;
    let limits = PlanLimits { binding_bytes: limit, buffer_bytes: limit, ..DEFAULTS };
    let plan = Plan::new(&request(&spec, &lengths, limits)).unwrap();
    let last = plan.submits.last().unwrap();
    let bytes: u64 = last.reads.iter().map(|r| r.range.size_bytes).sum();
    assert!(bytes > limit, "the case reads more than one buffer holds: {bytes}");
    assert_eq!(last.staging_bytes.iter().sum::<u64>(), bytes);
    assert!(last.staging_bytes.iter().all(|&size| size <= limit), "{:?}", last.staging_bytes);
}

/// The record of a dispatch of a timestep, the first of many.
fn step_of(submit: &Submit, group: &BindGroup, dispatch: &Dispatch) -> Step {
    if group.takes_immediates() {
        return bytemuck::pod_read_unaligned(
            &submit.immediates[dispatch.record_offset_bytes as usize..][..size_of::<Step>()],
        );
    }
    let step = submit.uploads.iter().find_map(|upload| match upload {
        Upload::Uniforms { buffer, offset_bytes, bytes } if *buffer == group.ranges[0].buffer => {
            let first = (u64::from(dispatch.record_offset_bytes) - offset_bytes) as usize;
            Some(bytemuck::pod_read_unaligned(&bytes[first..][..size_of::<Step>()]))
        }
        _ => None,
    });
    step.expect("the record is uploaded in the same submit")
}

/// vec4 of a row of gates.
fn columns_of_gates(kernel: Kernel, step: &Step) -> u32 {
    if kernel == Kernel::RnnStep { step.h_stride / 4 } else { step.hidden_size }
}

fn specs() -> impl Strategy<Value = LstmSpec> {
    let direction = prop_oneof![Just(Direction::Forward), Just(Direction::Reverse), Just(Direction::Bidirectional)];
    let cells = variant_layers();
    let cell = (0..cells.len()).prop_map(move |n| cells[n].1[0]);
    let layer = (direction, prop::option::of(1..40usize), prop::option::of(cell), any::<bool>());
    (1..70usize, 2..70usize, prop::collection::vec(layer, 1..4)).prop_map(|(input, hidden, layers)| {
        // Layers of different directions, each on top of the one before.
        let mut input_size = input;
        let layers = layers
            .into_iter()
            .map(|(direction, projection_size, variant, sum)| {
                let layer = match variant {
                    Some(variant) => LayerSpec { input_size, ..variant },
                    None => LayerSpec {
                        direction,
                        merge: if sum && direction == Direction::Bidirectional { Merge::Sum } else { Merge::Concat },
                        projection_size: projection_size.filter(|&p| p < hidden),
                        ..LayerSpec::new(input_size, hidden)
                    },
                };
                input_size = layer.output_size();
                layer
            })
            .collect();
        LstmSpec::new(layers).expect("sizes chain")
    })
}

/// 256 lengths from 10 to 500, evenly: W8 of benches/cases.toml.
fn even_lengths() -> Vec<usize> {
    (0..256).map(|b| 10 + b * 37 % 256 * 490 / 255).collect()
}

#[test]
fn ragged_batches_are_computed_without_padding() {
    let spec = LstmSpec::stack(40, 256, 3).build().unwrap();
    let lengths = even_lengths();
    let rows: usize = lengths.iter().sum();
    let products = |layer: &LayerSpec| layer.hidden_size * (layer.input_size + layer.hidden_size);
    let valid = 8 * (rows * spec.layers().iter().map(products).sum::<usize>()) as u64;
    for wide in [false, true] {
        let plan = Plan::new(&request(&spec, &lengths, PlanLimits { wide, ..DEFAULTS })).unwrap();
        assert_eq!(plan.flops(), valid);
        // A tile at the end of the active rows computes those past them too.
        let mut computed = 0;
        for dispatch in plan.submits.iter().flat_map(|submit| &submit.dispatches) {
            let id = plan.kernels[dispatch.kernel];
            let width = plan.bind_groups[dispatch.bind_group].ranges.iter().find_map(|range| match range.buffer {
                BufferId::Model { layer, part: ModelPart::WeightsIh, .. } => Some(spec.layers()[layer].input_size),
                BufferId::Model { part: ModelPart::WeightsHh, .. } => Some(256),
                _ => None,
            });
            let of_row = 8 * 256 * width.expect("every dispatch has weights") as u64;
            computed += (dispatch.flops / of_row).next_multiple_of(id.rows.into()) * of_row;
        }
        assert!(computed > valid, "tiles of several rows");
        let ratio = computed as f64 / valid as f64;
        assert!(ratio <= 1.10, "{ratio} of the valid steps' operations");
    }
}

#[test]
fn working_memory_is_what_has_to_lie_there() {
    let stack =
        |input, hidden, layers, direction| LstmSpec::stack(input, hidden, layers).direction(direction).build().unwrap();
    let (forward, both) = (Direction::Forward, Direction::Bidirectional);
    for (name, spec, lengths) in [
        ("W1", stack(128, 128, 1, forward), vec![100; 1]),
        ("W2", stack(256, 256, 1, forward), vec![128; 32]),
        ("W3", stack(512, 512, 1, forward), vec![64; 64]),
        ("W4", stack(64, 512, 1, forward), vec![128; 128]),
        ("W5", stack(256, 1024, 1, forward), vec![50; 16]),
        ("W6", stack(80, 256, 2, both), vec![100; 16]),
        ("W8", stack(40, 256, 3, forward), even_lengths()),
        ("W9", stack(768, 768, 1, forward), vec![1024; 16]),
        ("W12", stack(60, 128, 4, both), vec![293; 32]),
    ] {
        let plan = Plan::new(&request(&spec, &lengths, DEFAULTS)).unwrap();
        let all: usize = lengths.iter().sum();
        let chunk = plan.submits.iter().flat_map(|submit| &submit.uploads).filter_map(|upload| match upload {
            Upload::InputRows { rows, .. } => Some(rows.len()),
            _ => None,
        });
        let chunk = chunk.max().unwrap();
        let is_forward = spec.layers()[0].direction == forward;
        // Between layers, and into and out of a reverse direction, a sequence lies as a whole.
        let rows = if is_forward { chunk } else { all };
        let widest = |of: fn(&LayerSpec) -> usize| spec.layers().iter().map(of).max().unwrap();
        let gates = chunk * widest(|layer| layer.num_directions() * layer.gate_rows());
        // A layer between two others reads one plane and writes the next.
        let between = (spec.num_layers() - 1).min(2) * rows * spec.output_size();
        // h before and after, c, and the final h of each layer and direction.
        let states = 4 * spec.num_cells() * lengths.len() * spec.last_layer().hidden_size;
        let least = 4 * (gates + rows * spec.input_size() + between + rows * spec.output_size() + states) as u64;
        let ratio = plan.scratch_bytes() as f64 / least as f64;
        assert!(ratio <= 1.10, "{name}: {} bytes, {ratio} of {least}", plan.scratch_bytes());
    }
}

/// Copies between slots and rows take windows, whose records need room whatever the number of slots.
#[test]
fn states_in_windows_have_room_for_their_records() {
    for direction in [Direction::Forward, Direction::Reverse, Direction::Bidirectional] {
        let spec = LstmSpec::stack(8, 16, 1).direction(direction).build().unwrap();
        for immediates in [false, true] {
            for num_slots in (100..20_000).step_by(97).chain(8180..8200).chain(4080..4110) {
                let limits = PlanLimits { binding_bytes: 1 << 20, buffer_bytes: 64 << 20, immediates, ..DEFAULTS };
                let lengths = [2, 0, 1];
                let mut request = request(&spec, &lengths, limits);
                request.initial = Some(StatesAt::Slots { num_slots });
                request.finals = StatesAt::Slots { num_slots };
                request.outputs.final_state = true;
                let plan = Plan::new(&request).unwrap();
                for upload in plan.submits.iter().flat_map(|submit| &submit.uploads) {
                    if let Upload::Uniforms { buffer: BufferId::Scratch(index), offset_bytes, bytes } = upload {
                        assert!(
                            offset_bytes + bytes.len() as u64 <= plan.scratch[*index].size_bytes,
                            "{num_slots} slots"
                        );
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_keeps_its_promises(
        spec in specs(),
        mut lengths in prop::collection::vec(0..40usize, 1..20),
        budget_kib in 200..4000u64,
        device in any::<bool>(),
        recorded in any::<bool>(),
        states in 0..4usize,
        cells in any::<bool>(),
        sequence in 0..3usize,
        wide in any::<bool>(),
        stacked in any::<bool>(),
        immediates in any::<bool>(),
        shared_memory in any::<bool>(),
        dispatch_flops in prop::sample::select(vec![1, 20_000, 200_000, u64::MAX]),
    ) {
        lengths.push(1);
        let (budget_bytes, bytes) = (budget_kib << 10, 1 << 20);
        let limits =
            PlanLimits { budget_bytes, binding_bytes: bytes, buffer_bytes: bytes, wide, immediates, shared_memory, ..DEFAULTS };
        let mut request = request(&spec, &lengths, limits);
        request.tiles.wave = stacked.then_some(true);
        request.dispatch_flops = dispatch_flops;
        request.tiles.narrow = (wide != stacked).then_some(true);
        request.outputs.cells = cells && spec.last_layer().c_size() > 0;
        request.outputs.sequence = [SequenceOutput::None, SequenceOutput::Last, SequenceOutput::All][sequence];
        request.initial =
            [None, Some(StatesAt::Host), Some(StatesAt::Arrays), Some(StatesAt::Slots { num_slots: 9 })][states];
        if device {
            request.input = RowsAt::Device;
            request.output = RowsAt::Device;
            request.finals = if states == 3 { StatesAt::Slots { num_slots: 9 } } else { StatesAt::Arrays };
            request.recorded = recorded && states != 1;
        }
        let plan = match Plan::new(&request) {
            Ok(plan) => plan,
            Err(e) => {
                prop_assert_eq!(e.kind(), ErrorKind::DeviceLimit);
                return Ok(());
            }
        };
        prop_assert!(plan.scratch_bytes() <= limits.budget_bytes, "{} of {}", plan.scratch_bytes(), limits.budget_bytes);

        let schedule = Schedule::new(&lengths);
        let (mut projected, mut active_steps) = (0usize, 0usize);
        let (mut narrow, mut stacks) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        let mut uniform_ranges: Vec<std::ops::Range<u64>> = Vec::new();
        for submit in &plan.submits {
            if request.recorded {
                prop_assert!(submit.reads.is_empty(), "what is recorded stays on the device");
            }
            for upload in &submit.uploads {
                if let Upload::Uniforms { buffer: BufferId::Scratch(index), offset_bytes, bytes } = upload {
                    let range = *offset_bytes..*offset_bytes + bytes.len() as u64;
                    prop_assert!(range.end <= plan.scratch[*index].size_bytes);
                    let shared = uniform_ranges.iter().any(|r| r.start < range.end && range.start < r.end);
                    prop_assert!(!request.recorded || !shared, "a recording writes {range:?} twice");
                    uniform_ranges.push(range);
                }
            }
            let mut next_immediate = 0;
            for dispatch in &submit.dispatches {
                prop_assert!(dispatch.workgroups.iter().all(|&n| n >= 1 && n <= limits.workgroups));
                let group = &plan.bind_groups[dispatch.bind_group];
                prop_assert_eq!(group.takes_immediates(), limits.immediates && group.kernel.takes_immediates());
                if group.takes_immediates() {
                    let record = dispatch.record_offset_bytes as usize..dispatch.record_offset_bytes as usize + size_of::<Step>();
                    prop_assert_eq!(record.start, next_immediate, "one record after the other");
                    prop_assert!(record.end <= submit.immediates.len());
                    next_immediate = record.end;
                } else {
                    prop_assert_eq!(dispatch.record_offset_bytes % limits.uniform_alignment, 0);
                }
                prop_assert_eq!(group.kernel, plan.kernels[dispatch.kernel].kernel);
                // wgpu refuses a buffer that one dispatch reads and writes.
                for (_, binding, range) in group.bound() {
                    let same = group.ranges.iter().filter(|r| r.buffer == range.buffer);
                    let dummy = range.buffer == BufferId::Dummy;
                    if binding.kind == BindingKind::ReadWrite && !dummy {
                        prop_assert_eq!(same.count(), 1, "{:?} is bound more than once", range.buffer);
                    }
                }
                match group.kernel {
                    Kernel::InputProjection | Kernel::InputProjectionSum => projected += 1,
                    // The second half of a step that has two.
                    Kernel::ProjectionStep
                    | Kernel::ProjectionStepBias
                    | Kernel::NormalizedCell
                    | Kernel::NormalizedCellProjected
                    | Kernel::GruCandidate
                    | Kernel::PoolRows
                    | Kernel::CopyRows => {}
                    Kernel::Wave => {
                        active_steps += dispatch.workgroups[2] as usize;
                        stacks.extend(group.ranges.iter().filter_map(|range| match range.buffer {
                            BufferId::Stack { layer, .. } => Some(layer),
                            _ => None,
                        }));
                    }
                    kernel => {
                        let step = step_of(submit, group, dispatch);
                        active_steps += if kernel.is_sequence() { step.num_steps as usize } else { 1 };
                        if kernel.is_narrow() {
                            for range in &group.ranges {
                                if let BufferId::Model { layer, part: ModelPart::NarrowInput, .. } = range.buffer {
                                    narrow.insert(layer);
                                }
                            }
                        }
                        // What the first timestep reads of the input or its gates is there.
                        prop_assert!(kernel.bindings()[1].name == "x_gates" || kernel.is_narrow());
                        let (_, _, gates) = group.bound().find(|(n, ..)| *n == 1).unwrap();
                        let BufferId::Scratch(read) = gates.buffer else {
                            return Err(TestCaseError::fail("gates are a working buffer"));
                        };
                        for at in step.directions.iter().filter(|at| at.num_active > 0) {
                            let width = if kernel.is_narrow() { at.x_k4 } else { columns_of_gates(kernel, &step) };
                            let end = u64::from(at.gates_first) + u64::from(at.num_active * width);
                            prop_assert!(end * 16 <= plan.scratch[read].size_bytes, "{kernel:?} reads to {end}");
                            prop_assert!(width > 0);
                        }
                    }
                }
                for range in &group.ranges {
                    prop_assert_eq!(range.offset_bytes % 256, 0);
                    if let BufferId::Scratch(index) = range.buffer {
                        prop_assert!(range.offset_bytes + range.size_bytes <= plan.scratch[index].size_bytes);
                        // Uniforms are reached by offset, or in windows.
                        let all = plan.scratch[index].size_bytes - range.offset_bytes;
                        let bound = if range.size_bytes == 0 { all } else { range.size_bytes };
                        prop_assert!(bound <= limits.binding_bytes, "{bound} bytes are bound");
                        prop_assert!(plan.scratch[index].size_bytes <= limits.binding_bytes || plan.scratch[index].uniform);
                    }
                }
            }
            prop_assert_eq!(next_immediate, submit.immediates.len());
            for read in &submit.reads {
                match (read.way, read.range.buffer) {
                    (Readback::Staged { buffer, offset_bytes }, _) => {
                        prop_assert!(offset_bytes + read.range.size_bytes <= submit.staging_bytes[buffer]);
                    }
                    // Only where nothing is written after the rows were.
                    (Readback::InPlace, BufferId::Scratch(index)) => {
                        prop_assert!(limits.shared_memory && plan.scratch[index].mapped);
                        let bound = plan.bind_groups.iter().flat_map(BindGroup::bound);
                        let is_read = |(_, binding, range): (u32, &Binding, &BufferRange)| {
                            range.buffer == read.range.buffer && binding.kind == BindingKind::Read
                        };
                        prop_assert!(!bound.into_iter().any(is_read), "a kernel reads what is mapped");
                        prop_assert!(std::ptr::eq(submit, &plan.submits[plan.submits.len() - 1]));
                        let is_rows = matches!(read.content, Content::Rows { .. });
                        prop_assert!(is_rows, "{:?} is mapped", read.content);
                        prop_assert!(read.range.offset_bytes + read.range.size_bytes <= plan.scratch[index].size_bytes);
                    }
                    (Readback::InPlace, other) => return Err(TestCaseError::fail(format!("{other:?} is mapped"))),
                }
            }
            prop_assert!(submit.staging_bytes.iter().all(|&size| size <= limits.buffer_bytes));
        }
        let in_steps = narrow.iter().map(|&l| spec.layers()[l].num_directions()).sum::<usize>();
        // The layers of a stack but for the first.
        let is_forward = |l: &usize| spec.layers().get(*l).is_some_and(|layer| layer.direction == Direction::Forward);
        let in_waves = stacks.iter().map(|&first| (first + 1..).take_while(is_forward).count()).sum::<usize>();
        prop_assert!(projected + in_steps + in_waves >= spec.num_cells());
        let all_steps = spec.num_layers() * schedule.num_steps();
        // Short dispatches have some of the columns of a timestep.
        prop_assert!(active_steps >= all_steps, "a step kernel per layer and timestep");
        prop_assert!(active_steps == all_steps || dispatch_flops < u64::MAX, "no more than one");
    }
}
