//! The response for a process that has cached the value: its fields, without the value.
//!
//! The request has the hash of the value in `If-None-Match`, as an entity tag of HTTP. The response is a 304,
//! and the fields are in a header.

use super::body::{Decoded, Fields, decode_response, push_fields};
use crate::checksum::checksum;
use crate::error::{Error, ErrorKind, Result};

/// The header of a request for a value that may be known.
pub(crate) const KNOWN_HEADER: &str = "if-none-match";

/// The header of the response, with the fields of `GetResponse` in hexadecimal digits.
pub(crate) const UNCHANGED_HEADER: &str = "larder-unchanged";

/// The hash of the value of the key with this [hash](fn@super::key_hash). It is the same in all processes and
/// versions, and runs at the speed of memory. It is no protection against values that are made to have the
/// hash of another one.
pub(crate) fn value_hash(key_hash: u64, value: &[u8]) -> u64 {
    checksum(key_hash, value)
}

/// The value of [`KNOWN_HEADER`].
pub(crate) fn known_header(value_hash: u64) -> String {
    format!("\"{value_hash:016x}\"")
}

/// Reads a [`KNOWN_HEADER`] as [`known_header`] writes it; `None` for all others, such as lists.
pub(crate) fn parse_known(header: &str) -> Option<u64> {
    let digits = header.strip_prefix('"')?.strip_suffix('"')?;
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let fits = digits.len() == 16 && digits.bytes().all(is_digit);
    fits.then(|| u64::from_str_radix(digits, 16).ok())?
}

/// The value of [`UNCHANGED_HEADER`].
pub(crate) fn encode_unchanged(key_hash: u64, fields: &Fields) -> String {
    let mut bytes = Vec::new();
    push_fields(&mut bytes, key_hash, 0, fields);
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .map(|digit| char::from(HEX[usize::from(digit)]))
        .collect()
}

/// Reads an [`UNCHANGED_HEADER`], and passes the fields and the hash of the key to `read`. There is no
/// value.
///
/// # Errors
///
/// [`ErrorKind::Peer`] unless the header is one that [`encode_unchanged`] wrote.
pub(crate) fn decode_unchanged<T>(header: &str, read: impl FnOnce(Decoded<'_>) -> T) -> Result<T> {
    let corrupt = || Error::new(ErrorKind::Peer, "the peer's 304 is not one of larder");
    if header.len() > MAX_DIGITS {
        return Err(corrupt());
    }
    let digit = |byte: u8| HEX.iter().position(|&digit| digit == byte);
    let byte = |pair: &[u8]| match pair {
        &[high, low] => Some((digit(high)? << 4 | digit(low)?) as u8),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = header.as_bytes().chunks(2).map(byte).collect();
    let bytes = bytes.ok_or_else(corrupt)?;
    let decoded = decode_response(&bytes)?;
    match decoded.key_hash.is_some() && decoded.value.is_empty() {
        true => Ok(read(decoded)),
        false => Err(corrupt()),
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// All fields take at most 90 bytes; there is room for those of later versions.
const MAX_DIGITS: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::option;
    use proptest::prelude::*;

    /// Nodes of other versions must find the same values unchanged.
    #[test]
    fn hash_of_a_value_does_not_change() {
        assert_eq!(
            value_hash(1, b"red"),
            GOLDEN,
            "{:#x}",
            value_hash(1, b"red")
        );
        assert_ne!(value_hash(1, b"red"), value_hash(2, b"red"));
        assert_eq!(known_header(0xab), "\"00000000000000ab\"");
    }

    const GOLDEN: u64 = 0xf971_b8fe_d919_e2a8;

    #[test]
    fn only_one_tag_of_sixteen_digits_is_known() {
        assert_eq!(parse_known("\"00000000000000ab\""), Some(0xab));
        for header in [
            "",
            "\"",
            "\"\"",
            "*",
            "00000000000000ab",
            "W/\"00000000000000ab\"",
            "\"00000000000000AB\"",
            "\"+0000000000000ab\"",
            "\"0000000000000ab\"",
            "\"00000000000000ab\", \"00000000000000ac\"",
            "\"00000000000000é\"",
        ] {
            assert_eq!(parse_known(header), None, "{header}");
        }
    }

    #[test]
    fn other_headers_are_refused() {
        let value = super::super::encode_response(1, "red".into(), &Fields::default());
        let value: Vec<u8> = value.iter().collect::<Vec<_>>().concat();
        let value: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        let long = "a906".repeat(200);
        for header in ["", "0", "a9", "zz", "é", &value, &long] {
            let error = decode_unchanged(header, |_| ()).expect_err(header);
            assert_eq!(error.kind(), ErrorKind::Peer);
        }
    }

    proptest! {
        #[test]
        fn fields_round_trip(
            key_hash: u64,
            ttl_nanos: Option<u64>,
            age_ms: Option<u64>,
            stale_ms: Option<u64>,
            expire in option::of(1_i64..),
            removals in option::of(1_u64..),
        ) {
            let fields = Fields {
                ttl_nanos,
                age_ms,
                stale_ms,
                removals,
                load_micros: age_ms,
                expire_unix_nanos: expire,
                minute_qps: ttl_nanos.map(|_| 7.5),
            };
            let header = encode_unchanged(key_hash, &fields);
            prop_assert!(header.len() <= 2 * 90);
            let decoded = decode_unchanged(&header, |decoded| (decoded.key_hash, decoded.fields));
            prop_assert_eq!(decoded.expect("it is one"), (Some(key_hash), fields));
        }

        #[test]
        fn arbitrary_headers_are_refused_or_read(header in ".{0,600}", digits in "[0-9a-f]{0,140}") {
            parse_known(&header);
            drop(decode_unchanged(&header, |_| ()));
            drop(decode_unchanged(&digits, |_| ()));
        }
    }
}
