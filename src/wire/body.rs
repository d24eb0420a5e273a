//! The body of a response with one value: a `GetResponse`, written around the value and read without
//! copying it.

use super::pieces::Body;
use crate::byteview::ByteView;
use crate::error::{Error, ErrorKind, Result};

/// A response that was read; the value borrows from the body.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Decoded<'a> {
    pub value: &'a [u8],
    /// The [hash](super::key_hash) of the key that the peer answers.
    pub key_hash: Option<u64>,
    pub fields: Fields,
}

/// The optional fields of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fields {
    /// The value is good for this long from the start of the request on; preferred to
    /// `expire_unix_nanos`.
    pub ttl_nanos: Option<u64>,
    /// When the value expires by the peer's wall clock.
    pub expire_unix_nanos: Option<i64>,
    /// Finite and not negative.
    pub minute_qps: Option<f64>,
    /// How long before the request the load of the value began.
    pub age_ms: Option<u64>,
    /// How long after `ttl_nanos` the value may be served although it is not fresh.
    pub stale_ms: Option<u64>,
    /// The removals that the peer has applied.
    pub removals: Option<u64>,
    /// How long the response waited for a load.
    pub load_micros: Option<u64>,
}

/// The body of a response with `value`, which is the last field. `key_hash` is that of its key.
pub(crate) fn encode_response(key_hash: u64, value: ByteView, fields: &Fields) -> Body {
    let mut body = Body::from(Vec::with_capacity(CAPACITY));
    push_fields(&mut body.copied, key_hash, value.len(), fields);
    body.push_value(value);
    body
}

/// Appends the part of a response's body in front of the value, which has `value_len` bytes.
///
/// Protobuf leaves the order of fields free. An empty value is written too, so that the reader can
/// tell it from a missing one.
pub(crate) fn push_fields(out: &mut Vec<u8>, key_hash: u64, value_len: usize, fields: &Fields) {
    if let Some(qps) = fields.minute_qps {
        push_tag(out, MINUTE_QPS);
        out.extend_from_slice(&qps.to_le_bytes());
    }
    if let Some(expire) = fields.expire_unix_nanos {
        push_tag(out, EXPIRE);
        // An int64 is encoded as its two's complement.
        push_varint(out, expire as u64);
    }
    if let Some(ttl) = fields.ttl_nanos {
        push_tag(out, TTL_NANOS);
        push_varint(out, ttl);
    }
    push_tag(out, KEY_HASH);
    out.extend_from_slice(&key_hash.to_le_bytes());
    if let Some(age) = fields.age_ms {
        push_tag(out, AGE_MS);
        push_varint(out, age);
    }
    if let Some(stale) = fields.stale_ms {
        push_tag(out, STALE_MS);
        push_varint(out, stale);
    }
    if let Some(removals) = fields.removals.filter(|&removals| removals != 0) {
        push_tag(out, REMOVALS);
        out.extend_from_slice(&removals.to_le_bytes());
    }
    if let Some(micros) = fields.load_micros {
        push_tag(out, LOAD_MICROS);
        push_varint(out, micros);
    }
    push_tag(out, VALUE);
    push_varint(out, value_len as u64);
}

