//! The contract between shaders and host: what the kernel table promises, read back from the WGSL by naga.

use std::collections::BTreeMap;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, Override, StorageAccess, TypeInner};
use wgpu_lstm::internals::params::{
    CopyParams, DirectionStep, InputParams, MeasureParams, PoolParams, SelfTestParams, Step, WaveStep,
};
use wgpu_lstm::internals::{Binding, BindingKind, CellCode, Kernel, KernelId, NONE, SEGMENT, SEQUENCE_UNITS};

use crate::snapshot;
use crate::support::indices::{End, checked};

fn parse(id: KernelId) -> Module {
    let source = id.source();
    naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{}: {}", id.name(), e.emit_to_string(&source)))
}

fn validate(id: KernelId, module: &Module) -> ModuleInfo {
    // No capability beyond WebGPU's core is granted: nothing may need immediates, subgroups or f16. The one that naga
    // lists is for drivers below WebGPU that cannot unpack halves.
    Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32)
        .validate(module)
        .unwrap_or_else(|e| panic!("{}: {e:?}", id.name()))
}

fn layouter(module: &Module) -> naga::proc::Layouter {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("validated types have a layout");
    layouter
}

#[test]
fn every_binding_is_as_the_kernel_table_says() {
    for id in KernelId::all() {
        let module = parse(id);
        validate(id, &module);
        let layouter = layouter(&module);
        let mut found = BTreeMap::new();
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = variable.binding else {
                continue;
            };
            assert_eq!(binding.group, 0, "{}", id.name());
            found.insert(binding.binding, variable);
        }
        let table = id.kernel.bindings();
        assert_eq!(found.len(), table.len(), "{}: number of bindings", id.name());
        assert!(
            table.iter().filter(|b| matches!(b.kind, BindingKind::Read | BindingKind::ReadWrite)).count() <= 8,
            "{}: WebGPU's default is 8 storage buffers",
            id.name()
        );
        for (index, Binding { name, kind }) in table.iter().enumerate() {
            let variable = found[&(index as u32)];
            assert_eq!(variable.name.as_deref(), Some(*name), "{} binding {index}", id.name());
            match kind {
                BindingKind::Uniform { size_bytes } | BindingKind::DynamicUniform { size_bytes } => {
                    assert_eq!(variable.space, AddressSpace::Uniform, "{} {name}", id.name());
                    assert_eq!(layouter[variable.ty].size, *size_bytes, "{} {name}: size", id.name());
                }
                BindingKind::Read => {
                    let access = StorageAccess::LOAD;
                    assert_eq!(variable.space, AddressSpace::Storage { access }, "{} {name}", id.name());
                }
                BindingKind::ReadWrite => {
                    let access = StorageAccess::LOAD | StorageAccess::STORE;
                    assert_eq!(variable.space, AddressSpace::Storage { access }, "{} {name}", id.name());
                }
            }
        }
    }
}

/// (member, offset) of a host struct; the names are written once more because Rust has no reflection.
macro_rules! members {
    ($ty:ty: $($member:ident),+ $(,)?) => {
        (stringify!($ty), size_of::<$ty>(), vec![$((stringify!($member), std::mem::offset_of!($ty, $member))),+])
    };
}

#[test]
fn structs_have_the_same_members_on_both_sides() {
    let step = members!(Step: hidden_size, hidden_stride, h_stride, batch_size, y_stride, y_h, y_c, state_h_n,
        state_last, column_first, column_end, weight_first, weight_columns, num_steps, record_first, record_words, directions);
    let direction = members!(DirectionStep: gates_first, num_active, y_row, final_from, last_from, x_k4, padding_0,
        padding_1);
    let wave = members!(WaveStep: step, below_first, below_k4, w_ih_first, w_hh_first, bias_first, h_first, state_first,
        padding_0);
    let input = members!(InputParams: rows, columns, x0_first, x0_k4, x1_first, x1_k4, gates_first, x0_stride,
        x1_stride, column_first, column_end, weight_first, weight_columns);
    let copy = members!(CopyParams: rows, width, dst_width, scatter, src_first, src_stride, dst_first, dst_stride,
        first_row, table_first, listed_first, listed_end);
    let pool = members!(PoolParams: ranks, rank_first, width4, t_first, t_end, row_first, y_stride, y_h, pooled_first, is_max,
        sums_planes, is_end);
    let measure = members!(MeasureParams: iterations, num_values, padding_0, padding_1);
    let self_test = members!(SelfTestParams: num_probes, long_loop, outer_loop, inner_loop);
    for id in KernelId::all() {
        let expected: Vec<(&str, _)> = match id.kernel {
            Kernel::InputProjection | Kernel::InputProjectionSum => vec![("Params", &input)],
            Kernel::CopyRows => vec![("Params", &copy)],
            Kernel::PoolRows => vec![("Params", &pool)],
            Kernel::SelfTest => vec![("Params", &self_test)],
            Kernel::Measure => vec![("Params", &measure)],
            Kernel::Wave => vec![("WaveStep", &wave), ("Step", &step), ("DirectionStep", &direction)],
            _ => vec![("Step", &step), ("DirectionStep", &direction)],
        };
        let module = parse(id);
        for (name, (host, size, members)) in expected {
            let (_, ty) = module
                .types
                .iter()
                .find(|(_, ty)| ty.name.as_deref() == Some(name))
                .unwrap_or_else(|| panic!("{}: no struct {name}", id.name()));
            let TypeInner::Struct { members: found, span } = &ty.inner else { panic!("{name} is no struct") };
            let found: Vec<_> = found.iter().map(|m| (m.name.as_deref().unwrap_or(""), m.offset as usize)).collect();
            assert_eq!(&found, members, "{}: {name} against {host}", id.name());
            assert_eq!(*span as usize, *size, "{}: {name} against {host}", id.name());
        }
    }
}

