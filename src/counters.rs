//! What an engine has done so far, in numbers that a service can export.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What an engine has done since it was opened, over all of its models and threads; and what it holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Batches that were run to their end.
    pub batches: u64,
    /// Pushes to streams that were run to their end.
    pub pushes: u64,
    /// Batches and pushes that were recorded for an application to submit.
    pub recordings: u64,
    /// Rows of all of these: valid timesteps, over all sequences.
    pub rows: u64,
    /// Runs, pushes and recordings that ended with an error.
    pub errors: u64,
    /// Submits to a GPU, without those of the application.
    pub submits: u64,
    /// Dispatches on a GPU, those of recordings included.
    pub dispatches: u64,
    /// Floating-point operations of the sums in these dispatches.
    pub flops: u64,
    /// Bytes that these dispatches moved at least: each weight and each row once.
    pub moved_bytes: u64,
    /// Time of a GPU in submits, by its own clock; zero unless
    /// [`EngineOptions::timestamps`](crate::EngineOptions::timestamps) asked for it and the adapter has timestamps.
    pub gpu_time: Duration,
    /// Bytes of input, states, tables and uniforms that went to a GPU.
    pub uploaded_bytes: u64,
    /// Bytes of results that came back.
    pub read_back_bytes: u64,
    /// Now: compiled pipelines.
    pub pipelines: u64,
    /// Now: bytes of working buffers of runs and recordings that are not done.
    pub in_use_bytes: u64,
    /// Now: bytes of working buffers that wait for the next run.
    pub idle_bytes: u64,
}

/// The counters that only grow.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    batches: AtomicU64,
    pushes: AtomicU64,
    recordings: AtomicU64,
    rows: AtomicU64,
    errors: AtomicU64,
    submits: AtomicU64,
    dispatches: AtomicU64,
    flops: AtomicU64,
    moved_bytes: AtomicU64,
    gpu_nanoseconds: AtomicU64,
    uploaded_bytes: AtomicU64,
    read_back_bytes: AtomicU64,
}

/// What a caller asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Batch,
    Push,
    #[cfg(feature = "gpu")]
    Recording,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Tally {
    /// Counts a request that ended.
    pub(crate) fn request(&self, request: Request, rows: usize, is_ok: bool) {
        if !is_ok {
            return add(&self.errors, 1);
        }
        let counter = match request {
            Request::Batch => &self.batches,
            Request::Push => &self.pushes,
            #[cfg(feature = "gpu")]
            Request::Recording => &self.recordings,
        };
        add(counter, 1);
        add(&self.rows, rows as u64);
    }

    /// Counts what was recorded for a GPU.
    #[cfg(feature = "gpu")]
    pub(crate) fn recorded(&self, dispatches: usize, flops: u64, moved_bytes: u64, uploaded_bytes: u64) {
        add(&self.dispatches, dispatches as u64);
        add(&self.flops, flops);
        add(&self.moved_bytes, moved_bytes);
        add(&self.uploaded_bytes, uploaded_bytes);
    }

    /// Counts the time of a submit by the device's clock.
    #[cfg(feature = "gpu")]
    pub(crate) fn computed(&self, time: Duration) {
        add(&self.gpu_nanoseconds, time.as_nanos() as u64);
    }

    /// Forgets what a GPU did, which was to measure it.
    #[cfg(all(feature = "gpu", feature = "cpu", not(target_family = "wasm")))]
    pub(crate) fn forget_measuring(&self) {
        let counters = [&self.submits, &self.dispatches, &self.flops, &self.moved_bytes, &self.gpu_nanoseconds];
        for counter in counters.into_iter().chain([&self.uploaded_bytes, &self.read_back_bytes]) {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a submit.
    #[cfg(feature = "gpu")]
    pub(crate) fn submitted(&self) {
        add(&self.submits, 1);
    }

    /// Counts what came back.
    #[cfg(feature = "gpu")]
    pub(crate) fn read_back(&self, bytes: u64) {
        add(&self.read_back_bytes, bytes);
    }

    /// The counts so far; the caller adds what is held now.
    pub(crate) fn counters(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            batches: get(&self.batches),
            pushes: get(&self.pushes),
            recordings: get(&self.recordings),
            rows: get(&self.rows),
            errors: get(&self.errors),
            submits: get(&self.submits),
            dispatches: get(&self.dispatches),
            flops: get(&self.flops),
            moved_bytes: get(&self.moved_bytes),
            gpu_time: Duration::from_nanos(get(&self.gpu_nanoseconds)),
            uploaded_bytes: get(&self.uploaded_bytes),
            read_back_bytes: get(&self.read_back_bytes),
            ..Counters::default()
        }
    }
}
