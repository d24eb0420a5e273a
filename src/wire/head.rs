//! The end of an HTTP head, and the header values that requests and responses have in common.
//!
//! httparse reads a head once it is complete. These functions detect when a head is complete, and
//! are strict where httparse is not.

/// The result of [`scan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The head is this many bytes long.
    Complete(usize),
    /// More bytes are needed; the scan goes on from this position.
    Incomplete(usize),
}

/// Looks for the end of the head at the start of `bytes`, from `from` on: 0 at first, then the
/// position of the last [`Scan::Incomplete`].
///
/// Empty lines before the head are skipped and counted as part of it (RFC 9112, section 2.2).
///
/// # Errors
///
/// At the first byte that cannot be in a head: a control character, a line end of LF or CR alone.
/// So a TLS handshake or a binary protocol is refused at once, not at the deadline.
pub(crate) fn scan(bytes: &[u8], from: usize) -> Result<Scan, &'static str> {
    let mut start = 0;
    while bytes[start..].starts_with(b"\r\n") {
        start += 2;
    }
    let mut at = from.max(start);
    while let Some(offset) = bytes[at..].iter().position(u8::is_ascii_control) {
        at += offset;
        match bytes[at..] {
            [b'\t', ..] => at += 1,
            [b'\r'] => return Ok(Scan::Incomplete(at)),
            [b'\r', b'\n', ..] if at > start && bytes[..at].ends_with(b"\r\n") => {
                return Ok(Scan::Complete(at + 2));
            }
            [b'\r', b'\n', ..] => at += 2,
            [b'\r' | b'\n', ..] => return Err("a line does not end in CR LF"),
            _ => return Err("a control character in the head"),
        }
    }
    Ok(Scan::Incomplete(bytes.len()))
}

/// Reads a `Content-Length`: digits only, no sign, no list, no space inside.
///
/// # Errors
///
/// The reason: it is not a number, or 1 TiB or more. Compare the number with a limit before anything is
/// allocated for it.
pub(crate) fn parse_length(value: &[u8]) -> Result<u64, &'static str> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err("the Content-Length is not a number");
    }
    let add = |number: u64, digit: &u8| {
        number
            .saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    };
    match value.iter().fold(0, add) {
        length if length < LENGTH_LIMIT => Ok(length),
        _ => Err("the Content-Length is 1 TiB or more"),
    }
}

/// Appends a number in decimal digits.
pub(crate) fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return out.extend_from_slice(&digits[start..]);
        }
    }
}

/// Whether a comma-separated list, such as the value of `Connection`, has this element.
pub(crate) fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|&byte| byte == b',')
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(token))
}

/// A length that no message has: 1 TiB. A shorter body can still be over the reader's own limit.
const LENGTH_LIMIT: u64 = 1 << 40;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scan_finds_the_end_however_the_head_is_cut() {
        let head = b"\r\nHTTP/1.1 200 OK\r\nA:\tb\r\n\r\n";
        let bytes = [&head[..], b"\0body"].concat();
        for cut in 0..head.len() {
            let Ok(Scan::Incomplete(from)) = scan(&bytes[..cut], 0) else {
                panic!("complete after {cut} bytes");
            };
            assert_eq!(scan(&bytes, from), Ok(Scan::Complete(head.len())), "{cut}");
        }
    }

    #[test]
    fn scan_refuses_control_characters_and_bare_line_ends() {
        for byte in (0..b' ').chain([0x7f]).filter(|byte| *byte != b'\t') {
            assert!(scan(&[b'G', byte, b'/'], 0).is_err(), "{byte}");
        }
        assert!(scan(b"G\t\x80 \xff", 0).is_ok());
    }

    #[test]
    fn tokens_are_found_in_any_case_and_only_whole() {
        assert!(has_token(b"a, Close ,b", b"close"));
        assert!(!has_token(b"closed", b"close"));
        assert!(!has_token(b"", b"close"));
    }

    #[test]
    fn numbers_are_written_as_the_standard_library_does() {
        for number in [0, 7, 10, 99, 1_000_000, u64::MAX] {
            let mut out = b"a".to_vec();
            push_decimal(&mut out, number);
            assert_eq!(out, format!("a{number}").as_bytes());
        }
    }

    proptest! {
        #[test]
        fn lengths_are_read_as_numbers(length in 0..LENGTH_LIMIT) {
            prop_assert_eq!(parse_length(length.to_string().as_bytes()), Ok(length));
        }

        #[test]
        fn lengths_from_one_tebibyte_on_are_refused(length in LENGTH_LIMIT..) {
            prop_assert!(parse_length(length.to_string().as_bytes()).is_err());
        }
    }
}
