//! Dumps from time to time, with a limit of the bytes that are written.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::dump::DumpedEntry;
use crate::error::{Error, ErrorKind, Result};
use crate::group::Group;
use crate::panics::caught;
use crate::stats::CacheType;
use crate::sync::spawn;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

impl Group {
    /// Calls [`dump`](Self::dump) every `interval` on a thread of its own, until the returned handle is
    /// dropped. Use it to spare SD cards.
    ///
    /// There is no dump while less than 5 % of the entries have changed, nor while fewer bytes may be written
    /// than the dump would have. At first these are `bytes_per_day`. Each dump uses some of them up, and they
    /// come back at an even pace within a day. So the limit holds in the long run, and up to twice as many are
    /// written on a day after one without dumps. A cache whose dump is longer than `bytes_per_day` is never
    /// dumped. Over the limit, the length of the dump is computed again after an hour at the latest.
    ///
    /// A dump that fails is logged as a warning. It counts like one that was written, because most of it may
    /// have reached the disk. The next one is tried after the next interval. The thread does not keep the group
    /// alive.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for an interval of zero; [`ErrorKind::Io`] if the thread cannot be
    /// started.
    pub fn dump_every(
        &self,
        interval: Duration,
        bytes_per_day: u64,
        path: impl Into<PathBuf>,
        schema: u64,
    ) -> Result<PeriodicDump> {
        if interval.is_zero() {
            let message = "an interval of zero between dumps";
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        let (stop, stopped) = bounded::<()>(0);
        let (group, path) = (self.downgrade(), path.into());
        let mut pace = Pace::new(bytes_per_day);
        let run = move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                let Some(group) = group.upgrade() else {
                    return;
                };
                let contents = Contents::of(&group);
                let Some(len) = pace.allowed(contents, Instant::now(), || dump_len(&group)) else {
                    continue;
                };
                match group.dump(&path, schema) {
                    Ok(report) => pace.note(contents, report.bytes),
                    Err(error) => {
                        pace.note_failure(len);
                        // A panic of the program's logger must not end the dumps.
                        caught(|| log::warn!("group {}: {error}", group.name()));
                    }
                }
            }
        };
        match spawn("larder-dump", None, run) {
            Ok(_) => Ok(PeriodicDump { _stop: stop }),
            Err(error) => Err(Error::with_source(
                ErrorKind::Io,
                "cannot start the thread of dumps",
                error,
            )),
        }
    }
}

/// Dumps a group from time to time until it is dropped; see [`Group::dump_every`].
///
/// A dump that is under way at that moment is completed.
#[derive(Debug)]
#[must_use = "dropping it ends the dumps"]
pub struct PeriodicDump {
    _stop: Sender<()>,
}

/// The number of entries of the main share, and how many entered and left it so far.
#[derive(Clone, Copy, Debug, Default)]
struct Contents {
    items: u64,
    left: u64,
}

impl Contents {
    fn of(group: &Group) -> Contents {
        let stats = group.cache_stats(CacheType::Main);
        Contents {
            items: stats.items,
            left: stats.evictions + stats.expired + stats.removed + stats.replaced,
        }
    }

    /// Whether at least 5 % of the entries entered or left since then.
    fn has_changed_since(self, then: Contents) -> bool {
        let left = self.left.saturating_sub(then.left);
        let entered = (self.items + left).saturating_sub(then.items);
        entered.max(left) * 20 >= self.items.max(then.items).max(1)
    }
}

/// Which dumps are worth their bytes, and within the limit for a day.
struct Pace {
    bytes_per_day: u64,
    /// The contents at the last dump.
    last: Contents,
    /// The bytes that may be written now. They grow again at the rate of the limit.
    allowance: f64,
    at: Option<Instant>,
    /// When a length is computed again, after one that was over the allowance.
    next: Option<Instant>,
}

impl Pace {
    fn new(bytes_per_day: u64) -> Pace {
        Pace {
            bytes_per_day,
            last: Contents::default(),
            allowance: bytes_per_day as f64,
            at: None,
            next: None,
        }
    }

    /// The length of the dump, if one is to be written now. It is computed from all entries, so only if enough
    /// has changed, and not again before the bytes for it are back or an hour has passed.
    fn allowed(
        &mut self,
        contents: Contents,
        now: Instant,
        len: impl FnOnce() -> u64,
    ) -> Option<u64> {
        let passed = self.at.replace(now).map_or(Duration::ZERO, |at| now - at);
        let full = self.bytes_per_day as f64;
        self.allowance = (self.allowance + full * (passed.as_secs_f64() / DAY)).min(full);
        if self.next.is_some_and(|next| now < next) || !contents.has_changed_since(self.last) {
            return None;
        }
        let len = len();
        let lacking = len as f64 - self.allowance;
        if lacking <= 0.0 {
            return Some(len);
        }
        let wait = match len > self.bytes_per_day {
            true => LONGEST_WAIT,
            false => LONGEST_WAIT.min(lacking / full * DAY),
        };
        self.next = Some(now + Duration::from_secs_f64(wait));
        None
    }

