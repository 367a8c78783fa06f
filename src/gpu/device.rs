//! An opened or borrowed device: its limits, its errors as values, its pipelines and its pool of scratch buffers.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};

use super::faults::Faults;
use super::pace::Pace;
use super::pipelines::Pipelines;
use super::trip::{Trip, TripKind};
use super::wait::{Ownership, Waiter, poll};
use crate::counters::Tally;
use crate::error::{Error, ErrorKind, Result, bail};
use crate::kernels::params::Step;
use crate::kernels::{LARGEST_WORKGROUP, WORKGROUP_SIZE};
use crate::options::{EngineOptions, LimitsProfile, Precision, Tuning};
use crate::plan::PlanLimits;

/// Bytes of working buffers of one run unless the options say otherwise.
pub(crate) const DEFAULT_BUDGET_BYTES: u64 = 1 << 30;
/// Storage buffers of the kernel that binds most.
const NEEDED_STORAGE_BUFFERS: u32 = 8;
/// WebGPU's default; no kernel takes more.
const NEEDED_WORKGROUP_BYTES: u32 = 16 << 10;
/// WebGPU's default, which plans rely on.
const NEEDED_WORKGROUPS: u32 = 65535;
/// Kernels count in u32, the smallest elements have four bytes, and a tile may step past the last row before it is held back.
const LARGEST_BINDING_BYTES: u64 = 4 << 30;
/// The record of a timestep.
const STEP_BYTES: u32 = size_of::<Step>() as u32;

/// An opened device; shared by all models of an engine.
pub(crate) struct Context {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: PlanLimits,
    /// `min_storage_buffer_offset_alignment`
    pub(crate) storage_alignment: u32,
    pub(crate) faults: Arc<Faults>,
    pub(crate) pipelines: Pipelines,
    pub(crate) dummy: wgpu::Buffer,
    pub(crate) waiter: Waiter,
    pub(crate) pace: Pace,
    pub(crate) tally: Arc<Tally>,
    pub(crate) trip: Trip,
    /// Whether submits are timed by the device's clock.
    pub(crate) timestamps: AtomicBool,
    in_use_bytes: AtomicU64,
    /// Of scratch buffers that models and streams keep for their next run.
    kept_bytes: AtomicU64,
    pool: Mutex<Pool>,
    /// Bits of the f32 that scratch is filled with before each run; 0 for none. Set by tests.
    poison: AtomicU32,
}

/// The limits that the kernels need and those that larger models profit from.
pub(crate) fn required_limits(adapter: &wgpu::Adapter, profile: LimitsProfile) -> wgpu::Limits {
    let has = adapter.limits();
    // What no kernel needs (textures, vertices) must not keep a device from opening.
    let mut required = wgpu::Limits::default().or_worse_values_from(&has);
    required.max_storage_buffers_per_shader_stage = NEEDED_STORAGE_BUFFERS;
    required.max_compute_invocations_per_workgroup = LARGEST_WORKGROUP.min(has.max_compute_invocations_per_workgroup);
    required.max_compute_workgroup_size_x = LARGEST_WORKGROUP.min(has.max_compute_workgroup_size_x);
    required.max_compute_workgroup_size_y = WORKGROUP_SIZE;
    required.max_compute_workgroup_size_z = 1;
    required.max_compute_workgroup_storage_size = NEEDED_WORKGROUP_BYTES;
    if profile == LimitsProfile::Adapter {
        required.max_storage_buffer_binding_size = has.max_storage_buffer_binding_size;
        required.max_buffer_size = has.max_buffer_size;
        required.min_uniform_buffer_offset_alignment = has.min_uniform_buffer_offset_alignment;
        required.min_storage_buffer_offset_alignment = has.min_storage_buffer_offset_alignment;
        if required_features(adapter, profile).contains(wgpu::Features::IMMEDIATES) {
            required.max_immediate_size = STEP_BYTES;
        }
    }
    required
}

