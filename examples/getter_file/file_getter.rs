//! A getter that reads files below one directory, and nothing outside it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use larder::{BoxError, Context, Error, Getter, Sink};

/// Keys are paths relative to a directory, such as `http/mod.rs`.
pub struct FileGetter {
    /// With symbolic links resolved: what a key leads to must begin with this.
    root: PathBuf,
    max_size: u64,
}

impl FileGetter {
    /// A getter for the files below `root` of at most `max_size` bytes.
    pub fn new(root: &Path, max_size: u64) -> io::Result<Self> {
        let root = fs::canonicalize(root)?;
        if !root.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(FileGetter { root, max_size })
    }

    /// The file that `key` means.
    ///
    /// Keys come from strangers, by way of peers, so a key is checked twice. As text: only plain
    /// names, no `..`, no leading slash, no drive. And once it is resolved: a symbolic link below
    /// the directory must not lead out of it. Whoever can change the directory itself while this
    /// runs is trusted.
    fn path_of(&self, key: &str) -> Result<PathBuf, BoxError> {
        let plain = Path::new(key)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !plain || key.is_empty() {
            return Err(outside(key));
        }
        let path = match fs::canonicalize(self.root.join(key)) {
            Ok(path) => path,
            Err(error) if names_nothing(&error) => return Err(no_such_file(key)),
            Err(error) => return Err(error.into()),
        };
        if !path.starts_with(&self.root) {
            return Err(outside(key));
        }
        // Not a directory, and not a pipe, which would be waited for.
        if !path.is_file() {
            return Err(no_such_file(key));
        }
        Ok(path)
    }
}

impl Getter for FileGetter {
    fn get(&self, _ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
        let file = File::open(self.path_of(key)?)?;
        let mut bytes = Vec::new();
        // One byte more than allowed tells a file that is too large from one that just fits, also
        // if it grows while it is read.
        file.take(self.max_size.saturating_add(1))
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > self.max_size {
            let limit = self.max_size;
            return Err(format!("{key:?} has more than {limit} bytes").into());
        }
        Ok(dest.set_bytes(&bytes)?)
    }
}

/// Reaches the caller as `ErrorKind::NotFound`, also from another process.
fn no_such_file(key: &str) -> BoxError {
    Error::not_found(format!("there is no file {key:?}")).into()
}

/// Reaches the caller as `ErrorKind::Getter`, with this as its source.
fn outside(key: &str) -> BoxError {
    let message = format!("refused: {key:?} does not name a file below the directory");
    io::Error::new(io::ErrorKind::PermissionDenied, message).into()
}

/// A part of the path is missing, is a file where a directory should be, or cannot be a name.
fn names_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
    )
}
