//! Reads the entries of a dump back, those that no removal has touched since.

#[cfg(all(test, larder_loom))]
mod loom_models;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::context::Context;
use crate::dump::{BlockReader, DumpHeader, DumpedEntry, Uptime};
use crate::error::{Error, ErrorKind, Result};
use crate::group::Group;
use crate::group::lifetime::Lifetime;
use crate::group::load::populate::{NewValue, Placement};
use crate::group::removal_clocks::Table;
use crate::panics::FirstPanic;
use crate::store::EvictedEntries;

/// How [`Group::restore`] reads a dump.
pub struct RestoreOptions<'a> {
    schema: u64,
    trust_alone: bool,
    progress: Box<dyn FnMut(RestoreProgress) + 'a>,
}

impl<'a> RestoreOptions<'a> {
    /// The options for dumps of this schema; see [`Group::dump`].
    pub fn new(schema: u64) -> Self {
        RestoreOptions {
            schema,
            trust_alone: false,
            progress: Box::new(|_| ()),
        }
    }

    /// Whether entries are restored although no peer could be asked for the removals since the dump;
    /// false by default. A process without peers needs no trust.
    #[must_use]
    pub fn trust_alone(mut self, trust: bool) -> Self {
        self.trust_alone = trust;
        self
    }

    /// A function that is called after each block of the file, on the thread that restores.
    #[must_use]
    pub fn progress(mut self, progress: impl FnMut(RestoreProgress) + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }
}

/// How far [`Group::restore`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreProgress {
    /// The bytes of the file that were read.
    pub bytes: u64,
    /// The length of the file.
    pub of_bytes: u64,
    /// The entries that were restored.
    pub entries: u64,
}

/// The outcome of [`Group::restore`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The entries that are in the cache again.
    pub restored: u64,
    /// Entries of keys that other processes own now.
    pub not_owned: u64,
    /// Entries that expired, or that have a time to live although the time since the dump is not known.
    pub expired: u64,
    /// Entries that a removal may have touched since they were loaded.
    pub removed: u64,
    /// Entries for which there was no room, or whose key was loaded meanwhile.
    pub refused: u64,
    /// Whether a part of the file was damaged or is missing. Its entries are lost; all others are counted above.
    pub is_damaged: bool,
}

impl Group {
    /// Puts the entries of a [dump](Self::dump) into the cache: those of keys that this process owns and
    /// has not cached meanwhile, with the age and the time to live that are left. Call it at the start,
    /// once the peers are set. Gets may go on.
    ///
    /// No removed value comes back: the group first asks the peers for the removals that they know of,
    /// and drops the entries that one of them may concern. If there are peers and none can be reached
    /// for 2 s, no entry is restored, unless [`RestoreOptions::trust_alone`] is set.
    ///
    /// The time since the dump is measured by the clock that counts since the boot. After a reboot it is
    /// measured by the wall clock. If that is earlier than at the dump, the time is not known. Then
    /// entries with a time to live are dropped, and so are all those whose stripe of keys had a removal.
    /// A wall clock that is set back only a little is not detected. Values may then be served past their time
    /// to live. But all entries whose stripe of keys had a removal since the dump are dropped after a reboot.
    ///
    /// Damaged blocks of the file are skipped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the file cannot be read; [`ErrorKind::InvalidDump`] if it is not a dump of
    /// this group and this schema, or its header is damaged. After these errors nothing has changed,
    /// except that after a read error in the middle the entries before it are restored.
    /// [`ErrorKind::Peer`] if no peer could be asked.
    ///
    /// # Panics
    ///
    /// If the peer picker, the eviction listener or the progress function panics; the other entries are
    /// restored first. An entry at which the picker panics is not restored. If the picker panics when it is
    /// asked for all peers, no entry is.
    pub fn restore(
        &self,
        path: impl AsRef<Path>,
        options: RestoreOptions<'_>,
    ) -> Result<RestoreReport> {
        let mut panic = FirstPanic::default();
        let report = self.restore_dump(path.as_ref(), options, &mut panic);
        panic.resume();
        report
    }

