//! Requests that change data: their paths, their bodies, and the header with their number.
//!
//! | change | request |
//! |---|---|
//! | remove a key | `DELETE {base}{group}/{key}` |
//! | remove keys | `POST {base}{group}/_remove-keys/`, JSON |
//! | remove all keys | `POST {base}{group}/_clear/`, a `ClearRequest` |
//! | set a key | `PUT {base}{group}/{key}`, a `SetRequest` |
//! | remove a key unless all these removals are applied, or one over 16 KiB | `POST {base}{group}/_drop/`, a `RemoveKeysRequest` |
//! | exchange tables of removals | `POST {base}{group}/_removals/`, a `RemovalTable` |
//!
//! The requests for one key are those of mailgun/groupcache and groupcache-go, the second is that of
//! groupcache-go, the others are larder's own. All but the last are answered with 200 and without a body,
//! and the last with another `RemovalTable`.

use std::borrow::Cow;

use quick_protobuf::{BytesReader, MessageRead};

use super::body::{FieldType, I64, LEN, VARINT, check_fields};
use super::group_path;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::pb::{ClearRequest, RemovalTable, RemoveKeysRequest, SetRequest};
use crate::random::spread;
use crate::sink::message::ProtoMessage;

/// The header with the number of a change whose body has no field for it, in decimal.
pub(crate) const REMOVAL_ID_HEADER: &str = "larder-removal-id";

/// The header that names the node which a change is for. An address may lead to another node than the list
/// says, for example to one that has the address of one that moved. Its confirmation would not be that of the
/// node that it is taken for.
pub(crate) const RECIPIENT_HEADER: &str = "larder-to";

/// The status of the answer of a node that a change is not for.
pub(crate) const MISDIRECTED: u16 = 421;

/// The [`RECIPIENT_HEADER`] of the node with this id: a hash, because an id is not always a valid header.
pub(crate) fn recipient(id: &str) -> String {
    format!("{:016x}", spread(id.as_bytes()))
}

/// Reads a [`REMOVAL_ID_HEADER`]: 1 to 20 decimal digits of a number of 64 bits.
pub(crate) fn parse_removal_id(header: &[u8]) -> Option<u64> {
    let is_number = (1..=20).contains(&header.len()) && header.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(header).ok().filter(|_| is_number)?;
    text.parse().ok()
}

/// The part of a path after the group, in place of a key, of the requests that name no key.
pub(crate) const REMOVE_KEYS: &str = "_remove-keys/";
pub(crate) const CLEAR: &str = "_clear/";
pub(crate) const REMOVALS: &str = "_removals/";
pub(crate) const DROP: &str = "_drop/";

/// The path of a request that names no key: `verb` is one of the constants above.
pub(crate) fn verb_path(base: &str, group: &str, verb: &str) -> String {
    let mut path = group_path(base, group);
    path.push('/');
    path.push_str(verb);
    path
}

/// The body of a change that is a protobuf message.
pub(crate) fn encode_change(message: &dyn ProtoMessage) -> Result<Vec<u8>> {
    let cannot = |error: BoxError| {
        Error::with_source(ErrorKind::Peer, "the change cannot be encoded", error)
    };
    message.encode().map_err(cannot)
}

/// Reads the body of a PUT.
///
/// # Errors
///
/// The reason: it is not a sequence of whole fields of the right types, or a text is not UTF-8. The
/// value borrows from `body`.
pub(crate) fn decode_set(body: &[u8]) -> Result<SetRequest<'_>, String> {
    check_fields(body, &SET_FIELDS, MAX_FIELDS)?;
    let message = SetRequest::from_reader(&mut BytesReader::from_bytes(body), body);
    message.map_err(|error| error.to_string())
}

/// Reads the body of a removal of all keys; errors as [`decode_set`].
pub(crate) fn decode_clear(body: &[u8]) -> Result<ClearRequest<'_>, String> {
    check_fields(body, &CLEAR_FIELDS, MAX_FIELDS)?;
    let message = ClearRequest::from_reader(&mut BytesReader::from_bytes(body), body);
    message.map_err(|error| error.to_string())
}

