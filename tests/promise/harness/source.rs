//! The source of the values: a file with the version of each key.

use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Each key has one writer, and a write of eight aligned bytes is seen whole.
pub struct Source(File);

impl Source {
    /// Makes the file: all versions are 0.
    pub fn create(dir: &Path, keys: u64) -> Result<()> {
        File::create(dir.join(NAME))?.set_len(8 * keys)
    }

    pub fn open(dir: &Path) -> Result<Source> {
        let mut options = OpenOptions::new();
        Ok(Source(options.read(true).write(true).open(dir.join(NAME))?))
    }

    pub fn version(&self, key: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, 8 * key)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Makes the next version of a key, and returns it.
    pub fn change(&self, key: u64) -> Result<u64> {
        let version = self.version(key)? + 1;
        self.0.write_all_at(&version.to_le_bytes(), 8 * key)?;
        Ok(version)
    }
}

const NAME: &str = "source";
