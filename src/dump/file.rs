//! Replaces a file so that a crash leaves the old file or the new one, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use crossbeam_channel::{Sender, bounded};

/// Writes a file by `write`: into a temporary file beside it, which then takes its name. Both the file
/// and its folder are synced, so that the new file is there after a power cut. On Unix, only the owner
/// can read it (mode 0600). Two calls for one path must not run at the same time, because they would write to
/// one temporary file. One that a crash left behind is removed first. It could have another mode, or be a
/// link that somebody else made, whose target would be overwritten.
///
/// # Errors
///
/// Those of `write` and of the system. The old file is then as it was, and the temporary file is removed. On
/// Unix, `ResourceBusy` if another process has begun to write to the temporary file meanwhile.
pub(crate) fn write_atomically<T>(
    path: &Path,
    write: impl FnOnce(&mut SyncedWriter<'_>) -> io::Result<T>,
) -> io::Result<T> {
    let temporary = temporary_path(path)?;
    let file = new_file(&temporary)?;
    let written = write_and_rename(file, path, &temporary, write);
    let is_own = |error: &io::Error| error.kind() != io::ErrorKind::ResourceBusy;
    if written.as_ref().is_err_and(is_own) {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Makes a file in place of an old one.
fn new_file(path: &Path) -> io::Result<File> {
    // Usually there is none. If it cannot be removed, the file cannot be made either.
    let _ = fs::remove_file(path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn write_and_rename<T>(
    file: File,
    path: &Path,
    temporary: &Path,
    write: impl FnOnce(&mut SyncedWriter<'_>) -> io::Result<T>,
) -> io::Result<T> {
    let written = thread::scope(|scope| {
        let (due, dues) = bounded(1);
        let sync = || dues.into_iter().try_for_each(|()| file.sync_data());
        // Without a thread, the whole file is synced at the end.
        let thread = thread::Builder::new().name("larder-dump-sync".into());
        let syncing = thread.spawn_scoped(scope, sync).ok();
        let mut writer = SyncedWriter {
            file: &file,
            unsynced: 0,
            due,
        };
        let written = write(&mut writer);
        drop(writer);
        // The system reports a disk error once. So the thread's result counts, too.
        let synced = syncing.map(ScopedJoinHandle::join);
        synced.map_or(Ok(()), |joined| joined.unwrap_or(Ok(())))?;
        written
    })?;
    file.sync_all()?;
    if !is_at(&file, temporary) {
        let message = "another dump to this file has begun";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
    }
    drop(file);
    fs::rename(temporary, path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(written)
}

/// Whether the path still leads to the file. Not if another process has made one of its own there, which is not
/// whole yet.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let place = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let own = file.metadata().map(place);
    let found = fs::symlink_metadata(path).map(place);
    own.is_ok_and(|own| found.is_ok_and(|found| own == found))
}

/// Elsewhere an open file cannot be removed.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Writes a file while another thread syncs it, so that the disk is busy from the start.
pub(crate) struct SyncedWriter<'f> {
    file: &'f File,
    /// The bytes since a sync was asked for.
    unsynced: usize,
    due: Sender<()>,
}

impl Write for SyncedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written;
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            // Fails if a sync is due already, or if there is no thread.
            let _ = self.due.try_send(());
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// In bytes. Each sync also writes the file's length. More of them would wear out SD cards.
const SYNC_EVERY: usize = 16 << 20;

/// The same path for each dump, so that a crash leaves at most one temporary file behind.
fn temporary_path(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of a dump names a file",
        )
    })?;
    let mut temporary = name.to_owned();
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// The file is a device that cannot be synced, in place of one on a disk that fails.
    #[cfg(target_os = "linux")]
    #[test]
    fn file_that_cannot_be_synced_does_not_replace_the_old_one() {
        let name = format!("larder-sync-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, "old").expect("written");
        let temporary = temporary_path(&path).expect("a name");
        fs::write(&temporary, "new").expect("written");
        let device = OpenOptions::new().write(true).open("/dev/null");
        let device = device.expect("a device");
        let write = |file: &mut SyncedWriter<'_>| file.write_all(b"new");
        write_and_rename(device, &path, &temporary, write).expect_err("it is not synced");
        assert_eq!(fs::read(&path).expect("the old file"), b"old");
        fs::remove_file(&path).expect("ours");
        fs::remove_file(&temporary).expect("ours");
    }

    #[test]
    fn sync_is_asked_for_while_a_large_file_is_written() {
        let file = OpenOptions::new().write(true).open("/dev/null");
        let file = file.expect("a file");
        let (due, dues) = bounded(1);
        let mut writer = SyncedWriter {
            file: &file,
            unsynced: 0,
            due,
        };
        let mut syncs_after = |bytes: usize| {
            writer.write_all(&vec![0; bytes]).expect("written");
            dues.try_iter().count()
        };
        assert_eq!(syncs_after(SYNC_EVERY - 1), 0);
        assert_eq!(syncs_after(1), 1);
        assert_eq!(syncs_after(SYNC_EVERY / 2), 0);
        assert_eq!(syncs_after(SYNC_EVERY / 2), 1);
    }
}
