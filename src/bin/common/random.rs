//! Seeded input: the same numbers on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `end` − 1; 0 if `end` is 0. The bias of the remainder is far below what input needs.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % (end.max(1) as u64)) as usize
    }

    /// `n` numbers in [−1, 1).
    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    /// `batch_size` lengths drawn evenly from `min` to `max`; one of them is `max`.
    pub(crate) fn lengths(&mut self, batch_size: usize, min: usize, max: usize) -> Vec<usize> {
        let mut lengths: Vec<usize> = (0..batch_size).map(|_| min + self.below(max + 1 - min)).collect();
        if let Some(first) = lengths.first_mut() {
            *first = max;
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_range_and_repeat() {
        let values = Random::new(7).values(1000);
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        assert!(values.iter().any(|&v| v < -0.9) && values.iter().any(|&v| v > 0.9));
        assert_eq!(values, Random::new(7).values(1000));
        assert_ne!(values, Random::new(8).values(1000));
        let lengths = Random::new(7).lengths(50, 2, 9);
        assert!(lengths.iter().all(|n| (2..=9).contains(n)) && lengths[0] == 9);
    }
}
