//! The path of a request: base, group and key, escaped so that any key is one segment.
//!
//! `{base}{group}/{key}`. What we send escapes every byte but RFC 3986's unreserved ones (letters,
//! digits, `-._~`), as Go's `url.QueryEscape` does, except that a space is `%20` and never `+`:
//! golang/groupcache's client sends `+` for it, but its server, which decodes by the rules of
//! paths, reads that as a plus.

use std::borrow::Cow;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::search::find_byte;

/// The base path of every implementation of groupcache, unless it is told otherwise.
pub(crate) const DEFAULT_BASE_PATH: &str = "/_groupcache/";

/// What the path of a peer's request names. Borrows from the path what was not escaped in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PeerPath<'a> {
    /// Never empty.
    pub group: Cow<'a, str>,
    /// Any string: empty, `..`, with slashes or with NULs.
    pub key: Cow<'a, str>,
}

/// Why a path names no group and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathError {
    /// It is not below the base path: somebody else's request.
    Outside,
    /// It is below the base path and wrong; the text says how.
    Malformed(&'static str),
}

/// Checks that `base` can stand in front of a group in a request.
///
/// # Errors
///
/// [`ErrorKind::InvalidBasePath`] unless it begins and ends with a slash and has between them
/// only what every client, proxy and server passes on as it is: no escapes, no query, no empty
/// segments, no `.` or `..`.
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
///
/// A group or key that is `.` or `..` has its dots escaped, because whoever normalises a path
/// removes such a segment. Go's `net/url` gives the dots back, as [`parse_path`] does. A client or
/// proxy that follows the WHATWG URL standard takes `%2E%2E` for `..` all the same; nothing can be
/// written that would get past it.
pub(crate) fn key_path(base: &str, group: &str, key: &str) -> String {
    let len = base.len() + escaped_len(group) + 1 + escaped_len(key);
    let mut path = String::with_capacity(len);
    path.push_str(base);
    push_escaped(&mut path, group);
    path.push('/');
    push_escaped(&mut path, key);
    path
}

/// Takes the group and key out of `raw_path`, the request's target as it came, still escaped.
///
/// Everything from a `?` on is left out: no implementation sends a query. The rest is split while
/// it is still escaped, then decoded, once. The key is all that follows the slash after the group,
/// slashes included, since some clients send them raw; it is never resolved as a path.
/// With `plus_is_space` a raw `+` is a space, as golang/groupcache's client means it.
pub(crate) fn parse_path<'a>(
    base: &str,
    raw_path: &'a str,
    plus_is_space: bool,
) -> Result<PeerPath<'a>, PathError> {
    let path = match find_byte(raw_path.as_bytes(), b'?') {
        Some(query) => &raw_path[..query],
        None => raw_path,
    };
    let below = path.strip_prefix(base).ok_or(PathError::Outside)?;
    let slash = find_byte(below.as_bytes(), b'/')
        .ok_or(PathError::Malformed("there is no slash after the group"))?;
    let (group, key) = (&below[..slash], &below[slash + 1..]);
    if group.is_empty() {
        return Err(PathError::Malformed("the group is empty"));
    }
    Ok(PeerPath {
        group: unescape(group, plus_is_space)?,
        key: unescape(key, plus_is_space)?,
    })
}