/// Reads the body of a response with status 200.
///
/// An absent value is an empty value: proto2 lets an encoder leave out a field that is not set, and
/// golang/groupcache's does so for a nil slice. An `expire` of 0 means that there is none, as in
/// mailgun/groupcache. A `minute_qps` that is not a number of requests is ignored.
///
/// # Errors
///
/// [`ErrorKind::Peer`] unless the body is a sequence of whole fields, those of `GetResponse` with
/// their types. A text that begins with `<`, `{` or `[` is always refused, since these bytes are
/// the tags of groups, which are not accepted. Two kinds of wrong bodies can pass. A text that
/// begins with a line feed, which is the tag of the value, can pass by chance. A body that is cut
/// between two fields always passes. So the caller checks the content type and the length first.
#[inline(always)]
pub(crate) fn decode_response(body: &[u8]) -> Result<Decoded<'_>> {
    let mut decoded = Decoded::default();
    let mut rest = body;
    while !rest.is_empty() {
        if let Some(after) = take_common(rest, &mut decoded) {
            rest = after;
            continue;
        }
        let fields = &mut decoded.fields;
        let taken = take_field(&mut rest, |field| match field {
            VALUE | MINUTE_QPS | EXPIRE | TTL_NANOS | KEY_HASH | AGE_MS | STALE_MS | REMOVALS => {
                Ok(())
            }
            other => check_type(other, &KNOWN),
        });
        let (field, Payload { number, bytes }) = taken.map_err(corrupt)?;
        let fixed = || bytes.try_into().map(u64::from_le_bytes).ok();
        match field {
            VALUE => decoded.value = bytes,
            MINUTE_QPS => fields.minute_qps = fixed().map(f64::from_bits),
            EXPIRE => fields.expire_unix_nanos = Some(number as i64),
            TTL_NANOS => fields.ttl_nanos = Some(number),
            KEY_HASH => decoded.key_hash = fixed(),
            AGE_MS => fields.age_ms = Some(number),
            STALE_MS => fields.stale_ms = Some(number),
            REMOVALS => fields.removals = fixed(),
            LOAD_MICROS => fields.load_micros = Some(number),
            _ => {}
        }
    }
    let fields = &mut decoded.fields;
    fields.expire_unix_nanos = fields.expire_unix_nanos.filter(|&at| at != 0);
    let is_rate = |qps: &f64| qps.is_finite() && *qps >= 0.0;
    fields.minute_qps = fields.minute_qps.filter(is_rate);
    Ok(decoded)
}

/// Takes one of the fields that most answers of larder's server have, by the bytes of its tag. This costs a
/// third of reading any field. `None` if another field follows, or a malformed one.
#[inline(always)]
fn take_common<'b>(rest: &'b [u8], decoded: &mut Decoded<'b>) -> Option<&'b [u8]> {
    let (tag, mut after) = rest.split_first_chunk()?;
    match *tag {
        KEY_HASH_TAG => {
            let (hash, after) = after.split_first_chunk()?;
            decoded.key_hash = Some(u64::from_le_bytes(*hash));
            Some(after)
        }
        REMOVALS_TAG => {
            let (removals, after) = after.split_first_chunk()?;
            decoded.fields.removals = Some(u64::from_le_bytes(*removals));
            Some(after)
        }
        AGE_MS_TAG => {
            decoded.fields.age_ms = Some(take_varint(&mut after).ok()?);
            Some(after)
        }
        [VALUE_TAG, _] => {
            let mut after = &rest[1..];
            let len = u32::try_from(take_varint(&mut after).ok()?).ok()?;
            let (value, after) = after.split_at_checked(usize::try_from(len).ok()?)?;
            decoded.value = value;
            Some(after)
        }
        _ => None,
    }
}

#[cold]
fn corrupt(why: &'static str) -> Error {
    Error::new(ErrorKind::Peer, format!("{CORRUPT}: {why}"))
}

/// Checks the things that the generated readers do not check.
///
/// The readers skip a known field of the wrong type as if it were unknown, truncate numbers that
/// are too large, and add lengths without a check, which overflows where `usize` has 32 bits. If a
/// body passes, the readers read it to its end, and with the same meaning. `max_fields` bounds how
/// much they allocate for a field that can come more than once.
pub(super) fn check_fields(
    mut rest: &[u8],
    known: &[FieldType],
    max_fields: usize,
) -> Result<(), &'static str> {
    let mut fields = 0;
    while !rest.is_empty() {
        if fields == max_fields {
            return Err("too many fields");
        }
        fields += 1;
        take_field(&mut rest, |field| check_type(field, known))?;
    }
    Ok(())
}

/// Checks that a field has its type if it is one of `known`.
fn check_type(field: FieldType, known: &[FieldType]) -> Result<(), &'static str> {
    match known.iter().any(|&(n, t)| n == field.0 && t != field.1) {
        true => Err("a field of the wrong type"),
        false => Ok(()),
    }
}