    fn restore_dump(
        &self,
        path: &Path,
        mut options: RestoreOptions<'_>,
        panic: &mut FirstPanic,
    ) -> Result<RestoreReport> {
        let io = |error| {
            let message = format!("cannot read the dump {}", path.display());
            Error::with_source(ErrorKind::Io, message, error)
        };
        let file = File::open(path).map_err(io)?;
        let (header, mut blocks) = BlockReader::open(BufReader::new(file))?;
        self.check_header(&header, options.schema)?;
        let downtime = self.downtime(&header);
        let dumped =
            self.apply_missed_removals(&header, downtime.time, options.trust_alone, panic)?;
        let mut report = RestoreReport::default();
        while let Some(mut payload) = blocks.next_block().map_err(io)? {
            while let Some(entry) = DumpedEntry::take(&mut payload) {
                self.restore_entry(&entry, downtime, &dumped, &mut report, panic);
            }
            let (bytes, of_bytes) = blocks.progress();
            let progress = RestoreProgress {
                bytes,
                of_bytes,
                entries: report.restored,
            };
            panic.catch(|| (options.progress)(progress));
        }
        report.is_damaged = blocks.is_damaged();
        Ok(report)
    }

    fn check_header(&self, header: &DumpHeader, schema: u64) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorKind::InvalidDump, why));
        if header.group != self.name() {
            return refuse(format!(
                "the dump is of the group {:?}, not of {:?}",
                header.group,
                self.name()
            ));
        }
        if header.schema != schema {
            return refuse(format!(
                "the dump has the schema {}, not {schema}",
                header.schema
            ));
        }
        Ok(())
    }

    fn downtime(&self, header: &DumpHeader) -> Downtime {
        // Read first, so that no value looks younger than it is.
        let until = self.inner.store.clock().now();
        let uptime = Uptime::now();
        let is_same_boot = !header.boot_id.is_empty() && header.boot_id == uptime.boot_id;
        let nanos = if is_same_boot {
            uptime.since_boot.checked_sub(header.since_boot)
        } else {
            let now = u64::try_from(self.inner.store.clock().unix_nanos()).ok();
            now.and_then(|now| now.checked_sub(header.unix_nanos))
        };
        Downtime {
            until,
            time: nanos.map(|nanos| Duration::from_nanos(nanos) + RESOLUTION),
            is_exact: is_same_boot,
        }
    }

    /// Applies the removals that were applied at the dump, and those that the peers know of. Returns the
    /// former.
    fn apply_missed_removals(
        &self,
        header: &DumpHeader,
        downtime: Option<Duration>,
        trust_alone: bool,
        panic: &mut FirstPanic,
    ) -> Result<Table> {
        let dumped = self.inner.merge_dumped(&header.removals, downtime, panic)?;
        let end = Instant::now() + PEERS_TIMEOUT;
        loop {
            let peers = self.inner.all_peers(&[]);
            let (ctx, count) = (Context::background().with_deadline(end), peers.len());
            // All of them, because each may know of other removals.
            let failed = self.inner.exchange_with_all(&ctx, &peers).failed;
            if count == 0 || failed.len() < count {
                return Ok(dumped);
            }
            if Instant::now() >= end {
                let error = failed.into_iter().next().map(|failed| failed.error);
                return match (trust_alone, error) {
                    (true, _) | (_, None) => Ok(dumped),
                    (false, Some(error)) => Err(Error::with_source(
                        ErrorKind::Peer,
                        "no peer could be asked for removals since the dump",
                        error,
                    )),
                };
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn restore_entry(
        &self,
        entry: &DumpedEntry<'_>,
        downtime: Downtime,
        dumped: &Table,
        report: &mut RestoreReport,
        panic: &mut FirstPanic,
    ) {
        let inner = &self.inner;
        let key = inner.key(entry.key);
        let mut is_owned = false;
        panic.catch(|| is_owned = inner.peers.owner(&inner.name, entry.key).is_none());
        if !is_owned || inner.check_key(entry.key).is_err() {
            report.not_owned += 1;
            return;
        }
        let Err(generation) = inner.store.peek(key.hash, entry.key) else {
            report.refused += 1;
            return;
        };
        // Read before the clocks of the removals, so that a removal after that is detected.
        let forgets = inner.getter_flights.forgets(key.hash.get());
        let begun = inner.load_begin(generation, forgets);
        let is_exact = downtime.is_exact;
        // Time has passed since the first entry was read.
        let downtime = downtime
            .time
            .map(|time| time + begun.at.since(downtime.until));
        let since = |nanos: u64| {
            downtime.map(|downtime| downtime.saturating_add(Duration::from_nanos(nanos)))
        };
        let age = entry.age.and_then(since);
        // A wall clock may be wrong. Then the age is less than it should be.
        let is_removed = !is_exact && inner.has_removed_since(dumped, entry.key);
        if is_removed || inner.may_be_removed(entry.key, age, begun.at) {
            report.removed += 1;
            return;
        }
        let left = match (entry.ttl.map(Duration::from_nanos), downtime) {
            (None, _) => None,
            (Some(ttl), Some(downtime)) if ttl > downtime => Some(ttl - downtime),
            (Some(_), _) => {
                report.expired += 1;
                return;
            }
        };
        let begin = age.filter(|_| is_exact);
        let begin = begin.and_then(|age| begun.at.before(age));
        let end = left.map(|left| begun.at.after(left));
        let lifetime = Lifetime::between(begin, end, inner.freshness.allowance());
        let mut view = ByteView::from(entry.value);
        let mut evicted = EvictedEntries::default();
        let value = NewValue::new(&mut view, lifetime);
        inner.populate(Placement::Main, &key, &begun, value, &mut evicted);
        inner.notify_all(&mut evicted, panic);
        match inner.store.peek(key.hash, entry.key) {
            Ok(_) => report.restored += 1,
            Err(_) => report.refused += 1,
        }
    }
}

/// The time from the dump until a reading of the clock; `None` if it is not known.
#[derive(Clone, Copy)]
struct Downtime {
    until: Tick,
    time: Option<Duration>,
    /// Whether it was measured by the clock since the boot.
    is_exact: bool,
}

/// The clock since the boot counts hundredths of a second, and is read twice. No value may look younger
/// than it is.
pub(super) const RESOLUTION: Duration = Duration::from_millis(20);

/// How long a process that restores tries to reach a peer.
const PEERS_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause between two attempts to reach the peers.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::dump::BlockWriter;
    use crate::getter::getter_fn;
    use crate::group::removal::compare::RemovalsPeer;
    use crate::peers::{PeerPicker, PickerSlot, Pickers, ProtoGetter};
    use crate::sync::Arc;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Another node, which owns no key.
    struct Peers(Arc<RemovalsPeer>);

    impl PeerPicker for Peers {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            None
        }

        fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
            vec![self.0.clone()]
        }
    }

    fn group(clock: &Clock, slot: PickerSlot) -> Group {
        let getter = getter_fn(|_, key, dest| Ok(dest.set_str(key)?));
        let builder = Group::builder("restore").clock(clock.clone());
        builder.make(getter, slot)
    }

    /// A board without a battery begins its wall clock at the time of its shutdown.
    #[test]
    fn wall_clock_that_stood_still_brings_no_removed_value_back() {
        let [of_dump, of_other] = [(); 2].map(|()| Clock::manual());
        let dumped = group(&of_dump, PickerSlot::default());
        let other = group(&of_other, PickerSlot::default());
        let header = DumpHeader {
            group: "restore".into(),
            schema: 1,
            boot_id: "another boot".into(),
            since_boot: 0,
            unix_nanos: of_dump.unix_nanos() as u64,
            removals: dumped.inner.encoded_removals(),
        };
        let mut writer = BlockWriter::new(Vec::new(), &header).expect("a vector");
        for key in ["removed", "kept"] {
            let age = HOUR.as_nanos() as u64;
            let entry = DumpedEntry {
                key,
                value: b"old",
                age: Some(age),
                ttl: None,
            };
            writer.push(&entry).expect("a vector");
        }
        let (bytes, _) = writer.finish().expect("a vector");
        let name = format!("larder-restore-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).expect("written");

        other
            .remove(&Context::background(), "removed")
            .expect("no peers");
        of_other.advance(5 * HOUR);
        let slot = PickerSlot::default();
        let peers = Peers(Arc::new(RemovalsPeer(other)));
        slot.register(Pickers::One(Arc::new(peers))).expect("empty");
        let restored = group(&of_dump, slot);
        let report = restored.restore(&path, RestoreOptions::new(1));
        std::fs::remove_file(&path).expect("ours");
        let report = report.expect("restored");
        assert_eq!((report.restored, report.removed), (1, 1));
        assert!(!restored.contains_key("removed") && restored.contains_key("kept"));
    }
}
