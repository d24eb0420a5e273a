//! Reads responses from a connection: parses their heads, and finds the ends of their bodies.

use std::io::{self, Read};

use httparse::{EMPTY_HEADER, Status};

use crate::heap::SharedBytes;
use crate::sync::Arc;
use crate::wire::{self, Scan, has_token, parse_length, scan};

/// The parts of a head that the client needs. The head is not that of an interim response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) framing: BodyFraming,
    /// Whether the connection can carry another exchange.
    pub(crate) keep_alive: bool,
    /// Whether larder's own server sent the response, and no proxy forwarded it.
    pub(crate) is_from_larder: bool,
    /// Whether there is a header with the mark of the sender's list of peers.
    pub(crate) has_peers_mark: bool,
    /// Whether the body is a protobuf message, by its content type, and has no content coding.
    pub(crate) is_protobuf: bool,
}

impl ResponseHead {
    /// Finds in the header fields where the body ends (RFC 9112, section 6.3), and reads the other
    /// parts.
    ///
    /// # Errors
    ///
    /// If two readers could find different ends of the body: they would disagree on where the next
    /// response begins. Also if a body with status 200 ends with the connection: it would look
    /// complete if the peer crashed while sending it.
    pub(crate) fn new<'f>(
        status: u16,
        is_http_11: bool,
        fields: impl Iterator<Item = (&'f str, &'f [u8])>,
    ) -> io::Result<Self> {
        let mut length = None;
        let (mut codings, mut chunked, mut close) = (0, false, !is_http_11);
        let (mut is_larder, mut is_forwarded) = (false, false);
        let mut has_peers_mark = false;
        let (mut is_protobuf, mut is_encoded) = (None, false);
        for (name, value) in fields {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            if is("content-length") {
                let found = parse_length(value).map_err(|_| BAD_LENGTH)?;
                if length.replace(found).is_some() {
                    return Err(TWO_LENGTHS.into());
                }
            } else if is("transfer-encoding") {
                codings += 1;
                chunked = value.eq_ignore_ascii_case(b"chunked");
            } else if is("connection") {
                close |= has_token(value, b"close");
            } else if is("server") {
                is_larder |= value == wire::SERVER.as_bytes();
            } else if is(wire::PEERS_HEADER) {
                has_peers_mark = true;
            } else if is("via") {
                is_forwarded = true;
            } else if is("content-type") {
                // The first counts, as for `TransportResponse::header`.
                is_protobuf = is_protobuf.or(Some(wire::is_protobuf(value)));
            } else if is("content-encoding") {
                is_encoded |= wire::is_encoded(value);
            }
        }
        if codings > 1 || (codings == 1 && (!chunked || length.is_some() || !is_http_11)) {
            return Err(TWO_LENGTHS.into());
        }
        let framing = match length {
            _ if matches!(status, 204 | 304) => {
                close |= chunked || length.is_some_and(|length| length > 0);
                BodyFraming::Length(0)
            }
            _ if chunked => BodyFraming::Chunked(ChunkPart::Size),
            Some(length) => BodyFraming::Length(length),
            None if status == 200 => return Err(NO_LENGTH.into()),
            None => {
                close = true;
                BodyFraming::UntilClosed
            }
        };
        Ok(ResponseHead {
            status,
            framing,
            keep_alive: !close,
            is_from_larder: is_larder && !is_forwarded,
            has_peers_mark,
            is_protobuf: is_protobuf.unwrap_or(false) && !is_encoded,
        })
    }

    /// Parses a whole head; `None` if it is that of an interim response.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut fields = [EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(bytes);
        let (Ok(Status::Complete(len)), Some(minor), Some(status)) =
            (parsed, response.version, response.code)
        else {
            return Err(NOT_HTTP.into());
        };
        // `scan` has found the end of the head. The lengths differ only if httparse disagrees.
        if len != bytes.len() || status < 100 || status == 101 {
            return Err(NOT_HTTP.into());
        }
        if status < 200 {
            return Ok(None);
        }
        let fields = response.headers.iter();
        let fields = fields.map(|field| (field.name, field.value));
        ResponseHead::new(status, minor == 1, fields).map(Some)
    }
}

