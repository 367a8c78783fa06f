//! An opened device: its limits, its errors as values, its pipelines and its pool of scratch buffers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::faults::Faults;
use super::pipelines::Pipelines;
use super::wait::{Waiter, poll};
use crate::error::{Error, ErrorKind, Result, bail};
use crate::options::{EngineOptions, LimitsProfile};
use crate::plan::PlanLimits;

/// Bytes of working buffers of one run unless the options say otherwise.
pub(crate) const DEFAULT_BUDGET_BYTES: u64 = 1 << 30;

/// An opened device; shared by all models of an engine.
pub(crate) struct Context {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: PlanLimits,
    pub(crate) faults: Arc<Faults>,
    pub(crate) pipelines: Pipelines,
    pub(crate) dummy: wgpu::Buffer,
    pub(crate) waiter: Waiter,
    pool: Mutex<Pool>,
    /// Bits of the f32 that scratch is filled with before each run; 0 for none. Set by tests.
    poison: AtomicU32,
}

impl Context {
    /// Opens `adapter` and tests it.
    pub(crate) async fn open(adapter: &wgpu::Adapter, options: &EngineOptions) -> Result<Self> {
        let has = adapter.limits();
        let mut required = wgpu::Limits::default();
        if options.limits == LimitsProfile::Adapter {
            required.max_storage_buffer_binding_size = has.max_storage_buffer_binding_size;
            required.max_buffer_size = has.max_buffer_size;
            required.min_uniform_buffer_offset_alignment = has.min_uniform_buffer_offset_alignment;
        }
        let descriptor =
            wgpu::DeviceDescriptor { label: Some("lstm.device"), required_limits: required, ..Default::default() };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::new(ErrorKind::DeviceLimit, format!("the device cannot be opened: {e}")))?;
        let faults = Arc::new(Faults::default());
        let seen = faults.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| seen.note(one_line(&e))));
        let seen = faults.clone();
        device.set_device_lost_callback(move |reason, message| seen.mark_lost(format!("{reason:?} {message}")));

        let limits = device.limits();
        let limits = PlanLimits {
            binding_bytes: limits.max_storage_buffer_binding_size,
            buffer_bytes: limits.max_buffer_size,
            workgroups: limits.max_compute_workgroups_per_dimension,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment,
            budget_bytes: options.memory_budget_bytes.unwrap_or(DEFAULT_BUDGET_BYTES),
            loop_trips: None,
        };
        let dummy = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("lstm.dummy"),
            size: 512,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let mut context = Self {
            pipelines: Pipelines::new(&device),
            waiter: Waiter::new(device.clone(), faults.clone()),
            pool: Mutex::new(Pool {
                free: HashMap::new(),
                bytes: 0,
                capacity: limits.budget_bytes + limits.budget_bytes / 8,
            }),
            poison: AtomicU32::new(0),
            device,
            queue,
            limits,
            faults,
            dummy,
        };
        context.limits.loop_trips = super::self_test::run(&context).await?;
        Ok(context)
    }

    /// Runs `f`, which makes wgpu calls, and turns what they report into an error. wgpu's scopes belong to a
    /// thread, so they are closed before anything is awaited.
    pub(crate) async fn guarded<T>(&self, what: &str, f: impl FnOnce() -> T) -> Result<T> {
        let (value, reports) = {
            let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
            let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
            let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
            let value = f();
            (value, (validation.pop(), memory.pop(), internal.pop()))
        };
        let reports = [reports.0.await, reports.1.await, reports.2.await];
        let mut reports: Vec<wgpu::Error> = reports.into_iter().flatten().collect();
        if !reports.is_empty() {
            // After a loss wgpu reports invalid objects; the loss itself is told at the next poll.
            poll(&self.device, &self.faults, wgpu::PollType::Poll);
        }
        self.faults.check()?;
        // What follows from a failed allocation is reported too, as invalid use.
        if reports.iter().any(|e| matches!(e, wgpu::Error::OutOfMemory { .. })) {
            bail!(OutOfMemory, "{what}: the device is out of memory; a smaller batch or memory budget would help");
        }
        match reports.pop() {
            None => Ok(value),
            Some(error) => bail!(DeviceFault, "{what}: {}", one_line(&error)),
        }
    }

    /// Buffers of at least the wanted sizes, from the pool or new. If the device has no memory left, the idle
    /// buffers are freed and it is tried once more.
    pub(crate) async fn acquire(self: &Arc<Self>, wanted: &[Wanted<'_>]) -> Result<Vec<Scratch>> {
        let take = || wanted.iter().map(|w| self.take_or_create(w)).collect::<Vec<_>>();
        let buffers = match self.guarded("allocating", take).await {
            Err(e) if e.kind() == ErrorKind::OutOfMemory => {
                self.pool.lock().unwrap_or_else(PoisonError::into_inner).clear();
                self.guarded("allocating", take).await?
            }
            other => other?,
        };
        // Only buffers that exist come under the care that returns them to the pool.
        Ok(buffers.into_iter().map(|buffer| Scratch { context: self.clone(), buffer: Some(buffer) }).collect())
    }

    fn take_or_create(&self, wanted: &Wanted<'_>) -> wgpu::Buffer {
        let size = size_class(wanted.size_bytes).min(self.limits.buffer_bytes).max(wanted.size_bytes);
        let pooled = self.pool.lock().unwrap_or_else(PoisonError::into_inner).take(size, wanted.usage);
        let buffer = pooled.unwrap_or_else(|| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(wanted.label),
                size,
                usage: wanted.usage,
                mapped_at_creation: false,
            })
        });
        let poison = self.poison.load(Ordering::Relaxed);
        if poison != 0 && wanted.usage.contains(wgpu::BufferUsages::STORAGE) {
            let words = vec![poison; (size / 4) as usize];
            self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&words));
        }
        buffer
    }

    /// Fills scratch buffers with `value` before each run; for tests, which must not see it.
    pub(crate) fn set_poison(&self, value: Option<f32>) {
        self.poison.store(value.map_or(0, f32::to_bits), Ordering::Relaxed);
    }

    /// Bytes of idle scratch buffers.
    pub(crate) fn pooled_bytes(&self) -> u64 {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

/// A scratch buffer to be acquired.
pub(crate) struct Wanted<'a> {
    pub(crate) label: &'a str,
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
pub(crate) struct Scratch {
    context: Arc<Context>,
    buffer: Option<wgpu::Buffer>,
}

impl Scratch {
    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        self.buffer.as_ref().expect("present until drop")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take()
            && !self.context.faults.is_lost()
        {
            self.context.pool.lock().unwrap_or_else(PoisonError::into_inner).put(buffer);
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

    /// Keeps the buffer; when the pool would outgrow the budget, everything in it is freed first.
    fn put(&mut self, buffer: wgpu::Buffer) {
        let size = buffer.size();
        if self.bytes + size > self.capacity {
            self.clear();
        }
        if size <= self.capacity {
            self.bytes += size;
            self.free.entry((size, buffer.usage())).or_default().push(buffer);
        }
    }
}