#[test]
fn no_kernel_divides_an_integer_by_what_could_be_zero() {
    use naga::{BinaryOperator, Expression, Literal, ScalarKind};
    let mut divisions = 0;
    for id in KernelId::all() {
        let module = parse(id);
        let info = validate(id, &module);
        let functions = module.functions.iter().map(|(handle, f)| (f, &info[handle]));
        let entry_points = module.entry_points.iter().enumerate().map(|(i, e)| (&e.function, info.get_entry_point(i)));
        for (function, info) in functions.chain(entry_points) {
            let above_zero = |expressions: &naga::Arena<Expression>, handle| match expressions[handle] {
                Expression::Literal(Literal::U32(value)) => value > 0,
                Expression::Literal(Literal::I32(value)) => value > 0,
                _ => false,
            };
            for (_, expression) in function.expressions.iter() {
                let Expression::Binary { op: BinaryOperator::Divide | BinaryOperator::Modulo, right, .. } = *expression
                else {
                    continue;
                };
                let kind = info[right].ty.inner_with(&module.types).scalar_kind();
                if !matches!(kind, Some(ScalarKind::Sint | ScalarKind::Uint)) {
                    continue;
                }
                divisions += 1;
                let is_constant = match function.expressions[right] {
                    Expression::Constant(c) => above_zero(&module.global_expressions, module.constants[c].init),
                    _ => above_zero(&function.expressions, right),
                };
                // `measure` divides by the number of its values, which the host sets.
                assert!(is_constant || id.kernel == Kernel::Measure, "{}: a divisor may be zero", id.name());
            }
        }
    }
    assert!(divisions > 100, "{divisions} divisions were found");
}

