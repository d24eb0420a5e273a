//! A process is killed while it dumps, or its disk is full.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use larder::{ErrorKind, Group, Registry, RestoreOptions};

use crate::cluster::GROUP;
use crate::common::{eventually, millis};
use crate::node::{load, value_of};
use crate::process::Process;

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(test: &str) -> Dir {
        let name = format!("larder-faults-{}-{test}", std::process::id());
        let dir = Dir(std::env::temp_dir().join(name));
        std::fs::create_dir(&dir.0).expect("a directory");
        dir
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn group() -> Group {
    let builder = Group::builder(GROUP).registry(&Registry::new());
    builder.build(load).expect("a group")
}

/// The number of entries in the dump, all of which must be intact.
fn restored(path: &Path) -> u64 {
    let group = group();
    let report = group.restore(path, RestoreOptions::new(0));
    let report = report.expect("a dump");
    assert!(!report.is_damaged, "{report:?}");
    for entry in group.iter() {
        assert_eq!(entry.value(), value_of(entry.key()).as_slice());
    }
    report.restored
}

#[test]
fn process_that_is_killed_while_it_dumps_leaves_a_whole_dump() {
    let dir = Dir::new("killed");
    let path = dir.0.join("dump");
    for round in 0..10 {
        let mut node = Process::start("");
        for n in 0..50 {
            node.ask(&format!("get large:20000:{n}"));
        }
        node.ask(&format!("dump {}", path.display()));
        eventually("there is a dump", || path.exists());
        // Each round kills the process at another point of a dump.
        thread::sleep(millis(round));
        node.kill();
        assert_eq!(restored(&path), 50, "round {round}");
    }
}

#[test]
#[ignore = "needs root: .ci/faults.sh"]
fn needs_root_full_disk_leaves_the_old_dump() {
    let dir = Dir::new("full");
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=200k", "tmpfs"])
        .arg(&dir.0)
        .status();
    assert!(mount.expect("mount").success());
    let path = dir.0.join("dump");
    let group = group();
    group.get("large:20000:0").expect("a value");
    group.dump(&path, 0).expect("there is room");
    for n in 1..20 {
        group.get(&format!("large:20000:{n}")).expect("a value");
    }
    let error = group.dump(&path, 0).expect_err("the disk is full");
    let files = std::fs::read_dir(&dir.0).expect("a directory").count();
    let count = restored(&path);
    let unmount = Command::new("umount").arg(&dir.0).status();
    assert!(unmount.expect("umount").success());
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!((files, count), (1, 1), "the old dump alone");
}
