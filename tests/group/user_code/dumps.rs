//! User code that a dump or a restore runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use larder::{
    ByteView, Clock, Context, Group, PeerPicker, ProtoGetter, RemovalCause, RestoreOptions,
};

use super::{panic_quietly, texts};
use crate::common::{alone, among, eventually};

/// A folder of its own for a test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let name = format!("larder-{}-{test}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        Folder(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join("dump")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ENTRIES: usize = 3000;

/// The keys of this group, in a dump.
fn dump(folder: &Folder, group: &Group) {
    for n in 0..ENTRIES {
        group.get(&format!("key {n}")).expect("loaded");
    }
    group.dump(folder.file(), 1).expect("written");
}

fn restore_panics(folder: &Folder, group: &Group, options: RestoreOptions<'_>) -> bool {
    let restore = || group.restore(folder.file(), options);
    catch_unwind(AssertUnwindSafe(restore)).is_err()
}

/// Panics for one key.
struct PanicsAt(&'static str);

impl PeerPicker for PanicsAt {
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        if key == self.0 {
            panic_quietly();
        }
        None
    }
}

#[test]
fn picker_that_panics_at_one_key_keeps_no_other_from_being_restored() {
    let folder = Folder::new("picker");
    dump(&folder, &alone("dumped").build(texts()).expect("new"));
    let group = among("dumped", Arc::new(PanicsAt("key 7"))).build(texts());
    let group = group.expect("new");
    assert!(restore_panics(&folder, &group, RestoreOptions::new(1)));
    assert_eq!(group.entry_count(), ENTRIES as u64 - 1);
    assert!(!group.contains_key("key 7"));
}

/// A listener that panics, and its calls.
fn panicking_listener() -> (
    impl Fn(&str, ByteView, RemovalCause) + Send + Sync + 'static,
    Arc<AtomicUsize>,
) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let listener = move |_: &str, _, _| {
        counted.fetch_add(1, SeqCst);
        panic_quietly();
    };
    (listener, calls)
}

#[test]
fn listener_that_panics_at_evicted_entries_keeps_no_other_from_being_restored() {
    let folder = Folder::new("evicted");
    dump(&folder, &alone("dumped").build(texts()).expect("new"));
    let (listener, calls) = panicking_listener();
    let builder = alone("dumped").max_capacity(64 << 10);
    let group = builder.eviction_listener(listener).build(texts());
    let group = group.expect("new");
    assert!(restore_panics(&folder, &group, RestoreOptions::new(1)));
    let calls = calls.load(SeqCst);
    assert!(calls > ENTRIES / 2, "{calls} evicted");
}

#[test]
fn listener_that_panics_at_a_removed_entry_keeps_no_other_from_being_restored() {
    let folder = Folder::new("removed");
    let clock = Clock::manual();
    let with_clock = || alone("dumped").clock(clock.clone());
    let (listener, calls) = panicking_listener();
    let group = with_clock().eviction_listener(listener).build(texts());
    let group = group.expect("new");
    group.get("stale").expect("loaded");
    clock.advance(Duration::from_secs(1));
    let before = with_clock().build(texts()).expect("new");
    let removed = before.remove(&Context::background(), "stale");
    removed.expect("no peers");
    dump(&folder, &before);
    assert!(restore_panics(&folder, &group, RestoreOptions::new(1)));
    assert_eq!(calls.load(SeqCst), 1);
    assert!(!group.contains_key("stale"));
    // The entries of the removal's stripe are not restored.
    assert!(group.entry_count() > ENTRIES as u64 * 9 / 10);
}

#[test]
fn progress_function_that_panics_ends_no_restore() {
    let folder = Folder::new("progress");
    dump(&folder, &alone("dumped").build(texts()).expect("new"));
    let group = alone("dumped").build(texts()).expect("new");
    let options = RestoreOptions::new(1).progress(|_| panic_quietly());
    assert!(restore_panics(&folder, &group, options));
    assert_eq!(group.entry_count(), ENTRIES as u64);
}

/// Panics for warnings of one group.
struct PanickingLogger;

static HAS_PANICKED: AtomicBool = AtomicBool::new(false);

impl log::Log for PanickingLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string().contains("panicking-logger") {
            HAS_PANICKED.store(true, SeqCst);
            panic_quietly();
        }
    }

    fn flush(&self) {}
}

#[test]
fn logger_that_panics_ends_no_periodic_dump() {
    log::set_logger(&PanickingLogger).expect("the only logger of these tests");
    log::set_max_level(log::LevelFilter::Warn);
    let folder = Folder::new("logger");
    let group = alone("panicking-logger").build(texts()).expect("new");
    group.get("key").expect("loaded");
    // The path of the temporary file is a folder.
    let temporary = folder.0.join("dump.tmp");
    std::fs::create_dir(&temporary).expect("made");
    let dumps = group.dump_every(Duration::from_millis(5), 1 << 30, folder.file(), 1);
    let dumps = dumps.expect("a thread");
    eventually("a warning", || HAS_PANICKED.load(SeqCst));
    std::fs::remove_dir(&temporary).expect("ours");
    eventually("a dump", || folder.file().exists());
    drop(dumps);
}