/// The features that the kernels use, if the adapter has them.
pub(crate) fn required_features(adapter: &wgpu::Adapter, profile: LimitsProfile) -> wgpu::Features {
    let (features, info) = (adapter.features(), adapter.get_info());
    let mut required = wgpu::Features::empty();
    required.set(wgpu::Features::IMMEDIATES, takes_immediates(features, &adapter.limits(), info.backend, profile));
    required.set(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS, shares_memory(features, info.device_type, profile));
    required
}

/// Whether the host can read what kernels wrote without a copy, and loses nothing by it.
fn shares_memory(features: wgpu::Features, device_type: wgpu::DeviceType, profile: LimitsProfile) -> bool {
    profile == LimitsProfile::Adapter
        && features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
        && matches!(device_type, wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu)
}

/// Whether records of timesteps come as immediates. OpenGL has none: wgpu makes many calls of one.
fn takes_immediates(
    features: wgpu::Features,
    limits: &wgpu::Limits,
    backend: wgpu::Backend,
    profile: LimitsProfile,
) -> bool {
    profile == LimitsProfile::Adapter
        && features.contains(wgpu::Features::IMMEDIATES)
        && limits.max_immediate_size >= STEP_BYTES
        && backend != wgpu::Backend::Gl
}

/// A new buffer, not mapped.
pub(super) fn new_buffer(device: &wgpu::Device, label: &str, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
}

/// The features that the options ask for, as far as the adapter has them.
fn wanted_features(adapter: &wgpu::Adapter, options: &EngineOptions) -> wgpu::Features {
    let wanted = if options.timestamps { wgpu::Features::TIMESTAMP_QUERY } else { wgpu::Features::empty() };
    wanted & adapter.features()
}

/// What a device lacks; empty for one that every kernel runs on.
pub(super) fn missing_limits(has: &wgpu::Limits) -> Vec<String> {
    let needs = [
        ("max_storage_buffers_per_shader_stage", has.max_storage_buffers_per_shader_stage, NEEDED_STORAGE_BUFFERS),
        ("max_compute_invocations_per_workgroup", has.max_compute_invocations_per_workgroup, WORKGROUP_SIZE),
        ("max_compute_workgroup_size_x", has.max_compute_workgroup_size_x, WORKGROUP_SIZE),
        ("max_compute_workgroup_storage_size", has.max_compute_workgroup_storage_size, NEEDED_WORKGROUP_BYTES),
        ("max_compute_workgroups_per_dimension", has.max_compute_workgroups_per_dimension, NEEDED_WORKGROUPS),
    ];
    let missing = needs.into_iter().filter(|(_, has, needs)| has < needs);
    missing.map(|(name, has, needs)| format!("{name} is {has}, {needs} needed")).collect()
}

