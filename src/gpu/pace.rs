//! How fast the device is, as far as its work has shown: what keeps a dispatch short.
//!
//! Drivers and browsers reset a device whose dispatch takes too long, and nothing else gets a turn meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// About the longest that a dispatch should take.
const LONGEST_DISPATCH: Duration = Duration::from_millis(50);
/// Operations of a dispatch before anything was measured: short even on a software adapter (some 2 GFLOP/s).
const FIRST_FLOPS: u64 = 100_000_000;

/// Operations per second that some submit has reached.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    flops_per_second: AtomicU64,
}

impl Pace {
    /// About the most operations that a dispatch should have: a power of two once something was measured, so that plans stay the
    /// same while the fastest submit is beaten by a little.
    pub(crate) fn dispatch_flops(&self) -> u64 {
        let reached = self.flops_per_second.load(Ordering::Relaxed) as f64 * LONGEST_DISPATCH.as_secs_f64();
        let power = (reached as u64).checked_ilog2().map_or(0, |exponent| 1 << exponent);
        power.max(FIRST_FLOPS)
    }

    /// Takes note of a submit that took at most this long, waiting included.
    #[cfg_attr(target_family = "wasm", allow(dead_code, reason = "std has no clock in a browser"))]
    pub(crate) fn note(&self, flops: u64, time: Duration) {
        let reached = flops as f64 / time.as_secs_f64().max(1e-9);
        self.flops_per_second.fetch_max(reached as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_submit_decides_and_small_ones_never_slow_it_down() {
        let pace = Pace::default();
        assert_eq!(pace.dispatch_flops(), FIRST_FLOPS);
        pace.note(1_000, Duration::from_secs(1));
        assert_eq!(pace.dispatch_flops(), FIRST_FLOPS);
        pace.note(10_000_000_000, Duration::from_secs(1));
        assert_eq!(pace.dispatch_flops(), 1 << 28); // of 500 million
        pace.note(1_000, Duration::from_secs(1));
        pace.note(0, Duration::ZERO);
        assert_eq!(pace.dispatch_flops(), 1 << 28); // of 500 million
    }
}
