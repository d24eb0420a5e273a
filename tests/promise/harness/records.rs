//! Records of the gets and removals of a process. Each is written by one system call, so that none is lost
//! when the process is killed.

use std::fs::File;
use std::io::{Read, Result, Write};
use std::path::Path;

/// All times are readings of the shared clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A get has returned this version.
    Get {
        node: usize,
        /// Read before the get began.
        begun: u64,
        key: u64,
        version: u64,
    },
    /// A set, remove, remove_many or clear has returned: no get of the key that begins later returns an
    /// older version than this one.
    Promise {
        /// Read after the call returned.
        at: u64,
        key: u64,
        version: u64,
        /// The nodes that did not confirm it: bit n is node n.
        failed: u64,
        /// When the promise begins to hold at these nodes, too, if that is known.
        stale_until: Option<u64>,
    },
    /// The node has got answers from other nodes since its previous record of this kind.
    Exchange {
        node: usize,
        at: u64,
        /// Bit n is node n.
        with: u64,
    },
}

/// The length of a record.
pub const LEN: usize = 48;

/// The file name of a process's thread begins with this.
pub const PREFIX: &str = "records-";

impl Record {
    fn encode(&self) -> [u8; LEN] {
        let words = match *self {
            Record::Get {
                node,
                begun,
                key,
                version,
            } => [GET, begun, key, version, node as u64, 0],
            Record::Promise {
                at,
                key,
                version,
                failed,
                stale_until,
            } => [PROMISE, at, key, version, failed, stale_until.unwrap_or(0)],
            Record::Exchange { node, at, with } => [EXCHANGE, at, with, 0, node as u64, 0],
        };
        let mut bytes = [0; LEN];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8; LEN]) -> Record {
        let word = |at: usize| {
            let bytes = bytes[8 * at..8 * at + 8].try_into();
            u64::from_le_bytes(bytes.expect("eight bytes"))
        };
        match word(0) {
            GET => Record::Get {
                node: word(4) as usize,
                begun: word(1),
                key: word(2),
                version: word(3),
            },
            PROMISE => Record::Promise {
                at: word(1),
                key: word(2),
                version: word(3),
                failed: word(4),
                stale_until: Some(word(5)).filter(|&until| until > 0),
            },
            EXCHANGE => Record::Exchange {
                node: word(4) as usize,
                at: word(1),
                with: word(2),
            },
            kind => panic!("a record of the kind {kind}"),
        }
    }
}

const GET: u64 = 1;
const PROMISE: u64 = 2;
const EXCHANGE: u64 = 3;

/// The records of one thread.
pub struct Records(File);

impl Records {
    /// `thread` is unique for all threads of all processes.
    pub fn create(dir: &Path, thread: &str) -> Result<Records> {
        File::create_new(dir.join(format!("{PREFIX}{thread}"))).map(Records)
    }

    pub fn push(&mut self, record: Record) -> Result<()> {
        self.0.write_all(&record.encode())
    }
}

/// Reads the records that were added to a file since the last call.
pub struct RecordReader {
    file: File,
    /// The bytes that were read and not used yet.
    rest: Vec<u8>,
}

impl RecordReader {
    pub fn open(path: &Path) -> Result<RecordReader> {
        let rest = Vec::new();
        File::open(path).map(|file| RecordReader { file, rest })
    }

    pub fn read(&mut self, mut each: impl FnMut(Record)) -> Result<()> {
        self.file.read_to_end(&mut self.rest)?;
        let mut records = self.rest.chunks_exact(LEN);
        for record in records.by_ref() {
            each(Record::decode(record.try_into().expect("as long as that")));
        }
        self.rest = records.remainder().to_vec();
        Ok(())
    }
}
