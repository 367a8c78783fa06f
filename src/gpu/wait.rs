//! Waiting for the device: results of mappings as futures, and who polls.
//!
//! On native targets nothing happens unless somebody polls the device. A blocking caller polls by itself; an
//! async caller leaves its submission to a thread of the context. In a browser the page's event loop does it.

use std::sync::Arc;

use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};

use super::device::Faults;
use crate::error::{Result, bail};

/// Who polls the device until a submission is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The calling thread.
    Blocking,
    /// The context's thread; the future is woken.
    Async,
}

/// Something the device will report: a finished mapping, or the end of all submitted work.
pub(crate) struct Signal {
    result: OneshotReceiver<Result<(), wgpu::BufferAsyncError>>,
}

/// Starts mapping a whole staging buffer for reading.
pub(crate) fn map(buffer: &wgpu::Buffer) -> Signal {
    let (sender, result) = oneshot_channel();
    buffer.map_async(wgpu::MapMode::Read, .., move |outcome| {
        // The receiver is gone if the caller dropped the run: nothing is left to tell.
        let _ = sender.send(outcome);
    });
    Signal { result }
}

/// The end of all work submitted so far.
pub(crate) fn work_done(queue: &wgpu::Queue) -> Signal {
    let (sender, result) = oneshot_channel();
    queue.on_submitted_work_done(move || {
        let _ = sender.send(Ok(()));
    });
    Signal { result }
}

impl Signal {
    /// Waits for what submission `index` brings about.
    pub(crate) async fn finish(self, waiter: &Waiter, index: wgpu::SubmissionIndex, waiting: Waiting) -> Result<()> {
        waiter.wait(index, waiting)?;
        let outcome = self.result.receive().await;
        waiter.faults.check()?;
        match outcome {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => bail!(DeviceFault, "reading back: {e}"),
            None => bail!(DeviceLost, "reading back: the device went away; open a new engine"),
        }
    }
}

#[cfg(not(target_family = "wasm"))]
mod native {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// How long one call to poll may take before the lost flag is looked at again.
    const POLL_SLICE: Duration = Duration::from_millis(500);

    /// Polls on behalf of async callers; see the module.
    pub(crate) struct Waiter {
        pub(super) faults: Arc<Faults>,
        device: wgpu::Device,
        submissions: mpsc::Sender<wgpu::SubmissionIndex>,
    }

    impl Waiter {
        pub(crate) fn new(device: wgpu::Device, faults: Arc<Faults>) -> Self {
            let (submissions, receiver) = mpsc::channel::<wgpu::SubmissionIndex>();
            let (thread_device, thread_faults) = (device.clone(), faults.clone());
            let spawned = std::thread::Builder::new().name("lstm-poll".into()).spawn(move || {
                for index in receiver {
                    poll(&thread_device, &thread_faults, index);
                }
            });
            if let Err(e) = spawned {
                faults.mark_lost(format!("the polling thread cannot be started: {e}"));
            }
            Self { faults, device, submissions }
        }

        pub(super) fn wait(&self, index: wgpu::SubmissionIndex, waiting: Waiting) -> Result<()> {
            match waiting {
                Waiting::Blocking => poll(&self.device, &self.faults, index),
                Waiting::Async => {
                    if self.submissions.send(index).is_err() {
                        self.faults.mark_lost("the polling thread ended".into());
                    }
                }
            }
            self.faults.check()
        }
    }

    /// Polls until the submission is done or the device is lost.
    fn poll(device: &wgpu::Device, faults: &Faults, index: wgpu::SubmissionIndex) {
        while !faults.is_lost() {
            let wait = wgpu::PollType::Wait { submission_index: Some(index.clone()), timeout: Some(POLL_SLICE) };
            // wgpu panics on errors of the driver that it has no value for.
            match catch_unwind(AssertUnwindSafe(|| device.poll(wait))) {
                Ok(Ok(_)) => return,
                Ok(Err(wgpu::PollError::Timeout)) => {}
                Ok(Err(e)) => return faults.mark_lost(format!("polling failed: {e}")),
                Err(_) => return faults.mark_lost("the driver failed while polling".into()),
            }
        }
    }
}

#[cfg(target_family = "wasm")]
mod web {
    use super::*;

    /// In a browser nobody has to poll.
    pub(crate) struct Waiter {
        pub(super) faults: Arc<Faults>,
    }

    impl Waiter {
        pub(crate) fn new(_device: wgpu::Device, faults: Arc<Faults>) -> Self {
            Self { faults }
        }

        pub(super) fn wait(&self, _index: wgpu::SubmissionIndex, _waiting: Waiting) -> Result<()> {
            self.faults.check()
        }
    }
}

#[cfg(not(target_family = "wasm"))]
pub(crate) use native::Waiter;
#[cfg(target_family = "wasm")]
pub(crate) use web::Waiter;
