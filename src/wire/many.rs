//! Several keys in one request: the bodies of request and response, and the path of the request.

use std::borrow::Cow;
use std::ops::Range;

use quick_protobuf::{BytesReader, MessageRead};

use super::body::{FieldType, Fields, LEN, VARINT, check_fields, push_tag, push_varint};
use super::known::{has_whole_hashes, known_values};
use super::numbers::{NO_NUMBER, numbers, push_numbers, whole_numbers};
use super::path::{PathError, escaped_len, push_escaped, text_of, unescape};
use super::pieces::Body;
use super::status::{error_of, status_of};
use crate::byteview::ByteView;
use crate::error::{Error, ErrorKind, Result};
use crate::pb::{GetManyRequest, GetManyResponse};
use crate::sink::message::ProtoMessage;

/// The path of a request for several keys of `group`; the keys are in its body.
pub(crate) fn group_path(base: &str, group: &str) -> String {
    let group_len = escaped_len(group);
    let mut path = Vec::with_capacity(base.len() + group_len);
    path.extend_from_slice(base.as_bytes());
    push_escaped(&mut path, group, group_len);
    text_of(path)
}

/// The group of a path without a key; `None` if the path has another shape.
pub(crate) fn parse_group_path<'a>(
    base: &str,
    raw_path: &'a str,
    plus_is_space: bool,
) -> Option<Result<Cow<'a, str>, PathError>> {
    let group = raw_path.strip_prefix(base)?;
    let fits = !group.is_empty() && !group.contains('/');
    fits.then(|| unescape(group, plus_is_space))
}

/// The body of a request for `keys`, whose response may hold `max_bytes` of values. `load` is whether
/// the peer is to load what it has not cached. `known` has the [hashes](super::value_hash) of the values that
/// need not be sent again.
pub(crate) fn many_request(
    keys: &[&str],
    max_bytes: usize,
    load: bool,
    known: &[Option<u64>],
) -> Result<Vec<u8>> {
    let message = GetManyRequest {
        keys: keys.iter().map(|&key| Cow::Borrowed(key)).collect(),
        max_bytes: Some(max_bytes as u64),
        load: load.then_some(true),
        known: known_values(known),
    };
    message
        .encode()
        .map_err(|error| Error::with_source(ErrorKind::Peer, "the keys cannot be sent", error))
}

/// Reads the body of a request for several keys.
///
/// # Errors
///
/// The reason: it is not a sequence of whole fields of the right types, it has more than `max_keys`
/// keys, a key is not UTF-8, or there is not a hash for each key. At most `max_keys` keys are allocated;
/// their text borrows from `body`.
pub(crate) fn decode_many_request(
    body: &[u8],
    max_keys: usize,
) -> Result<GetManyRequest<'_>, String> {
    check_fields(
        body,
        &[KEYS, MAX_BYTES, LOAD, KNOWN_HASHES],
        max_keys.saturating_add(SPARE_FIELDS),
    )?;
    let message = GetManyRequest::from_reader(&mut BytesReader::from_bytes(body), body)
        .map_err(|error| error.to_string())?;
    if message.keys.len() > max_keys {
        return Err(format!("{} keys, over {max_keys}", message.keys.len()));
    }
    if !has_whole_hashes(&message) {
        return Err("not a hash for each key".into());
    }
    Ok(message)
}

/// Builds the body of a response with several values.
#[derive(Default)]
pub(crate) struct ManyBody {
    body: Body,
    /// The state of each key so far.
    found: Vec<u8>,
    ttls: Vec<u64>,
    /// The age of each value.
    ages: Vec<Option<u64>>,
    /// The removals that this node had applied before each look-up.
    removals: Vec<u64>,
    /// The rate of each value's key.
    rates: Vec<u32>,
    /// How long each value may be served after its time to live, in milliseconds.
    stale: Vec<u32>,
    errors: Vec<u8>,
}

impl ManyBody {
    /// Adds the next key, which has no value here.
    pub(crate) fn push_missing(&mut self) {
        self.found.push(MISSING);
    }

    /// Adds the next key, which could not be loaded. Of a long text only the beginning is sent.
    pub(crate) fn push_error(&mut self, error: &Error) {
        self.found.push(FAILED);
        let (_, code) = status_of(error.kind());
        let text = error.to_string();
        let text = beginning(&text, MAX_ERROR_TEXT);
        push_tag(&mut self.errors, ERRORS);
        push_varint(&mut self.errors, (code.len() + 1 + text.len()) as u64);
        for part in [code, " ", text] {
            self.errors.extend_from_slice(part.as_bytes());
        }
    }

    /// Adds the next key, which has this value. `key_hash` is the [hash](super::key_hash) of the key.
    pub(crate) fn push(&mut self, key_hash: u64, value: ByteView, fields: &Fields) {
        self.push_keyed(FOUND, key_hash, value.len(), fields);
        self.body.push_value(value);
    }