/// How the end of a body is found, and how much of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// The bytes that are left.
    Length(u64),
    Chunked(ChunkPart),
    UntilClosed,
}

impl BodyFraming {
    /// The length of a body that has not begun, if it is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            BodyFraming::Length(length) => Some(*length),
            _ => None,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(
            self,
            BodyFraming::Length(0) | BodyFraming::Chunked(ChunkPart::End)
        )
    }
}

/// The next part of a chunked body (RFC 9112, section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkPart {
    /// A line with the size of a chunk.
    Size,
    /// The bytes that are left of a chunk.
    Data(u64),
    /// The end of the line after a chunk.
    DataEnd,
    /// The lines after the last chunk, up to an empty line.
    Trailer,
    End,
}

impl ChunkPart {
    /// The part after `line`, which holds no byte of the body; `None` if the line is malformed.
    fn after(self, line: &[u8]) -> Option<ChunkPart> {
        match self {
            ChunkPart::Size => match parse_chunk_size(line)? {
                0 => Some(ChunkPart::Trailer),
                size => Some(ChunkPart::Data(size)),
            },
            ChunkPart::DataEnd if line.is_empty() => Some(ChunkPart::Size),
            ChunkPart::Trailer if line.is_empty() => Some(ChunkPart::End),
            ChunkPart::Trailer => Some(ChunkPart::Trailer),
            ChunkPart::DataEnd | ChunkPart::Data(_) | ChunkPart::End => None,
        }
    }
}

