//! The protocol's functions, for the targets in `fuzz/`; only under `--cfg larder_fuzz`.

use std::ops::Range;
use std::time::Duration;

use crate::dump::{BlockReader, DumpedEntry};
use crate::error::Error;
use crate::heap::model::{HeapOp, ModelHeap};
use crate::http::fuzzed::{self as head, PeerUrl, Pieces};
use crate::wire::{self, Scan};

/// The default base path.
pub const DEFAULT_BASE_PATH: &str = wire::DEFAULT_BASE_PATH;

/// The path of a request for a key.
pub fn key_path(base: &str, group: &str, key: &str) -> String {
    wire::key_path(base, group, key)
}

/// The group and key of a path, if it is valid.
pub fn parse_path(base: &str, raw_path: &str, plus_is_space: bool) -> Option<(String, String)> {
    let path = wire::parse_path(base, raw_path, plus_is_space).ok()?;
    Some((path.group.into_owned(), path.key.into_owned()))
}

/// The fields of a response: hash of the key or 0, value, time to live, expiry, rate, age, staleness.
pub type Response<'a> = (
    u64,
    &'a [u8],
    Option<u64>,
    Option<i64>,
    Option<f64>,
    Option<u64>,
    Option<u64>,
);

/// The fields of a body, if it is a response.
pub fn decode_response(body: &[u8]) -> Option<Response<'_>> {
    let decoded = wire::decode_response(body).ok()?;
    let fields = decoded.fields;
    Some((
        decoded.key_hash.unwrap_or_default(),
        decoded.value,
        fields.ttl_nanos,
        fields.expire_unix_nanos,
        fields.minute_qps,
        fields.age_ms,
        fields.stale_ms,
    ))
}

/// The body of a response.
pub fn encode_response(response: Response<'_>) -> Vec<u8> {
    let (hash, value, ttl_nanos, expire_unix_nanos, minute_qps, age_ms, stale_ms) = response;
    let fields = wire::Fields {
        ttl_nanos,
        expire_unix_nanos,
        minute_qps,
        age_ms,
        removals: None,
        stale_ms,
        ..wire::Fields::default()
    };
    let body = wire::encode_response(hash, value.into(), &fields);
    body.iter().collect::<Vec<_>>().concat()
}

/// The header with the hash of a known value as it is written, if a text is one.
pub fn parse_known(header: &str) -> Option<String> {
    wire::parse_known(header).map(wire::known_header)
}

/// The header with the fields of an unchanged value as it is written, if a text is one.
pub fn read_unchanged(header: &str) -> Option<String> {
    let written = |decoded: wire::Decoded<'_>| {
        wire::encode_unchanged(decoded.key_hash.unwrap_or_default(), &decoded.fields)
    };
    wire::decode_unchanged(header, written).ok()
}

/// Parses a request's head, whose bytes arrive in pieces of `step`. Returns its length, method,
/// path, announced body length, and whether the connection stays open; or the status that refuses
/// it; or `None` if it is not complete.
#[allow(clippy::type_complexity, reason = "for one caller")]
pub fn parse_head(
    bytes: &[u8],
    step: usize,
) -> Option<Result<(usize, String, String, u64, bool), u16>> {
    let mut from = 0;
    let mut arrived = 0;
    let len = loop {
        match wire::scan(&bytes[..arrived], from) {
            Err(_) => return Some(Err(400)),
            Ok(Scan::Complete(len)) => break len,
            Ok(Scan::Incomplete(_)) if arrived == bytes.len() => return None,
            Ok(Scan::Incomplete(at)) => from = at,
        }
        arrived = (arrived + step.max(1)).min(bytes.len());
    };
    let mut fields = head::NO_FIELDS;
    let parsed = head::parse(&bytes[..len], &mut fields).map_err(|bad| bad.status);
    Some(parsed.map(|head| {
        let (method, path) = (head.method.to_owned(), head.path.to_owned());
        (len, method, path, head.content_length, head.keep_alive)
    }))
}

/// Reads the response at the beginning of `bytes`, which arrives in pieces of `step` bytes and
/// whose body is read in pieces of `room`. Returns its status and body, whether the connection
/// stays open, and how many bytes the response takes; `None` if it is refused.
pub fn read_response(
    bytes: &[u8],
    step: usize,
    room: usize,
) -> Option<(u16, Vec<u8>, bool, usize)> {
    let read = head::read_response(bytes, Pieces { step, room })?;
    Some((read.status, read.body, read.keep_alive, read.len))
}

/// The keys of a request for several keys, if it is valid and has at most `max_keys`.
pub fn decode_many_request(body: &[u8], max_keys: usize) -> Option<Vec<String>> {
    let request = wire::decode_many_request(body, max_keys).ok()?;
    assert_eq!(wire::known_hashes(&request).count(), request.keys.len());
    Some(request.keys.iter().map(|key| key.to_string()).collect())
}

