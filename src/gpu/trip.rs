//! Faults that tests bring about at a chosen point: a lost device, or memory that has run out.

use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

/// What happens at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TripKind {
    /// The device is destroyed.
    Loss,
    /// The calls to wgpu report that memory has run out.
    OutOfMemory,
}

/// A countdown over the points where faults are possible; off unless armed.
#[derive(Debug, Default)]
pub(crate) struct Trip {
    /// Points until the fault, from 1; 0 is off.
    countdown: AtomicI64,
    kind: AtomicU8,
}

impl Trip {
    /// The fault happens at the `n`-th point from now, counted from 0.
    pub(crate) fn arm(&self, kind: TripKind, n: u32) {
        self.kind.store(kind as u8, Ordering::SeqCst);
        self.countdown.store(i64::from(n) + 1, Ordering::SeqCst);
    }

    /// Whether the fault has not happened; it will not any more.
    pub(crate) fn disarm(&self) -> bool {
        self.countdown.swap(0, Ordering::SeqCst) > 0
    }

    /// Passes a point where `kind` is possible; whether it happens here.
    pub(crate) fn fires(&self, kind: TripKind) -> bool {
        if self.countdown.load(Ordering::Relaxed) <= 0 || self.kind.load(Ordering::SeqCst) != kind as u8 {
            return false;
        }
        self.countdown.fetch_sub(1, Ordering::SeqCst) == 1
    }
}
