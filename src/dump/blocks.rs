//! Writes the blocks of a dump, and finds the intact ones in a file of which any part may be damaged.

use std::io::{self, Read, Seek, SeekFrom, Write};

use super::bytes::FieldReader;
use super::entries::DumpedEntry;
use super::header::{DumpHeader, MAX_HEADER};
use crate::checksum::checksum;
use crate::error::Result;

/// Writes the header and the blocks of a dump.
pub(crate) struct BlockWriter<W> {
    to: W,
    /// The block that is being filled: space for its frame, and the payload so far.
    block: Vec<u8>,
    offset: u64,
}

impl<W: Write> BlockWriter<W> {
    pub(crate) fn new(mut to: W, header: &DumpHeader) -> io::Result<Self> {
        let mut bytes = header.encode();
        pad(&mut bytes);
        to.write_all(&bytes)?;
        Ok(BlockWriter {
            to,
            block: vec![0; FRAME],
            offset: bytes.len() as u64,
        })
    }

    /// Adds an entry to this block, or to the next one if this one is full.
    pub(crate) fn push(&mut self, entry: &DumpedEntry<'_>) -> io::Result<()> {
        let len = self.block.len() + entry.encoded_len();
        if len > BLOCK && self.block.len() > FRAME {
            self.end_block(0)?;
        }
        entry.encode(&mut self.block);
        Ok(())
    }

    /// Writes the last block, and returns the file with its length.
    pub(crate) fn finish(mut self) -> io::Result<(W, u64)> {
        self.end_block(LAST)?;
        Ok((self.to, self.offset))
    }

    /// Writes the block. `mark` is [`LAST`] or zero.
    fn end_block(&mut self, mark: u64) -> io::Result<()> {
        let payload = &self.block[FRAME..];
        let len = payload.len() as u64 | mark;
        let sum = checksum(self.offset | mark, payload);
        self.block[..8].copy_from_slice(MAGIC);
        self.block[8..16].copy_from_slice(&len.to_le_bytes());
        self.block[16..24].copy_from_slice(&sum.to_le_bytes());
        pad(&mut self.block);
        self.to.write_all(&self.block)?;
        self.offset += self.block.len() as u64;
        self.block.clear();
        // Do not keep the large buffer of a large entry.
        self.block.shrink_to(BLOCK + ALIGN);
        self.block.resize(FRAME, 0);
        Ok(())
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
}

/// Reads the intact blocks of a dump.
pub(crate) struct BlockReader<R> {
    from: R,
    /// The next offset at which a block may begin.
    at: u64,
    len: u64,
    payload: Vec<u8>,
    damaged: bool,
    /// Whether the block that was read last is the [`LAST`] one.
    has_ended: bool,
}

impl<R: Read + Seek> BlockReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), or
    /// [`ErrorKind::InvalidDump`](crate::ErrorKind::InvalidDump) if the header is not intact.
    pub(crate) fn open(mut from: R) -> Result<(DumpHeader, Self)> {
        let io =
            |error| crate::error::Error::with_source(crate::ErrorKind::Io, "cannot read", error);
        let len = from.seek(SeekFrom::End(0)).map_err(io)?;
        from.rewind().map_err(io)?;
        let mut start = Vec::new();
        let read = (&mut from).take(MAX_HEADER as u64).read_to_end(&mut start);
        read.map_err(io)?;
        let header = DumpHeader::decode(&start)?;
        let reader = BlockReader {
            from,
            at: (header.encode().len() as u64).next_multiple_of(ALIGN as u64),
            len,
            payload: Vec::new(),
            damaged: false,
            has_ended: false,
        };
        Ok((header, reader))
    }

    /// The payload of the next intact block; `None` at the end.
    pub(crate) fn next_block(&mut self) -> io::Result<Option<&[u8]>> {
        while self.at + (FRAME as u64) <= self.len {
            if self.read_block()? {
                return Ok(Some(&self.payload));
            }
            // The length may be wrong, so the next block may begin at any later multiple of `ALIGN`.
            self.damaged = true;
            self.at += ALIGN as u64;
        }
        Ok(None)
    }

    /// The offset up to which the file was read, and its length.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.at.min(self.len), self.len)
    }

    /// Whether a part of the file is missing or is not an intact block. Called after the last block.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged || !self.has_ended || self.at != self.len
    }

    /// Reads the block at `at`, and moves past it. Returns false if it is not intact.
    fn read_block(&mut self) -> io::Result<bool> {
        let offset = self.at;
        self.from.seek(SeekFrom::Start(offset))?;
        let mut frame = [0; FRAME];
        self.from.read_exact(&mut frame)?;
        let mut fields = FieldReader(&frame[8..]);
        let (Some(marked), Some(sum)) = (fields.u64(), fields.u64()) else {
            return Ok(false);
        };
        let (len, mark) = (marked & !LAST, marked & LAST);
        // A wrong length must not allocate more than the file has.
        let room = self.len - offset - FRAME as u64;
        if !frame.starts_with(MAGIC) || len > room {
            return Ok(false);
        }
        self.payload.clear();
        self.payload.shrink_to(BLOCK);
        (&mut self.from).take(len).read_to_end(&mut self.payload)?;
        if self.payload.len() as u64 != len || checksum(offset | mark, &self.payload) != sum {
            return Ok(false);
        }
        self.has_ended = mark == LAST;
        self.at = (offset + FRAME as u64 + len).next_multiple_of(ALIGN as u64);
        Ok(true)
    }
}

/// The bytes before the payload of a block: magic, length and checksum.
const FRAME: usize = 24;

/// The longest block, frame included, unless a single entry is longer.
const BLOCK: usize = 64 << 10;

/// The mark of the last block, in its length and its checksum. Without it, a file that was cut between two
/// blocks would look whole.
const LAST: u64 = 1 << 63;

/// Blocks begin at multiples of this.
const ALIGN: usize = 4 << 10;

const MAGIC: &[u8; 8] = b"larderBK";