impl Context {
    /// Opens `adapter` and tests it.
    pub(crate) async fn open(adapter: &wgpu::Adapter, options: &EngineOptions) -> Result<Self> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("lstm.device"),
            required_limits: required_limits(adapter, options.limits),
            required_features: required_features(adapter, options.limits) | wanted_features(adapter, options),
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::new(ErrorKind::DeviceLimit, format!("the device cannot be opened: {e}")))?;
        let faults = Arc::new(Faults::default());
        let seen = faults.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| seen.note(one_line(&e))));
        let seen = faults.clone();
        device.set_device_lost_callback(move |reason, message| seen.mark_lost(format!("{reason:?} {message}")));
        Self::on(device, queue, options, faults, Ownership::Own).await
    }

    /// Takes the device of an application and tests it; its handlers stay the application's.
    pub(crate) async fn borrow(device: wgpu::Device, queue: wgpu::Queue, options: &EngineOptions) -> Result<Self> {
        Self::on(device, queue, options, Arc::new(Faults::default()), Ownership::Borrowed).await
    }

    async fn on(
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: &EngineOptions,
        faults: Arc<Faults>,
        ownership: Ownership,
    ) -> Result<Self> {
        let has = device.limits();
        let missing = missing_limits(&has);
        if !missing.is_empty() {
            bail!(DeviceLimit, "the device is too small: {}", missing.join("; "));
        }
        let mut limits = PlanLimits {
            binding_bytes: has.max_storage_buffer_binding_size.min(LARGEST_BINDING_BYTES),
            buffer_bytes: has.max_buffer_size,
            workgroups: has.max_compute_workgroups_per_dimension,
            uniform_alignment: has.min_uniform_buffer_offset_alignment,
            budget_bytes: options.memory_budget_bytes.unwrap_or(DEFAULT_BUDGET_BYTES),
            loop_trips: None,
            wide: match options.tuning {
                Tuning::Adapter => device.adapter_info().device_type != wgpu::DeviceType::Cpu,
                Tuning::ManyLanes => true,
                Tuning::FewLanes => false,
            } && has.max_compute_invocations_per_workgroup.min(has.max_compute_workgroup_size_x)
                >= LARGEST_WORKGROUP,
            halves: options.precision == Precision::F16Weights,
            immediates: takes_immediates(device.features(), &has, device.adapter_info().backend, options.limits),
            shared_memory: shares_memory(device.features(), device.adapter_info().device_type, options.limits),
        };
        let mut storage_alignment = has.min_storage_buffer_offset_alignment;
        if options.limits == LimitsProfile::WebGpuDefaults {
            // A borrowed device may allow more than is to be used.
            let web = wgpu::Limits::default();
            limits.binding_bytes = limits.binding_bytes.min(web.max_storage_buffer_binding_size);
            limits.buffer_bytes = limits.buffer_bytes.min(web.max_buffer_size);
            limits.uniform_alignment = limits.uniform_alignment.max(web.min_uniform_buffer_offset_alignment);
            storage_alignment = storage_alignment.max(web.min_storage_buffer_offset_alignment);
        }
        if let Some(bytes) = options.max_binding_bytes {
            limits.binding_bytes = limits.binding_bytes.min(bytes);
        }
        let dummy = new_buffer(&device, "lstm.dummy", 512, wgpu::BufferUsages::STORAGE);
        let mut context = Self {
            pipelines: Pipelines::new(&device, limits.immediates),
            waiter: Waiter::new(device.clone(), faults.clone(), ownership),
            pace: Pace::default(),
            tally: Arc::default(),
            trip: Trip::default(),
            timestamps: AtomicBool::new(
                options.timestamps && device.features().contains(wgpu::Features::TIMESTAMP_QUERY),
            ),
            in_use_bytes: AtomicU64::new(0),
            kept_bytes: AtomicU64::new(0),
            pool: Mutex::new(Pool {
                free: HashMap::new(),
                bytes: 0,
                capacity: limits.budget_bytes + limits.budget_bytes / 8,
            }),
            poison: AtomicU32::new(0),
            device,
            queue,
            limits,
            storage_alignment,
            faults,
            dummy,
        };
        context.limits.loop_trips = super::self_test::run(&context).await?;
        Ok(context)
    }

    /// Runs `f`, which makes wgpu calls, and turns what they report into an error. wgpu's scopes belong to a
    /// thread, so they are closed before anything is awaited.
    pub(crate) async fn guarded<T>(&self, what: &str, f: impl FnOnce() -> T) -> Result<T> {
        self.may_be_lost();
        let (value, reports) = {
            let scopes = Scopes::push(&self.device);
            (f(), scopes.pop())
        };
        let reports = [reports.0.await, reports.1.await, reports.2.await];
        self.may_be_lost();
        self.judge(what, reports)?;
        Ok(value)
    }

    /// [`guarded`](Self::guarded) for a caller that cannot wait. Natively the reports are there at once; in a browser they
    /// come later, so there errors go to the application's handler.
    pub(crate) fn guarded_now<T>(&self, what: &str, f: impl FnOnce() -> T) -> Result<T> {
        if cfg!(target_family = "wasm") {
            return Ok(f());
        }
        self.may_be_lost();
        let scopes = Scopes::push(&self.device);
        let value = f();
        let reports = scopes.pop();
        self.may_be_lost();
        let reports = [now(reports.0), now(reports.1), now(reports.2)];
        self.judge(what, reports.map(Option::flatten))?;
        Ok(value)
    }

    /// A point where a test may have the device lost.
    pub(crate) fn may_be_lost(&self) {
        if self.trip.fires(TripKind::Loss) {
            self.device.destroy();
        }
    }

    fn judge(&self, what: &str, reports: [Option<wgpu::Error>; 3]) -> Result<()> {
        let mut reports: Vec<wgpu::Error> = reports.into_iter().flatten().collect();
        if !reports.is_empty() {
            // After a loss wgpu reports invalid objects; the loss itself is told at the next poll.
            poll(&self.device, &self.faults, wgpu::PollType::Poll);
            if !self.faults.is_lost() && !self.is_alive() {
                self.faults.mark_lost("it makes no buffers any more".into());
            }
        }
        self.faults.check()?;
        // What follows from a failed allocation is reported too, as invalid use.
        let out_of_memory = reports.iter().any(|e| matches!(e, wgpu::Error::OutOfMemory { .. }));
        if out_of_memory || self.trip.fires(TripKind::OutOfMemory) {
            bail!(OutOfMemory, "{what}: the device is out of memory; a smaller batch or memory budget would help");
        }
        match reports.pop() {
            None => Ok(()),
            Some(error) => bail!(DeviceFault, "{what}: {}", one_line(&error)),
        }
    }

    /// Whether the device still makes buffers. wgpu tells of a loss only through the handler, which may be the
    /// application's, or may be called later, when what was submitted has ended.
    fn is_alive(&self) -> bool {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let probe = new_buffer(&self.device, "lstm.probe", 4, wgpu::BufferUsages::COPY_DST);
        self.queue.write_buffer(&probe, 0, &[0; 4]);
        now(scope.pop()).flatten().is_none()
    }

    /// Buffers of at least the wanted sizes, from the pool or new. If the device has no memory left, the idle
    /// buffers are freed and it is tried once more.
    pub(crate) async fn acquire(self: &Arc<Self>, wanted: &[Wanted]) -> Result<Vec<Scratch>> {
        let take = || wanted.iter().map(|w| self.take_or_create(w)).collect::<Vec<_>>();
        let buffers = match self.guarded("allocating", take).await {
            Err(e) if e.kind() == ErrorKind::OutOfMemory => {
                self.free_idle();
                self.guarded("allocating", take).await?
            }
            other => other?,
        };
        Ok(self.adopt(buffers))
    }

    /// [`acquire`](Self::acquire) for a caller that cannot wait.
    pub(crate) fn acquire_now(self: &Arc<Self>, wanted: &[Wanted]) -> Result<Vec<Scratch>> {
        let take = || wanted.iter().map(|w| self.take_or_create(w)).collect::<Vec<_>>();
        let buffers = match self.guarded_now("allocating", take) {
            Err(e) if e.kind() == ErrorKind::OutOfMemory => {
                self.free_idle();
                self.guarded_now("allocating", take)?
            }
            other => other?,
        };
        Ok(self.adopt(buffers))
    }

    /// Frees the idle buffers of the pool.
    pub(super) fn free_idle(&self) {
        self.lock_pool().clear();
    }

    /// Buffers of at least the wanted sizes, for what is [`guarded`](Self::guarded) as a whole.
    pub(super) fn take(self: &Arc<Self>, wanted: &[Wanted]) -> Vec<Scratch> {
        self.adopt(wanted.iter().map(|w| self.take_or_create(w)).collect())
    }

    /// Only buffers that exist come under the care that returns them to the pool.
    fn adopt(self: &Arc<Self>, buffers: Vec<wgpu::Buffer>) -> Vec<Scratch> {
        let bytes: u64 = buffers.iter().map(wgpu::Buffer::size).sum();
        self.in_use_bytes.fetch_add(bytes, Ordering::Relaxed);
        let scratch = |buffer| Scratch {
            context: Arc::downgrade(self),
            buffer: Some(buffer),
            is_kept: false,
            is_mapped: AtomicBool::new(false),
        };
        buffers.into_iter().map(scratch).collect()
    }

    fn lock_pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_or_create(&self, wanted: &Wanted) -> wgpu::Buffer {
        // Where the limit is odd, a buffer of that size could not be mapped.
        let most = self.limits.buffer_bytes / 16 * 16;
        let size = size_class(wanted.size_bytes).min(most).max(wanted.size_bytes);
        let pooled = self.lock_pool().take(size, wanted.usage);
        let buffer = pooled.unwrap_or_else(|| new_buffer(&self.device, &wanted.label, size, wanted.usage));
        self.poison(&buffer);
        buffer
    }

    fn poison(&self, buffer: &wgpu::Buffer) {
        let poison = self.poison.load(Ordering::Relaxed);
        if poison != 0 && buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            let words = vec![poison; (buffer.size() / 4) as usize];
            self.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&words));
        }
    }

    /// Fills scratch buffers with `value` before each run; for tests, which must not see it.
    pub(crate) fn set_poison(&self, value: Option<f32>) {
        self.poison.store(value.map_or(0, f32::to_bits), Ordering::Relaxed);
    }

    /// Bytes of scratch buffers of runs and recordings that are not done.
    pub(crate) fn in_use_bytes(&self) -> u64 {
        self.in_use_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of idle scratch buffers, in the pool or kept.
    pub(crate) fn idle_bytes(&self) -> u64 {
        self.lock_pool().bytes + self.kept_bytes()
    }

    /// Bytes of scratch buffers that models and streams keep for a run like their last.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }
}

