//! Waiting for the device: the end of a submission and of its mappings, and who polls.
//!
//! On native targets nothing happens unless somebody polls the device. A blocking caller polls by itself; an
//! async caller leaves its submission to a thread of the context, which tells it the outcome whether the device
//! finishes or is lost. In a browser the page's event loop does it.

use std::sync::{Arc, Mutex, PoisonError};

use super::faults::Faults;
use crate::error::{Error, ErrorKind, Result, bail};

/// Who polls the device until a submission is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The calling thread.
    Blocking,
    /// The context's thread; the future is woken.
    Async,
}

/// Whose device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// The engine's: its handlers tell of a loss, and a wait may block in poll.
    Own,
    /// An application's: no handlers, and polls return at once.
    Borrowed,
}

/// The mappings that belong to a submission.
struct Mappings {
    expected: usize,
    outcomes: Vec<Result<(), wgpu::BufferAsyncError>>,
}

/// The outcome of all mappings of a submission; `None` while one is missing.
#[derive(Clone)]
struct Shared(Arc<Mutex<Mappings>>);

impl Shared {
    fn new(expected: usize) -> Self {
        Self(Arc::new(Mutex::new(Mappings { expected, outcomes: Vec::new() })))
    }

    fn add(&self, outcome: Result<(), wgpu::BufferAsyncError>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).outcomes.push(outcome);
    }

    fn outcome(&self) -> Option<Result<()>> {
        let mappings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if mappings.outcomes.len() < mappings.expected {
            return None;
        }
        let failed = mappings.outcomes.iter().find_map(|o| o.as_ref().err());
        Some(match failed {
            Some(e) => Err(Error::new(ErrorKind::DeviceFault, format!("reading back: {e}"))),
            None => Ok(()),
        })
    }
}

#[cfg(not(target_family = "wasm"))]
mod native {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{OnceLock, mpsc};
    use std::time::Duration;

    use futures_intrusive::channel::shared::{OneshotSender, oneshot_channel};

    use super::*;

    /// Between looks at a mapping whose submission is done but whose callback another thread is about to run.
    const CALLBACK_PAUSE: Duration = Duration::from_micros(50);
    /// Between looks at a borrowed device.
    const LONGEST_PAUSE: Duration = Duration::from_millis(1);

    /// A submission and the mappings of its staging buffers.
    pub(crate) struct Signal {
        shared: Shared,
    }