/// Takes the next field, whose number and type `check` accepts.
#[inline(always)]
fn take_field<'b>(
    rest: &mut &'b [u8],
    check: impl FnOnce(FieldType) -> Result<(), &'static str>,
) -> Result<(FieldType, Payload<'b>), &'static str> {
    let tag = take_varint(rest)?;
    let tag = u32::try_from(tag).map_err(|_| "a field number out of range")?;
    let field = (tag >> 3, (tag & 7) as u8);
    if field.0 == 0 {
        return Err("a field number out of range");
    }
    check(field)?;
    let (number, len) = match field.1 {
        VARINT => (take_varint(rest)?, 0),
        I64 => (0, 8),
        LEN => (0, take_varint(rest)?),
        I32 => (0, 4),
        _ => return Err("a field of no type"),
    };
    // The generated readers take lengths of 32 bits; protobuf's own limit is 2 GiB.
    let len = u32::try_from(len)
        .ok()
        .and_then(|len| usize::try_from(len).ok());
    let (bytes, after) = len
        .and_then(|len| rest.split_at_checked(len))
        .ok_or("a field longer than the body")?;
    *rest = after;
    Ok((field, Payload { number, bytes }))
}

/// The content of a field.
struct Payload<'b> {
    /// That of a [`VARINT`].
    number: u64,
    /// That of a field of any other type.
    bytes: &'b [u8],
}

pub(super) fn push_tag(out: &mut Vec<u8>, (number, wire_type): FieldType) {
    push_varint(out, u64::from(number << 3 | u32::from(wire_type)));
}

/// Writes a number, seven bits a byte, the lowest first.
pub(super) fn push_varint(out: &mut Vec<u8>, mut rest: u64) {
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[inline]
fn take_varint(rest: &mut &[u8]) -> Result<u64, &'static str> {
    match **rest {
        [byte @ ..0x80, ref after @ ..] => {
            *rest = after;
            Ok(u64::from(byte))
        }
        // Such as the tags of larder's own fields.
        [low @ 0x80..=0xff, high @ ..0x80, ref after @ ..] => {
            *rest = after;
            Ok(u64::from(high) << 7 | u64::from(low & 0x7f))
        }
        _ => take_long_varint(rest),
    }
}

fn take_long_varint(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0;
    for (i, &byte) in rest.iter().take(MAX_VARINT).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            // Nine bytes carry 63 bits; the tenth has room for one.
            if i == MAX_VARINT - 1 && byte > 1 {
                return Err("a number of more than 64 bits");
            }
            *rest = &rest[i + 1..];
            return Ok(value);
        }
    }
    Err("a number without an end")
}

/// A field's number and wire type.
pub(super) type FieldType = (u32, u8);

pub(super) const VARINT: u8 = 0;
pub(super) const I64: u8 = 1;
pub(super) const LEN: u8 = 2;
pub(super) const I32: u8 = 5;

const VALUE: FieldType = (1, LEN);
const MINUTE_QPS: FieldType = (2, I64);
const EXPIRE: FieldType = (3, VARINT);
/// Fields of larder.
const TTL_NANOS: FieldType = (100, VARINT);
const KEY_HASH: FieldType = (101, I64);
const AGE_MS: FieldType = (102, VARINT);
const STALE_MS: FieldType = (104, VARINT);
const REMOVALS: FieldType = (106, I64);
const LOAD_MICROS: FieldType = (110, VARINT);

/// Tags as they are written.
const VALUE_TAG: u8 = (VALUE.0 << 3) as u8 | VALUE.1;
const KEY_HASH_TAG: [u8; 2] = long_tag(KEY_HASH);
const AGE_MS_TAG: [u8; 2] = long_tag(AGE_MS);
const REMOVALS_TAG: [u8; 2] = long_tag(REMOVALS);

/// The tag of a field with a number of two bytes.
const fn long_tag((number, wire_type): FieldType) -> [u8; 2] {
    let tag = number << 3 | wire_type as u32;
    [tag as u8 | 0x80, (tag >> 7) as u8]
}

const KNOWN: [FieldType; 9] = [
    VALUE,
    MINUTE_QPS,
    EXPIRE,
    TTL_NANOS,
    KEY_HASH,
    AGE_MS,
    STALE_MS,
    REMOVALS,
    LOAD_MICROS,
];

const MAX_VARINT: usize = 10;

/// Holds the fields before the value, and a small value.
const CAPACITY: usize = 256;

const CORRUPT: &str = "the peer's answer is not a GetResponse";

#[cfg(test)]
mod tests;