    /// Adds the next key, whose value the client has.
    pub(crate) fn push_unchanged(&mut self, key_hash: u64, fields: &Fields) {
        self.push_keyed(UNCHANGED, key_hash, 0, fields);
    }

    /// Adds what stands before the value of the next key, which is in this state, or in the next one if it has
    /// a time to live.
    fn push_keyed(&mut self, state: u8, key_hash: u64, len: usize, fields: &Fields) {
        self.removals.push(fields.removals.unwrap_or(0));
        self.ages.push(fields.age_ms);
        let rate = fields.minute_qps.map(|qps| (qps as f32).to_bits());
        self.rates.push(rate.unwrap_or(NO_NUMBER));
        let stale = |ms| u32::try_from(ms).unwrap_or(NO_NUMBER - 1);
        self.stale.push(fields.stale_ms.map_or(NO_NUMBER, stale));
        self.found
            .push(state + u8::from(fields.ttl_nanos.is_some()));
        self.ttls.extend(fields.ttl_nanos);
        let out = &mut self.body.copied;
        push_tag(out, KEYED_VALUES);
        push_varint(out, (HASH_LEN + len) as u64);
        out.extend_from_slice(&key_hash.to_le_bytes());
    }

    /// The whole body. The states of the keys follow the values, because they are complete only
    /// then.
    pub(crate) fn finish(mut self) -> Body {
        let out = &mut self.body.copied;
        push_tag(out, KEYS_FOUND);
        push_varint(out, self.found.len() as u64);
        out.extend_from_slice(&self.found);
        for &ttl in &self.ttls {
            push_tag(out, TTL_NANOS);
            push_varint(out, ttl);
        }
        if self.ages.iter().any(Option::is_some) {
            for age in self.ages {
                push_tag(out, AGE_MS);
                push_varint(out, age.unwrap_or(UNKNOWN_AGE));
            }
        }
        // The first digest, so that the stamps are those of this digest or later ones.
        let digest = self.removals.first().map_or(0, |removals| removals >> 32);
        if self.removals.iter().any(|&removals| removals != 0) {
            push_tag(out, REMOVALS);
            push_varint(out, 4 + 4 * self.removals.len() as u64);
            out.extend_from_slice(&(digest as u32).to_le_bytes());
            for removals in self.removals {
                out.extend_from_slice(&(removals as u32).to_le_bytes());
            }
        }
        push_numbers(out, RATES, &self.rates);
        push_numbers(out, STALE, &self.stale);
        out.extend_from_slice(&self.errors);
        self.body
    }
}

/// The beginning of a text, at most `max` bytes.
fn beginning(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The error that a key of a response has.
fn decode_error(bytes: &[u8]) -> Error {
    let text = String::from_utf8_lossy(bytes);
    let (code, text) = text.split_once(' ').unwrap_or((&*text, ""));
    error_of(FAILED_STATUS, Some(code), text)
}

/// The place of a value in the body of a response, and its fields.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ManyValue {
    pub range: Range<usize>,
    /// Whether the value is the one that the request named. Then `range` is empty.
    pub is_unchanged: bool,
    pub fields: Fields,
}

/// Reads the body of a response to a request for the keys with these [hashes](fn@super::key_hash):
/// for each key its value, its error, or `None` if it has to be asked for by itself.
///
/// # Errors
///
/// [`ErrorKind::Peer`] unless the whole body is such a response, for exactly as many keys, and each
/// value is that of its key.
pub(crate) fn decode_many_response(
    body: &[u8],
    hashes: impl ExactSizeIterator<Item = u64>,
) -> Result<Vec<Option<Result<ManyValue>>>> {
    let message = read_message(body, hashes.len())?;
    let found = message.found.as_deref().unwrap_or_default();
    let start = body.as_ptr().addr();
    let mut values = message.keyed_values.iter();
    let mut ttls = message.ttl_nanos.iter().peekable();
    let mut errors = message.errors.iter();
    let mut ages = message.age_ms.iter().copied();
    let mut stamps = whole_numbers(message.removals.as_deref()).map(u64::from);
    let digest = stamps.next().unwrap_or(0) << 32;
    let mut rates = numbers(message.minute_qps.as_deref());
    let mut stale = numbers(message.stale_ms.as_deref());
    let mut slots = Vec::with_capacity(found.len());
    for (&state, hash) in found.iter().zip(hashes) {
        let has_ttl = match state {
            MISSING => {
                slots.push(None);
                continue;
            }
            FAILED => {
                let error = errors.next().ok_or_else(|| corrupt("an error is missing"));
                slots.push(Some(Err(decode_error(error?))));
                continue;
            }
            FOUND | UNCHANGED => false,
            FOUND_WITH_TTL | UNCHANGED_WITH_TTL => true,
            _ => return Err(corrupt("a key in no known state")),
        };
        let ttl_nanos = ttls.next_if(|_| has_ttl).copied();
        if has_ttl && ttl_nanos.is_none() {
            return Err(corrupt("a time is missing"));
        }
        let is_unchanged = matches!(state, UNCHANGED | UNCHANGED_WITH_TTL);
        let value = value_of_key(values.next(), hash, is_unchanged).map_err(corrupt)?;
        // The generated reader only borrows, so the value is a part of the body.
        let from = value.as_ptr().addr() - start;
        slots.push(Some(Ok(ManyValue {
            range: from..from + value.len(),
            is_unchanged,
            fields: Fields {
                ttl_nanos,
                age_ms: ages.next().filter(|&age| age != UNKNOWN_AGE),
                removals: Some(digest | stamps.next().unwrap_or(0)),
                minute_qps: rates.next().flatten().and_then(rate_of_bits),
                stale_ms: stale.next().flatten().map(u64::from),
                ..Fields::default()
            },
        })));
    }
    if values.next().is_some() || ttls.next().is_some() || errors.next().is_some() {
        return Err(corrupt("a value of no key"));
    }
    Ok(slots)
}

