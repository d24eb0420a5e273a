//! How long values are fresh, and what happens afterwards.

use std::time::Duration;

use super::lifetime::Lifetime;
use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};

/// The options.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freshness {
    pub(super) time_to_live: Option<Duration>,
    /// The largest part of the time to live that is cut off, 0 to 1.
    pub(super) jitter: f64,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) refresh_at: Option<f64>,
    pub(super) negative_ttl: Option<Duration>,
    pub(super) error_ttl: Option<Duration>,
    /// How long a value is kept after it may be served.
    pub(super) keep_for_revalidation: Duration,
}

/// The phase of a cached value's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Fresh,
    /// Served, and refreshed in the background.
    Refresh,
    /// Served only if a load fails or takes too long.
    Stale,
}

impl Default for Freshness {
    fn default() -> Self {
        Freshness {
            time_to_live: None,
            jitter: DEFAULT_JITTER,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            soft_timeout: None,
            refresh_at: None,
            negative_ttl: None,
            error_ttl: None,
            keep_for_revalidation: Duration::ZERO,
        }
    }
}

impl Freshness {
    /// The longest time for which a value may be served after it was fresh.
    pub(super) fn allowance(&self) -> Duration {
        self.stale_while_revalidate.max(self.stale_if_error)
    }

    /// Whether a failed load is remembered: no other is made for some time.
    pub(super) fn remembers_failures(&self) -> bool {
        self.negative_ttl.is_some() || self.error_ttl.is_some() || self.can_refresh()
    }

    pub(super) fn has_stale_if_error(&self) -> bool {
        !self.stale_if_error.is_zero()
    }

    /// Whether a key that has a value may be loaded again.
    pub(super) fn can_refresh(&self) -> bool {
        self.refresh_at.is_some()
            || self.has_stale_if_error()
            || !self.stale_while_revalidate.is_zero()
    }

    /// The time to live of a value that is loaded now.
    #[inline]
    pub(super) fn jittered_ttl(&self) -> Option<Duration> {
        self.time_to_live.map(|ttl| self.jittered(ttl))
    }

    fn jittered(&self, ttl: Duration) -> Duration {
        match self.jitter {
            0.0 => ttl,
            jitter => ttl.saturating_sub(ttl.mul_f64(jitter * crate::random::unit())),
        }
    }

    /// The time before the end of a value in which it may be in another phase than [`Phase::Fresh`].
    pub(super) fn margin(&self, lifetime: &Lifetime) -> Duration {
        // As in `phase`: a value whose begin is not known is not refreshed.
        let fraction = self.refresh_at.filter(|_| lifetime.begun.is_some());
        let refreshed = fraction.map_or(Duration::ZERO, |fraction| {
            lifetime.fresh_time().mul_f64(1.0 - fraction)
        });
        self.allowance().saturating_add(refreshed)
    }

    pub(super) fn phase(&self, lifetime: &Lifetime, now: Tick) -> Phase {
        let Some(fresh_until) = lifetime.fresh_until else {
            return Phase::Fresh;
        };
        if now < fresh_until {
            let (Some(fraction), Some(begun)) = (self.refresh_at, lifetime.begun) else {
                return Phase::Fresh;
            };
            let refreshed_at = begun.after(lifetime.fresh_time().mul_f64(fraction));
            return match now < refreshed_at {
                true => Phase::Fresh,
                false => Phase::Refresh,
            };
        }
        match now.since(fresh_until) < self.stale_while_revalidate {
            true => Phase::Refresh,
            false => Phase::Stale,
        }
    }

    /// Checks the numbers.
    pub(super) fn check(&self) -> Result<()> {
        let invalid = |what: &str| Err(Error::new(ErrorKind::InvalidOption, what));
        if !(0.0..=1.0).contains(&self.jitter) {
            return invalid("time_to_live_jitter must be between 0 and 1");
        }
        if self.refresh_at.is_some_and(|at| !(at > 0.0 && at < 1.0)) {
            return invalid("refresh_at must be between 0 and 1, and neither of them");
        }
        Ok(())
    }
}

const DEFAULT_JITTER: f64 = 0.05;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::clock::Clock;

    /// If such a value were always due, each hit of the group would look its times up.
    #[test]
    fn value_of_unknown_age_is_due_only_in_its_stale_time() {
        let (now, ttl) = (Clock::manual().now(), Duration::from_secs(10));
        let stale = Duration::from_secs(5);
        let freshness = Freshness {
            refresh_at: Some(0.75),
            stale_if_error: stale,
            ..Freshness::default()
        };
        let margin =
            |begun| freshness.margin(&Lifetime::between(begun, Some(now.after(ttl)), stale));
        assert_eq!(margin(None), stale);
        assert_eq!(margin(Some(now)), stale + ttl / 4);
    }
}
