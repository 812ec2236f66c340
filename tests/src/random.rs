//! Random numbers that can be had again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea, Flood 2014): enough to choose moments.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Seeded by `STASIS_TEST_SEED` or the clock; prints the seed, which a failed test then shows.
    #[must_use]
    pub fn new() -> Random {
        let seed = std::env::var("STASIS_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| {
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(1, |d| u64::from(d.subsec_nanos()) ^ (d.as_secs() << 30))
            });
        println!("STASIS_TEST_SEED={seed}");
        Random(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` up to, not including, `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next_u64() % (high - low).max(1)
    }

    /// A length of time between two fractions of `whole`.
    pub fn part(&mut self, whole: Duration, low: f64, high: f64) -> Duration {
        let thousandth = self.between(0, 1000) as f64 / 1000.0;
        whole.mul_f64(low + (high - low) * thousandth)
    }
}

impl Default for Random {
    fn default() -> Random {
        Random::new()
    }
}
