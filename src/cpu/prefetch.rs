//! Weights are asked for before they are needed.
//!
//! In:  the memory that a thread reads next.
//! Out: nothing but time: results never depend on it. A product reads the same weights once for every few rows, so
//! while it does there is room to bring the next ones into the second-level cache: a little at every k, since a core
//! waits when it has asked for more lines at once than it can keep track of.

#![allow(unsafe_code, reason = "the instruction takes an address; it reads nothing and never faults")]

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Memory to ask for, so many bytes further with every k.
#[derive(Clone, Copy)]
pub(super) struct Fetch<'a> {
    memory: &'a [u8],
    /// A line at most.
    step: usize,
}

impl<'a> Fetch<'a> {
    /// `ahead` while k runs to `count`, or as much of it as whole bytes, and a line at most, for every k make. Where
    /// nothing is to be asked for it is a line of `near`, which is in the cache, again and again: cheaper than a branch in
    /// the loop.
    #[inline(always)]
    pub(super) fn new(ahead: &'a [u8], count: usize, near: &'a [u8]) -> Self {
        match ahead.len().checked_div(count) {
            None | Some(0) => Self { memory: near, step: 0 },
            Some(step) => Self { memory: ahead, step: step.min(LINE) },
        }
    }

    /// Asks for what belongs to `k`.
    #[inline(always)]
    pub(super) fn at(self, k: usize) {
        line(self.memory.as_ptr().wrapping_add(self.offset(k)));
    }

    /// Where in the memory that is.
    #[inline(always)]
    fn offset(self, k: usize) -> usize {
        k * self.step
    }
}

/// Asks for the line of `address`, into the second-level cache.
#[inline(always)]
fn line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: the instruction may be given any address, and every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address; // the standard library has no stable function for it
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets of `Fetch` in what it asks for.
    fn offsets(ahead: &[u8], count: usize) -> Vec<usize> {
        let fetch = Fetch::new(ahead, count, &[0]);
        (0..count).inspect(|&k| fetch.at(k)).map(|k| fetch.offset(k)).collect()
    }

    #[test]
    fn lines_are_asked_for_one_after_the_other_and_none_behind_the_last() {
        for (lines, count) in [(1, 1), (8, 16), (100, 300), (256, 256), (300, 512)] {
            let ahead = vec![0; lines * LINE];
            let mut found: Vec<usize> = offsets(&ahead, count).iter().map(|offset| offset / LINE).collect();
            found.dedup();
            assert!(found.iter().copied().eq(0..found.len()), "{lines} lines, {count} steps: {found:?}");
            // Bytes of a step are rounded down.
            assert!(found.len() <= lines && found.len() + count / LINE + 1 > lines, "{lines} lines, {count} steps");
        }
    }

    #[test]
    fn no_more_than_a_line_at_every_k() {
        let ahead = vec![0; 100 * LINE];
        assert_eq!(offsets(&ahead, 40), (0..40).map(|k| k * LINE).collect::<Vec<_>>());
        assert_eq!(offsets(&ahead[..39], 40), [0; 40], "nothing, or too little to be worth a step");
        assert_eq!(offsets(&[], 3), [0; 3]);
        assert!(offsets(&ahead, 0).is_empty());
    }
}