    fn note(&mut self, contents: Contents, bytes: u64) {
        self.last = contents;
        self.allowance -= bytes as f64;
    }

    fn note_failure(&mut self, len: u64) {
        self.allowance -= len as f64;
    }
}

/// The length that a dump would have now. The blocks of long values may add 3 %.
fn dump_len(group: &Group) -> u64 {
    let entries = group.inner.store.iter();
    let own = entries.filter(|entry| entry.cache_type() == CacheType::Main);
    let encoded = own.map(|entry| {
        DumpedEntry {
            key: entry.key(),
            value: &entry.value(),
            age: None,
            ttl: None,
        }
        .encoded_len() as u64
    });
    encoded.sum()
}

/// A day in seconds.
const DAY: f64 = 86_400.0;

/// After this many seconds the length is computed again, because the cache may have become smaller.
const LONGEST_WAIT: f64 = 3600.0;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    const LIMIT: u64 = 1000;

    /// The contents of a cache after `count` entries have left it.
    fn changed(count: u64) -> Contents {
        Contents {
            items: 100,
            left: count,
        }
    }

    fn hours(count: u64) -> Duration {
        Duration::from_secs(3600 * count)
    }

    #[test]
    fn dumps_of_a_day_stay_within_the_limit() {
        let (mut pace, start) = (Pace::new(LIMIT), Instant::now());
        let mut written = vec![0; 30];
        for minute in 0..30 * 24 * 60 {
            let now = start + Duration::from_secs(60 * minute);
            let contents = changed(100 * minute);
            if pace.allowed(contents, now, || 70).is_some() {
                pace.note(contents, 70);
                written[minute as usize / (24 * 60)] += 70;
            }
        }
        assert!(written[0] <= 2 * LIMIT, "{written:?}");
        let later: u64 = written[1..].iter().sum();
        assert!(
            (28 * LIMIT..=29 * LIMIT + 70).contains(&later),
            "{written:?}"
        );
    }

    #[test]
    fn dump_over_the_limit_is_never_written() {
        let (mut pace, start) = (Pace::new(LIMIT), Instant::now());
        assert_eq!(pace.allowed(changed(0), start, || LIMIT + 1), None);
        let later = start + hours(100);
        assert_eq!(pace.allowed(changed(1000), later, || LIMIT + 1), None);
        let later = later + hours(1);
        assert_eq!(pace.allowed(changed(1000), later, || LIMIT), Some(LIMIT));
    }

    #[test]
    fn limit_of_zero_bytes_allows_no_dump_with_entries() {
        let mut pace = Pace::new(0);
        assert_eq!(pace.allowed(changed(0), Instant::now(), || 1), None);
    }

    #[test]
    fn cache_that_grew_is_dumped_only_if_the_limit_has_room_for_its_present_length() {
        let (mut pace, start) = (Pace::new(LIMIT), Instant::now());
        assert_eq!(pace.allowed(changed(0), start, || 10), Some(10));
        pace.note(changed(0), 10);
        assert_eq!(pace.allowed(changed(100), start, || LIMIT), None);
        let next_day = start + hours(24);
        assert_eq!(pace.allowed(changed(100), next_day, || LIMIT), Some(LIMIT));
    }

    #[test]
    fn dump_that_failed_counts() {
        let (mut pace, start) = (Pace::new(LIMIT), Instant::now());
        assert_eq!(pace.allowed(changed(0), start, || 600), Some(600));
        pace.note_failure(600);
        assert_eq!(pace.allowed(changed(0), start, || 600), None);
        // It is tried again although nothing has changed since.
        let later = start + hours(5);
        assert_eq!(pace.allowed(changed(0), later, || 600), Some(600));
    }

    #[test]
    fn length_over_the_limit_is_computed_once_an_hour() {
        // The second one is never written.
        for len in [900, LIMIT + 1] {
            let (mut pace, start) = (Pace::new(LIMIT), Instant::now());
            assert_eq!(pace.allowed(changed(0), start, || LIMIT), Some(LIMIT));
            pace.note(changed(0), LIMIT);
            let (mut computed, mut written) = (0, None);
            for minute in 1..24 * 60 {
                let compute = || {
                    computed += 1;
                    len
                };
                let now = start + Duration::from_secs(60 * minute);
                let allowed = pace.allowed(changed(100 * minute), now, compute);
                if allowed.is_some() {
                    written = Some(minute);
                    break;
                }
            }
            let is_back = |minute| (24 * 54..24 * 54 + 5).contains(&minute);
            assert!(written.map_or(len > LIMIT, is_back), "{written:?}");
            assert!(computed <= 24, "{computed} times within a day");
        }
    }

    #[test]
    fn length_is_computed_only_if_enough_has_changed() {
        let (mut pace, start) = (Pace::new(LIMIT), Instant::now());
        pace.note(changed(0), 10);
        let unasked = || unreachable!("too little has changed");
        assert_eq!(pace.allowed(changed(4), start, unasked), None);
        assert_eq!(pace.allowed(changed(5), start, || 10), Some(10));
    }
}
