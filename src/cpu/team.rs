//! Threads that share one run: a parallel loop costs about a microsecond, so every timestep can be one.
//!
//! In:  a number of parts, and a function of a part.
//! Out: the function has been called once for each part.
//! The thread that runs is a member and needs no other: parts are claimed, not dealt, so a helper that has not started
//! yet, or is held up, delays nothing. Each member claims from its own range first, the same one in every loop, which
//! keeps weights in the cache next to a core; then it helps the others. What a part computes never depends on who
//! computes it.
//! Helpers wait by spinning while the run lasts.

#![allow(
    unsafe_code,
    reason = "a closure that lives as long as one loop is shown to helpers that live as long as the run; parts of a \
              slice are lent by index"
)]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The members of a run.
pub(super) struct Team {
    /// One per member.
    ranges: Vec<Range>,
    /// Of the loop that is under way.
    job: UnsafeCell<Option<Job>>,
    /// Whether each member goes through its range from the end.
    backwards: AtomicBool,
    /// Parts that helpers have finished in this loop.
    finished: AtomicUsize,
    /// Whether a part has panicked on a helper.
    panicked: AtomicBool,
    over: AtomicBool,
}

type Job = &'static (dyn Fn(usize) + Sync);

// SAFETY: `job` is written by the thread that owns the run, only while no part is left to claim and all claimed ones are
// finished; it is read by helpers only after they claimed a part, which orders the read after the write.
unsafe impl Sync for Team {}

/// A member's parts; apart from one another in memory, since they are polled.
#[repr(align(128))]
#[derive(Default)]
struct Range {
    /// Those that are left, as `next` << 32 | `end`.
    left: AtomicU64,
    first: AtomicUsize,
}

impl Range {
    /// The next part of the range, if one is left; with the range's first and its end.
    fn claim(&self) -> Option<(usize, usize, usize)> {
        let mut left = self.left.load(Ordering::Relaxed);
        loop {
            let (next, end) = (left >> 32, left & u64::from(u32::MAX));
            if next >= end {
                return None;
            }
            // Acquire: what the owner wrote before it opened the loop is seen. Should a later loop have come between, the
            // part belongs to that one.
            match self.left.compare_exchange_weak(left, left + (1 << 32), Ordering::Acquire, Ordering::Relaxed) {
                // The range is that of the loop until this part is finished.
                Ok(_) => return Some((next as usize, self.first.load(Ordering::Relaxed), end as usize)),
                Err(now) => left = now,
            }
        }
    }
}

impl Team {
    /// Calls `body` with a team of as many threads, this one included; helpers come from rayon's pool.
    pub(super) fn of<R>(threads: usize, body: impl FnOnce(&Team) -> R) -> R {
        let team = Team {
            ranges: (0..threads.max(1)).map(|_| Range::default()).collect(),
            job: UnsafeCell::new(None),
            backwards: AtomicBool::new(false),
            finished: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            over: AtomicBool::new(false),
        };
        if threads <= 1 {
            return body(&team);
        }
        /// Lets the helpers go, also when `body` panics.
        struct Dismiss<'a>(&'a Team);
        impl Drop for Dismiss<'_> {
            fn drop(&mut self) {
                self.0.over.store(true, Ordering::Release);
            }
        }
        rayon::in_place_scope(|scope| {
            let team = &team;
            let _dismiss = Dismiss(team);
            for member in 1..threads {
                scope.spawn(move |_| team.help(member));
            }
            body(team)
        })
    }

    /// The number of members.
    pub(super) fn size(&self) -> usize {
        self.ranges.len()
    }

    /// Calls `f(i)` once for every i in 0..parts, and returns when all calls have; panics if one did, on whatever thread.
    ///
    /// Going `backwards` in every second loop over the same data finds what was used last still in the cache.
    fn each_index(&self, parts: usize, backwards: bool, f: impl Fn(usize) + Sync) {
        if self.size() == 1 || parts <= 1 {
            return if backwards { (0..parts).rev().for_each(f) } else { (0..parts).for_each(f) };
        }
        assert!(u32::try_from(parts).is_ok(), "{parts} parts");
        let job: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: the reference is used by calls of claimed parts only, and this function returns, or unwinds, after all of
        // them have: `Wait` sees to it.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        // SAFETY: no loop is under way, so nobody reads it.
        unsafe { *self.job.get() = Some(job) };
        self.finished.store(0, Ordering::Relaxed);
        self.backwards.store(backwards, Ordering::Relaxed);
        for (member, range) in self.ranges.iter().enumerate() {
            let bound = |m: usize| (m * parts / self.size()) as u64;
            range.first.store(bound(member) as usize, Ordering::Relaxed);
            range.left.store(bound(member) << 32 | bound(member + 1), Ordering::Release);
        }
        let mut wait = Wait { team: self, parts, own: 0 };
        while let Some(i) = self.claim(0) {
            wait.own += 1;
            f(i);
        }
        drop(wait);
        assert!(!self.panicked.load(Ordering::Relaxed), "a part panicked on another thread");
    }

    /// Calls `f(i, &mut parts[i])` once for every part.
    pub(super) fn each<P: Send>(&self, parts: &mut [P], f: impl Fn(usize, &mut P) + Sync) {
        self.each_towards(parts, false, f);
    }

    fn each_towards<P: Send>(&self, parts: &mut [P], backwards: bool, f: impl Fn(usize, &mut P) + Sync) {
        let base = Base(parts.as_mut_ptr());
        self.each_index(parts.len(), backwards, |i| {
            // SAFETY: i < parts.len(), and every i is given to one call only, so no two references are to the same part.
            f(i, unsafe { &mut *base.at(i) });
        });
    }

    /// Calls `f(i, &mut parts[i], chunk i of values)` once for every part; `values` has as many chunks. Loops that go
    /// `backwards` in turn find more in the cache.
    pub(super) fn each_with<P: Send>(
        &self,
        parts: &mut [P],
        values: &mut [f32],
        chunk_len: usize,
        backwards: bool,
        f: impl Fn(usize, &mut P, &mut [f32]) + Sync,
    ) {
        assert_eq!(values.len(), parts.len() * chunk_len);
        let base = Base(values.as_mut_ptr());
        self.each_towards(parts, backwards, |i, part| {
            // SAFETY: chunk i lies in `values`, chunks do not overlap, and every i is given to one call only.
            f(i, part, unsafe { std::slice::from_raw_parts_mut(base.at(i * chunk_len), chunk_len) });
        });
    }

    /// A part of the loop that is under way. Helpers do not know how many there are; the ranges do.
    fn claim(&self, member: usize) -> Option<usize> {
        (0..self.size()).find_map(|i| {
            let (next, first, end) = self.ranges[(member + i) % self.size()].claim()?;
            Some(if self.backwards.load(Ordering::Relaxed) { first + end - 1 - next } else { next })
        })
    }

    fn help(&self, member: usize) {
        /// Counts a part as finished, also when it panics.
        struct Finished<'a>(&'a Team);
        impl Drop for Finished<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.panicked.store(true, Ordering::Relaxed);
                }
                self.0.finished.fetch_add(1, Ordering::Release);
            }
        }
        let mut spin = Spin::default();
        while !self.over.load(Ordering::Acquire) {
            match self.claim(member) {
                Some(i) => {
                    spin = Spin::default();
                    let _finished = Finished(self);
                    // SAFETY: part i was claimed and is not finished, so its loop waits and the job is that loop's.
                    let job = unsafe { *self.job.get() };
                    job.expect("a loop is under way")(i);
                }
                None => spin.once(),
            }
        }
    }
}

