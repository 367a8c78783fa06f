//! Weights are asked for before they are needed.
//!
//! In:  the memory that a thread reads next, a piece at a time.
//! Out: nothing but time: results never depend on it. A product reads the same weights once for every few rows, so
//! while it does there is room to bring the next ones into the second-level cache.

#![allow(unsafe_code, reason = "the instruction takes an address; it reads nothing and never faults")]

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Asks for all of `ahead`.
#[inline(always)]
pub(super) fn fetch(ahead: &[u8]) {
    let mut at = 0;
    while at < ahead.len() {
        line(&ahead[at]);
        at += LINE;
    }
}

/// Bytes of a piece, if `ahead` is to be fetched in so many pieces: whole lines.
#[inline(always)]
pub(super) fn piece_len(ahead: &[u8], pieces: usize) -> usize {
    ahead.len().div_ceil(pieces.max(1)).next_multiple_of(LINE).max(LINE)
}

/// Asks for the line of `byte`, into the second-level cache.
#[inline(always)]
fn line(byte: &u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: the address is that of a byte that lives, and every x86-64 processor has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(byte).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = byte; // the standard library has no stable function for it
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_lines_and_no_more_than_asked_for() {
        for len in [0, 1, 64, 100, 4096, 5000] {
            for pieces in [1, 3, 16, 100] {
                let bytes = vec![0; len];
                let piece = piece_len(&bytes, pieces);
                let found = bytes.chunks(piece).inspect(|piece| fetch(piece)).count();
                assert!(found <= pieces && piece.is_multiple_of(LINE), "{len} in {pieces}");
                assert!(piece <= len / pieces + LINE, "{len} in {pieces}: {piece}");
            }
        }
    }
}
