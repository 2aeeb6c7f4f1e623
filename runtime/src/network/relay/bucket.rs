//! So much in a second.

use std::time::{Duration, Instant};

/// How much of a second may come at once.
const BURST: Duration = Duration::from_millis(100);

/// What may be taken of something that comes again at a rate.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    /// Below zero where more was taken than there was.
    left: f64,
    filled: Instant,
    /// Whether it was used up, and nothing is given until there is enough again: else each look would
    /// take the few that have come since the last, and whoever looks most often takes all.
    is_dry: bool,
}

impl Bucket {
    pub(super) fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second as f64;
        let mut this = Self { per_second, left: 0.0, filled: now, is_dry: false };
        this.left = this.most();
        this
    }

    fn most(&self) -> f64 {
        (self.per_second * BURST.as_secs_f64()).max(1.0)
    }

    /// What is worth while.
    fn enough(&self) -> f64 {
        (self.most() / 2.0).max(1.0)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        self.filled = now;
        self.left = self.most().min(self.left + passed.as_secs_f64() * self.per_second);
    }

    /// How much there is now, if there is any.
    pub(super) fn available(&mut self, now: Instant) -> u64 {
        self.fill(now);
        self.is_dry &= self.left < self.enough();
        if self.is_dry { 0 } else { self.left.max(0.0) as u64 }
    }

    /// As much of it as one of so many may take at once.
    pub(super) fn part(&mut self, sharers: u64, now: Instant) -> u64 {
        const LEAST: u64 = 512;
        let part = (self.most() as u64 / sharers.max(1)).max(LEAST);
        self.available(now).min(part)
    }

    pub(super) fn take(&mut self, amount: u64) {
        self.left -= amount as f64;
        self.is_dry |= self.left < 1.0;
    }

    /// When there is enough again for it to be worth while.
    pub(super) fn ready_at(&self) -> Instant {
        let missing = (self.enough() - self.left).max(0.0);
        // And a little more, whatever was rounded.
        self.filled + Duration::from_secs_f64(missing / self.per_second) + Duration::from_micros(1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Bucket;

    #[test]
    fn no_more_comes_than_the_rate_and_a_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        let mut taken = 0;
        let mut now = start;
        while now < start + Duration::from_secs(10) {
            let some = bucket.available(now).min(300);
            bucket.take(some);
            taken += some;
            now = bucket.ready_at().max(now + Duration::from_millis(7));
        }
        assert!((9_900..=10_100).contains(&taken), "{taken}");
        // One that gives less than one at a time gives one, and then none for its time.
        let mut slow = Bucket::new(1, start);
        assert_eq!(slow.available(start), 1);
        slow.take(1);
        assert_eq!(slow.available(start + Duration::from_millis(900)), 0);
        assert_eq!(slow.available(start + Duration::from_millis(1001)), 1);
    }
}