/// Waits for the parts of a loop that helpers claimed, also when a part of this thread panics.
struct Wait<'a> {
    team: &'a Team,
    parts: usize,
    /// Parts that this thread claimed.
    own: usize,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        // After a panic parts may be left; nobody is to begin one.
        while std::thread::panicking() && self.team.claim(0).is_some() {
            self.own += 1;
        }
        let mut spin = Spin::default();
        while self.team.finished.load(Ordering::Acquire) < self.parts - self.own {
            spin.once();
        }
    }
}

/// The start of a slice whose parts are lent to threads.
struct Base<T>(*mut T);

// SAFETY: `at` only computes an address; whoever uses it says why it may.
unsafe impl<T: Send> Sync for Base<T> {}

impl<T> Base<T> {
    /// The address of element `i`, which the slice must have.
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

/// Waits for a change that is expected within microseconds; yields when it takes longer, so that a thread which was
/// interrupted can finish.
#[derive(Default)]
struct Spin(u32);

impl Spin {
    fn once(&mut self) {
        const BEFORE_YIELDING: u32 = 4096;
        self.0 += 1;
        if self.0 < BEFORE_YIELDING {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn every_part_is_called_once_in_every_loop() {
        for threads in [1, 2, 3, 7] {
            Team::of(threads, |team| {
                assert_eq!(team.size(), threads);
                for parts in [0, 1, 2, 5, 64] {
                    for repeat in 0..200 {
                        let mut counts = vec![0usize; parts];
                        let mut values = vec![0.0; 3 * parts];
                        team.each_with(&mut counts, &mut values, 3, repeat % 2 == 1, |i, count, chunk| {
                            *count += i + repeat + 1;
                            chunk.fill(i as f32);
                        });
                        assert!(counts.iter().enumerate().all(|(i, &c)| c == i + repeat + 1), "{counts:?}");
                        assert!(values.iter().enumerate().all(|(i, &v)| v == (i / 3) as f32));
                    }
                }
            });
        }
    }

    #[test]
    fn a_loop_sees_what_the_one_before_wrote() {
        Team::of(3, |team| {
            let mut values = vec![1.0f32; 9];
            for _ in 0..1000 {
                let before = values.clone();
                team.each(&mut values, |i, v| *v = before[(i + 1) % 9] + before[i]);
                let sum: f32 = values.iter().sum();
                values.iter_mut().for_each(|v| *v /= sum);
            }
            assert!(values.iter().all(|v| (v - 1.0 / 9.0).abs() < 1e-6), "{values:?}");
        });
    }

    #[test]
    fn a_panic_ends_the_run_and_leaves_no_helper_behind() {
        for culprit in [0, 40] {
            let mut went_on = false;
            let result = catch_unwind(AssertUnwindSafe(|| {
                Team::of(2, |team| {
                    team.each_index(64, false, |i| assert_ne!(i, culprit, "part {culprit}"));
                    went_on = true;
                });
            }));
            assert!(result.is_err() && !went_on);
        }
        // On a helper for certain: this thread's part waits for it.
        let (mut went_on, reached) = (false, AtomicBool::new(false));
        let result = catch_unwind(AssertUnwindSafe(|| {
            Team::of(2, |team| {
                let owner = std::thread::current().id();
                team.each_index(2, false, |_| {
                    if std::thread::current().id() != owner {
                        reached.store(true, Ordering::Release);
                        panic!("on a helper");
                    }
                    while !reached.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                });
                went_on = true;
            });
        }));
        assert!(result.is_err() && !went_on);
        let done = AtomicUsize::new(0);
        Team::of(2, |team| team.each_index(10, true, |_| _ = done.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(done.into_inner(), 10);
    }
}