/// Reads the body of a conditional removal; errors as [`decode_set`].
pub(crate) fn decode_drop(body: &[u8]) -> Result<RemoveKeysRequest<'_>, String> {
    check_fields(body, &DROP_FIELDS, MAX_FIELDS)?;
    let message = RemoveKeysRequest::from_reader(&mut BytesReader::from_bytes(body), body);
    message.map_err(|error| error.to_string())
}

/// Reads the body of an exchange of tables, or of its answer; errors as [`decode_set`].
pub(crate) fn decode_table(body: &[u8]) -> Result<RemovalTable<'_>, String> {
    check_fields(body, &TABLE_FIELDS, MAX_FIELDS)?;
    let message = RemovalTable::from_reader(&mut BytesReader::from_bytes(body), body);
    message.map_err(|error| error.to_string())
}

const SET_FIELDS: [FieldType; 7] = [
    (1, LEN),
    (2, LEN),
    (3, LEN),
    (4, VARINT),
    (100, VARINT),
    (101, I64),
    (102, I64),
];
const CLEAR_FIELDS: [FieldType; 2] = [(1, LEN), (100, I64)];
const DROP_FIELDS: [FieldType; 4] = [(1, LEN), (2, LEN), (100, I64), (101, LEN)];
const TABLE_FIELDS: [FieldType; 3] = [(1, LEN), (100, LEN), (101, LEN)];

/// The most fields of a message. Later versions may add some.
const MAX_FIELDS: usize = 64;

/// The body of a removal of keys: `{"group":"g","keys":["a","b"]}`.
pub(crate) fn encode_keys<'k>(group: &str, keys: impl Iterator<Item = &'k str>) -> Vec<u8> {
    let mut json = String::from("{\"group\":");
    push_json(&mut json, group);
    json.push_str(",\"keys\":[");
    for (n, key) in keys.enumerate() {
        if n > 0 {
            json.push(',');
        }
        push_json(&mut json, key);
    }
    json.push_str("]}");
    json.into_bytes()
}

fn push_json(json: &mut String, text: &str) {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            '\0'..='\x1f' => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => json.push(c),
        }
    }
    json.push('"');
}

/// Reads the body of a removal of keys: a JSON object with a list of strings named `keys`. Other
/// members are skipped. `null` is an empty list.
///
/// # Errors
///
/// The reason: it is not such an object, it has more than `max_keys` keys, or values are nested deeper
/// than [`MAX_DEPTH`].
pub(crate) fn decode_keys(body: &[u8], max_keys: usize) -> Result<Vec<Cow<'_, str>>, &'static str> {
    let text = std::str::from_utf8(body).map_err(|_| "it is not UTF-8")?;
    let mut json = JsonReader {
        rest: text.trim_start_matches(SPACE),
    };
    let mut keys = Vec::new();
    json.list('{', '}', |json| {
        let name = json.string()?;
        json.expect(':')?;
        match &*name {
            "keys" if !json.rest.starts_with('n') => {
                keys.clear();
                json.list('[', ']', |json| {
                    if keys.len() == max_keys {
                        return Err("too many keys");
                    }
                    keys.push(json.string()?);
                    Ok(())
                })
            }
            _ => json.skip(MAX_DEPTH),
        }
    })?;
    match json.rest.is_empty() {
        true => Ok(keys),
        false => Err("bytes after the object"),
    }
}

/// The deepest nesting of values that is skipped.
const MAX_DEPTH: usize = 16;

/// The white space of RFC 8259, section 2.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// Reads JSON, RFC 8259. After each token, the white space is skipped.
struct JsonReader<'j> {
    rest: &'j str,
}

