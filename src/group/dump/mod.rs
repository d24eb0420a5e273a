//! Writes the entries that this process owns to a file.

pub(super) mod periodic;
mod removals;
pub(super) mod restore;

use std::io;
use std::path::Path;
use std::time::Duration;

use super::{Group, Loaded};
use crate::dump::{BlockWriter, DumpHeader, DumpedEntry, SyncedWriter, Uptime, write_atomically};
use crate::error::{Error, ErrorKind, Result};
use crate::stats::CacheType;

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

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - 1)
}
