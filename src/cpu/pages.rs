//! Memory of weights.
//!
//! In:  how many numbers.
//! Out: as many zeros, at the start of a line of the cache, and in large pages where the system has them: a model's
//! weights are read from end to end at every timestep, and the addresses of more than a few thousand small pages do not
//! fit what a core remembers of them.
//! Only Linux has large pages that a program may have for the asking; there it asks for matrices of at least one.

use std::ops::{Deref, DerefMut};

use super::rows::Lines;

/// Numbers that are written once and read often.
pub(super) enum Pages {
    Small(Lines),
    #[cfg(target_os = "linux")]
    Large(memmap2::MmapMut),
}

impl Pages {
    /// `len` zeros, a multiple of 16.
    pub(super) fn zeros(len: usize) -> Self {
        #[cfg(target_os = "linux")]
        if let Some(pages) = large(len * size_of::<f32>()) {
            return Self::Large(pages);
        }
        Self::Small(Lines::zeros(len))
    }
}

/// So many bytes, unless they are less than a page or the system refuses.
#[cfg(target_os = "linux")]
fn large(bytes: usize) -> Option<memmap2::MmapMut> {
    /// Of x86-64, and of AArch64 with small pages of 4 KiB.
    const LARGE_PAGE: usize = 2 << 20;
    if bytes < LARGE_PAGE {
        return None;
    }
    let pages = memmap2::MmapMut::map_anon(bytes).ok()?;
    // A system without large pages says so; the memory is as good then.
    let _ = pages.advise(memmap2::Advice::HugePage);
    Some(pages)
}

impl Deref for Pages {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Small(lines) => lines,
            #[cfg(target_os = "linux")]
            Self::Large(pages) => bytemuck::cast_slice(pages),
        }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Small(lines) => lines,
            #[cfg(target_os = "linux")]
            Self::Large(pages) => bytemuck::cast_slice_mut(pages),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_all_sizes_can_be_written_and_start_a_line() {
        for len in [0, 16, (2 << 18) - 16, 2 << 18, (5 << 18) + 16] {
            let mut pages = Pages::zeros(len);
            assert_eq!(pages.len(), len);
            assert!(pages.iter().all(|&v| v == 0.0) && pages.as_ptr().addr().is_multiple_of(64));
            pages.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
            assert!(pages.iter().enumerate().all(|(i, &v)| v == i as f32));
        }
    }

    /// The kernel lists each stretch of memory of a process, with `hg` among its flags if large pages were asked for.
    #[cfg(target_os = "linux")]
    #[test]
    fn matrices_of_a_large_page_ask_for_it() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return; // a kernel that has none
        }
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
        assert!(flagged(&Pages::zeros(2 << 18)));
        assert!(!flagged(&Lines::zeros(2 << 18)));
    }
}