/// The size of a chunk: hexadecimal digits, and perhaps extensions, which are ignored.
fn parse_chunk_size(line: &[u8]) -> Option<u64> {
    let is_digit = |byte: &&u8| byte.is_ascii_hexdigit();
    let digits = line.iter().take_while(is_digit).count();
    let (size, rest) = line.split_at(digits);
    let rest = rest.trim_ascii_start();
    if !(1..=MAX_SIZE_DIGITS).contains(&digits) || !(rest.is_empty() || rest[0] == b';') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

/// Reads one response after the other from `source`.
#[derive(Debug)]
pub(crate) struct ResponseReader<R> {
    pub(crate) source: R,
    /// The bytes read and not used yet are `start..end`.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    last: Option<LastHead>,
    /// The bytes of the present response's trailer so far.
    trailer: usize,
}

impl<R: Read> ResponseReader<R> {
    pub(crate) fn new(source: R) -> Self {
        ResponseReader {
            source,
            bytes: vec![0; MAX_HEAD].into(),
            start: 0,
            end: 0,
            last: None,
            trailer: 0,
        }
    }

    /// Whether all bytes that were read are used.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Reads the head of a response, and returns it with its bytes. Skips interim responses (RFC
    /// 9110, section 15.2).
    pub(crate) fn read_head(&mut self) -> io::Result<(ResponseHead, HeadBytes)> {
        self.trailer = 0;
        if self.is_empty() {
            self.fill()?;
        }
        let (room, filled) = (&self.bytes[self.start..], self.end - self.start);
        let last = self.last.as_ref();
        if let Some((head, bytes)) = last.and_then(|last| last.repeated(room, filled)) {
            self.start += bytes.len();
            return Ok((head, bytes));
        }
        self.parse_head()
    }

    /// Reads the head of an answer that the server sent before it closed its connection in the middle of a
    /// request, for example because the body is too long. The connection cannot be used again.
    ///
    /// # Errors
    ///
    /// `error`, because of which the request was not sent, if there is no such answer.
    #[cold]
    pub(crate) fn read_early_head(
        &mut self,
        error: io::Error,
    ) -> io::Result<(ResponseHead, HeadBytes)> {
        match self.read_head() {
            Ok((head, headers)) if head.status >= 400 => {
                let keep_alive = false;
                Ok((ResponseHead { keep_alive, ..head }, headers))
            }
            _ => Err(error),
        }
    }

    /// Reads a head that differs from the last one, or has not arrived as a whole yet.
    fn parse_head(&mut self) -> io::Result<(ResponseHead, HeadBytes)> {
        let mut scanned = 0;
        let mut skipped = 0;
        loop {
            let unused = &self.bytes[self.start..self.end];
            match scan(unused, scanned).map_err(|_| NOT_HTTP)? {
                Scan::Complete(len) if skipped + len > MAX_HEAD => return Err(TOO_LONG.into()),
                Scan::Complete(len) => {
                    self.start += len;
                    let bytes = &unused[..len];
                    if let Some(head) = ResponseHead::parse(bytes)? {
                        self.last = LastHead::new(bytes, head);
                        return Ok((head, HeadBytes::new(bytes)));
                    }
                    skipped += len;
                    scanned = 0;
                }
                Scan::Incomplete(at) => {
                    scanned = at;
                    self.fill()?;
                }
            }
        }
    }

    /// Takes a body that arrived as a whole with its head; `None` if it did not.
    pub(crate) fn take_whole(&mut self, framing: BodyFraming) -> Option<SharedBytes> {
        let length = usize::try_from(framing.length()?).ok()?;
        let body = self.bytes[self.start..self.end].get(..length)?;
        let body = body.into();
        self.start += length;
        if self.is_empty() {
            // The next response is read into the start of the buffer, so no bytes have to be moved.
            (self.start, self.end) = (0, 0);
        }
        Some(body)
    }

    /// Reads at least one byte of a body; returns 0 at its end. `into` is not empty.
    pub(crate) fn read_body(
        &mut self,
        framing: &mut BodyFraming,
        into: &mut [u8],
    ) -> io::Result<usize> {
        loop {
            match *framing {
                BodyFraming::Length(0) | BodyFraming::Chunked(ChunkPart::End) => return Ok(0),
                BodyFraming::Length(left) => {
                    let taken = self.take_of(left, into)?;
                    *framing = BodyFraming::Length(left - taken as u64);
                    return Ok(taken);
                }
                BodyFraming::Chunked(ChunkPart::Data(left)) => {
                    let taken = self.take_of(left, into)?;
                    *framing = BodyFraming::Chunked(match left - taken as u64 {
                        0 => ChunkPart::DataEnd,
                        left => ChunkPart::Data(left),
                    });
                    return Ok(taken);
                }
                BodyFraming::Chunked(part) => {
                    let (next, len) =
                        self.read_line(|line| Some((part.after(line)?, line.len())))?;
                    if part == ChunkPart::Trailer {
                        self.trailer += len + 2;
                        if self.trailer > MAX_HEAD {
                            return Err(TOO_LONG.into());
                        }
                    }
                    *framing = BodyFraming::Chunked(next);
                }
                BodyFraming::UntilClosed => {
                    let taken = self.take(u64::MAX, into)?;
                    if taken == 0 {
                        *framing = BodyFraming::Length(0);
                    }
                    return Ok(taken);
                }
            }
        }
    }

    /// Takes some of `left` bytes, at least one.
    fn take_of(&mut self, left: u64, into: &mut [u8]) -> io::Result<usize> {
        match self.take(left, into)? {
            0 => Err(broke_off()),
            taken => Ok(taken),
        }
    }

    /// Takes some of the next `most` bytes; 0 at the end of the source.
    fn take(&mut self, most: u64, into: &mut [u8]) -> io::Result<usize> {
        let room = into.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let into = &mut into[..room];
        if self.is_empty() {
            // The rest of a body, and long pieces of it, are read directly into `into`.
            if room as u64 == most || room >= self.bytes.len() {
                return self.source.read(into);
            }
            self.read_more()?;
        }
        let unused = &self.bytes[self.start..self.end];
        let taken = room.min(unused.len());
        into[..taken].copy_from_slice(&unused[..taken]);
        self.start += taken;
        Ok(taken)
    }

    /// Takes the next line, and returns the result of `parse`, which gets the line without CR LF.
    fn read_line<T>(&mut self, parse: impl FnOnce(&[u8]) -> Option<T>) -> io::Result<T> {
        let mut searched = 0;
        loop {
            let unused = &self.bytes[self.start..self.end];
            if let Some(at) = unused[searched..].iter().position(|&byte| byte == b'\n') {
                let len = searched + at + 1;
                self.start += len;
                let line = unused[..len].strip_suffix(b"\r\n");
                return line.and_then(parse).ok_or_else(|| BAD_CHUNKS.into());
            }
            searched = unused.len();
            self.fill()?;
        }
    }

    /// Reads more of a head or a line.
    fn fill(&mut self) -> io::Result<()> {
        match self.read_more()? {
            0 if self.end == self.bytes.len() => Err(TOO_LONG.into()),
            0 => Err(broke_off()),
            _ => Ok(()),
        }
    }

    /// Reads some bytes, and appends them to those that are not used yet; 0 at the end of the
    /// source, or if there is no room for more.
    fn read_more(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            return Ok(0);
        }
        let read = self.source.read(&mut self.bytes[self.end..])?;
        self.end += read;
        Ok(read)
    }
}

