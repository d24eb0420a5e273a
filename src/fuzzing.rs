//! The protocol's functions, for the targets in `fuzz/`; only under `--cfg larder_fuzz`.

use crate::wire;

/// The base path that nobody changed.
pub const DEFAULT_BASE_PATH: &str = wire::DEFAULT_BASE_PATH;

/// The path that asks for a key.
pub fn key_path(base: &str, group: &str, key: &str) -> String {
    wire::key_path(base, group, key)
}

/// Group and key of a path, if it names them.
pub fn parse_path(base: &str, raw_path: &str, plus_is_space: bool) -> Option<(String, String)> {
    let path = wire::parse_path(base, raw_path, plus_is_space).ok()?;
    Some((path.group.into_owned(), path.key.into_owned()))
}

/// The fields of an answer: value, time to live, expiry, rate.
pub type Response<'a> = (&'a [u8], Option<u64>, Option<i64>, Option<f64>);

/// The fields of a body, if it is an answer.
pub fn decode_response(body: &[u8]) -> Option<Response<'_>> {
    let decoded = wire::decode_response(body).ok()?;
    Some((
        decoded.value,
        decoded.ttl_nanos,
        decoded.expire_unix_nanos,
        decoded.minute_qps,
    ))
}

/// The body of an answer.
pub fn encode_response((value, ttl_nanos, expire, minute_qps): Response<'_>) -> Vec<u8> {
    let prefix = wire::response_prefix(value.len(), ttl_nanos, expire, minute_qps);
    [&prefix[..], value].concat()
}