impl<'j> JsonReader<'j> {
    /// Takes `token` if it is next.
    fn take(&mut self, token: char) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else {
            return false;
        };
        self.rest = rest.trim_start_matches(SPACE);
        true
    }

    fn expect(&mut self, token: char) -> Result<(), &'static str> {
        self.take(token).then_some(()).ok_or("it is not JSON")
    }

    /// Reads the items between two tokens, with commas between them.
    fn list(
        &mut self,
        open: char,
        close: char,
        mut item: impl FnMut(&mut Self) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        self.expect(open)?;
        if self.take(close) {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.take(close) {
                return Ok(());
            }
            self.expect(',')?;
        }
    }

    /// Borrows unless the string has escapes.
    fn string(&mut self) -> Result<Cow<'j, str>, &'static str> {
        let text = self.rest.strip_prefix('"').ok_or("a string is missing")?;
        let end = text.find(['"', '\\']).ok_or("a string without an end")?;
        let (plain, mut rest) = text.split_at(end);
        let mut unescaped = None;
        while !rest.starts_with('"') {
            let out: &mut String = unescaped.get_or_insert_with(|| plain.to_owned());
            let (c, after) = unescape_json(&rest[1..])?;
            let end = after.find(['"', '\\']).ok_or("a string without an end")?;
            out.push(c);
            out.push_str(&after[..end]);
            rest = &after[end..];
        }
        self.rest = rest[1..].trim_start_matches(SPACE);
        let text = unescaped.map_or(Cow::Borrowed(plain), Cow::Owned);
        match text.bytes().any(|byte| byte < b' ') && matches!(text, Cow::Borrowed(_)) {
            true => Err("a control character in a string"),
            false => Ok(text),
        }
    }

    /// Skips a value of any type.
    fn skip(&mut self, depth: usize) -> Result<(), &'static str> {
        let depth = depth.checked_sub(1).ok_or("values are nested too deeply")?;
        match self.rest.chars().next() {
            Some('"') => self.string().map(drop),
            Some('[') => self.list('[', ']', |json| json.skip(depth)),
            Some('{') => self.list('{', '}', |json| {
                json.string()?;
                json.expect(':')?;
                json.skip(depth)
            }),
            _ => {
                let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
                let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
                if end == 0 {
                    return Err("a value is missing");
                }
                self.rest = self.rest[end..].trim_start_matches(SPACE);
                Ok(())
            }
        }
    }
}

