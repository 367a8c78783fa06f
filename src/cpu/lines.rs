//! Memory of numbers.
//!
//! In:  how many.
//! Out: as many zeros, at the start of a line of the cache, and in large pages where the system has them: weights are
//! read from end to end at every timestep, and the addresses of more than a few thousand small pages do not fit what a
//! core remembers of them; the rows between layers are new at every run, and the kernel makes each page when it is touched.
//! Only Linux has large pages that a program may have for the asking; there it asks for what is at least one.

use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

/// Numbers of a line.
pub(super) const LANES: usize = 16;

/// Of x86-64, and of AArch64 where small ones have 4 KiB.
#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = 2 << 20;

/// One line of the cache.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Numbers whose lines of 16 are lines of the cache, so that no vector is read in two halves.
#[derive(Default)]
pub(super) struct Lines {
    memory: Memory,
    len: usize,
}

enum Memory {
    Small(Vec<Line>),
    #[cfg(target_os = "linux")]
    Large(memmap2::MmapMut),
}

impl Lines {
    /// `len` zeros, a multiple of 16.
    pub(super) fn zeros(len: usize) -> Self {
        debug_assert!(len.is_multiple_of(LANES));
        Self { memory: Memory::zeros(len), len }
    }

    /// Makes it at least so long.
    pub(super) fn grow(&mut self, len: usize) {
        if self.len() < len {
            *self = Self::zeros(len);
        }
    }

    /// The first `len`, which there are then.
    pub(super) fn first(&mut self, len: usize) -> &mut [f32] {
        self.grow(len);
        &mut self[..len]
    }

    /// Keeps the first `len`, a multiple of 16.
    pub(super) fn truncate(&mut self, len: usize) {
        debug_assert!(len.is_multiple_of(LANES));
        self.len = self.len.min(len);
    }
}

impl Memory {
    fn zeros(len: usize) -> Self {
        #[cfg(target_os = "linux")]
        if let Some(pages) = large(len * size_of::<f32>()) {
            return Self::Large(pages);
        }
        Self::Small(bytemuck::zeroed_vec(len / LANES))
    }
}

/// So many bytes, unless they are less than a page or the system refuses.
#[cfg(target_os = "linux")]
fn large(bytes: usize) -> Option<memmap2::MmapMut> {
    if bytes < LARGE_PAGE {
        return None;
    }
    // Newer kernels let a mapping of whole large pages start with one; the last is not worth it if it is nearly empty.
    let whole = bytes.checked_next_multiple_of(LARGE_PAGE)?;
    let pages = memmap2::MmapMut::map_anon(if whole - bytes <= bytes / 8 { whole } else { bytes }).ok()?;
    // A kernel that has no large pages, or gives none, gives small ones.
    let _ = pages.advise(memmap2::Advice::HugePage);
    Some(pages)
}

impl Default for Memory {
    fn default() -> Self {
        Self::Small(Vec::new())
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        let mut lines = Self::zeros(self.len);
        lines.copy_from_slice(self);
        lines
    }
}

impl Deref for Lines {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let all: &[f32] = match &self.memory {
            Memory::Small(lines) => bytemuck::cast_slice(lines),
            #[cfg(target_os = "linux")]
            Memory::Large(pages) => bytemuck::cast_slice(pages),
        };
        &all[..self.len]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        let all: &mut [f32] = match &mut self.memory {
            Memory::Small(lines) => bytemuck::cast_slice_mut(lines),
            #[cfg(target_os = "linux")]
            Memory::Large(pages) => bytemuck::cast_slice_mut(pages),
        };
        &mut all[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_all_sizes_can_be_written_and_start_a_line() {
        for len in [0, 16, (2 << 18) - 16, 2 << 18, (5 << 18) + 16] {
            let mut lines = Lines::zeros(len);
            assert_eq!(lines.len(), len);
            assert!(lines.iter().all(|&v| v == 0.0) && lines.as_ptr().addr().is_multiple_of(64));
            lines.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
            let mut copy = lines.clone();
            copy.truncate(len / 32 * 16);
            assert_eq!(*copy, lines[..len / 32 * 16]);
            assert_eq!(*copy.clone(), *copy);
            assert!(lines.iter().enumerate().all(|(i, &v)| v == i as f32));
            assert_eq!(copy.first(len / 64 * 16).len(), len / 64 * 16);
            copy.grow(len + 16);
            assert_eq!(copy.len(), len + 16);
        }
    }

    /// The kernel lists each stretch of memory of a process, with `hg` among its flags if large pages were asked for.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_fills_a_large_page_asks_for_it() {
        let flagged = |values: &[f32]| {
            let address = values.as_ptr().addr();
            let mut inside = false;
            std::fs::read_to_string("/proc/self/smaps").unwrap().lines().any(|line| {
                let range = line.split(' ').next().and_then(|range| range.split_once('-'));
                let ends = range.map(|(a, b)| [a, b].map(|end| usize::from_str_radix(end, 16)));
                if let Some([Ok(first), Ok(end)]) = ends {
                    inside = (first..end).contains(&address);
                }
                inside && line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "hg")
            })
        };
        let pages = memmap2::MmapMut::map_anon(LARGE_PAGE).unwrap();
        let possible = pages.advise(memmap2::Advice::HugePage).is_ok() && flagged(bytemuck::cast_slice(&pages));
        for len in [LARGE_PAGE / 4, LARGE_PAGE / 4 + LANES, 2 * LARGE_PAGE / 4 - LANES] {
            let lines = Lines::zeros(len);
            assert!(matches!(lines.memory, Memory::Large(_)));
            assert_eq!(flagged(&lines), possible, "{len}");
        }
        assert!(matches!(Lines::zeros(LARGE_PAGE / 4 - LANES).memory, Memory::Small(_)));
    }
}