pub(super) fn push_escaped(out: &mut String, segment: &str) {
    if escaped_len(segment) == segment.len() {
        out.push_str(segment);
        return;
    }
    if is_dots(segment) {
        for _ in 0..segment.len() {
            out.push_str("%2E");
        }
        return;
    }
    for byte in segment.bytes() {
        if UNRESERVED[usize::from(byte)] {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

fn escaped_len(segment: &str) -> usize {
    let escapes = if is_dots(segment) {
        segment.len()
    } else {
        let escaped = |byte: &u8| !UNRESERVED[usize::from(*byte)];
        segment
            .as_bytes()
            .iter()
            .filter(|byte| escaped(byte))
            .count()
    };
    segment.len() + 2 * escapes
}

pub(super) fn unescape(raw: &str, plus_is_space: bool) -> Result<Cow<'_, str>, PathError> {
    let escape = find_byte(raw.as_bytes(), b'%');
    let plus = plus_is_space.then(|| find_byte(raw.as_bytes(), b'+'));
    let first = [escape, plus.flatten()].into_iter().flatten().min();
    let Some(first) = first else {
        return Ok(Cow::Borrowed(raw));
    };
    // Decoding only shortens, so this is the one allocation.
    let mut decoded = Vec::with_capacity(raw.len());
    let (clean, rest) = raw.as_bytes().split_at(first);
    decoded.extend_from_slice(clean);
    let mut rest = rest.iter();
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
        .map_err(|_| PathError::Malformed("what was escaped is not UTF-8"))
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
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What may stand raw in a segment: `pchar` of RFC 3986, section 3.3, without the escapes.
fn is_base_byte(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)
}

const HEX: [u8; 16] = *b"0123456789ABCDEF";

/// Whether a byte [`is_unreserved`]: most keys are looked through and sent as they are.
const UNRESERVED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = is_unreserved(byte as u8);
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: &str = DEFAULT_BASE_PATH;

    fn parsed(raw: &str, plus_is_space: bool) -> (String, String) {
        let path = parse_path(BASE, raw, plus_is_space).expect(raw);
        (path.group.into_owned(), path.key.into_owned())
    }

    /// Of keys: what we send, and what Go's `url.QueryEscape` sends (by its source).
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
    fn keys_are_escaped_as_go_does_but_for_the_space() {
        for (key, ours, golangs) in KEYS {
            assert_eq!(key_path(BASE, "g", key), format!("{BASE}g/{ours}"));
            assert_eq!(ours.replace("%20", "+"), golangs);
        }
    }

    #[test]
    fn what_golangs_client_sends_is_read_under_its_preset() {
        for (key, ours, golangs) in KEYS {
            for sent in [ours, golangs] {
                let raw = format!("{BASE}g/{sent}");
                assert_eq!(parsed(&raw, true), ("g".into(), key.into()));
            }
        }
    }

    #[test]
    fn a_raw_plus_is_a_plus_unless_it_is_golangs() {
        let raw = "/_groupcache/a+b/c+d%2Be";
        assert_eq!(parsed(raw, false), ("a+b".into(), "c+d+e".into()));
        assert_eq!(parsed(raw, true), ("a b".into(), "c d+e".into()));
    }

    #[test]
    fn dots_alone_are_escaped_and_come_back() {
        assert_eq!(key_path(BASE, "..", "."), "/_groupcache/%2E%2E/%2E");
        assert_eq!(key_path(BASE, ".", ".."), "/_groupcache/%2E/%2E%2E");
        let raw = "/_groupcache/%2e%2E/%2E";
        assert_eq!(parsed(raw, false), ("..".into(), ".".into()));
    }

    #[test]
    fn a_path_is_never_resolved() {
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
            ("/_groupcache/g/?x=/y", "g", ""),
            ("/_groupcache/g/k?%zz", "g", "k"),
        ] {
            assert_eq!(parsed(raw, false), (group.into(), key.into()), "{raw}");
        }
    }

    #[test]
    fn what_is_not_below_the_base_is_somebody_elses() {
        for raw in [
            "",
            "/",
            "/_groupcache",
            "/_groupcache?/g/k",
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
    fn a_malformed_path_is_refused() {
        for raw in [
            "/_groupcache/",
            "/_groupcache/g",
            "/_groupcache/g?/k",
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
    fn what_is_not_escaped_is_borrowed() {
        let path = parse_path(BASE, "/_groupcache/colors/red+1", false).expect("it parses");
        assert!(matches!(path.group, Cow::Borrowed("colors")));
        assert!(matches!(path.key, Cow::Borrowed("red+1")));
    }

    #[test]
    fn base_paths_that_others_would_rewrite_are_refused() {
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
        fn every_group_and_key_comes_back(
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
        fn any_target_parses_or_not_but_never_panics(
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
