//! Dumps, and what comes back from them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use larder::pb::{GetRequest, RemovalTable};
use larder::{
    Clock, Context, ErrorKind, Group, PeerPicker, PeerResponse, ProtoGetter, Registry,
    RestoreOptions, Result, Sink,
};

use crate::common::eventually;

const SCHEMA: u64 = 3;

/// A file of its own for a test, removed at the end.
struct Dump(PathBuf);

impl Dump {
    fn new(test: &str) -> Dump {
        let name = format!("larder-{}-{test}", std::process::id());
        Dump(std::env::temp_dir().join(name))
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn group(clock: &Clock, capacity: u64) -> (Group, Arc<AtomicUsize>) {
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = loads.clone();
    let group = Group::builder("values")
        .registry(&Registry::new())
        .max_capacity(capacity)
        .clock(clock.clone())
        .build(move |_: &Context, key: &str, dest: &mut dyn Sink| {
            counted.fetch_add(1, Ordering::SeqCst);
            if let Some(seconds) = key.strip_prefix("ttl-") {
                dest.expire_in(Duration::from_secs(seconds.parse()?));
            }
            Ok(dest.set_str(&format!("value of {key}"))?)
        })
        .expect("the options are right");
    (group, loads)
}

fn options() -> RestoreOptions<'static> {
    RestoreOptions::new(SCHEMA)
}

#[test]
fn entries_come_back_without_a_load() {
    let dump = Dump::new("back");
    let (before, _) = group(&Clock::system(), 4 << 20);
    let keys: Vec<_> = (0..3000).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        before.get(key).unwrap();
    }
    let written = before.dump(&dump.0, SCHEMA).unwrap();
    assert_eq!(written.entries, 3000);
    assert_eq!(written.bytes, std::fs::metadata(&dump.0).unwrap().len());

    let (after, loads) = group(&Clock::system(), 4 << 20);
    let mut last = None;
    let options = options().progress(|progress| last = Some(progress));
    let report = after.restore(&dump.0, options).unwrap();
    assert_eq!(
        (report.restored, report.is_damaged),
        (3000, false),
        "{report:?}"
    );
    let last = last.expect("progress");
    assert_eq!((last.entries, last.bytes), (3000, last.of_bytes));
    for key in &keys {
        assert_eq!(after.get(key).unwrap(), format!("value of {key}"));
    }
    assert_eq!(loads.load(Ordering::SeqCst), 0);
}

#[test]
fn time_to_live_goes_on_in_the_dump() {
    let dump = Dump::new("ttl");
    let clock = Clock::manual();
    let (before, _) = group(&clock, 1 << 20);
    for key in ["ttl-10", "ttl-1000", "plain"] {
        before.get(key).unwrap();
    }
    clock.advance(Duration::from_secs(9));
    before.dump(&dump.0, SCHEMA).unwrap();

    let clock = Clock::manual();
    let (after, _) = group(&clock, 1 << 20);
    let report = after.restore(&dump.0, options()).unwrap();
    assert_eq!(report.restored, 3, "{report:?}");
    assert!(after.contains_key("ttl-10"));
    clock.advance(Duration::from_secs(1));
    assert!(!after.contains_key("ttl-10"));
    clock.advance(Duration::from_secs(989));
    assert!(after.contains_key("ttl-1000"));
    clock.advance(Duration::from_secs(1));
    assert!(!after.contains_key("ttl-1000"));
    assert!(after.contains_key("plain"));
}

#[test]
fn removed_values_do_not_come_back() {
    let dump = Dump::new("removed");
    let (before, _) = group(&Clock::system(), 1 << 20);
    for key in ["a", "b"] {
        before.get(key).unwrap();
    }
    before.dump(&dump.0, SCHEMA).unwrap();
    // The process removes a key, and dumps once more before it ends.
    before.remove(&Context::background(), "a").unwrap();
    let (same, _) = group(&Clock::system(), 1 << 20);
    let second = Dump::new("removed-later");
    before.dump(&second.0, SCHEMA).unwrap();
    assert_eq!(same.restore(&second.0, options()).unwrap().restored, 1);
    // It has applied the removal now, so the older dump restores the other key only.
    same.clear_local();
    let report = same.restore(&dump.0, options()).unwrap();
    assert_eq!((report.restored, report.removed), (1, 1), "{report:?}");
    assert!(same.contains_key("b") && !same.contains_key("a"));
}

