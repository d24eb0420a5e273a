//! The path of a request: base, group and key, escaped so that any key is one segment.
//!
//! `{base}{group}/{key}`. Every byte is escaped except RFC 3986's unreserved ones (letters, digits,
//! `-._~`). Go's `url.QueryEscape` escapes the same bytes, but a space becomes `%20` here and `+`
//! there. golang/groupcache's client sends `+` for a space, but its server decodes by the rules of
//! paths and reads it as a plus.

use std::borrow::Cow;

use crate::error::{Error, ErrorKind, Result};

/// The default base path of every implementation of groupcache.
pub(crate) const DEFAULT_BASE_PATH: &str = "/_groupcache/";

/// The group and key that a path names. They borrow from the path if nothing in it was escaped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PeerPath<'a> {
    /// Never empty.
    pub group: Cow<'a, str>,
    /// Any string: it can be empty or `..`, and contain slashes and NULs.
    pub key: Cow<'a, str>,
}

/// Why a path names no group and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathError {
    /// It is not below the base path, so it is not a request for the cache.
    Outside,
    /// It is below the base path and malformed; the text is the reason.
    Malformed(&'static str),
}

/// Checks that `base` can precede a group in the path of a request.
///
/// # Errors
///
/// [`ErrorKind::InvalidBasePath`] unless it begins and ends with a slash and consists of characters
/// that every client, proxy and server passes on unchanged: no escapes, no query, no empty segments,
/// no `.` or `..`.
pub(crate) fn check_base_path(base: &str) -> Result<()> {
    let wrong = |why| {
        let message = format!(
            "the base path {base:?} {why}; it has to look like {DEFAULT_BASE_PATH:?} or \"/\""
        );
        Err(Error::new(ErrorKind::InvalidBasePath, message))
    };
    if !base.starts_with('/') || !base.ends_with('/') {
        return wrong("does not begin and end with a slash");
    }
    if base == "/" {
        return Ok(());
    }
    for segment in base[1..base.len() - 1].split('/') {
        if segment.is_empty() {
            return wrong("has an empty segment");
        }
        if is_dots(segment) {
            return wrong("has a segment that clients and proxies resolve");
        }
        if !segment.bytes().all(is_base_byte) {
            return wrong("has a character that would have to be escaped");
        }
    }
    Ok(())
}

/// The path that asks a peer for `key` of `group`.
pub(crate) fn key_path(base: &str, group: &str, key: &str) -> String {
    KeyPath::new(base, group, key).to_text()
}

/// The path that asks a peer for a key of a group, not written yet.
///
/// The dots of a group or key that is `.` or `..` are escaped, because software that normalises
/// paths removes such a segment. Go's `net/url` and [`parse_path`] decode them again. A client or
/// proxy that follows the WHATWG URL standard treats `%2E%2E` like `..`; no escape avoids that.
pub(crate) struct KeyPath<'a> {
    base: &'a str,
    group: &'a str,
    key: &'a str,
    /// Their lengths with escapes.
    group_len: usize,
    key_len: usize,
}

impl<'a> KeyPath<'a> {
    #[inline]
    pub(crate) fn new(base: &'a str, group: &'a str, key: &'a str) -> Self {
        KeyPath {
            base,
            group,
            key,
            group_len: escaped_len(group),
            key_len: escaped_len(key),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.base.len() + self.group_len + 1 + self.key_len
    }

    #[inline]
    pub(crate) fn push_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.base.as_bytes());
        push_escaped(out, self.group, self.group_len);
        out.push(b'/');
        push_escaped(out, self.key, self.key_len);
    }

    pub(crate) fn to_text(&self) -> String {
        let mut path = Vec::with_capacity(self.len());
        self.push_to(&mut path);
        text_of(path)
    }
}

/// A path that was written as bytes.
pub(super) fn text_of(path: Vec<u8>) -> String {
    String::from_utf8(path).expect("a base path is text, and escaped segments are ASCII")
}

/// Reads the group and key from `raw_path`, the path of a request as it arrived, still escaped and without
/// a query.
///
/// It is split first and then decoded once. The key is everything after the slash that ends the group,
/// further slashes included, since some clients send them raw; it is never resolved as a path. With
/// `plus_is_space` a raw `+` is a space, as golang/groupcache's client sends it.
pub(crate) fn parse_path<'a>(
    base: &str,
    raw_path: &'a str,
    plus_is_space: bool,
) -> Result<PeerPath<'a>, PathError> {
    let below = raw_path.strip_prefix(base).ok_or(PathError::Outside)?;
    let slash = below.bytes().position(|byte| byte == b'/');
    let slash = slash.ok_or(PathError::Malformed("there is no slash after the group"))?;
    let (group, key) = (&below[..slash], &below[slash + 1..]);
    if group.is_empty() {
        return Err(PathError::Malformed("the group is empty"));
    }
    Ok(PeerPath {
        group: unescape(group, plus_is_space)?,
        key: unescape(key, plus_is_space)?,
    })
}