/// The value that follows the hash of its key; empty if the client has it.
fn value_of_key<'b>(
    keyed: Option<&'b Cow<'_, [u8]>>,
    key_hash: u64,
    is_unchanged: bool,
) -> Result<&'b [u8], &'static str> {
    let keyed = keyed.ok_or("a value is missing")?;
    let value = keyed.strip_prefix(&key_hash.to_le_bytes());
    match value.ok_or("a value is that of another key")? {
        value if is_unchanged && !value.is_empty() => Err("a known value"),
        value => Ok(value),
    }
}

/// Reads the message of a response for so many keys, and checks its counts.
fn read_message(body: &[u8], keys: usize) -> Result<GetManyResponse<'_>> {
    let max_fields = keys.saturating_mul(3).saturating_add(SPARE_FIELDS);
    check_fields(body, &KNOWN, max_fields).map_err(corrupt)?;
    let message = GetManyResponse::from_reader(&mut BytesReader::from_bytes(body), body)
        .map_err(|error| Error::with_source(ErrorKind::Peer, CORRUPT, error))?;
    check_counts(&message).map_err(corrupt)?;
    match message.found.as_deref().unwrap_or_default().len() == keys {
        true => Ok(message),
        false => Err(corrupt("it is for another number of keys")),
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Peer, format!("{CORRUPT}: {why}"))
}

/// A rate in the form of a response, if it is one.
fn rate_of_bits(bits: u32) -> Option<f64> {
    let qps = f64::from(f32::from_bits(bits));
    (qps.is_finite() && qps >= 0.0).then_some(qps)
}

/// Checks that there are an age, a stamp and other numbers for each value, or none at all.
fn check_counts(message: &GetManyResponse<'_>) -> Result<(), &'static str> {
    let values = message.keyed_values.len();
    if ![0, values].contains(&message.age_ms.len()) {
        return Err("an age is missing");
    }
    let removals = message.removals.as_deref().unwrap_or_default();
    if ![0, 4 + 4 * values].contains(&removals.len()) {
        return Err("a stamp is missing");
    }
    for numbers in [&message.minute_qps, &message.stale_ms] {
        let len = numbers.as_deref().unwrap_or_default().len();
        if ![0, 4 * values].contains(&len) {
            return Err("a number is missing");
        }
    }
    Ok(())
}

const KEYS: FieldType = (100, LEN);
const MAX_BYTES: FieldType = (101, VARINT);
const LOAD: FieldType = (102, VARINT);
const KNOWN_HASHES: FieldType = (103, LEN);

const KEYS_FOUND: FieldType = (101, LEN);
const TTL_NANOS: FieldType = (102, VARINT);
const KEYED_VALUES: FieldType = (103, LEN);
const ERRORS: FieldType = (105, LEN);
const AGE_MS: FieldType = (104, VARINT);
const REMOVALS: FieldType = (106, LEN);
const RATES: FieldType = (107, LEN);
const STALE: FieldType = (108, LEN);

const KNOWN: [FieldType; 8] = [
    KEYED_VALUES,
    KEYS_FOUND,
    TTL_NANOS,
    AGE_MS,
    REMOVALS,
    ERRORS,
    RATES,
    STALE,
];

const UNKNOWN_AGE: u64 = u64::MAX;

/// The bytes of the hash in front of each value.
const HASH_LEN: usize = size_of::<u64>();

const MISSING: u8 = 0;
const FOUND: u8 = 1;
const FOUND_WITH_TTL: u8 = 2;
const FAILED: u8 = 3;
const UNCHANGED: u8 = 4;
const UNCHANGED_WITH_TTL: u8 = 5;

/// The longest text of an error in a response, in bytes.
pub(crate) const MAX_ERROR_TEXT: usize = 400;

/// Stands in the text of an error that gets no more exact kind.
const FAILED_STATUS: u16 = 503;

/// Fields in addition to one a key: those above, and those of later versions.
const SPARE_FIELDS: usize = 16;

const CORRUPT: &str = "the peer's answer is not a GetManyResponse";

#[cfg(test)]
mod tests;
