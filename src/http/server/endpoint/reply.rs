//! The response to a peer, before it is encoded: a value needs no memory of its own until it is sent.

use std::time::Duration;

use crate::byteview::ByteView;
use crate::clock::saturating_nanos;
use crate::http::server::response::Response;
use crate::peers::PeerResponse;
use crate::wire::{self, Fields};

/// The response to a request below the base path.
pub(crate) enum Reply {
    Value(ValueReply),
    Other(Response),
}

/// A value, with status 200.
pub(crate) struct ValueReply {
    pub key_hash: u64,
    pub value: ByteView,
    pub fields: Fields,
}

impl Reply {
    /// The memory that the body takes while it is sent, in bytes; for a value, that of the value.
    pub(crate) fn body_len(&self) -> usize {
        match self {
            Reply::Value(reply) => reply.value.len(),
            Reply::Other(response) => response.body_len(),
        }
    }

    pub(crate) fn into_response(self) -> Response {
        match self {
            Reply::Value(reply) => {
                let body = wire::encode_response(reply.key_hash, reply.value, &reply.fields);
                Response::new(200, wire::CONTENT_TYPE, body)
            }
            Reply::Other(response) => response,
        }
    }
}

impl From<Response> for Reply {
    fn from(response: Response) -> Self {
        Reply::Other(response)
    }
}

/// The fields of a response, without the point in time when the value expires.
#[inline]
pub(super) fn fields_of(found: &PeerResponse) -> Fields {
    Fields {
        ttl_nanos: found.ttl.map(saturating_nanos),
        expire_unix_nanos: None,
        minute_qps: found.minute_qps,
        age_ms: age_ms(found),
        stale_ms: found.stale.map(|left| left.as_millis() as u64),
        removals: found.removals,
        load_micros: (!found.load_time.is_zero()).then(|| micros(found.load_time)),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Rounded up, so that no value seems younger than it is.
fn age_ms(found: &PeerResponse) -> Option<u64> {
    let age = found.age?;
    let part = u64::from(age.subsec_nanos().div_ceil(1_000_000));
    Some(age.as_secs().saturating_mul(1000).saturating_add(part))
}

/// The head of a [`ValueReply`] up to the value of its `Content-Length`, if the connection stays open.
/// It is the head that [`Response::push_head`] appends.
pub(crate) const VALUE_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nServer: larder\r\n\
    Content-Type: application/x-protobuf\r\nContent-Length: ";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::server::response::ResponseOptions;

    #[test]
    fn head_of_a_value_is_that_of_its_response() {
        let reply = Reply::Value(ValueReply {
            key_hash: 7,
            value: "red".into(),
            fields: Fields::default(),
        });
        let options = ResponseOptions {
            keep_alive: true,
            http_10: false,
            head_only: false,
        };
        let mut head = Vec::new();
        reply.into_response().push_head(options, &mut head);
        assert_eq!(head, [VALUE_HEAD, b"15\r\n\r\n"].concat());
    }
}