/// What the tests on adapters count (`tests/gpu/indices.rs`) are all indices that can be out of range.
#[test]
fn every_index_is_counted_when_indices_are() {
    use naga::{BinaryOperator, Expression, Literal};
    let (mut counted, mut components) = (0, 0);
    for id in KernelId::all() {
        let mut sources = vec![id.source()];
        if id.kernel.takes_immediates() {
            sources.push(id.source_with_immediates());
        }
        for source in sources {
            let source = checked(id, &source, End::Own);
            let module = naga::front::wgsl::parse_str(&source)
                .unwrap_or_else(|e| panic!("{}: {}", id.name(), e.emit_to_string(&source)));
            let info = Validator::new(ValidationFlags::all(), Capabilities::all())
                .validate(&module)
                .unwrap_or_else(|e| panic!("{}: {}", id.name(), e.emit_to_string(&source)));
            let (check, _) =
                module.functions.iter().find(|(_, f)| f.name.as_deref() == Some("in_range")).expect("it was added");
            let functions = module
                .functions
                .iter()
                .map(|(handle, f)| (f, &info[handle]))
                .filter(|(f, _)| f.name.as_deref() != Some("in_range"));
            let entry_points =
                module.entry_points.iter().enumerate().map(|(i, e)| (&e.function, info.get_entry_point(i)));
            for (function, info) in functions.chain(entry_points) {
                for (_, expression) in function.expressions.iter() {
                    let (base, index) = match *expression {
                        Expression::Access { base, index } => (base, Some(index)),
                        Expression::AccessIndex { base, .. } => (base, None),
                        _ => continue,
                    };
                    let mut ty = info[base].ty.inner_with(&module.types);
                    if let TypeInner::Pointer { base, .. } = ty {
                        ty = &module.types[*base].inner;
                    }
                    let is_checked = index.is_some_and(
                        |i| matches!(function.expressions[i], Expression::CallResult(function) if function == check),
                    );
                    match ty {
                        TypeInner::Array { size: naga::ArraySize::Dynamic, .. } => {
                            assert!(is_checked, "{}: an index of a storage buffer", id.name());
                            counted += 1;
                        }
                        // naga checks literals itself.
                        TypeInner::Array { .. } => {
                            assert!(is_checked || index.is_none(), "{}: an index of an array", id.name());
                            counted += usize::from(is_checked);
                        }
                        TypeInner::Struct { .. } => {}
                        // Components of a vector: by a name, or modulo 4.
                        _ => {
                            let Some(index) = index else { continue };
                            let Expression::Binary { op: BinaryOperator::Modulo, right, .. } =
                                function.expressions[index]
                            else {
                                panic!("{}: an index of {ty:?}", id.name());
                            };
                            let four = &function.expressions[right];
                            assert!(matches!(four, Expression::Literal(Literal::U32(4))), "{}: {four:?}", id.name());
                            components += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(counted > 1000 && components > 10, "{counted} indices and {components} components were found");
}

#[test]
fn overrides_constants_and_entry_points_are_those_of_the_table() {
    for id in KernelId::all() {
        let module = parse(id);
        let mut overrides: Vec<_> =
            module.overrides.iter().filter_map(|(_, o): (_, &Override)| o.name.clone()).collect();
        overrides.sort();
        let mut constants: Vec<_> = id.constants().iter().map(|(name, _)| (*name).to_owned()).collect();
        constants.sort();
        assert_eq!(overrides, constants, "{}", id.name());
        let size = id.constants().into_iter().filter(|(name, _)| name.starts_with("WG_"));
        let invocations: f64 = size.map(|(_, value)| value).product();
        assert!(invocations <= 256.0, "{}: WebGPU's default is 256 invocations", id.name());
        let entry_points: Vec<_> = module.entry_points.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(entry_points, [id.kernel.entry_point()]);
        let constant = |name: &str| {
            module.constants.iter().find(|(_, c)| c.name.as_deref() == Some(name)).map(|(_, c)| {
                match module.global_expressions[c.init] {
                    naga::Expression::Literal(naga::Literal::U32(value)) => value,
                    ref other => panic!("{name} is {other:?}"),
                }
            })
        };
        if id.kernel.has_row_tile() {
            assert_eq!(constant("ROWS"), Some(id.rows), "{}", id.name());
            assert_eq!(constant("SEGMENT_K4"), Some(SEGMENT as u32 / 4), "{}", id.name());
        }
        if id.kernel.is_sequence() {
            assert_eq!(constant("UNITS"), Some(SEQUENCE_UNITS as u32));
            assert_eq!(constant("STEP_WORDS"), Some(std::mem::offset_of!(Step, directions) as u32 / 4));
            assert_eq!(constant("DIRECTION_WORDS"), Some(size_of::<DirectionStep>() as u32 / 4));
        }
        if id.kernel == Kernel::Wave {
            assert_eq!(constant("STEP_WORDS"), Some(std::mem::offset_of!(Step, directions) as u32 / 4));
            assert_eq!(constant("WAVE_WORDS"), Some(size_of::<Step>() as u32 / 4));
        }
        if let Some(none) = constant("NONE") {
            assert_eq!(none, NONE);
        }
    }
}

#[test]
fn workgroup_memory_is_within_the_default_limit() {
    for id in KernelId::all() {
        let module = parse(id);
        let layouter = layouter(&module);
        let bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, v)| v.space == AddressSpace::WorkGroup)
            .map(|(_, v)| layouter[v.ty].size)
            .sum();
        assert!(bytes <= 16384, "{}: {bytes} bytes of workgroup memory", id.name());
    }
}

#[test]
fn labels_and_names_are_unique() {
    let ids = KernelId::all();
    let mut names: Vec<_> = ids.iter().map(|id| id.name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), ids.len());
    assert!(ids.len() <= 160, "the browser compiles all of them in each CI run, found {}", ids.len());
}

#[test]
fn every_variant_is_written_as_spirv_msl_and_hlsl() {
    for id in KernelId::all() {
        let module = parse(id);
        let info = validate(id, &module);
        write_everywhere(id, &module, &info);
    }
}

/// Writes a module for every back end.
fn write_everywhere(id: KernelId, module: &Module, info: &ModuleInfo) {
    let constants: naga::back::PipelineConstants =
        id.constants().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let (module, info) = naga::back::pipeline_constants::process_overrides(module, info, None, &constants)
        .unwrap_or_else(|e| panic!("{}: {e:?}", id.name()));

    let words = naga::back::spv::write_vec(&module, &info, &naga::back::spv::Options::default(), None)
        .unwrap_or_else(|e| panic!("{} SPIR-V: {e:?}", id.name()));
    assert_eq!(words[0], 0x0723_0203, "{}: SPIR-V starts with its magic number", id.name());

    let options = naga::back::msl::Options { fake_missing_bindings: true, ..Default::default() };
    let (msl, _) =
        naga::back::msl::write_string(&module, &info, &options, &naga::back::msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{} MSL: {e:?}", id.name()));
    assert!(msl.contains(id.kernel.entry_point()), "{}: MSL lacks the entry point", id.name());

    let mut hlsl = String::new();
    let immediates_target = Some(naga::back::hlsl::BindTarget::default());
    let options = naga::back::hlsl::Options { immediates_target, ..Default::default() };
    let pipeline = naga::back::hlsl::PipelineOptions::default();
    naga::back::hlsl::Writer::new(&mut hlsl, &options, &pipeline)
        .write(&module, &info, None)
        .unwrap_or_else(|e| panic!("{} HLSL: {e:?}", id.name()));
    assert!(hlsl.contains(id.kernel.entry_point()), "{}: HLSL lacks the entry point", id.name());
}

/// A kernel of one timestep is the same but for where its record comes from.
#[test]
fn a_record_can_come_as_immediates() {
    let ids: Vec<_> = KernelId::all().into_iter().filter(|id| id.kernel.takes_immediates()).collect();
    let others = [
        Kernel::InputProjection,
        Kernel::InputProjectionSum,
        Kernel::Sequence,
        Kernel::NarrowSequence,
        Kernel::Wave,
        Kernel::CopyRows,
        Kernel::PoolRows,
        Kernel::SelfTest,
        Kernel::Measure,
    ];
    for kernel in Kernel::ALL {
        assert_eq!(kernel.takes_immediates(), !others.contains(&kernel), "{}", kernel.name());
        assert_eq!(ids.iter().any(|id| id.kernel == kernel), !others.contains(&kernel), "{}", kernel.name());
    }
    for id in ids {
        let source = id.source_with_immediates();
        let indexed = source.split("timestep.directions[").skip(1).all(|rest| rest.starts_with(['0', '1']));
        assert!(indexed, "{}: immediates are reached by constants", id.name());
        let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{}: {e}", id.name()));
        let capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32 | Capabilities::IMMEDIATES;
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|e| panic!("{}: {e:?}", id.name()));
        let layouter = layouter(&module);
        let immediate: Vec<_> =
            module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::Immediate).collect();
        let [(_, record)] = immediate.as_slice() else { panic!("{}: {} immediates", id.name(), immediate.len()) };
        assert_eq!((record.name.as_deref(), layouter[record.ty].size), (Some("timestep"), 128), "{}", id.name());
        assert_eq!(size_of::<Step>(), 128);
        let mut bound: Vec<_> =
            module.global_variables.iter().filter_map(|(_, v)| Some((v.binding?.binding, v.name.clone()?))).collect();
        bound.sort();
        let expected = id.kernel.bindings().iter().enumerate().skip(1).map(|(n, b)| (n as u32, b.name.to_owned()));
        assert!(bound.iter().cloned().eq(expected), "{}: {bound:?}", id.name());
        write_everywhere(id, &module, &info);
    }
}

#[test]
fn generated_code_is_as_reviewed() {
    let sliced = |kernel, cell, rows, (lanes, slices), from: &str| {
        let source = KernelId { kernel, cell, rows, lanes, slices, halves: false }.source();
        source[source.find(from).expect("the source ends with generated text")..].to_owned()
    };
    let generated = |kernel, cell, rows, from: &str| sliced(kernel, cell, rows, (64, 1), from);
    for rows in [1, 4] {
        let text = generated(Kernel::RecurrentStep, CellCode::default(), rows, "// Generated by src/kernels/rows.rs");
        snapshot::check(&format!("rows{rows}.wgsl"), &text);
    }
    let from = "// Generated by src/kernels/rows.rs";
    let text = sliced(Kernel::RecurrentStep, CellCode::default(), 1, (16, 8), from);
    snapshot::check("rows1_slices8.wgsl", &text);
    let text = generated(Kernel::InputProjectionSum, CellCode::default(), 1, from);
    snapshot::check("rows1_sum.wgsl", &text);
    let [both, same] = CellCode::examples();
    for (name, cell) in [("default", CellCode::default()), ("both", both), ("same", same)] {
        let text = generated(Kernel::NormalizedCell, cell, 1, "// Generated by src/kernels/cell.rs");
        snapshot::check(&format!("cell_{name}.wgsl"), &text);
    }
}
