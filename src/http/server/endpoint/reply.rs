//! The response to a peer, before it is encoded: a value needs no memory of its own until it is sent.

use crate::byteview::ByteView;
use crate::http::server::response::Response;
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

impl ValueReply {
    /// The value, or a 304 with its fields if the client has cached the value with this hash.
    pub(super) fn unless_known(self, known: u64) -> Reply {
        if known != wire::value_hash(self.key_hash, &self.value) {
            return Reply::Value(self);
        }
        let fields = wire::encode_unchanged(self.key_hash, &self.fields);
        let response = Response::text(304, "").with_own_header(wire::UNCHANGED_HEADER, &fields);
        response.into()
    }
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
