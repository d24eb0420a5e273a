//! A getter that reads files below one directory, and nothing outside it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use larder::{BoxError, Context, Error, Getter, Sink};

/// A getter whose keys are paths below a directory, such as `http/mod.rs`.
pub struct FileGetter {
    /// The directory, without symbolic links. The path of every file must begin with it.
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

    /// The file of `key`.
    ///
    /// Peers may send any key, so each key is checked twice. Its text must have only plain names, no
    /// `..`, no leading slash and no drive. Its resolved path must be below the directory, because a
    /// symbolic link can lead out of it. This does not protect against a program that changes the
    /// directory meanwhile.
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
        // A directory and a pipe are refused. Reading a pipe would block.
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
        // Reads one byte more than allowed, to detect a file that is too large, also if it grows
        // meanwhile.
        file.take(self.max_size.saturating_add(1))
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > self.max_size {
            let limit = self.max_size;
            return Err(format!("{key:?} has more than {limit} bytes").into());
        }
        Ok(dest.set_bytes(&bytes)?)
    }
}

/// An error that reaches the caller as `ErrorKind::NotFound`, also from another process.
fn no_such_file(key: &str) -> BoxError {
    Error::not_found(format!("there is no file {key:?}")).into()
}

/// An error that reaches the caller as `ErrorKind::Getter`, with this as its source.
fn outside(key: &str) -> BoxError {
    let message = format!("refused: {key:?} does not name a file below the directory");
    io::Error::new(io::ErrorKind::PermissionDenied, message).into()
}

/// True if a part of the path is missing, is a file instead of a directory, or is not a valid name.
fn names_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
    )
}
