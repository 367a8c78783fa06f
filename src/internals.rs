//! Hidden re-exports for the tests, examples and benches of this package; no stability is promised.

#![allow(missing_docs, reason = "documented where they are defined")]

#[cfg(feature = "gpu")]
pub use gpu_internals::*;

#[cfg(feature = "gpu")]
mod gpu_internals {
    pub use crate::batch::RowOrder;
    pub use crate::kernels::params;
    pub use crate::kernels::{
        Binding, BindingKind, CellCode, Kernel, KernelId, LANE_TILES, LayerLayout, ModelPart, NONE, ROW_ALIGN,
        ROW_TILES, SEGMENT, SEQUENCE_UNITS, SLICE_TILES, padded,
    };
    pub use crate::pack::{PackedLayer, pack_input_rows, pack_layer, unpack_layer};
    pub use crate::plan::{
        BindGroup, BufferId, BufferRange, Caller, Content, Dispatch, Plan, PlanLimits, PlanRequest, Read, Readback,
        RowsAt, ScratchBuffer, StatesAt, Submit, TileOverride, Upload,
    };
    pub use crate::schedule::Schedule;

    use crate::error::Result;
    use crate::gpu::{Job, Waiting};
    pub use crate::gpu::{Rewrite, TripKind};

    /// Brings about a fault at the `n`-th point from now where it is possible.
    pub fn arm_fault(engine: &Engine, kind: TripKind, n: u32) {
        if let Some(context) = engine.context() {
            context.trip.arm(kind, n);
        }
    }

    /// Whether the fault has not happened; it will not any more.
    pub fn disarm_fault(engine: &Engine) -> bool {
        engine.context().is_some_and(|context| context.trip.disarm())
    }

    /// Tells whether anything of an engine's device is left.
    pub fn device_watch(engine: &Engine) -> impl Fn() -> bool + use<> {
        let weak = engine.context().map(std::sync::Arc::downgrade);
        move || weak.as_ref().is_some_and(|w| w.strong_count() > 0)
    }
    use crate::{BatchOutput, Engine, Lstm, SequenceBatch};

    /// Fills scratch buffers with `value` before each run.
    pub fn set_poison(engine: &Engine, value: Option<f32>) {
        if let Some(context) = engine.context() {
            context.set_poison(value);
        }
    }

    /// Compiles kernels from now on as `rewrite` makes them; they may write to `reports`, a storage buffer at group 1, binding
    /// 0. At most once, before the engine computes.
    pub fn watch(engine: &Engine, rewrite: Rewrite, reports: &wgpu::Buffer) {
        if let Some(context) = engine.context() {
            context.watch(rewrite, reports);
        }
    }

    /// Times submits from now on, or no longer; the engine must have been opened with timestamps. `false` if its device has
    /// none.
    pub fn time_submits(engine: &Engine, timed: bool) -> bool {
        engine.context().is_some_and(|context| {
            let has = context.device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
            context.timestamps.store(timed && has, std::sync::atomic::Ordering::Relaxed);
            has
        })
    }

    /// The adapter N of `gpu:N`.
    pub async fn adapter(index: usize) -> Option<wgpu::Adapter> {
        Some(crate::gpu::list().await.into_iter().nth(index)?.adapter)
    }

    /// An engine as `auto` opens it, on the adapter that `options` names, software adapters included; with measured costs
    /// unless some are given.
    pub fn open_auto(options: &crate::EngineOptions, costs: Option<crate::Costs>) -> Result<Engine> {
        pollster::block_on(Engine::open_auto(options, costs))
    }

    /// The number of pipelines that the engine has compiled.
    pub fn num_pipelines(engine: &Engine) -> usize {
        engine.context().map_or(0, |c| c.pipelines.len())
    }

    /// Bytes of idle scratch buffers.
    pub fn pooled_bytes(engine: &Engine) -> u64 {
        engine.context().map_or(0, |c| c.idle_bytes())
    }

    /// Bytes of those that models and streams keep for a run like their last.
    pub fn kept_bytes(engine: &Engine) -> u64 {
        engine.context().map_or(0, |c| c.kept_bytes())
    }

    /// How long the self-test takes once its pipeline is compiled. `None` if the engine is not on a GPU.
    pub fn self_test_time(engine: &Engine) -> Option<Result<std::time::Duration>> {
        let context = engine.context()?;
        let begun = std::time::Instant::now();
        Some(pollster::block_on(crate::gpu::self_test(context)).map(|_| begun.elapsed()))
    }

    /// What a test fixes of a run.
    #[derive(Default, Clone, Copy)]
    pub struct Fixed {
        /// Tiles.
        pub tiles: TileOverride,
        /// Memory budget.
        pub budget_bytes: Option<u64>,
        /// The most operations of a dispatch.
        pub dispatch_flops: Option<u64>,
    }

    impl Fixed {
        fn job<'a>(self, batch: &'a SequenceBatch<'_>) -> Job<'a> {
            Job {
                tiles: self.tiles,
                budget_bytes: self.budget_bytes,
                dispatch_flops: self.dispatch_flops,
                ..Job::of(batch)
            }
        }
    }

    /// Runs a batch so. `None` if the model is not on a GPU.
    pub fn run_fixed(lstm: &Lstm, batch: &SequenceBatch<'_>, fixed: Fixed) -> Option<Result<BatchOutput>> {
        let model = lstm.gpu()?;
        Some(
            batch
                .validate(lstm.spec())
                .and_then(|()| pollster::block_on(model.run(fixed.job(batch), Waiting::Blocking, &|_| ()))),
        )
    }

    /// The plan of a batch on the model's device. `None` if the model is not on a GPU.
    pub fn plan(lstm: &Lstm, batch: &SequenceBatch<'_>, fixed: Fixed) -> Option<Result<Plan>> {
        Some(lstm.gpu()?.plan(&fixed.job(batch), false))
    }
}