/// Error scopes of this thread for every kind of error.
struct Scopes {
    internal: wgpu::ErrorScopeGuard,
    memory: wgpu::ErrorScopeGuard,
    validation: wgpu::ErrorScopeGuard,
}

impl Scopes {
    fn push(device: &wgpu::Device) -> Self {
        Self {
            internal: device.push_error_scope(wgpu::ErrorFilter::Internal),
            memory: device.push_error_scope(wgpu::ErrorFilter::OutOfMemory),
            validation: device.push_error_scope(wgpu::ErrorFilter::Validation),
        }
    }

    /// Closes them, last opened first; the reports come at once natively, later in a browser.
    fn pop(self) -> (impl Report, impl Report, impl Report) {
        let validation = self.validation.pop();
        (validation, self.memory.pop(), self.internal.pop())
    }
}

trait Report: Future<Output = Option<wgpu::Error>> + wgpu::WasmNotSend {}

impl<F: Future<Output = Option<wgpu::Error>> + wgpu::WasmNotSend> Report for F {}

/// The outcome of a future that is ready.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut std::task::Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// A scratch buffer to be acquired.
pub(crate) struct Wanted {
    pub(crate) label: String,
    pub(crate) size_bytes: u64,
    pub(crate) usage: wgpu::BufferUsages,
}

