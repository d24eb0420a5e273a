//! Writes the entries that this process owns to a file, once or from time to time.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Group, Loaded};
use crate::dump::{BlockWriter, DumpHeader, DumpedEntry, SyncedWriter, Uptime, write_atomically};
use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::stats::CacheType;
use crate::sync::spawn;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

impl Group {
    /// Writes the entries of the [main share](CacheType::Main) to a file from which
    /// [`restore`](Self::restore) reads them after a restart. Entries past their time to live are left out.
    ///
    /// `schema` is the program's own number of the form of its values. A dump is restored only under the
    /// same number, so change it when old values would be misread.
    ///
    /// The file is written beside `path` first, with the name followed by `.tmp`. A thread syncs it
    /// while it is written. It is synced once more at the end and then renamed, so that a crash leaves the
    /// old file or the new one. Only its owner can read it (mode 0600). It takes the bytes of keys and
    /// values, 24 bytes an entry, and 3 % at most for blocks, more where values are longer than 64 KiB.
    ///
    /// Gets go on meanwhile. An entry that changes during the call is written in its old or its new
    /// state, or not at all. The dumps of a group are written one after the other. Those of different groups
    /// need different paths. If two processes write to one path at the same time, one of them gets an error (on
    /// Unix).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`], for example if the disk is full. The old file is then unchanged.
    pub fn dump(&self, path: impl AsRef<Path>, schema: u64) -> Result<DumpReport> {
        let path = path.as_ref();
        let _alone = self.inner.dumps.lock();
        let written = write_atomically(path, |file| self.write_dump(file, schema));
        written.map_err(|error| {
            let message = format!("cannot write the dump {}", path.display());
            Error::with_source(ErrorKind::Io, message, error)
        })
    }

    /// Calls [`dump`](Self::dump) every `interval` on a thread of its own, until the returned handle is
    /// dropped. There is no dump while less than 5 % of the entries have changed, nor while fewer bytes may be
    /// written than the last dump had. At first these are `bytes_per_day`. Each dump uses some of them up, and
    /// they come back at an even pace within a day. So the limit holds in the long run; up to twice as many
    /// are written on the first day, and the first dump is written whatever its length. Use it to spare SD
    /// cards.
    ///
    /// A dump that fails is logged as a warning, and the next one is tried after the next interval. The
    /// thread does not keep the group alive.
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
                if !pace.allows(contents, Instant::now()) {
                    continue;
                }
                match group.dump(&path, schema) {
                    Ok(report) => pace.note(contents, report.bytes, Instant::now()),
                    Err(error) => {
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

    fn write_dump(&self, file: &mut SyncedWriter<'_>, schema: u64) -> io::Result<DumpReport> {
        let store = &self.inner.store;
        let clock = store.clock();
        // Before the entries: a removal in between is then missing here, and its entry is gone. Before the
        // uptime: no removal may look older than it is.
        let removals = self.inner.encoded_removals();
        let uptime = Uptime::now();
        let header = DumpHeader {
            group: self.name().to_owned(),
            schema,
            boot_id: uptime.boot_id,
            since_boot: uptime.since_boot,
            unix_nanos: u64::try_from(clock.unix_nanos()).unwrap_or(0),
            removals,
        };
        let dumped_at = clock.now();
        let mut writer = BlockWriter::new(io::BufWriter::new(file), &header)?;
        let mut report = DumpReport::default();
        for entry in store
            .iter()
            .filter(|entry| entry.cache_type() == CacheType::Main)
        {
            let Ok(hit) = store.peek(store.hash(entry.key()), entry.key()) else {
                continue;
            };
            let Loaded { view, lifetime, .. } = self.inner.loaded(hit);
            let ttl = lifetime.fresh_until.map(|end| nanos(end.since(dumped_at)));
            if ttl == Some(0) {
                continue;
            }
            writer.push(&DumpedEntry {
                key: entry.key(),
                value: &view,
                age: lifetime.begun.map(|begun| nanos(dumped_at.since(begun))),
                ttl,
            })?;
            report.entries += 1;
        }
        let (buffered, bytes) = writer.finish()?;
        buffered
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        report.bytes = bytes;
        Ok(report)
    }
}

/// The outcome of [`Group::dump`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DumpReport {
    /// The entries that were written.
    pub entries: u64,
    /// The length of the file.
    pub bytes: u64,
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
    last: Contents,
    /// The length of the last dump.
    len: u64,
    /// The bytes that may be written now. They grow again at the rate of the limit.
    allowance: f64,
    at: Option<Instant>,
}

impl Pace {
    fn new(bytes_per_day: u64) -> Pace {
        Pace {
            bytes_per_day,
            last: Contents::default(),
            len: 0,
            allowance: bytes_per_day as f64,
            at: None,
        }
    }

    fn allows(&mut self, contents: Contents, now: Instant) -> bool {
        let passed = self.at.replace(now).map_or(Duration::ZERO, |at| now - at);
        let full = self.bytes_per_day as f64;
        self.allowance = (self.allowance + full * (passed.as_secs_f64() / DAY)).min(full);
        contents.has_changed_since(self.last) && self.len as f64 <= self.allowance
    }

    fn note(&mut self, contents: Contents, bytes: u64, now: Instant) {
        (self.last, self.len, self.at) = (contents, bytes, Some(now));
        self.allowance -= bytes as f64;
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - 1)
}

/// In seconds.
const DAY: f64 = 86_400.0;