/// The last head, if it can be compared with the next one. Successive heads of a server often
/// differ only in their `Content-Length`, the last field.
///
/// Comparing a head costs a tenth of parsing it.
#[derive(Debug)]
struct LastHead {
    /// The bytes in front of the digits of the `Content-Length`, which is the last field.
    start: Arc<[u8]>,
    head: ResponseHead,
}

impl LastHead {
    fn new(bytes: &[u8], head: ResponseHead) -> Option<Self> {
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        let fields = bytes.strip_suffix(END).filter(|_| head.status == 200)?;
        let start = &fields[..=fields.iter().rposition(|byte| !is_digit(byte))?];
        let name = start.last_chunk::<{ LENGTH.len() }>()?;
        name.eq_ignore_ascii_case(LENGTH).then(|| LastHead {
            start: start.into(),
            head,
        })
    }

    /// The head at the start of `bytes`, of which `filled` were received, if it differs in the length of the
    /// body only.
    fn repeated(&self, bytes: &[u8], filled: usize) -> Option<(ResponseHead, HeadBytes)> {
        let rest = bytes.strip_prefix(&*self.start)?.first_chunk()?;
        let (mut length, mut digits) = (0, 0);
        while digits < MAX_REPEATED_DIGITS && rest[digits].is_ascii_digit() {
            length = 10 * length + u64::from(rest[digits] - b'0');
            digits += 1;
        }
        let bytes = HeadBytes {
            start: self.start.clone(),
            rest: *rest,
            rest_len: digits + END.len(),
        };
        let head = ResponseHead {
            framing: BodyFraming::Length(length),
            ..self.head
        };
        let is_whole = digits > 0 && rest[digits..].starts_with(END) && bytes.len() <= filled;
        is_whole.then_some((head, bytes))
    }
}

/// The bytes of a head. Those that repeat the last head are shared with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadBytes {
    /// The whole head, or the part in front of the digits of the `Content-Length`, which is the last field.
    start: Arc<[u8]>,
    /// Begins with the rest.
    rest: [u8; MAX_REPEATED_DIGITS + END.len()],
    rest_len: usize,
}

