//! Repeated runs and what they say: median and spread.

use std::time::{Duration, Instant};

use super::failure::Result;

/// Wall times of repeated runs, in seconds.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    sorted: Vec<f64>,
}

impl Times {
    /// `seconds` must not be empty.
    pub(crate) fn new(mut seconds: Vec<f64>) -> Self {
        assert!(!seconds.is_empty(), "at least one run is measured");
        seconds.sort_by(f64::total_cmp);
        Self { sorted: seconds }
    }

    pub(crate) fn median(&self) -> f64 {
        let n = self.sorted.len();
        (self.sorted[(n - 1) / 2] + self.sorted[n / 2]) / 2.0
    }

    pub(crate) fn min(&self) -> f64 {
        self.sorted[0]
    }

    pub(crate) fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    /// The smallest time that at least `percent` of the runs did not exceed.
    #[allow(dead_code, reason = "only the benchmark asks for it")]
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.sorted.len() as f64).ceil() as usize;
        self.sorted[rank.clamp(1, self.sorted.len()) - 1]
    }

    pub(crate) fn runs(&self) -> usize {
        self.sorted.len()
    }
}

/// How often to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repeat {
    /// Exactly so often; otherwise until `budget` is spent, but at least [`Repeat::MIN_RUNS`] times.
    pub(crate) runs: Option<usize>,
    /// Time for all runs together.
    pub(crate) budget: Duration,
}

impl Repeat {
    /// The fewest runs that have a median and a spread.
    pub(crate) const MIN_RUNS: usize = 3;
    /// More runs than this say nothing new.
    pub(crate) const MAX_RUNS: usize = 1000;

    /// Times `run` again and again. Warm-up is the caller's.
    pub(crate) fn measure(self, mut run: impl FnMut() -> Result<()>) -> Result<Times> {
        let begin = Instant::now();
        let mut seconds = Vec::new();
        loop {
            let enough = match self.runs {
                Some(runs) => seconds.len() >= runs.max(1),
                None => {
                    seconds.len() >= Self::MAX_RUNS
                        || (seconds.len() >= Self::MIN_RUNS && begin.elapsed() >= self.budget)
                }
            };
            if enough {
                return Ok(Times::new(seconds));
            }
            let start = Instant::now();
            run()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle() {
        let times = Times::new(vec![4.0, 1.0, 2.0, 10.0]);
        assert_eq!((times.median(), times.min(), times.max(), times.runs()), (3.0, 1.0, 10.0, 4));
        assert_eq!(Times::new(vec![5.0]).median(), 5.0);
        let hundred = Times::new((1..=100).map(f64::from).collect());
        assert_eq!((hundred.percentile(99.0), hundred.percentile(100.0), hundred.percentile(0.0)), (99.0, 100.0, 1.0));
        assert_eq!(Times::new(vec![1.0, 2.0]).percentile(99.0), 2.0);
    }

    #[test]
    fn the_number_of_runs_is_as_asked() {
        let mut count = 0;
        let repeat = Repeat { runs: Some(5), budget: Duration::ZERO };
        let times = repeat.measure(|| {
            count += 1;
            Ok(())
        });
        assert_eq!((times.unwrap().runs(), count), (5, 5));
        let repeat = Repeat { runs: None, budget: Duration::ZERO };
        assert_eq!(repeat.measure(|| Ok(())).unwrap().runs(), Repeat::MIN_RUNS);
    }
}
