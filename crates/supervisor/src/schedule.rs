//! When the next checkpoint is due, by time: every so often, or as often as pays.
//!
//! How often pays follows from what a checkpoint costs and how often the machine fails. J. T. Daly, "A higher order estimate of
//! the optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22 (2006), equation 37: with
//! a checkpoint that takes `d` and a mean time between failures of `M`, the time of work between two checkpoints that loses least is
//! `sqrt(2dM) * (1 + sqrt(d/2M)/3 + d/2M/9) - d` for `d < 2M`, and `M` above. How long a restart takes has no part in it.
//!
//! A program that runs on while it is saved loses less than the time that takes, so what comes out is rather too seldom.
//!
//! Nothing in here looks at a clock: times come in as arguments.

use crate::Interval;
use std::collections::VecDeque;
use std::time::Duration;

/// How often checkpoints are taken by time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cadence {
    /// So long after the end of the last one.
    Every(Interval),
    /// As often as pays.
    Auto(Economy),
}

/// What "as often as pays" depends on, besides the cost of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Economy {
    /// Mean time between failures of what the job runs on.
    pub mtbf: Duration,
    /// The largest part of the time that checkpoints may take: 0.01 is 1 %.
    pub max_overhead: f64,
}

impl Default for Economy {
    fn default() -> Economy {
        Economy {
            mtbf: Duration::from_secs(86_400),
            max_overhead: 0.01,
        }
    }
}

/// What a checkpoint is taken to cost before one was taken.
const GUESS: Duration = Duration::from_secs(1);
/// How many of the last checkpoints count: increments and full ones alternate.
const REMEMBERED: usize = 8;
/// No computed interval is shorter.
const SHORTEST: Duration = Duration::from_secs(1);

/// What the last checkpoints of a job have cost.
#[derive(Clone, Debug, Default)]
pub struct Costs(VecDeque<Duration>);

impl Costs {
    /// Adds one that was taken.
    pub fn note(&mut self, cost: Duration) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(cost);
    }

    /// What the next is likely to cost.
    #[must_use]
    pub fn expected(&self) -> Duration {
        match u32::try_from(self.0.len()) {
            Ok(count @ 1..) => self.0.iter().sum::<Duration>() / count,
            _ => GUESS,
        }
    }
}

impl Cadence {
    /// How long after the end of a checkpoint the next one begins.
    #[must_use]
    pub fn wait(&self, costs: &Costs) -> Duration {
        match self {
            Cadence::Every(interval) => interval.duration(),
            Cadence::Auto(economy) => economy.wait(costs.expected()),
        }
    }
}

impl Economy {
    /// How long to work between checkpoints that take `cost` each: Daly's time, but so long that they stay within the share
    /// of the time that is allowed to them.
    #[must_use]
    pub fn wait(&self, cost: Duration) -> Duration {
        let seconds = cost.as_secs_f64();
        let least = seconds * (1.0 / self.max_overhead.clamp(1e-6, 1.0) - 1.0);
        let best = daly(seconds, self.mtbf.as_secs_f64());
        // Beyond a century nobody waits.
        let wait = best.max(least).min(3e9);
        Duration::from_secs_f64(wait).max(SHORTEST)
    }
}

/// Daly's equation 37; all in seconds.
fn daly(cost: f64, mtbf: f64) -> f64 {
    if cost >= 2.0 * mtbf {
        return mtbf;
    }
    let part = cost / (2.0 * mtbf);
    (2.0 * cost * mtbf).sqrt() * (1.0 + part.sqrt() / 3.0 + part / 9.0) - cost
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: f64 = 60.0;

    #[test]
    fn dalys_published_points_come_out() {
        // A checkpoint takes 5 minutes (and a restart 10, which plays no part).
        for (mtbf_minutes, published) in [(24.0 * 60.0, 117.0), (6.0 * 60.0, 57.0), (15.0, 9.1)] {
            let best = daly(5.0 * MINUTE, mtbf_minutes * MINUTE) / MINUTE;
            let digits = if published < 10.0 { 0.05 } else { 0.5 };
            assert!((best - published).abs() < digits, "{best} for {published}");
        }
        // A machine that fails faster than it can be saved.
        assert_eq!(daly(100.0, 50.0), 50.0);
    }

    #[test]
    fn checkpoints_stay_within_their_share() {
        let economy = Economy::default();
        for cost in [0.01, 0.5, 3.0, 60.0, 1000.0] {
            let wait = economy.wait(Duration::from_secs_f64(cost)).as_secs_f64();
            assert!(cost / (wait + cost) <= 0.01 + 1e-9, "{cost}: {wait}");
        }
        // Where they cost little, failures decide.
        let wait = economy.wait(Duration::from_millis(10)).as_secs_f64();
        assert!((wait - 41.56).abs() < 0.1, "{wait}");
        let often = Economy {
            max_overhead: 1.0,
            mtbf: Duration::from_secs(1),
        };
        assert_eq!(often.wait(Duration::ZERO), SHORTEST);
    }

    #[test]
    fn the_last_costs_count() {
        let mut costs = Costs::default();
        assert_eq!(costs.expected(), GUESS);
        costs.note(Duration::from_secs(4));
        assert_eq!(costs.expected(), Duration::from_secs(4));
        for _ in 0..REMEMBERED {
            costs.note(Duration::from_secs(2));
        }
        assert_eq!(costs.expected(), Duration::from_secs(2));
        let hour: Interval = "1h".parse().unwrap();
        assert_eq!(Cadence::Every(hour).wait(&costs), hour.duration());
        let auto = Cadence::Auto(Economy::default());
        assert_eq!(auto.wait(&costs), Economy::default().wait(costs.expected()));
    }
}