impl HeadBytes {
    /// The bytes of a well-formed head.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        HeadBytes {
            start: bytes.into(),
            ..HeadBytes::default()
        }
    }

    fn len(&self) -> usize {
        self.start.len() + self.rest_len
    }

    fn rest(&self) -> &[u8] {
        &self.rest[..self.rest_len]
    }

    #[cfg(any(test, feature = "ureq"))]
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        [&self.start, self.rest()].concat()
    }

    /// Names and values of the fields.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.start.trim_ascii_start().split(|&byte| byte == b'\n');
        lines.skip(1).filter_map(|line| {
            let (name, value) = line.split_at(line.iter().position(|&byte| byte == b':')?);
            // There is one length, whose digits are in the rest.
            let is_cut = self.rest_len > 0 && name.eq_ignore_ascii_case(b"content-length");
            let value = if is_cut { self.rest() } else { &value[1..] };
            Some((name, value.trim_ascii()))
        })
    }
}

/// Why a response is rejected.
#[derive(Clone, Copy)]
pub(crate) struct BadResponse(pub(crate) &'static str);

impl From<BadResponse> for io::Error {
    fn from(why: BadResponse) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, why.0)
    }
}

/// The connection ended before the response did.
fn broke_off() -> io::Error {
    let message = "the connection was closed in the middle of the answer";
    io::Error::new(io::ErrorKind::UnexpectedEof, message)
}

pub(crate) const TOO_LONG: BadResponse =
    BadResponse("the head or a line of the answer is too long");
const NOT_HTTP: BadResponse = BadResponse("the answer is not HTTP/1.1");
const TWO_LENGTHS: BadResponse = BadResponse("the answer's length can be read in two ways");
const NO_LENGTH: BadResponse = BadResponse("the answer has no length and is not chunked");
const BAD_LENGTH: BadResponse = BadResponse("the Content-Length of the answer is not a length");
const BAD_CHUNKS: BadResponse = BadResponse("the chunks of the answer are malformed");

/// The longest head of a response, interim ones included, and the longest line between chunks.
pub(crate) const MAX_HEAD: usize = 16 * 1024;

/// The most header fields of a response, as many as ureq takes.
const MAX_FIELDS: usize = 128;

/// The name of the last field of a head that can repeat.
const LENGTH: &[u8; 18] = b"\r\ncontent-length: ";

/// The most digits of the length in a head that repeats the last one.
const MAX_REPEATED_DIGITS: usize = 12;

/// The end of a head.
const END: &[u8; 4] = b"\r\n\r\n";

/// The most digits of a chunk size: 15 hexadecimal digits always fit in 64 bits.
const MAX_SIZE_DIGITS: usize = 15;

/// A response that is read from bytes which arrive in pieces, for tests and the fuzz target.
#[cfg(any(test, larder_fuzz))]
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReadResponse {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    pub(crate) keep_alive: bool,
    /// The bytes that it takes, head included.
    pub(crate) len: usize,
}

/// How the bytes of a response arrive.
#[cfg(any(test, larder_fuzz))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    /// The most bytes that the connection gives at once.
    pub(crate) step: usize,
    /// The most bytes that the reader of the body asks for at once.
    pub(crate) room: usize,
}

/// Reads the response at the beginning of `bytes`, after which the connection ends; `None` if it is
/// rejected, or not whole.
#[cfg(any(test, larder_fuzz))]
pub(crate) fn read_response(bytes: &[u8], pieces: Pieces) -> Option<ReadResponse> {
    struct Steps<'b>(&'b [u8], usize);

    impl Read for Steps<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let most = into.len().min(self.1);
            self.0.read(&mut into[..most])
        }
    }

    let mut reader = ResponseReader::new(Steps(bytes, pieces.step.max(1)));
    let (mut head, _) = reader.read_head().ok()?;
    let mut body = Vec::new();
    let mut room = vec![0; pieces.room.max(1)];
    loop {
        match reader.read_body(&mut head.framing, &mut room).ok()? {
            0 => break,
            taken => body.extend_from_slice(&room[..taken]),
        }
    }
    Some(ReadResponse {
        status: head.status,
        body,
        keep_alive: head.keep_alive,
        len: bytes.len() - reader.source.0.len() - (reader.end - reader.start),
    })
}

#[cfg(test)]
mod tests;
