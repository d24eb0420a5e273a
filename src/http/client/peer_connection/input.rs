//! What has been read from a connection and not used yet: heads, lines and pieces of bodies are
//! taken from its front.

use std::io::{self, Read};

use super::NOT_HTTP;
use super::framing::Framing;
use super::head::Head;
use crate::http::client::exchange::{DIRECT, MAX_HEAD, Refusal, broke_off};
use crate::shared_bytes::SharedBytes;
use crate::wire::repeat::Repeat;
use crate::wire::{Scan, scan};

/// The input of one connection.
///
/// It begins small and grows with the answers, so that peers with small values cost little and those
/// with large ones are read in few system calls.
pub(crate) struct Input {
    /// Initialised to its length; what was read and not used is `start..end`.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last head, but for the length of the body.
    last: Repeat<Head>,
}

impl Input {
    pub(crate) fn new() -> Self {
        Input {
            bytes: vec![0; SMALL],
            start: 0,
            end: 0,
            last: Repeat::new(),
        }
    }

    /// Whether everything that was read is used.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes that were read and not used.
    pub(crate) fn unused(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `len` of the unused bytes were used, by whoever looked at them.
    pub(crate) fn consume(&mut self, len: usize) {
        debug_assert!(len <= self.end - self.start);
        self.start += len;
    }

    /// Where to read to, for who reads by itself; then comes [`appended`](Self::appended). Empty
    /// only if [`LARGE`] bytes could not be used yet.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        self.compact();
        if self.end == self.bytes.len() && self.end < LARGE {
            self.bytes.resize(LARGE, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes were read to the beginning of what [`spare`](Self::spare) gave.
    pub(crate) fn appended(&mut self, len: usize) {
        self.end += len;
        debug_assert!(self.end <= self.bytes.len());
    }

    /// Takes the head of an answer, past those that only say that it takes a while (RFC 9110,
    /// section 15.2), and returns it with its bytes.
    pub(crate) fn head(&mut self, from: &mut impl Read) -> io::Result<(Head, Box<[u8]>)> {
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

    /// Takes a body that is here as a whole already.
    pub(crate) fn whole(&mut self, framing: Framing) -> Option<SharedBytes> {
        let length = usize::try_from(framing.length()?).ok()?;
        let body = self.unused().get(..length)?.into();
        self.start += length;
        Some(body)
    }

    /// Takes some of the next `most` bytes, at least one if there is room; 0 at the end.
    pub(crate) fn take(
        &mut self,
        into: &mut [u8],
        most: u64,
        from: &mut impl Read,
    ) -> io::Result<usize> {
        let room = into.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let into = &mut into[..room];
        if self.is_empty() {
            // A long piece goes to its place at once, without a stay in the input.
            if into.len() as u64 == most || into.len() >= DIRECT {
                return from.read(into);
            }
            self.fill(from)?;
        }
        let taken = into.len().min(self.unused().len());
        into[..taken].copy_from_slice(&self.unused()[..taken]);
        self.start += taken;
        Ok(taken)
    }

    /// Takes the next line, and returns what `read` makes of it, without its end.
    pub(crate) fn line<T>(
        &mut self,
        from: &mut impl Read,
        read: impl FnOnce(&[u8]) -> Option<T>,
    ) -> io::Result<T> {
        let mut searched = 0;
        loop {
            let input = &self.bytes[self.start..self.end];
            if let Some(at) = input[searched..].iter().position(|&byte| byte == b'\n') {
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
        self.compact();
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

    /// Moves what is unused to the front.
    fn compact(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Sees to it that an answer of `len` bytes, head and all, is read in one go from now on. One
    /// that is too long for that changes nothing. To be called when such an answer has arrived, not
    /// when it is announced.
    pub(crate) fn expect(&mut self, len: u64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &mut Input, bytes: &[u8]) {
        input.spare()[..bytes.len()].copy_from_slice(bytes);
        input.appended(bytes.len());
    }

    #[test]
    fn what_is_not_used_stays() {
        let mut input = Input::new();
        read(&mut input, b"head body");
        input.consume(5);
        read(&mut input, b" more");
        assert_eq!(input.unused(), b"body more");
    }

    #[test]
    fn an_input_that_nobody_uses_grows_to_the_largest_size_and_no_further() {
        let mut input = Input::new();
        loop {
            let room = input.spare().len();
            if room == 0 {
                break;
            }
            input.appended(room);
        }
        assert_eq!(input.unused().len(), LARGE);
        input.consume(LARGE);
        assert_eq!(input.spare().len(), LARGE);
    }

    #[test]
    fn an_input_is_as_large_as_the_answers_before_it() {
        let mut input = Input::new();
        for (answer, size) in [(SMALL, SMALL), (10_000, 16 << 10), (5, 16 << 10)] {
            input.expect(answer as u64);
            assert_eq!(input.spare().len(), size);
        }
        // One that is not read in one go anyway.
        input.expect(LARGE as u64 + 1);
        assert_eq!(input.spare().len(), 16 << 10);
    }
}
