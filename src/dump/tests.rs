use std::io::{Cursor, Write};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

type Owned = (String, Vec<u8>, Option<u64>, Option<u64>);

fn header() -> DumpHeader {
    DumpHeader {
        group: "colors".into(),
        schema: 7,
        boot_id: "boot".into(),
        since_boot: 1,
        unix_nanos: 2,
        removals: vec![3; 100],
    }
}

fn written(entries: &[Owned]) -> Vec<u8> {
    let mut writer = BlockWriter::new(Vec::new(), &header()).expect("memory");
    for (key, value, age, ttl) in entries {
        let entry = DumpedEntry {
            key,
            value,
            age: *age,
            ttl: *ttl,
        };
        writer.push(&entry).expect("memory");
    }
    let (bytes, len) = writer.finish().expect("memory");
    assert_eq!(bytes.len() as u64, len);
    bytes
}

/// The entries of a file, and whether it is damaged.
fn read(bytes: &[u8]) -> (Vec<Owned>, bool) {
    let (found, mut reader) = BlockReader::open(Cursor::new(bytes)).expect("a header");
    assert_eq!(found, header());
    let mut entries = Vec::new();
    while let Some(mut payload) = reader.next_block().expect("memory") {
        while let Some(entry) = DumpedEntry::take(&mut payload) {
            let DumpedEntry {
                key,
                value,
                age,
                ttl,
            } = entry;
            entries.push((key.to_owned(), value.to_vec(), age, ttl));
        }
        assert!(payload.is_empty(), "a block is a sequence of whole entries");
    }
    let (at, len) = reader.progress();
    assert!(at <= len);
    (entries, reader.is_damaged())
}

fn some_entries(count: u8, len: usize) -> Vec<Owned> {
    let entry = |n: u8| {
        let age = (n % 3 != 0).then_some(u64::from(n));
        (format!("key-{n}"), vec![n; len + usize::from(n)], age, None)
    };
    (0..count).map(entry).collect()
}

#[test]
fn entries_of_all_lengths_are_read_as_they_were_written() {
    let mut entries = some_entries(50, 3000);
    entries.push((String::new(), Vec::new(), Some(0), Some(0)));
    entries.push(("large".into(), vec![9; 300_000], None, Some(5)));
    entries.extend(some_entries(3, 0));
    assert_eq!(read(&written(&entries)), (entries, false));
    assert_eq!(read(&written(&[])), (Vec::new(), false));
}

#[test]
fn damaged_block_is_dropped_and_all_others_are_kept() {
    let entries = some_entries(100, 4000);
    let bytes = written(&entries);
    for at in (4096..bytes.len()).step_by(1021) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let (found, is_damaged) = read(&damaged);
        let lost = entries.len() - found.len();
        // Padding is not read.
        assert!(lost <= 17 && (is_damaged || lost == 0), "{at}: {lost} lost");
        let mut rest = entries.iter();
        assert!(
            found.iter().all(|entry| rest.any(|other| other == entry)),
            "{at}"
        );
    }
}

#[test]
fn file_cut_anywhere_gives_the_blocks_before_the_cut() {
    let entries = some_entries(60, 4000);
    let bytes = written(&entries);
    let pages = (4096..bytes.len()).step_by(4096);
    for len in pages.flat_map(|page| [page, page + 1, page + 4095]) {
        let (found, is_damaged) = read(&bytes[..len]);
        assert!(is_damaged && entries.starts_with(&found), "{len}");
        assert!((entries.len() - found.len()) * 4000 <= bytes.len() - len + (64 << 10));
    }
}

#[test]
fn damaged_header_refuses_the_whole() {
    let bytes = written(&some_entries(3, 10));
    for at in 0..header().encode().len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        let error = BlockReader::open(Cursor::new(&damaged))
            .err()
            .expect("damaged");
        assert_eq!(error.kind(), ErrorKind::InvalidDump, "{at}");
    }
    for len in 0..header().encode().len() {
        assert!(
            BlockReader::open(Cursor::new(&bytes[..len])).is_err(),
            "{len}"
        );
    }
}

/// A new folder, and the path of a file in it that holds "old".
fn old_file(test: &str) -> (PathBuf, PathBuf) {
    let folder = std::env::temp_dir().join(format!("larder-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("dump");
    write_atomically(&path, |file| file.write_all(b"old")).expect("written");
    (folder, path)
}

#[test]
fn failed_write_leaves_the_old_file() {
    let (folder, path) = old_file("dump");
    let full = |file: &mut SyncedWriter<'_>| {
        file.write_all(b"new")?;
        Err::<(), _>(std::io::Error::from(std::io::ErrorKind::StorageFull))
    };
    let error = write_atomically(&path, full).expect_err("no space");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(std::fs::read(&path).expect("the old file"), b"old");
    assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 1);
    #[cfg(unix)]
    {
        let meta = std::fs::metadata(&path).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
    std::fs::remove_dir_all(&folder).expect("ours");
}

#[cfg(unix)]
#[test]
fn half_file_of_another_process_does_not_replace_the_old_one() {
    let (folder, path) = old_file("busy");
    let temporary = folder.join("dump.tmp");
    let write = |file: &mut SyncedWriter<'_>| {
        file.write_all(b"new")?;
        std::fs::remove_file(&temporary)?;
        std::fs::write(&temporary, "half of anoth")
    };
    let error = write_atomically(&path, write).expect_err("busy");
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    assert_eq!(std::fs::read(&path).expect("the old file"), b"old");
    assert!(temporary.exists(), "it belongs to the other process");
    std::fs::remove_dir_all(&folder).expect("ours");
}

/// The temporary file is one that a crash left behind, or a link that another user made.
#[cfg(unix)]
#[test]
fn new_dump_has_neither_mode_nor_target_of_a_leftover_temporary_file() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let (folder, path) = old_file("tmp");
    let temporary = folder.join("dump.tmp");
    let other = folder.join("other");
    let mode = |path| {
        let meta = std::fs::metadata(path).expect("a file");
        meta.permissions().mode() & 0o777
    };
    for is_link in [false, true] {
        std::fs::write(&other, "of another").expect("written");
        if is_link {
            symlink(&other, &temporary).expect("a link");
        } else {
            std::fs::write(&temporary, "left behind").expect("written");
            let all = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(&temporary, all).expect("ours");
        }
        write_atomically(&path, |file| file.write_all(b"new")).expect("written");
        assert!(std::fs::symlink_metadata(&path).expect("a file").is_file());
        assert_eq!(std::fs::read(&path).expect("the new file"), b"new");
        assert_eq!(std::fs::read(&other).expect("a file"), b"of another");
        assert_eq!(mode(&path), 0o600);
    }
    std::fs::remove_dir_all(&folder).expect("ours");
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = BlockReader::open(Cursor::new(&bytes));
        let mut payload = &*bytes;
        while DumpedEntry::take(&mut payload).is_some() {}
        let damaged = [written(&[]), bytes].concat();
        read(&damaged);
    }
}

#[test]
fn header_with_all_removals_that_a_process_can_know_is_read() {
    // They are the clocks, and the numbers of 256 origins with 48 runs each.
    let removals = vec![3; 8 + 8 * 1024 + 256 * (2 + 2 * 48) * 4];
    let header = DumpHeader {
        removals,
        ..header()
    };
    let writer = BlockWriter::new(Vec::new(), &header).expect("memory");
    let (bytes, _) = writer.finish().expect("memory");
    let (found, _) = BlockReader::open(Cursor::new(bytes)).expect("a header");
    assert_eq!(found, header);
}
