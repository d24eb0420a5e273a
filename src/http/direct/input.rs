//! What has been read from a connection and not used yet: heads, lines and pieces of bodies are
//! taken from its front.

use std::io::{self, Read};

use super::head::Head;
use super::{NOT_HTTP, Refusal};
use crate::http::exchange::{DIRECT, MAX_HEAD, broke_off};
use crate::http::head::{Scan, scan};
use crate::http::repeat::Repeat;
use crate::wire::find_byte;

/// The input of one connection.
pub(super) struct Input {
    /// Initialised to its length; what was read and not used is `start..end`.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last head, but for the length of the body.
    last: Repeat<Head>,
}

impl Input {
    pub(super) fn new() -> Self {
        Input {
            bytes: vec![0; SMALL],
            start: 0,
            end: 0,
            last: Repeat::new(),
        }
    }

    /// The bytes that were read and not used.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Takes the head of an answer, past those that only say that it takes a while (RFC 9110,
    /// section 15.2), and returns it with its bytes.
    pub(super) fn head(&mut self, from: &mut impl Read) -> io::Result<(Head, Box<[u8]>)> {
        let mut scanned = 0;
        let mut skipped = 0;
        loop {
            let input = &self.bytes[self.start..self.end];
            if let Some((head, len)) = self.repeated(input).filter(|_| skipped == 0) {
                let bytes = input[..len].into();
                self.start += len;
                return Ok((head, bytes));
            }
            match scan(input, scanned).map_err(|_| NOT_HTTP.error())? {
                Scan::Complete(len) if skipped + len > MAX_HEAD => return Err(LONG.error()),
                Scan::Complete(len) => {
                    let bytes = &input[..len];
                    self.start += len;
                    if let Some((head, length)) = Head::parse(bytes)? {
                        if let Some(length) = length.filter(|_| head.can_repeat()) {
                            let from = length.as_ptr().addr() - bytes.as_ptr().addr();
                            self.last.keep(bytes, from..from + length.len(), head);
                        }
                        return Ok((head, bytes.into()));
                    }
                    skipped += len;
                    scanned = 0;
                }
                Scan::Incomplete(at) => {
                    scanned = at;
                    if self.fill(from)? == 0 {
                        return Err(broke_off());
                    }
                }
            }
        }
    }

    /// The head that `input` begins with, and its length, if it is the last one but for the length
    /// of the body.
    fn repeated(&self, input: &[u8]) -> Option<(Head, usize)> {
        let no_digit = |byte: &u8| !byte.is_ascii_digit();
        let digits = |bytes: &[u8]| bytes.iter().take(MAX_DIGITS).position(no_digit);
        let (head, length, len) = self.last.find(input, digits)?;
        Some((head.with_length(&input[length])?, len))
    }

    /// Takes some of the next `most` bytes, at least one if there is room; 0 at the end.
    pub(super) fn take(
        &mut self,
        into: &mut [u8],
        most: u64,
        from: &mut impl Read,
    ) -> io::Result<usize> {
        let room = into.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let into = &mut into[..room];
        if self.start == self.end {
            // A long piece goes to its place at once, without a stay in the input.
            if into.len() as u64 == most || into.len() >= DIRECT {
                return from.read(into);
            }
            self.fill(from)?;
        }
        let taken = into.len().min(self.len());
        into[..taken].copy_from_slice(&self.bytes[self.start..self.start + taken]);
        self.start += taken;
        Ok(taken)
    }

    /// Takes the next line, and returns what `read` makes of it, without its end.
    pub(super) fn line<T>(
        &mut self,
        from: &mut impl Read,
        read: impl FnOnce(&[u8]) -> Option<T>,
    ) -> io::Result<T> {
        let mut searched = 0;
        loop {
            let input = &self.bytes[self.start..self.end];
            if let Some(at) = find_byte(&input[searched..], b'\n') {
                let len = searched + at + 1;
                // However many of its bytes came at once.
                if len > MAX_HEAD {
                    return Err(LONG.error());
                }
                self.start += len;
                let line = input[..len].strip_suffix(b"\r\n");
                return line.and_then(read).ok_or_else(|| BAD_LINE.error());
            }
            searched = input.len();
            if self.fill(from)? == 0 {
                return Err(broke_off());
            }
        }
    }

    /// Reads more.
    ///
    /// # Errors
    ///
    /// Those of `from`; and if nothing of [`MAX_HEAD`] bytes could be used yet.
    fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end >= MAX_HEAD {
            return Err(LONG.error());
        }
        if self.end == self.bytes.len() {
            self.bytes.resize(MAX_HEAD, 0);
        }
        let read = from.read(&mut self.bytes[self.end..])?;
        self.end += read;
        Ok(read)
    }

    /// Sees to it that an answer of `len` bytes, head and all, is read in one go from now on. One
    /// that is too long for that changes nothing. To be called when such an answer has arrived, not
    /// when it is announced.
    pub(super) fn expect(&mut self, len: u64) {
        if len > self.bytes.len() as u64 && len <= LARGE as u64 {
            self.bytes.resize((len as usize).next_power_of_two(), 0);
        }
    }
}

const LONG: Refusal = Refusal("the head or a line of the answer is too long");
const BAD_LINE: Refusal = Refusal("the chunks of the answer are malformed");

/// Holds answers with small values, and most heads.
const SMALL: usize = 8 * 1024;

/// The longest answer that is read as a whole before its body is taken from it. The rest of longer
/// ones is read to where it stays.
const LARGE: usize = 64 * 1024;

/// The longest length that is taken for a repeated head's, and more than any has.
const MAX_DIGITS: usize = 20;