/// A peer that is a group of this process, or does not answer.
struct Peer(Option<Group>);

impl ProtoGetter for Peer {
    fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
        Err(ErrorKind::Peer.into())
    }

    fn exchange_removals(
        &self,
        ctx: &Context,
        request: &RemovalTable<'_>,
    ) -> Result<RemovalTable<'static>> {
        let Some(group) = &self.0 else {
            std::thread::sleep(ctx.remaining().expect("a deadline"));
            return Err(ErrorKind::Peer.into());
        };
        ctx.err()
            .map_or_else(|| Ok(group.serve_removals(request)), Err)
    }

    fn honors_deadline(&self) -> bool {
        true
    }
}

/// Peers that own no key.
struct Peers(Vec<Arc<dyn ProtoGetter>>);

impl PeerPicker for Peers {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        None
    }

    fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
        self.0.clone()
    }
}

#[test]
fn silent_peer_does_not_keep_others_from_being_asked_for_removals() {
    let dump = Dump::new("silent-peer");
    let (before, _) = group(&Clock::system(), 1 << 20);
    for key in ["a", "b"] {
        before.get(key).unwrap();
    }
    before.dump(&dump.0, SCHEMA).unwrap();
    let (other, _) = group(&Clock::system(), 1 << 20);
    other.remove(&Context::background(), "a").unwrap();
    let registry = Registry::new();
    let peers = [None, Some(other)].map(|group| Arc::new(Peer(group)) as _);
    let peers = Peers(peers.into());
    registry.register_peer_picker(Arc::new(peers)).unwrap();
    let after = Group::builder("values").registry(&registry);
    let after = after.build_with(|_, key| Ok::<_, larder::Error>(key.to_owned()));
    let report = after.unwrap().restore(&dump.0, options()).unwrap();
    assert_eq!((report.restored, report.removed), (1, 1), "{report:?}");
}

#[test]
fn removed_values_do_not_come_back_from_a_restore_that_takes_long() {
    let dump = Dump::new("long");
    let clock = Clock::manual();
    let (before, _) = group(&clock, 4 << 20);
    let keys: Vec<_> = (0..5000).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        before.get(key).unwrap();
    }
    before.dump(&dump.0, SCHEMA).unwrap();
    let (after, _) = group(&clock, 4 << 20);
    after.remove_many(&Context::background(), &keys).unwrap();
    let options = options().progress(|_| clock.advance(Duration::from_secs(10)));
    let report = after.restore(&dump.0, options).unwrap();
    assert_eq!((report.restored, report.removed), (0, 5000), "{report:?}");
}

