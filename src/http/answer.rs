//! What a peer's request is answered: the part that every front (our server, tiny_http) shares.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::handler::Request;
use super::head::{Reject, split_target};
use super::response::{Framing, Response, push_ok_head};
use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::group::Group;
use crate::peers::PeerResponse;
use crate::registry::Registry;
use crate::sync::Arc;
use crate::wire::{self, PathError, Prefix};

/// Makes the context in which a peer's request is answered: request ids, tighter deadlines.
pub(crate) type ContextHook = dyn Fn(&Request<'_>) -> Context + Send + Sync;

/// The place where peers reach the groups of a registry.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub registry: Registry,
    /// Begins and ends with a slash.
    pub base_path: String,
    /// Whether a raw `+` in a path is a space, as golang/groupcache's client means it.
    pub plus_is_space: bool,
    pub context: Option<Arc<ContextHook>>,
}

/// An answer, ready to be written.
pub(crate) enum Answer {
    /// A cached value, and the protobuf bytes that come before it.
    Value { prefix: Prefix, value: ByteView },
    /// Everything else.
    Other(Response),
}

impl Endpoint {
    /// Whether a request with this target, as it was sent, is for the groups.
    pub(crate) fn owns(&self, target: &str) -> bool {
        split_target("GET", target).is_ok_and(|(path, _)| path.starts_with(&self.base_path))
    }

    /// Answers `request`; `None` if its path is not below the base path.
    ///
    /// Does not unwind. Runs user code on this thread: the context hook, and the getter if the
    /// request has no deadline.
    pub(crate) fn answer(&self, request: &Request<'_>) -> Option<Answer> {
        let path = wire::parse_path(&self.base_path, request.path(), self.plus_is_space);
        let response = match path {
            Err(PathError::Outside) => return None,
            _ if request.method() != "GET" => method_not_allowed(),
            Err(PathError::Malformed(why)) => Response::text(400, why),
            Ok(path) => match self.get(request, &path.group, &path.key) {
                Ok(answer) => return Some(answer),
                Err(response) => response,
            },
        };
        Some(Answer::Other(response))
    }

    fn get(&self, request: &Request<'_>, group: &str, key: &str) -> Result<Answer, Response> {
        let group = self.registry.get_group(group).ok_or_else(|| {
            let message = format!("there is no group {group:?} here");
            failed(&Error::new(ErrorKind::UnknownGroup, message))
        })?;
        let ctx = self.context_of(request)?;
        let found = load(&group, &ctx, key).map_err(|error| failed(&error))?;
        let ttl_nanos = found
            .ttl
            .map(|ttl| u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX));
        let expire = ttl_nanos.map(|ttl| group.clock().unix_nanos().saturating_add_unsigned(ttl));
        Ok(Answer::Value {
            prefix: wire::response_prefix(found.value.len(), ttl_nanos, expire, found.minute_qps),
            value: found.value,
        })
    }

    /// The program's context for this request, ended when the caller's time is over.
    fn context_of(&self, request: &Request<'_>) -> Result<Context, Response> {
        let base = match &self.context {
            Some(hook) => catch_unwind(AssertUnwindSafe(|| hook(request)))
                .map_err(|_| Response::text(500, "the context hook panicked"))?,
            None => Context::background(),
        };
        match request.header(wire::TIMEOUT_HEADER) {
            // Golang's clients do not tell. The load then runs on this connection's thread, for as
            // long as it takes.
            None => Ok(base),
            Some(header) => wire::parse_timeout(header)
                .map(|timeout| base.with_timeout(timeout))
                .ok_or_else(|| Response::text(400, "the time-out is not a number")),
        }
    }
}

impl Answer {
    /// Appends head and prefix to `out`, and returns what has to be sent after them.
    pub(crate) fn encode(&self, framing: Framing, out: &mut Vec<u8>) -> &[u8] {
        match self {
            Answer::Value { prefix, value } => {
                let len = prefix.len() + value.len();
                push_ok_head(out, wire::CONTENT_TYPE, len, framing);
                out.extend_from_slice(prefix);
                value
            }
            Answer::Other(response) => response.encode(framing, out),
        }
    }
}

impl From<Reject> for Response {
    fn from(reject: Reject) -> Self {
        Response::text(reject.status, reject.reason)
    }
}

/// A getter that runs on this thread may panic through the group. The connection is not the
/// getter's, so it goes on, and the peer is told.
fn load(group: &Group, ctx: &Context, key: &str) -> Result<PeerResponse> {
    catch_unwind(AssertUnwindSafe(|| group.serve_peer(ctx, key)))
        .unwrap_or_else(|_| Err(ErrorKind::LoaderPanicked.into()))
}

fn failed(error: &Error) -> Response {
    let (status, code) = wire::status_of(error.kind());
    Response::text(status, error.to_string()).with_own_header(wire::ERROR_HEADER, code)
}

fn method_not_allowed() -> Response {
    Response::text(405, "peers are asked with GET").with_own_header("Allow", "GET")
}