/// Appends a segment. `escaped_len` is its [length](escaped_len) with escapes.
#[inline]
pub(super) fn push_escaped(out: &mut Vec<u8>, segment: &str, escaped_len: usize) {
    if escaped_len == segment.len() {
        return out.extend_from_slice(segment.as_bytes());
    }
    push_with_escapes(out, segment);
}

#[cold]
fn push_with_escapes(out: &mut Vec<u8>, segment: &str) {
    for byte in segment.bytes() {
        if is_unreserved(byte) && !is_dots(segment) {
            out.push(byte);
        } else {
            out.push(b'%');
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        }
    }
}

/// The length of a segment with escapes.
pub(super) fn escaped_len(segment: &str) -> usize {
    let escapes = if is_dots(segment) {
        segment.len()
    } else {
        let bytes = segment.bytes();
        bytes.filter(|&byte| !is_unreserved(byte)).count()
    };
    segment.len() + 2 * escapes
}

pub(super) fn unescape(raw: &str, plus_is_space: bool) -> Result<Cow<'_, str>, PathError> {
    let is_encoded = |byte| byte == b'%' || (plus_is_space && byte == b'+');
    if !raw.bytes().any(is_encoded) {
        return Ok(Cow::Borrowed(raw));
    }
    // Decoding only shortens, so this is the only allocation.
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        decoded.push(match byte {
            b'%' => {
                let high = rest.next().and_then(hex_value);
                let low = rest.next().and_then(hex_value);
                match (high, low) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(PathError::Malformed("a % without two hex digits")),
                }
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded)
        .map(Cow::Owned)
        .map_err(|_| PathError::Malformed("the decoded path is not UTF-8"))
}

fn hex_value(digit: &u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn is_dots(segment: &str) -> bool {
    segment == "." || segment == ".."
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    UNRESERVED[usize::from(byte)]
}

/// Whether a byte needs no escape in a segment: `pchar` of RFC 3986, section 3.3.
fn is_base_byte(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)
}

/// Whether each byte is unreserved.
const UNRESERVED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 0x80 {
        table[byte as usize] =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        byte += 1;
    }
    table
};

