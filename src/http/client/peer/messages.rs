//! Reads the responses of a peer: values with their fields, other messages, and errors.

use std::io::{self, Read};
use std::time::Duration;

use crate::byteview::ByteView;
use crate::clock::Clock;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::heap::SharedBytes;
use crate::http::client::peer::HttpPeer;
use crate::http::client::transport::{ResponseBytes, TransportResponse};
use crate::peers::PeerResponse;
use crate::wire;

impl HttpPeer {
    /// The value in a response with status 200. `hash` is that of the requested key.
    #[inline]
    pub(super) fn value_of(
        &self,
        ctx: &Context,
        response: TransportResponse,
        hash: u64,
    ) -> Result<PeerResponse> {
        let is_from_larder = response.is_from_larder();
        let body = self.read_message(ctx, response, self.config.max_body())?;
        let decoded = wire::decode_response(&body).map_err(|error| self.failure(error))?;
        if decoded.key_hash != Some(hash) && (is_from_larder || decoded.key_hash.is_some()) {
            return Err(self.other_key());
        }
        if decoded.value.len() > self.config.max_value_size {
            return Err(self.refusal(TOO_LONG));
        }
        let (fields, is_keyed) = (decoded.fields, decoded.key_hash.is_some());
        let value = match decoded.value {
            // A view of the body, unless it would keep much more than the value in memory.
            value if !value.is_empty() && body.len() - value.len() <= MAX_WASTE => {
                let start = value.as_ptr().addr() - body.as_ptr().addr();
                let end = start + value.len();
                ByteView::window(body, start, end)
            }
            value => ByteView::from(value),
        };
        Ok(response_of(&fields, is_keyed, value))
    }

    /// The body of a response with status 200, if it is a protobuf message of at most `max` bytes.
    pub(super) fn read_message(
        &self,
        ctx: &Context,
        response: TransportResponse,
        max: u64,
    ) -> Result<SharedBytes> {
        if !response.is_protobuf() {
            return Err(self.not_protobuf(&response));
        }
        let body = read_body(response, max);
        body.map_err(|why| match ctx.err() {
            Some(ended) => ended,
            None if why == TOO_LONG => self.refusal(TOO_LONG),
            None => self.failure(why),
        })
    }

    /// Reads a body that has no content for the caller, so that its connection is used again. Returns
    /// whether larder's own server sent the response.
    pub(super) fn drain(&self, ctx: &Context, response: TransportResponse) -> Result<bool> {
        let is_from_larder = response.is_from_larder();
        match read_body(response, MAX_ERROR_TEXT) {
            Ok(_) => Ok(is_from_larder),
            Err(why) => Err(ctx.err().unwrap_or_else(|| self.failure(why))),
        }
    }

    /// The error for a response with status 200 whose body is not a protobuf message.
    pub(super) fn not_protobuf(&self, response: &TransportResponse) -> Error {
        if response.is_encoded() {
            return self.failure("it sent a content encoding that no request asked for");
        }
        let found = response.header("content-type").unwrap_or_default();
        let found: String = found.chars().take(80).collect();
        self.failure(format_args!(
            "it answered with {found:?}, not with {}: is a peer behind this URL?",
            wire::CONTENT_TYPE
        ))
    }

    /// The error for a response that answers another request.
    pub(super) fn other_key(&self) -> Error {
        self.connections.close_idle();
        self.failure(OTHER_KEY)
    }

    /// The error of a response with a status other than 200. `hash` is that of the key, if one was
    /// requested.
    pub(super) fn error_of(&self, response: TransportResponse, hash: Option<u64>) -> Error {
        self.read_error(response, hash).0
    }