#[test]
fn value_that_was_loaded_meanwhile_stays() {
    let dump = Dump::new("meanwhile");
    let (before, _) = group(&Clock::system(), 1 << 20);
    before.get("key").unwrap();
    before.dump(&dump.0, SCHEMA).unwrap();
    let (after, loads) = group(&Clock::system(), 1 << 20);
    let loaded = after.get("key").unwrap();
    let report = after.restore(&dump.0, options()).unwrap();
    assert_eq!((report.restored, report.refused), (0, 1));
    assert_eq!(after.peek("key").unwrap().as_ptr(), loaded.as_ptr());
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[test]
fn other_group_other_schema_and_other_files_are_refused() {
    let dump = Dump::new("refused");
    let (before, _) = group(&Clock::system(), 1 << 20);
    before.get("key").unwrap();
    before.dump(&dump.0, SCHEMA).unwrap();
    let kind = |group: &Group, schema| {
        let error = group.restore(&dump.0, RestoreOptions::new(schema));
        error.expect_err("it is refused").kind()
    };
    let (after, _) = group(&Clock::system(), 1 << 20);
    assert_eq!(kind(&after, SCHEMA + 1), ErrorKind::InvalidDump);
    let other = Group::builder("others").registry(&Registry::new());
    let other = other.build(|_: &Context, key: &str, dest: &mut dyn Sink| Ok(dest.set_str(key)?));
    assert_eq!(kind(&other.unwrap(), SCHEMA), ErrorKind::InvalidDump);
    let whole = std::fs::read(&dump.0).unwrap();
    for bytes in [&whole[..40], &whole[..8], b"not a dump", b""] {
        std::fs::write(&dump.0, bytes).unwrap();
        assert_eq!(kind(&after, SCHEMA), ErrorKind::InvalidDump, "{bytes:?}");
    }
    std::fs::remove_file(&dump.0).unwrap();
    assert_eq!(kind(&after, SCHEMA), ErrorKind::Io);
    assert_eq!(after.entry_count(), 0);
    let nowhere = dump.0.join("no-such-folder");
    assert_eq!(
        before.dump(nowhere, SCHEMA).unwrap_err().kind(),
        ErrorKind::Io
    );
}

/// The file was written by `Group::dump` on x86_64. A machine of 32 bits reads the same entries.
#[test]
fn dump_of_another_machine_is_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/group/dump-of-x86_64");
    let (after, loads) = group(&Clock::system(), 1 << 20);
    let report = after.restore(path, options()).unwrap();
    assert_eq!((report.restored, report.is_damaged), (3, false));
    for key in ["a", "b", "long"] {
        assert_eq!(after.get(key).unwrap(), format!("value of {key}"));
    }
    assert_eq!(loads.load(Ordering::SeqCst), 0);
}

#[test]
fn damaged_block_costs_only_its_entries() {
    let dump = Dump::new("damaged");
    let (before, _) = group(&Clock::system(), 16 << 20);
    for n in 0..5000 {
        before.get(&format!("key-{n}")).unwrap();
    }
    before.dump(&dump.0, SCHEMA).unwrap();
    let mut bytes = std::fs::read(&dump.0).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes.truncate(bytes.len() - 100_000);
    std::fs::write(&dump.0, &bytes).unwrap();
    let (after, _) = group(&Clock::system(), 16 << 20);
    let report = after.restore(&dump.0, options()).unwrap();
    assert!(report.is_damaged);
    assert!((500..5000).contains(&report.restored), "{report:?}");
    for entry in after.iter() {
        assert_eq!(entry.value(), format!("value of {}", entry.key()));
    }
}

#[test]
fn periodic_dump_needs_changes_and_ends_with_its_handle() {
    let dump = Dump::new("periodic");
    let (group, _) = group(&Clock::system(), 1 << 20);
    assert_eq!(
        group
            .dump_every(Duration::ZERO, 1 << 30, &dump.0, SCHEMA)
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidOption
    );
    let interval = Duration::from_millis(5);
    let handle = group
        .dump_every(interval, 1 << 30, &dump.0, SCHEMA)
        .unwrap();
    // An empty group has not changed.
    std::thread::sleep(20 * interval);
    assert!(!dump.0.exists());
    group.get("key").unwrap();
    eventually("a dump", || dump.0.exists());
    drop(handle);
    // The thread may write one more dump before it ends.
    eventually("no more dump", || {
        let _ = std::fs::remove_file(&dump.0);
        group.invalidate("key");
        group.get("key").unwrap();
        std::thread::sleep(20 * interval);
        !dump.0.exists()
    });
}

#[test]
fn dumps_to_one_file_at_the_same_time_are_written_one_after_the_other() {
    let dump = Dump::new("twice");
    let (before, _) = group(&Clock::system(), 16 << 20);
    for n in 0..20_000 {
        before.get(&format!("key-{n}")).unwrap();
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let report = before.dump(&dump.0, SCHEMA).expect("written");
                    assert_eq!(report.entries, 20_000);
                }
            });
        }
    });
    let (after, _) = group(&Clock::system(), 16 << 20);
    let report = after.restore(&dump.0, options()).expect("a dump");
    assert_eq!((report.restored, report.is_damaged), (20_000, false));
}