/// Reads an escape after its backslash: the character, and the text after it.
fn unescape_json(escape: &str) -> Result<(char, &str), &'static str> {
    const BAD: &str = "a malformed escape";
    let mut chars = escape.chars();
    let c = match chars.next().ok_or(BAD)? {
        c @ ('"' | '\\' | '/') => c,
        'b' => '\x08',
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => {
            let unit = |text: &str| {
                let digits = text.get(..4).ok_or(BAD)?;
                let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                let unit = all.then(|| u16::from_str_radix(digits, 16).ok()).flatten();
                unit.ok_or(BAD)
            };
            let rest = chars.as_str();
            let first = unit(rest)?;
            let rest = &rest[4..];
            let second = rest.strip_prefix("\\u").map(unit).transpose();
            let pair = [first, second.ok().flatten().unwrap_or(0)];
            let decoded = char::decode_utf16(pair).next();
            let c = decoded.and_then(Result::ok).ok_or(BAD)?;
            let taken = if c.len_utf16() == 2 { 6 } else { 0 };
            return Ok((c, &rest[taken..]));
        }
        _ => return Err(BAD),
    };
    Ok((c, chars.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn keys(json: &str) -> Vec<String> {
        let keys = decode_keys(json.as_bytes(), 9).expect(json);
        keys.into_iter().map(Cow::into_owned).collect()
    }

    #[test]
    fn keys_of_go_are_read() {
        // As encoding/json of Go writes them: it escapes <, > and &, and the two line separators.
        for (json, want) in [
            (r#"{"group":"g","keys":["a","b"]}"#, &["a", "b"][..]),
            (r#"{"group":"g"}"#, &[]),
            (r#"{"keys":null}"#, &[]),
            (r#"{"keys":[]}"#, &[]),
            ("{}", &[]),
            (
                r#"{"keys":["\u003ca\u003e\u0026\u2028\"\\\/\b\f\n\r\t"]}"#,
                &["<a>&\u{2028}\"\\/\u{8}\u{c}\n\r\t"],
            ),
            (r#"{"keys":["\ud83e\udd80 é世🦀"]}"#, &["🦀 é世🦀"]),
            (
                " { \"x\" : [ 1.5e+3 , { \"y\" : [ ] } , true ] , \"keys\" : [ \"a\" ] } ",
                &["a"],
            ),
        ] {
            assert_eq!(keys(json), want, "{json}");
        }
    }

    #[test]
    fn bad_keys_are_refused() {
        for json in [
            "",
            "null",
            "[]",
            "{",
            "{\"keys\"}",
            "{\"keys\":[\"a\"}",
            "{\"keys\":[a]}",
            "{\"keys\":[\"a]}",
            "{\"keys\":[\"a\",]}",
            "{\"keys\":[1]}",
            "{\"keys\":[\"a\\x\"]}",
            "{\"keys\":[\"\\ud83e\"]}",
            "{\"keys\":[\"\\u00\"]}",
            "{\"keys\":[\"\\u+123\"]}",
            "{\"keys\":[\"a\nb\"]}",
            "{\"keys\":[]}x",
            "{\"keys\":\"a\"}",
            "{'keys':[]}",
            "{\"x\":}",
            "{\"x\":\u{a0}1}",
        ] {
            assert!(decode_keys(json.as_bytes(), 9).is_err(), "{json}");
        }
        assert!(decode_keys(b"{\"keys\":[\"\xff\"]}", 9).is_err());
        assert!(decode_keys(br#"{"keys":["a","b","c"]}"#, 2).is_err());
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(
            decode_keys(deep.as_bytes(), 9),
            Err("values are nested too deeply")
        );
    }

    #[test]
    fn removal_id_is_a_decimal_number_of_64_bits() {
        for (header, want) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("+1", None),
            ("000000000000000000001", None),
            ("1 ", None),
        ] {
            assert_eq!(parse_removal_id(header.as_bytes()), want, "{header}");
        }
    }

    #[test]
    fn set_is_read_as_the_proto_file_says() {
        let body =
            [&b"\x0a\x01g\x12\x01k\x1a\x01v\x20\x05\xa0\x06\x96\x01\xa9\x06\x01\x02\x03\x04\x05\x06\x07\x08"[..]]
                .concat();
        let set = decode_set(&body).expect("it decodes");
        assert_eq!((&*set.group, &*set.key), ("g", "k"));
        assert_eq!(set.value.as_deref(), Some(&b"v"[..]));
        assert_eq!(
            (set.expire, set.ttl_nanos, set.removal_id),
            (Some(5), Some(150), Some(0x0807_0605_0403_0201))
        );
        assert_eq!(encode_change(&set).expect("it encodes"), body);
        for bad in [
            &b"\x0a"[..],
            b"\x08\x01",
            b"\x1a\x05v",
            b"\x0a\x01\xff",
            b"\xa8\x06\x01",
        ] {
            assert!(decode_set(bad).is_err(), "{bad:x?}");
        }
    }

    #[test]
    fn clear_is_read_as_the_proto_file_says() {
        let body = b"\x0a\x01g\xa1\x06\x01\x00\x00\x00\x00\x00\x00\x00";
        let clear = decode_clear(body).expect("it decodes");
        assert_eq!((&*clear.group, clear.removal_id), ("g", Some(1)));
        assert_eq!(encode_change(&clear).expect("it encodes"), body);
        assert!(decode_clear(b"\x12").is_err());
    }

    #[test]
    fn table_is_read_as_the_proto_file_says() {
        let body = b"\x0a\x01g\xa2\x06\x02ab\xaa\x06\x01c";
        let table = decode_table(body).expect("it decodes");
        assert_eq!(
            (table.clocks.as_deref(), table.applied.as_deref()),
            (Some(&b"ab"[..]), Some(&b"c"[..]))
        );
        assert_eq!(encode_change(&table).expect("it encodes"), body);
        assert!(decode_table(b"\xa2\x06\x05").is_err());
    }

    #[test]
    fn paths_of_verbs_are_below_the_group() {
        assert_eq!(verb_path("/b/", "a b", CLEAR), "/b/a%20b/_clear/");
    }

    proptest! {
        #[test]
        fn keys_round_trip(group: String, sent in vec(any::<String>(), 0..9)) {
            let body = encode_keys(&group, sent.iter().map(String::as_str));
            let json = String::from_utf8(body).expect("UTF-8");
            prop_assert_eq!(keys(&json), sent);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(body in vec(any::<u8>(), 0..100), json in "[\\[\\]{}\",:\\\\u0-9a-f ]{0,40}") {
            let _ = (decode_keys(&body, 9), decode_keys(json.as_bytes(), 9));
            let _ = (decode_set(&body), decode_clear(&body), decode_table(&body));
            let _ = (decode_drop(&body), parse_removal_id(&body));
        }
    }
}