/// The places of the values in a response for keys with these hashes, if it is valid.
pub fn decode_many_response(body: &[u8], hashes: &[u64]) -> Option<Vec<Option<Range<usize>>>> {
    let values = wire::decode_many_response(body, hashes.iter().copied()).ok()?;
    Some(
        values
            .into_iter()
            .map(|value| Some(value?.ok()?.range))
            .collect(),
    )
}

/// The keys of a removal, if it is valid and has at most `max_keys`.
pub fn decode_keys(body: &[u8], max_keys: usize) -> Option<Vec<String>> {
    let keys = wire::decode_keys(body, max_keys).ok()?;
    Some(keys.into_iter().map(|key| key.into_owned()).collect())
}

/// The body of a removal of keys.
pub fn encode_keys(group: &str, keys: &[String]) -> Vec<u8> {
    wire::encode_keys(group, keys.iter().map(String::as_str))
}

/// Reads the text as each of the other changes, and as the number of a removal.
pub fn check_changes(body: &[u8]) {
    let _ = wire::parse_removal_id(body);
    let changes: [Option<Vec<u8>>; 2] = [
        wire::decode_set(body)
            .ok()
            .and_then(|set| wire::encode_change(&set).ok()),
        wire::decode_clear(body)
            .ok()
            .and_then(|clear| wire::encode_change(&clear).ok()),
    ];
    assert!(
        changes
            .iter()
            .flatten()
            .all(|again| again.len() <= body.len() + 4 * 64)
    );
}

/// The text of a peer's URL, if it is one.
pub fn parse_url(text: &str) -> Option<String> {
    Some(PeerUrl::parse(text).ok()?.as_str().to_owned())
}

/// The path of a request for several keys of a group.
pub fn group_path(base: &str, group: &str) -> String {
    wire::group_path(base, group)
}

/// The group of such a path, if it is valid.
pub fn parse_group_path(base: &str, raw_path: &str, plus_is_space: bool) -> Option<String> {
    let group = wire::parse_group_path(base, raw_path, plus_is_space)?;
    Some(group.ok()?.into_owned())
}

/// The path and the query of a request's target, if it is valid.
pub fn split_target<'t>(method: &str, target: &'t str) -> Option<(&'t str, Option<&'t str>)> {
    head::split_target(method, target).ok()
}

/// The time that a header announces, if it is valid.
pub fn parse_timeout(header: &[u8]) -> Option<Duration> {
    wire::parse_timeout(header)
}

/// Whether a body of this type and coding is a message of a peer.
pub fn is_message(content_type: &[u8], content_encoding: &[u8]) -> bool {
    wire::is_protobuf(content_type) && !wire::is_encoded(content_encoding)
}

/// The error that a response stands for, and the response that it would be sent as.
pub fn read_error(status: u16, header: Option<&str>, text: &str) -> (Error, u16, &'static str) {
    let error = wire::error_of(status, header, text);
    let (status, header) = wire::status_of(error.kind());
    (error, status, header)
}

/// Parses the text as each of the files in which Linux reports memory.
pub fn check_memory_files(text: &str) {
    crate::memory_pressure::parse::check(text);
}

/// Compares a heap with a naive model of it. Four bytes are a step.
pub fn check_heap(steps: &[u8]) {
    let mut heap = ModelHeap::new();
    for step in steps.chunks_exact(4) {
        let number = usize::from(u16::from_le_bytes([step[2], step[3]]));
        // Lengths of all kinds, up to 4 MiB.
        let len = number >> (step[1] >> 4) << (step[1] >> 5);
        let hash = u64::from(step[1]);
        heap.apply(match step[0] % 16 {
            0..6 => HeapOp::Allocate { hash, len },
            6..10 => HeapOp::Drop(number),
            10 => HeapOp::Clone(number),
            11..14 => HeapOp::Resize { n: number, len },
            14 => HeapOp::Release,
            _ => HeapOp::Compare,
        });
    }
    heap.finish(steps.len() % 2 == 1);
}

/// Reads a file as a dump. Returns the number of entries in its intact blocks, and whether a part is
/// damaged; `None` if it is no dump.
pub fn read_dump(file: &[u8]) -> Option<(usize, bool)> {
    let (_, mut blocks) = BlockReader::open(std::io::Cursor::new(file)).ok()?;
    let mut entries = 0;
    while let Ok(Some(mut payload)) = blocks.next_block() {
        while let Some(entry) = DumpedEntry::take(&mut payload) {
            assert!(entry.key.len() + entry.value.len() < file.len());
            entries += 1;
        }
    }
    Some((entries, blocks.is_damaged()))
}

/// A whole dump with an entry for each of these values.
pub fn write_dump(values: &[&[u8]]) -> Vec<u8> {
    crate::dump::of_values(values)
}