    /// The error of such a response, and whether the response is for the key with this hash.
    pub(super) fn read_error(
        &self,
        response: TransportResponse,
        hash: Option<u64>,
    ) -> (Error, bool) {
        let status = response.status();
        let header = response.header(wire::ERROR_HEADER).map(str::to_owned);
        if let Some(hash) = hash.filter(|_| header.is_some()) {
            let found = response.header(wire::KEY_HEADER);
            let is_other = found.map(|found| found != wire::key_header(hash));
            if is_other.unwrap_or(response.is_from_larder()) {
                return (self.other_key(), false);
            }
        }
        let mut text = Vec::new();
        let is_encoded = response.is_encoded();
        // If reading fails, the status and the part of the text that arrived are still useful.
        let _ = response
            .into_body()
            .take(MAX_ERROR_TEXT)
            .read_to_end(&mut text);
        if is_encoded {
            text.clear();
        }
        let error = wire::error_of(status, header.as_deref(), &String::from_utf8_lossy(&text));
        let error = match error.kind() {
            kind @ (ErrorKind::Peer | ErrorKind::UnknownGroup) => {
                Error::new(kind, format!("peer {}: {error}", self.url))
            }
            _ => error,
        };
        (error, true)
    }
}

/// The response with this value and these fields. `is_keyed` says that the body had the hash of its
/// key, which every larder server sends.
#[inline]
pub(super) fn response_of(fields: &wire::Fields, is_keyed: bool, value: ByteView) -> PeerResponse {
    PeerResponse {
        value,
        ttl: ttl_of(fields),
        age: fields.age_ms.map(Duration::from_millis),
        stale: fields.stale_ms.map(Duration::from_millis),
        // A server of larder leaves the field out if there was no removal.
        removals: is_keyed.then(|| fields.removals.unwrap_or(0)),
        minute_qps: fields.minute_qps,
        load_time: fields
            .load_micros
            .map_or(Duration::ZERO, Duration::from_micros),
    }
}

/// How long a value may be kept. Zero if its time has passed: the value is then returned to the
/// caller but not cached.
fn ttl_of(fields: &wire::Fields) -> Option<Duration> {
    if let Some(nanos) = fields.ttl_nanos {
        return Some(Duration::from_nanos(nanos));
    }
    let left = fields
        .expire_unix_nanos?
        .saturating_sub(Clock::system().unix_nanos());
    Some(Duration::from_nanos(u64::try_from(left).unwrap_or(0)))
}

/// Reads a body of at most `max` bytes to its end, which also returns its connection to the pool.
///
/// A short body of known length is read into the allocation that will hold its value. Others grow
/// as they arrive, so that an announced length alone costs no memory.
fn read_body(response: TransportResponse, max: u64) -> Result<SharedBytes, String> {
    let length = response.length();
    if length.is_some_and(|length| length > max) {
        return Err(TOO_LONG.into());
    }
    let mut body = match response.into_bytes() {
        ResponseBytes::Whole(bytes) => return Ok(bytes),
        ResponseBytes::Reader(body) => body,
    };
    let failed = |error: io::Error| format!("the answer broke off: {error}");
    let bytes = match length.and_then(|length| usize::try_from(length).ok()) {
        Some(length) if length <= MAX_TRUSTED => {
            let mut bytes = SharedBytes::zeros(length);
            let read = bytes.get_mut().map(|room| body.read_exact(room));
            read.ok_or("the body is shared")?.map_err(failed)?;
            bytes
        }
        _ => {
            let mut grown = Vec::new();
            let mut allowed = body.by_ref().take(length.unwrap_or(max));
            allowed.read_to_end(&mut grown).map_err(failed)?;
            if length.is_some_and(|length| grown.len() as u64 != length) {
                return Err("the answer is shorter than it announced".into());
            }
            SharedBytes::from(&*grown)
        }
    };
    match body.read(&mut [0]).map_err(failed)? {
        0 => Ok(bytes),
        _ => Err(TOO_LONG.into()),
    }
}

/// The longest body that is allocated before it arrives.
const MAX_TRUSTED: usize = 1024 * 1024;

/// The most bytes of a body that are kept with its value to avoid a copy.
const MAX_WASTE: usize = 64;

/// The most bytes that are read of the text of an error, or of a body without content for the caller.
const MAX_ERROR_TEXT: u64 = 64 * 1024;

const TOO_LONG: &str = "the answer is longer than its limit; that of values is max_value_size";

const OTHER_KEY: &str = "it answered for another key; does a proxy change the paths of requests?";
