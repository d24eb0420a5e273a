//! Replaces a file so that a crash leaves the old file or the new one, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes a file by `write`: into a temporary file beside it, which then takes its name. Both the file
/// and its folder are synced, so that the new file is there after a power cut. On Unix, only the owner
/// can read it (mode 0600).
///
/// # Errors
///
/// Those of `write` and of the system. The old file is then as it was, and the temporary file is removed.
pub(crate) fn write_atomically<T>(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<T>,
) -> io::Result<T> {
    let temporary = temporary_path(path)?;
    let written = write_and_rename(path, &temporary, write);
    if written.is_err() {
        // It may not exist.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_and_rename<T>(
    path: &Path,
    temporary: &Path,
    write: impl FnOnce(&mut File) -> io::Result<T>,
) -> io::Result<T> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(temporary)?;
    let written = write(&mut file)?;
    file.flush()?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(written)
}

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
