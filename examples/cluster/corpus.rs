//! The files that are served: which there are below a directory.

use std::fs;
use std::io;
use std::path::Path;

/// A file by its path below the directory, with forward slashes: its key.
pub struct Entry {
    pub name: String,
    pub size: u64,
}

/// The files below a directory that the cluster serves, in the order of their names.
pub struct Corpus {
    pub files: Vec<Entry>,
    /// Files that were left out: too large, too many, or with a name that is no line of text.
    pub skipped: usize,
}

impl Corpus {
    /// Looks through `dir`. Hidden files and symbolic links are passed over.
    pub fn list(dir: &Path) -> io::Result<Corpus> {
        let mut corpus = Corpus {
            files: Vec::new(),
            skipped: 0,
        };
        corpus.walk(dir, "")?;
        corpus.files.sort_by(|a, b| a.name.cmp(&b.name));
        let mut total = 0;
        let fitting = corpus.files.iter().take_while(|file| {
            total += file.size;
            total <= MAX_TOTAL
        });
        let kept = fitting.count().min(MAX_FILES);
        corpus.skipped += corpus.files.len() - kept;
        corpus.files.truncate(kept);
        Ok(corpus)
    }

    /// The bytes of all files together.
    pub fn total(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    fn walk(&mut self, dir: &Path, prefix: &str) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let file_type = entry.file_type()?;
            let os_name = entry.file_name();
            if os_name.as_encoded_bytes().starts_with(b".") || file_type.is_symlink() {
                continue;
            }
            // Keys are text, and a name that breaks a line would break the lines that nodes read.
            let name = os_name
                .to_str()
                .filter(|name| !name.contains(char::is_control));
            let Some(name) = name else {
                self.skipped += 1;
                continue;
            };
            let name = format!("{prefix}{name}");
            if file_type.is_dir() {
                self.walk(&entry.path(), &(name + "/"))?;
            } else if file_type.is_file() {
                let size = entry.metadata()?.len();
                if size <= MAX_FILE {
                    self.files.push(Entry { name, size });
                } else {
                    self.skipped += 1;
                }
            }
        }
        Ok(())
    }
}

/// The largest file that is served, in bytes.
pub const MAX_FILE: u64 = 4 << 20;

/// Each node keeps a copy of every file, to compare with.
const MAX_TOTAL: u64 = 256 << 20;
const MAX_FILES: usize = 10_000;