/// wgpu's reports span many lines.
fn one_line(error: &wgpu::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Sizes are rounded up by at most an eighth, so that batches of similar shape share buffers.
fn size_class(size_bytes: u64) -> u64 {
    let step = (size_bytes.next_power_of_two() / 16).max(256);
    size_bytes.next_multiple_of(step)
}

/// A scratch buffer that returns to the pool when dropped. Its next user's commands come after all submitted
/// ones in the queue, so it may be dropped while the device still works on it.
///
/// It may lie in a callback of the device, which the context holds: a strong reference would keep both alive.
pub(crate) struct Scratch {
    context: Weak<Context>,
    buffer: Option<wgpu::Buffer>,
    /// Idle, for a run like the last.
    is_kept: bool,
    /// Mapped for the host, or about to be; no command may use it then.
    is_mapped: AtomicBool,
}

impl Scratch {
    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        self.buffer.as_ref().expect("present until drop")
    }

    /// The buffer, to be mapped: until [`unmap`](Self::unmap) it does not return to the pool.
    pub(super) fn buffer_to_map(&self) -> &wgpu::Buffer {
        self.is_mapped.store(true, Ordering::Relaxed);
        self.buffer()
    }

    /// Ends the mapping, which must have come about.
    pub(super) fn unmap(&self) {
        self.buffer().unmap();
        self.is_mapped.store(false, Ordering::Relaxed);
    }

    /// Lets go of the buffer without the pool; wgpu keeps it while commands use it.
    #[cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "where callbacks may own it, they return it"))]
    pub(crate) fn forget(mut self) {
        if let (Some(buffer), Some(context)) = (self.buffer.take(), self.context.upgrade()) {
            self.count(&context).fetch_sub(buffer.size(), Ordering::Relaxed);
        }
    }

    /// From now on it is idle, and kept.
    pub(super) fn rest(&mut self) {
        self.turn(true);
    }

    /// From now on it is in use again.
    pub(super) fn resume(&mut self) {
        self.turn(false);
        if let Some(context) = self.context.upgrade() {
            context.poison(self.buffer());
        }
    }

    fn turn(&mut self, is_kept: bool) {
        if let Some(context) = self.context.upgrade() {
            let size = self.buffer().size();
            self.count(&context).fetch_sub(size, Ordering::Relaxed);
            self.is_kept = is_kept;
            self.count(&context).fetch_add(size, Ordering::Relaxed);
        }
    }

    /// Where its bytes are counted.
    fn count<'a>(&self, context: &'a Context) -> &'a AtomicU64 {
        if self.is_kept { &context.kept_bytes } else { &context.in_use_bytes }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let (Some(buffer), Some(context)) = (self.buffer.take(), self.context.upgrade()) {
            self.count(&context).fetch_sub(buffer.size(), Ordering::Relaxed);
            if !context.faults.is_lost() && !self.is_mapped.load(Ordering::Relaxed) {
                context.lock_pool().put(buffer);
            }
        }
    }
}

