//! What a device reports outside of calls: its loss, and errors that no scope caught.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Result, bail};

/// What the handlers of the device have seen.
#[derive(Default)]
pub(crate) struct Faults {
    lost: AtomicBool,
    messages: Mutex<Vec<String>>,
}

impl Faults {
    pub(crate) fn note(&self, message: String) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }

    pub(crate) fn mark_lost(&self, message: String) {
        self.note(message);
        self.lost.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    fn last(&self) -> Option<String> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// An error if the device was lost or reported an error outside every scope.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_lost() {
            let message = self.messages.lock().unwrap_or_else(PoisonError::into_inner).join("; ");
            bail!(DeviceLost, "the device was lost ({message}); open a new engine");
        }
        match self.last() {
            Some(message) => bail!(DeviceFault, "the device reported: {message}"),
            None => Ok(()),
        }
    }
}
