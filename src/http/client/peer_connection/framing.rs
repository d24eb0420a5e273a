//! Where the body of an answer ends (RFC 9112, section 6.3), and what comes on the way there.

/// How the end of a body is found, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunk),
    UntilClosed,
}

/// What comes next in a chunked body (RFC 9112, section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// A line with the size of a chunk.
    Size,
    /// So many bytes of a chunk.
    Data(u64),
    /// The end of the line after a chunk.
    DataEnd,
    /// Lines, the last of them empty.
    Trailer,
    Nothing,
}

impl Framing {
    pub(crate) fn chunked() -> Self {
        Framing::Chunked(Chunk::Size)
    }

    /// The length of a body that has not begun, if it is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Framing::Length(length) => Some(*length),
            _ => None,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Framing::Length(0) | Framing::Chunked(Chunk::Nothing))
    }
}

impl Chunk {
    /// What comes after `line`, which holds no byte of the body; `None` if it is malformed.
    pub(crate) fn after(self, line: &[u8]) -> Option<Chunk> {
        match self {
            Chunk::Size => match parse_size(line)? {
                0 => Some(Chunk::Trailer),
                size => Some(Chunk::Data(size)),
            },
            Chunk::DataEnd if line.is_empty() => Some(Chunk::Size),
            Chunk::Trailer if line.is_empty() => Some(Chunk::Nothing),
            Chunk::Trailer => Some(Chunk::Trailer),
            Chunk::DataEnd | Chunk::Data(_) | Chunk::Nothing => None,
        }
    }
}

/// The size of a chunk: hexadecimal digits, and perhaps extensions, which mean nothing to us.
fn parse_size(line: &[u8]) -> Option<u64> {
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (size, rest) = line.split_at(digits);
    let rest = rest.trim_ascii_start();
    if !(1..=MAX_SIZE_DIGITS).contains(&digits) || !(rest.is_empty() || rest[0] == b';') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

/// Longer numbers need not be told apart from errors.
const MAX_SIZE_DIGITS: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_chunk_is_hexadecimal_and_nothing_else() {
        for (line, size) in [
            ("0", Some(0)),
            ("1f", Some(31)),
            ("00A", Some(10)),
            ("5;name=value", Some(5)),
            ("5 ; name", Some(5)),
            ("fffffffffffffff", Some((1 << 60) - 1)),
            ("1000000000000000", None),
            ("", None),
            (";x", None),
            ("-1", None),
            ("+1", None),
            ("0x1", None),
            ("1 1", None),
            (" 1", None),
        ] {
            assert_eq!(parse_size(line.as_bytes()), size, "{line:?}");
        }
    }
}