struct Pool {
    free: HashMap<(u64, wgpu::BufferUsages), Vec<wgpu::Buffer>>,
    bytes: u64,
    capacity: u64,
}

impl Pool {
    fn take(&mut self, size: u64, usage: wgpu::BufferUsages) -> Option<wgpu::Buffer> {
        let buffer = self.free.get_mut(&(size, usage))?.pop()?;
        self.bytes -= size;
        Some(buffer)
    }

    fn clear(&mut self) {
        self.free.clear();
        self.bytes = 0;
    }

    /// Keeps the buffer. When the pool would outgrow the budget, buffers that results were read from are freed first, which are
    /// quickly made, and then everything else.
    fn put(&mut self, buffer: wgpu::Buffer) {
        let size = buffer.size();
        let is_read = |usage: wgpu::BufferUsages| usage.contains(wgpu::BufferUsages::MAP_READ);
        if self.bytes + size > self.capacity {
            if is_read(buffer.usage()) {
                return;
            }
            self.free.retain(|(_, usage), _| !is_read(*usage));
            self.bytes = self.free.iter().map(|((size, _), buffers)| size * buffers.len() as u64).sum();
        }
        if self.bytes + size > self.capacity {
            self.clear();
        }
        if size <= self.capacity {
            self.bytes += size;
            self.free.entry((size, buffer.usage())).or_default().push(buffer);
        }
    }
}