    /// Starts mapping whole staging buffers for reading.
    pub(crate) fn map<'a>(buffers: impl IntoIterator<Item = &'a wgpu::Buffer>) -> Signal {
        let buffers: Vec<_> = buffers.into_iter().collect();
        let shared = Shared::new(buffers.len());
        for buffer in buffers {
            let shared = shared.clone();
            buffer.map_async(wgpu::MapMode::Read, .., move |outcome| shared.add(outcome));
        }
        Signal { shared }
    }

    impl Signal {
        /// Waits until submission `index` and its mappings are done or the device is lost.
        ///
        /// A future that is dropped may be asked for again.
        pub(crate) async fn finish(
            &self,
            waiter: &Waiter,
            index: &wgpu::SubmissionIndex,
            waiting: Waiting,
        ) -> Result<()> {
            let index = index.clone();
            match waiting {
                Waiting::Blocking => waiter.poller.wait(index, &self.shared),
                Waiting::Async => {
                    let (done, told) = oneshot_channel();
                    waiter.hand_over(Task { index, shared: self.shared.clone(), done })?;
                    // The thread drops the sender only after it has told or with the whole context.
                    let _ = told.receive().await;
                }
            }
            let Poller { faults, ownership, .. } = &waiter.poller;
            faults.check()?;
            match self.shared.outcome() {
                // Without a handler, the loss of the device shows in the mappings that it ends.
                Some(Err(e)) if *ownership == Ownership::Borrowed => {
                    faults.mark_lost(format!("{e}: the application's device was lost or destroyed"));
                    faults.check()
                }
                Some(outcome) => outcome,
                None => bail!(DeviceLost, "reading back: the device went away; open a new engine"),
            }
        }
    }

    struct Task {
        index: wgpu::SubmissionIndex,
        shared: Shared,
        done: OneshotSender<()>,
    }

    /// Polls on behalf of async callers; see the module.
    pub(crate) struct Waiter {
        poller: Poller,
        /// Started by the first async wait.
        thread: OnceLock<Result<mpsc::Sender<Task>>>,
    }

    impl Waiter {
        pub(crate) fn new(device: wgpu::Device, faults: Arc<Faults>, ownership: Ownership) -> Self {
            Self { poller: Poller { device, faults, ownership }, thread: OnceLock::new() }
        }

        fn hand_over(&self, task: Task) -> Result<()> {
            let sender = self.thread.get_or_init(|| {
                let (sender, tasks) = mpsc::channel::<Task>();
                let poller = self.poller.clone();
                let spawned = std::thread::Builder::new().name("lstm-poll".into()).spawn(move || {
                    for task in tasks {
                        poller.wait(task.index, &task.shared);
                        // The receiver is gone if the caller dropped its run.
                        let _ = task.done.send(());
                    }
                });
                match spawned {
                    Ok(_) => Ok(sender),
                    Err(e) => bail!(DeviceFault, "the polling thread cannot be started: {e}"),
                }
            });
            let sent = sender.as_ref().map_err(Clone::clone)?.send(task);
            sent.map_err(|_| Error::new(ErrorKind::DeviceLost, "the polling thread ended; open a new engine"))
        }
    }

    #[derive(Clone)]
    struct Poller {
        device: wgpu::Device,
        faults: Arc<Faults>,
        ownership: Ownership,
    }

    impl Poller {
        /// Polls until the submission and its mappings are done or the device is lost.
        ///
        /// Without a timeout: wgpu-core 30 panics if a wait times out while another thread's call finds the queue empty
        /// ("the current submission index should be at least the wait submission index"), and drops callbacks with it. A
        /// driver ends the wait when it loses the device.
        fn wait(&self, index: wgpu::SubmissionIndex, shared: &Shared) {
            let Self { device, faults, ownership } = self;
            let mut pause = CALLBACK_PAUSE;
            if *ownership == Ownership::Own && !faults.is_lost() {
                poll(device, faults, wgpu::PollType::Wait { submission_index: Some(index), timeout: None });
            }
            while !faults.is_lost() && shared.outcome().is_none() {
                std::thread::sleep(pause);
                poll(device, faults, wgpu::PollType::Poll);
                if *ownership == Ownership::Borrowed {
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Polls once; whether the wait is over. wgpu panics on errors of the driver that it has no value for.
    pub(crate) fn poll(device: &wgpu::Device, faults: &Faults, kind: wgpu::PollType) -> bool {
        match catch_unwind(AssertUnwindSafe(|| device.poll(kind))) {
            Ok(Ok(_)) => true,
            Ok(Err(wgpu::PollError::Timeout)) => false,
            Ok(Err(e)) => {
                faults.mark_lost(format!("polling failed: {e}"));
                true
            }
            Err(_) => {
                faults.mark_lost("the driver failed while polling".into());
                true
            }
        }
    }
}

#[cfg(target_family = "wasm")]
mod web {
    use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};

    use super::*;

    /// The mappings of a submission's staging buffers; the browser ends them after the submission.
    pub(crate) struct Signal {
        shared: Shared,
        each: Vec<OneshotReceiver<()>>,
    }

    /// Starts mapping whole staging buffers for reading.
    pub(crate) fn map<'a>(buffers: impl IntoIterator<Item = &'a wgpu::Buffer>) -> Signal {
        let buffers: Vec<_> = buffers.into_iter().collect();
        let shared = Shared::new(buffers.len());
        let each = buffers
            .into_iter()
            .map(|buffer| {
                let (done, told) = oneshot_channel();
                let shared = shared.clone();
                buffer.map_async(wgpu::MapMode::Read, .., move |outcome| {
                    shared.add(outcome);
                    let _ = done.send(());
                });
                told
            })
            .collect();
        Signal { shared, each }
    }

    impl Signal {
        /// Waits for the mappings.
        pub(crate) async fn finish(
            &self,
            waiter: &Waiter,
            _index: &wgpu::SubmissionIndex,
            _waiting: Waiting,
        ) -> Result<()> {
            for told in &self.each {
                let _ = told.receive().await;
            }
            waiter.faults.check()?;
            match self.shared.outcome() {
                Some(outcome) => outcome,
                None => bail!(DeviceLost, "reading back: the device went away; open a new engine"),
            }
        }
    }

    /// In a browser nobody has to poll.
    pub(crate) struct Waiter {
        faults: Arc<Faults>,
    }

    impl Waiter {
        pub(crate) fn new(_device: wgpu::Device, faults: Arc<Faults>, _ownership: Ownership) -> Self {
            Self { faults }
        }
    }

    /// Polling is the browser's.
    pub(crate) fn poll(_device: &wgpu::Device, _faults: &Faults, _kind: wgpu::PollType) -> bool {
        true
    }
}

#[cfg(not(target_family = "wasm"))]
pub(crate) use native::{Signal, Waiter, map, poll};
#[cfg(target_family = "wasm")]
pub(crate) use web::{Signal, Waiter, map, poll};