const HEX: [u8; 16] = *b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: &str = DEFAULT_BASE_PATH;

    fn parsed(raw: &str, plus_is_space: bool) -> (String, String) {
        let path = parse_path(BASE, raw, plus_is_space).expect(raw);
        (path.group.into_owned(), path.key.into_owned())
    }

    /// Keys, their escaped form here, and that of Go's `url.QueryEscape` (by its source).
    const KEYS: [(&str, &str, &str); 16] = [
        ("", "", ""),
        ("foo", "foo", "foo"),
        ("aZ09-._~", "aZ09-._~", "aZ09-._~"),
        ("a b", "a%20b", "a+b"),
        ("a+b", "a%2Bb", "a%2Bb"),
        ("a/b", "a%2Fb", "a%2Fb"),
        ("//x", "%2F%2Fx", "%2F%2Fx"),
        ("../x", "..%2Fx", "..%2Fx"),
        ("...", "...", "..."),
        ("%41", "%2541", "%2541"),
        ("a?b#c", "a%3Fb%23c", "a%3Fb%23c"),
        (
            "k=v&w;x,y:@",
            "k%3Dv%26w%3Bx%2Cy%3A%40",
            "k%3Dv%26w%3Bx%2Cy%3A%40",
        ),
        (
            "!$'()*[]",
            "%21%24%27%28%29%2A%5B%5D",
            "%21%24%27%28%29%2A%5B%5D",
        ),
        (
            "\"<>\\^`{|}",
            "%22%3C%3E%5C%5E%60%7B%7C%7D",
            "%22%3C%3E%5C%5E%60%7B%7C%7D",
        ),
        ("\0\t\r\n\x7f", "%00%09%0D%0A%7F", "%00%09%0D%0A%7F"),
        (
            "é世🦀",
            "%C3%A9%E4%B8%96%F0%9F%A6%80",
            "%C3%A9%E4%B8%96%F0%9F%A6%80",
        ),
    ];

    #[test]
    fn keys_are_escaped_as_in_go_except_for_the_space() {
        for (key, ours, golangs) in KEYS {
            assert_eq!(key_path(BASE, "g", key), format!("{BASE}g/{ours}"));
            assert_eq!(ours.replace("%20", "+"), golangs);
        }
    }

    #[test]
    fn keys_from_golangs_client_are_decoded_under_its_preset() {
        for (key, ours, golangs) in KEYS {
            for sent in [ours, golangs] {
                let raw = format!("{BASE}g/{sent}");
                assert_eq!(parsed(&raw, true), ("g".into(), key.into()));
            }
        }
    }

    #[test]
    fn raw_plus_is_a_plus_except_under_golangs_preset() {
        let raw = "/_groupcache/a+b/c+d%2Be";
        assert_eq!(parsed(raw, false), ("a+b".into(), "c+d+e".into()));
        assert_eq!(parsed(raw, true), ("a b".into(), "c d+e".into()));
    }

    #[test]
    fn segments_of_dots_are_escaped_and_decoded() {
        assert_eq!(key_path(BASE, "..", "."), "/_groupcache/%2E%2E/%2E");
        assert_eq!(key_path(BASE, ".", ".."), "/_groupcache/%2E/%2E%2E");
        let raw = "/_groupcache/%2e%2E/%2E";
        assert_eq!(parsed(raw, false), ("..".into(), ".".into()));
    }

    #[test]
    fn dot_segments_and_double_slashes_are_not_resolved() {
        for (raw, group, key) in [
            ("/_groupcache/g/..", "g", ".."),
            ("/_groupcache/g/../../etc/passwd", "g", "../../etc/passwd"),
            ("/_groupcache/g/./x/", "g", "./x/"),
            ("/_groupcache/g///x", "g", "//x"),
            ("/_groupcache/g//", "g", "/"),
            ("/_groupcache/../x", "..", "x"),
            ("/_groupcache/a%2Fb/c%2Fd/e", "a/b", "c/d/e"),
            ("/_groupcache/g/%252e%252e", "g", "%2e%2e"),
            ("/_groupcache/g/a%00b", "g", "a\0b"),
            ("/_groupcache/g/a#b", "g", "a#b"),
            ("/_groupcache/g/é", "g", "é"),
        ] {
            assert_eq!(parsed(raw, false), (group.into(), key.into()), "{raw}");
        }
    }

    #[test]
    fn path_not_below_the_base_is_outside() {
        for raw in [
            "",
            "/",
            "/_groupcache",
            "/_groupcachex/g/k",
            "/_groupcach/g/k",
            "//_groupcache/g/k",
            "/x/../_groupcache/g/k",
            "/%5fgroupcache/g/k",
            "/_GROUPCACHE/g/k",
            "http://h/_groupcache/g/k",
            "*",
        ] {
            assert_eq!(
                parse_path(BASE, raw, false),
                Err(PathError::Outside),
                "{raw}"
            );
        }
    }

    #[test]
    fn malformed_path_is_refused() {
        for raw in [
            "/_groupcache/",
            "/_groupcache/g",
            "/_groupcache//k",
            "/_groupcache/g/%",
            "/_groupcache/g/%2",
            "/_groupcache/g/%zz",
            "/_groupcache/g/%2g",
            "/_groupcache/g/%+1",
            "/_groupcache/g/% 1",
            "/_groupcache/g/%é",
            "/_groupcache/%/k",
            "/_groupcache/g/%ff",
            "/_groupcache/g/%C3",
            "/_groupcache/g/%C3%28",
            "/_groupcache/g/%ED%A0%80",
            "/_groupcache/g/%C0%AF",
            "/_groupcache/%C3/%A9",
        ] {
            let result = parse_path(BASE, raw, false);
            assert!(
                matches!(result, Err(PathError::Malformed(_))),
                "{raw}: {result:?}"
            );
        }
    }

    #[test]
    fn unescaped_path_is_borrowed() {
        let path = parse_path(BASE, "/_groupcache/colors/red+1", false).expect("it parses");
        assert!(matches!(path.group, Cow::Borrowed("colors")));
        assert!(matches!(path.key, Cow::Borrowed("red+1")));
    }

    #[test]
    fn base_paths_that_proxies_rewrite_are_refused() {
        for base in ["/", "/_groupcache/", "/a/b-c.d~e/", "/cache@v1:2/"] {
            assert!(check_base_path(base).is_ok(), "{base:?}");
        }
        for base in [
            "",
            "x",
            "_groupcache/",
            "/_groupcache",
            "//",
            "/a//b/",
            "/./",
            "/a/../b/",
            "/a b/",
            "/a%20b/",
            "/é/",
            "/a?b/",
            "/a#b/",
            "/a\r\nb/",
            "/a\\b/",
        ] {
            let error = check_base_path(base).expect_err(base);
            assert_eq!(error.kind(), ErrorKind::InvalidBasePath, "{base:?}");
        }
    }

    proptest! {
        #[test]
        fn group_and_key_round_trip(
            group in "\\PC+|[ -~]+|[./+% ]{1,3}",
            key in prop_oneof![any::<String>(), "[./+% ]{0,3}".boxed()],
            plus_is_space: bool,
        ) {
            let raw = key_path(BASE, &group, &key);
            prop_assert_eq!(raw.capacity(), raw.len(), "allocated exactly");
            prop_assert!(raw.bytes().all(|b| is_unreserved(b) || b == b'/' || b == b'%'));
            prop_assert_eq!(raw.matches('/').count(), BASE.matches('/').count() + 1);
            prop_assert_eq!(parsed(&raw, plus_is_space), (group, key));
        }

        #[test]
        fn arbitrary_targets_do_not_panic(
            rest in "(\\PC|[%/?+a-f0-9]){0,40}",
            plus_is_space: bool,
        ) {
            let raw = format!("{BASE}{rest}");
            let _ = parse_path(BASE, &rest, plus_is_space);
            if let Ok(path) = parse_path(BASE, &raw, plus_is_space) {
                prop_assert!(!path.group.is_empty());
                prop_assert!(path.group.len() + path.key.len() < rest.len());
            }
        }
    }
}
